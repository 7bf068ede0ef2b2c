//! Walks a stopped thread's frames from the innermost outwards, and reports where references may
//! be.
//!
//! The walk is *sound by default*: a word is left out only if a stack map says that it holds no
//! reference, and a frame's end is believed only if a frame rule or an unwind table gives it. From
//! the first frame without a known end, every word up to the stack's base is reported as possibly a
//! reference.
//!
//! # Two kinds of frame
//!
//! The PC of an **interrupted** frame may be any instruction. No stack map describes such a frame,
//! so its registers, its red zone and all its words up to its CFA are reported word by word. The
//! innermost frame is interrupted, and so is every frame that a signal handler of the host or an
//! injected call has interrupted, also if its PC equals a return address. The walk knows the frame
//! of an injected call by the only return address into the trampoline; that frame holds all
//! registers of the interrupted frame. There is no list of running hooks: a long jump out of a hook
//! would leave stale entries in it.
//!
//! The PC of a **calling** frame is a return address. If it lies in managed code and has an entry
//! in the stack maps, the frame's slots are exact. Two areas of it are reported word by word all
//! the same: the arguments of the call, which the callee may not have read yet; and the registers
//! that the frame saved for its caller, which may hold the only copy of a native caller's
//! reference. A managed return address without entry may belong to a call that the compiler has
//! inserted, with references in registers: that frame is reported word by word, and counted.
//!
//! # Where a frame ends
//!
//! Code laid out by RBP (Cranelift's): a calling frame ends two words above RBP. For an interrupted
//! frame the PC decides, since an unwind table would be wrong in the epilogue. Before `push rbp`
//! and at `ret`, SP is at the return address; after the push, SP is one word below; elsewhere RBP
//! is the frame's own. Every other frame ends where its unwind table says, see `unwind`.
//!
//! # What a walk changes
//!
//! If a host's handler has interrupted a restart range, the walk moves the saved PC to the range's
//! start (`walk/signal_frames.rs`), and nothing else.
//!
//! All this runs in the stopped world: no malloc, no lock, no panic. Each word is read only after
//! its address was compared with the stack's bounds, and SP grows from frame to frame, so the walk
//! ends.

mod call_sites;
mod frame;
mod rehearsal;
mod signal_frames;
mod sink;
mod walker;
mod warm_up;

#[cfg(test)]
mod tests;

pub(crate) use rehearsal::rehearse;
pub use rehearsal::{FrameEnd, FrameReport};
pub use sink::{RootSink, WalkStats};
pub(crate) use walker::BehindHandlers;
pub(crate) use warm_up::{warm_unwind_cache, warm_up_walks};

use crate::arch::{self, RED_ZONE};
use crate::code::CodeMap;
use crate::context::{Origin, Snapshot};
use crate::own_stack::StackBounds;
use crate::stack_record::Left;
use frame::Frame;
use sink::Nothing;
use walker::{AHEAD, Walker};

/// Walks the stack of a thread that stands as `snapshot` says, in the stop of that number.
///
/// If SP does not lie on the stack, or lies on another stack inside of this one, the whole stack is
/// reported.
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

/// Walks a stack from where it was left.
///
/// # Safety
/// As for [`walk`]: the frames of the stack do not change meanwhile.
pub(crate) unsafe fn walk_left(
    code: &CodeMap,
    number: u64,
    left: &Left,
    bounds: StackBounds<'_>,
    sink: &mut dyn RootSink,
) -> WalkStats {
    let registers = left.snapshot().registers;
    let stack = bounds.stack.clone();
    arch::prefetch(registers.sp()..stack.end.min(registers.sp().saturating_add(AHEAD)));
    let mut walker = Walker::new(code, number, stack, sink);
    walker.bounds = Some(bounds);
    // The registers name the frame, and hold nothing else.
    walker.run(Frame::called(&registers));
    walker.stats
}

/// [`walk`] of `most` frames at most. Also says what handlers of the host have interrupted.
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

/// For each handler of the host in the `most` innermost frames of the running thread: moves the PC
/// to which the handler returns to the start of its restart range, if it lies in one.
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
