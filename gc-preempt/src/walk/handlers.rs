//! The signal frames of other people's handlers: what they interrupted, and moving that out of
//! restart ranges.
//!
//! # Why
//! A thread in the middle of a restart range is interrupted by a host's handler (a profiler's,
//! say), and the stop finds it inside that handler. Where the handler stands is a safe point. Where
//! it will return to is not: the thread would go on in the middle of the range with what it had
//! loaded before the stop. So the saved PC is moved to the range's first instruction, as the stop's
//! own handler does with the PC that it interrupted; and if it lies in an unsafe range, the thread
//! cannot be stopped yet.
//!
//! # Who does it, and when
//! 1. The thread itself, if the signal mask that it will return to is not empty ([`settle`]). While
//!    a handler runs its signal is blocked, so an empty mask says that none does, and nearly every
//!    stop gets off with one compare. A few frames are walked before it acknowledges the stop, the
//!    others beside the stop, see `stop_point.rs`.
//! 2. Every walk of its stack. That catches what 1 does not see: a handler installed with
//!    SA_NODEFER and no mask of its own, and one that waits in `blocking`. A stop in which stacks
//!    are not walked must not rely on restart ranges behind those two. (Nor can either of them be
//!    kept out of an unsafe range.)
//!
//! A handler that runs on an alternate stack is never stopped there, so nothing is behind it.
//!
//! # How a signal frame is found
//! By the unwind tables, as one more frame. Where the walk has lost its way, by looking at every
//! word from there on ([`Walker::search`]): the kernel's `sigcontext` holds the segment selectors
//! in one word, which hardly anything else looks like; flags, stack pointer and PC are tested
//! besides. What has the form of a signal frame but is a dead one's rest gets a word changed that
//! nobody reads. An unsafe range is not believed there, since a stop must not wait for a rest.

use std::ops::Range;
use std::ptr;

use super::{Frame, Frames, Next, Nothing, RED_ZONE, Stack, Step, Walker, walk_with};
use crate::code::{CodeMap, Place};
use crate::context::{Registers, Snapshot};
use crate::faults;

/// `mov rax, 15; syscall`, as every restorer is, since debuggers know it by that.
const RESTORE: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// Bytes of its first instruction.
const RESTORE_MOV: usize = 7;
/// Words of a frame in a search: more than most frames have.
const WORDS: usize = 32;
/// From the ucontext to `uc_mcontext.gregs`.
const GREGS: usize = 40;
/// The place of each register in `gregs`, in DWARF's order, then RIP and the flags.
const PLACES: [usize; 18] = [
    13, 12, 14, 11, 9, 8, 10, 15, 0, 1, 2, 3, 4, 5, 6, 7, RIP, FLAGS,
];
const RSP: usize = 15;
const RIP: usize = 16;
const FLAGS: usize = 17;
/// CS, GS, FS and SS, two bytes each.
const SELECTORS: usize = 18;
/// CS in 64-bit code; GS and FS, which the kernel does not write, are zero.
const USER_CODE: usize = 0x33;

/// What a walk has found behind handlers of the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Behind {
    /// Nothing is interrupted in a restart range any more, nor in an unsafe one.
    Settled,
    /// A handler has interrupted an unsafe range: the thread must not be stopped now.
    Unsafe,
    /// The walk has ended before the stack's end, and found nothing unsafe.
    TooDeep,
}

/// Moves what handlers further out on the running thread's own stack have interrupted out of
/// restart ranges, in the `most` innermost frames.
///
/// # Safety
/// As for [`walk`](super::walk), but on the thread itself, for a stop that is under way. The
/// stopper holds the registry lock until this returns: the thread has not answered the stop yet, or
/// has announced its walk.
pub(crate) unsafe fn settle(
    code: &CodeMap,
    number: u64,
    snapshot: &Snapshot,
    frames: Frames<'_>,
    most: u32,
) -> Behind {
    // SAFETY: the caller's contract.
    let (_, behind) = unsafe { walk_with(code, number, snapshot, frames, &mut Nothing, most) };
    behind
}

impl Stack {
    /// The frame of a signal handler's trampoline: from SP to the red zone of what the signal
    /// interrupted, with all of its registers in between. With the address at which the interrupted
    /// PC is kept.
    pub(super) fn signal_frame(&self, frame: &Frame, limit: usize) -> Option<(Step, usize)> {
        // SAFETY: an unwind table covers the PC, so there is code; it is a trampoline's by the
        // table's word, so all nine bytes are there, before the PC or behind it.
        let is_restorer = unsafe {
            let at = |pc: usize| ptr::read_unaligned(pc as *const [u8; 9]) == RESTORE;
            let inside = ptr::read_unaligned(frame.pc as *const [u8; 2]) == RESTORE[RESTORE_MOV..];
            at(frame.pc) || frame.interrupted && inside && at(frame.pc - RESTORE_MOV)
        };
        if !is_restorer {
            return None;
        }
        let gregs = frame.sp().checked_add(GREGS)?;
        let mut values = [0; 18];
        for (value, place) in values.iter_mut().zip(PLACES) {
            *value = self.word(gregs.checked_add(8 * place)?)?;
        }
        let [gpr @ .., pc, flags] = values;
        let registers = Registers { gpr, pc, flags };
        // On another stack (the handler ran on an alternate one) nothing more is known.
        let cfa = registers.sp().checked_sub(RED_ZONE)? & !7;
        (cfa > gregs && cfa <= limit).then_some((
            Step {
                cfa,
                next: Next::Frame(Frame::interrupted(&registers)),
                saves: 0,
            },
            gregs + 8 * RIP,
        ))
    }

    /// Has the handler at whose trampoline the frame stands interrupted something further in on the
    /// same stack? Then it runs on an alternate stack inside of it.
    pub(super) fn interrupted_below(&self, frame: &Frame) -> bool {
        let sp = frame.sp().checked_add(GREGS + 8 * RSP);
        sp.and_then(|at| self.word(at))
            .is_some_and(|sp| self.0.contains(&sp) && sp <= frame.sp())
    }

    /// The saved PC of what looks like a signal frame, if `selectors` is where its segment
    /// selectors are.
    fn saved_pc(&self, selectors: usize) -> Option<usize> {
        if self.word(selectors)? & 0xffff_ffff_ffff != USER_CODE {
            return None;
        }
        let gregs = selectors.checked_sub(8 * SELECTORS)?;
        let flags = self.word(gregs + 8 * FLAGS)?;
        let sp = self.word(gregs + 8 * RSP)?;
        // Bit 1 of the flags is always set, and none above bit 21 ever.
        (flags & 2 != 0 && flags >> 22 == 0 && sp > selectors && self.0.contains(&sp))
            .then_some(gregs + 8 * RIP)
    }
}

impl Walker<'_> {
    /// A step into what a handler has interrupted; the PC that it will return to lies at `saved`.
    pub(super) fn behind_a_handler(&mut self, mut step: Step, saved: usize) -> Step {
        if let Next::Frame(frame) = &mut step.next {
            match self.place(frame.pc) {
                Place::Restart { start } => {
                    self.put_back(saved, start);
                    frame.pc = start;
                }
                Place::Unsafe => self.behind = Behind::Unsafe,
                Place::Managed | Place::Native => {}
            }
        }
        step
    }

    /// The walk ends here, short of the stack's end.
    pub(super) fn too_deep(&mut self) {
        if self.behind == Behind::Settled {
            self.behind = Behind::TooDeep;
        }
    }

    /// Looks for signal frames where no table leads from one frame to the next, in as many words as
    /// the frames that may still be walked would have.
    pub(super) fn search(&mut self, words: &Range<usize>) {
        let first = words.start.next_multiple_of(8);
        let most = (self.left as usize).saturating_mul(8 * WORDS);
        let end = first.saturating_add(most).min(words.end & !7);
        if end < words.end & !7 {
            self.too_deep();
        }
        for selectors in (first..end).step_by(8) {
            if let Some(saved) = self.stack.saved_pc(selectors)
                && let Some(pc) = self.stack.word(saved)
                && let Place::Restart { start } = self.place(pc)
            {
                self.put_back(saved, start);
            }
        }
    }

    fn place(&self, pc: usize) -> Place {
        // SAFETY: the registry lock is held, by `walk`'s contract.
        unsafe { self.code.classify(pc) }
    }

    fn put_back(&self, saved: usize, start: usize) {
        if !faults::planted("no-outer-restart") {
            // SAFETY: a word of the stopped thread's stack, tested by the reads that came before:
            // the PC of a signal frame, which only the return from that signal will read.
            unsafe { ptr::write_volatile(saved as *mut usize, start) };
        }
    }
}
