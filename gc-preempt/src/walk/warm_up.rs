//! Brings what a walk needs into this processor's caches, before the stop in which it runs.
//!
//! A collector's thread that stops the world was busy in the heap before, or slept, and its caches
//! hold none of the code and the tables of a walk. Beside the running mutators the same cache
//! misses make no pause longer. So three things are loaded, and no word of a running thread is
//! read:
//!
//! * the code, by a walk of a few frames of the caller;
//! * the unwind rules that are cached from earlier stops;
//! * the mutators' stacks, from their stack pointers at the last walk: their outer frames change
//!   seldom. A prefetch is no access, so a thread may end meanwhile and its stack be unmapped.

use std::hint::black_box;

use super::frame::{Frame, Next};
use super::sink::Nothing;
use super::walker::{AHEAD, Walker};
use crate::arch;
use crate::code::CodeMap;
use crate::context::Registers;
use crate::own_stack::StackBounds;
use crate::registry::Record;
use crate::unwind::{self, NEVER};

/// Bytes of mutators' stacks that are prefetched in all: a small part of a core's second-level
/// cache.
const MOST: usize = 64 << 10;

/// Frames of the caller that are walked.
const DEPTH: u32 = 4;

/// An image of vector registers that are in use, as XSAVE writes it: SSE and AVX, at their places,
/// all zero.
const IMAGE: [u64; 104] = {
    let mut image = [0; 104];
    image[64] = 0b110;
    image
};

/// Loads what walks of these threads need in the next stop. Returns how many of its own frames it
/// has walked.
///
/// # Safety
/// The registry lock is held.
pub(crate) unsafe fn warm_up_walks<'a>(
    code: &CodeMap,
    threads: impl Iterator<Item = &'a Record>,
) -> u32 {
    arch::prefetch(unwind::kept_rules());
    for thread in threads.take(MOST / AHEAD) {
        let sp = thread.walked();
        arch::prefetch(sp..thread.stack().end.min(sp.saturating_add(AHEAD)));
    }
    let end = 0usize;
    let mut own = Own::new(code, &raw const end as usize);
    walk_from_depth(DEPTH, &mut own);
    black_box(&end);
    own.seen
}

/// Finds the unwind rules of the running thread's frames, so that the first walk of its stack finds
/// them in the cache. Rules of modules that may be unloaded are not kept: their frames may have
/// returned before the next stop. Returns how many frames it has walked.
///
/// # Safety
/// The registry lock is held; `stack` is the thread's own, and mapped.
pub(crate) unsafe fn warm_unwind_cache(code: &CodeMap, bounds: StackBounds<'_>) -> u32 {
    let here = 0usize;
    if !bounds.stack.contains(&(&raw const here as usize)) {
        return 0;
    }
    let mut own = Own::new(code, bounds.stack.end);
    walk_from_depth(0, &mut own);
    if let Some(cfa) = own.outermost {
        bounds.is_outermost(cfa);
    }
    black_box(&here);
    own.seen
}

/// A walk of the caller's own frames up to `end`.
struct Own<'a> {
    code: &'a CodeMap,
    end: usize,
    seen: u32,
    /// The end of the last frame, if that has no caller.
    outermost: Option<usize>,
}

impl<'a> Own<'a> {
    fn new(code: &'a CodeMap, end: usize) -> Self {
        Self {
            code,
            end: end & !7,
            seen: 0,
            outermost: None,
        }
    }
}

/// Walks the frames from `depth` further calls on.
#[inline(never)]
fn walk_from_depth(depth: u32, own: &mut Own<'_>) {
    match depth {
        0 => arch::call_spilled(walk_own_frames, core::ptr::from_mut(own).cast()),
        _ => walk_from_depth(depth - 1, own),
    }
    // Keeps the call above from becoming a jump.
    black_box(own);
}

extern "C-unwind" fn walk_own_frames(own: *mut (), sp: usize, fp: usize, pc: usize) {
    // SAFETY: `walk_from_depth` passes it, and waits.
    let own = unsafe { &mut *own.cast::<Own<'_>>() };
    let registers = Registers::at_call(sp, fp, pc);
    let image = IMAGE;
    let vectors = image.as_ptr_range();
    let mut sink = Nothing;
    let mut walker = Walker::new(own.code, NEVER, sp..own.end, &mut sink);
    walker.saved(&registers, &(vectors.start as usize..vectors.end as usize));
    // Not `Walker::run`: it searches the words after the last known frame, and changes words that
    // look like a signal frame.
    let mut frame = Frame::interrupted(&registers);
    loop {
        own.seen += 1;
        match walker.frame(&frame, frame.low().max(sp), own.end) {
            Some(Next::Frame(next)) => frame = next,
            Some(Next::End { cfa }) => {
                own.outermost = Some(cfa);
                break;
            }
            None => break,
        }
    }
}
