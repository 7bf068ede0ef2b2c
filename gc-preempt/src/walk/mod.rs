//! Walks a stopped thread's frames from the innermost outwards and says of each where its
//! references may be.
//!
//! The walk is *sound by default*: a frame is passed over only as far as something vouches for what
//! it holds (a stack map) and for where it ends (a frame rule, an unwind table). Where knowledge
//! ends, every word from there to the stack's base is reported as possibly a reference.
//!
//! # Two kinds of frame
//!
//! A frame that was **interrupted** stands at any instruction. No map speaks of it: its registers,
//! its red zone and all its words up to its CFA are reported word by word. That is the innermost
//! frame, and every frame behind an interruption further out (a hook that runs in an injected call,
//! a signal handler of somebody else's), also if its PC happens to equal a return address. The
//! frame of an injected call is known by the one return address into the trampoline, and holds all
//! registers of what it interrupted. No list of such calls is kept: a long jump out of a hook would
//! leave entries in it whose stack is used anew.
//!
//! A frame that **called** stands at a return address. If that lies in managed code with an entry
//! in the stack maps, its slots are exact. Two of its areas are reported word by word all the same:
//! the arguments of the call, which the callee may not have read yet, and the registers that it
//! saved for its caller, which may be the only copy of a reference of a native caller's. A managed
//! return address without entry may be a call that the compiler made up, with references in
//! registers: word by word, and counted.
//!
//! # Where a frame ends
//!
//! Code laid out by RBP (Cranelift's): a frame that called ends two words above RBP. For one that
//! was interrupted its unwind table, if it had one, would be wrong in the epilogue, so the place of
//! the PC decides: before `push rbp` and at `ret`, SP is at the return address; after the push it
//! is one word further; elsewhere RBP is the frame's own. (Single-stepped through whole functions
//! without an error.) Everything else ends where the unwind table says, see `unwind`.
//!
//! A frame that a handler of somebody else's has interrupted may stand in a restart range, which it
//! must leave by its first instruction: see `walk/signal_frames.rs`. That is the only thing that a walk
//! changes.
//!
//! All this runs in the stopped world: no malloc, no lock, no panic. Each word is read only after
//! its address was compared with the stack's bounds, and SP grows from frame to frame, so the walk
//! ends.

mod call_sites;
mod frame;
mod signal_frames;
mod sink;
mod walker;
mod warm_up;

#[cfg(test)]
mod tests;

pub use sink::{RootSink, WalkStats};
pub(crate) use walker::BehindHandlers;
pub(crate) use warm_up::{warm_unwind_cache, warm_up_walks};

use crate::arch::{self, RED_ZONE};
use crate::code::CodeMap;
use crate::context::{Origin, Snapshot};
use crate::own_stack::StackBounds;
use frame::Frame;
use sink::Nothing;
use walker::{AHEAD, Walker};

/// Walks the stack of a thread that stands as `snapshot` says, in the stop of that number.
///
/// If SP does not lie on the stack, all of it is reported. So it is where SP lies on another stack
/// inside of this one.
///
/// # Safety
/// The thread is stopped and stays so; the registry lock is held; the stack is readable memory; and
/// the code of every managed frame on the stack is mapped.
pub(crate) unsafe fn walk(
    code: &CodeMap,
    number: u64,
    snapshot: &Snapshot,
    bounds: StackBounds<'_>,
    sink: &mut dyn RootSink,
) -> WalkStats {
    // SAFETY: the caller's contract.
    unsafe { walk_with(code, number, snapshot, bounds, sink, u32::MAX).0 }
}

/// [`walk`] of so many frames at most, and what it has found behind handlers of the host's.
///
/// # Safety
/// As for [`walk`].
unsafe fn walk_with(
    code: &CodeMap,
    number: u64,
    snapshot: &Snapshot,
    bounds: StackBounds<'_>,
    sink: &mut dyn RootSink,
    most: u32,
) -> (WalkStats, BehindHandlers) {
    let sp = snapshot.registers.sp().saturating_sub(RED_ZONE);
    let stack = bounds.stack.clone();
    arch::prefetch(sp.max(stack.start)..stack.end.min(sp.saturating_add(AHEAD)));
    arch::prefetch(snapshot.vectors.clone());
    let mut walker = Walker::new(code, number, stack, sink);
    walker.left = most;
    walker.bounds = Some(bounds);
    walker.saved(&snapshot.registers, &snapshot.vectors);
    let frame = match snapshot.origin {
        Origin::Signal | Origin::Injected => Frame::interrupted(&snapshot.registers),
        Origin::Call => Frame::called(&snapshot.registers),
    };
    walker.run(frame);
    (walker.stats, walker.behind)
}

/// Moves what handlers further out on the running thread's own stack have interrupted out of
/// restart ranges, in the `most` innermost frames.
///
/// # Safety
/// As for [`walk`], but on the thread itself, for a stop that is under way. The
/// stopper holds the registry lock until this returns: the thread has not answered the stop yet, or
/// has announced its walk.
pub(crate) unsafe fn move_handlers_out_of_restart_ranges(
    code: &CodeMap,
    number: u64,
    snapshot: &Snapshot,
    bounds: StackBounds<'_>,
    most: u32,
) -> BehindHandlers {
    // SAFETY: the caller's contract.
    let (_, behind) = unsafe { walk_with(code, number, snapshot, bounds, &mut Nothing, most) };
    behind
}
