//! A walk of nobody's stack, shortly before a stop, so that the walks in it find their code and
//! tables in this processor's caches.
//!
//! Whoever stops the world to collect garbage has just been through much of the heap, or asleep,
//! and his processor knows nothing of the walk any more. One mutator's 15 native frames and 1,200
//! words took 12 us in the stop that began a collection, and 2 us if they were walked once more in
//! the same stop. Beside the running mutators the same time costs nobody anything. So three things
//! are brought near, and none of them is believed, or even read, of a thread that runs:
//!
//! * the code, by walking a few frames of the caller's own;
//! * the unwind rules that are kept from earlier stops;
//! * the mutators' stacks from where they stood when they were walked last: their outer frames stay
//!   as they are for long. Asking for a line is no access, so a thread may as well have ended
//!   meanwhile, and its stack be unmapped.
//!
//! With all three, 5 us are left: what a thread has just written, its signal frame foremost, is in
//! its own processor's cache alone.

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

/// Bytes of mutators' stacks that are asked for in all: far less than a core's second-level cache
/// holds.
const MOST: usize = 64 << 10;

/// Frames of the caller's own that are walked.
const DEPTH: u32 = 4;

/// An image of vector registers that are in use, as XSAVE writes it: SSE and AVX, at their places,
/// all zero.
const IMAGE: [u64; 104] = {
    let mut image = [0; 104];
    image[64] = 0b110;
    image
};

/// Brings near what walks of these threads will need in the next stop. How many frames of its own
/// it has walked.
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

/// Finds the rules of the running thread's frames, on its stack of these addresses, so that the
/// first walk of it does not have to: 2 to 10 us each. Those of modules that may be unloaded are
/// not kept: the frames may have returned before the next stop. How many frames that were.
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

/// The caller's own frames, up to `end`.
struct Own<'a> {
    code: &'a CodeMap,
    end: usize,
    seen: u32,
    /// Where the last frame ends, if it has no caller.
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

/// Frames to walk.
#[inline(never)]
fn walk_from_depth(depth: u32, own: &mut Own<'_>) {
    match depth {
        0 => arch::call_spilled(walk_own_frames, core::ptr::from_mut(own).cast()),
        _ => walk_from_depth(depth - 1, own),
    }
    // Nothing after a call makes it a jump.
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
    // Not `run`: where the frames end, that searches the rest, and changes what looks like a signal
    // frame.
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
