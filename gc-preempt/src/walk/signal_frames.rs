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
//! 1. The thread itself, if the signal mask that it will return to is not empty ([`move_handlers_out_of_restart_ranges`](super::move_handlers_out_of_restart_ranges)). While
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
//! word from there on (`Walker::search`): the kernel's `sigcontext` holds the segment selectors
//! in one word, which hardly anything else looks like; flags, stack pointer and PC are tested
//! besides. What has the form of a signal frame but is a dead one's rest gets a word changed that
//! nobody reads. An unsafe range is not believed there, since a stop must not wait for a rest.

use super::frame::{Frame, Next, Stack, Step};
use crate::arch::RED_ZONE;
use crate::context::Registers;
use std::ptr;

/// `mov rax, 15; syscall`, as every restorer is, since debuggers know it by that.
const RESTORE: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// Bytes of its first instruction.
const RESTORE_MOV: usize = 7;
/// Words of a frame in a search: more than most frames have.
pub(super) const WORDS: usize = 32;
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
    pub(super) fn saved_pc(&self, selectors: usize) -> Option<usize> {
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
