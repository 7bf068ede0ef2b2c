//! The signal frames of a host's handlers: finding them, and the PC to which each returns.
//!
//! # Why
//! A host's handler (a profiler's, say) may interrupt a thread in the middle of a restart range,
//! and a stop may find the thread inside that handler. The handler's own PC is a safe point. The PC
//! to which it returns is not: the thread would go on in the middle of the range with values that
//! it has loaded before the stop. So the saved PC is moved to the range's first instruction, as our
//! handler moves the PC that it has interrupted. If the saved PC lies in an unsafe range, the
//! thread cannot be stopped yet.
//!
//! # When
//! 1. The thread itself walks its stack, if the signal mask to which it returns is not empty
//!    ([`move_handlers_out_of_restart_ranges`](super::move_handlers_out_of_restart_ranges)). While
//!    a handler runs its signal is blocked, so an empty mask means that no handler runs, and most
//!    stops cost one compare. `stop_point.rs` says how many frames it walks before it acknowledges.
//! 2. Every walk of the thread's stack in the stop does it. That covers two handlers that the mask
//!    does not show: a handler installed with SA_NODEFER and no mask of its own, and a handler that
//!    waits in `blocking`. A stop that walks no stacks must not rely on restart ranges behind these
//!    two, and neither is kept out of an unsafe range.
//!
//! A thread is never stopped while its handler runs on an alternate stack.
//!
//! # How a signal frame is found
//! The unwind tables describe it as one more frame. After the last frame whose end is known, every
//! word is tested (`Walker::search`): the kernel's `sigcontext` holds the segment selectors in one
//! word with a value that is rare elsewhere; flags, stack pointer and PC are tested besides. The
//! test also finds remains of signal frames that are dead. There one word changes that no code
//! reads. An unsafe range is ignored there, since a stop must not wait for a dead frame.

use super::frame::{Frame, Next, Stack, Step};
use crate::arch::RED_ZONE;
use crate::context::Registers;
use std::ptr;

/// `mov rax, 15; syscall`: the code of every restorer, by which debuggers recognise it.
const RESTORE: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// Bytes of its first instruction.
const RESTORE_MOV: usize = 7;
/// Words that a search takes for one frame: more than most frames have.
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
    /// The step over the frame of a signal handler's restorer, which extends from SP to the red
    /// zone of the interrupted frame and holds all of its registers. Also the address of the saved
    /// PC.
    pub(super) fn signal_frame(&self, frame: &Frame, limit: usize) -> Option<(Step, usize)> {
        // SAFETY: an unwind table covers the PC, so code is mapped there. The table calls it a
        // restorer, so all nine bytes are mapped, before the PC or after it.
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
        // The interrupted frame is on another stack (the handler ran on an alternate one): its
        // frames are not walked.
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

    /// Does the restorer's frame return to a lower address of the same stack? Then the handler ran
    /// on an alternate stack inside of that stack.
    pub(super) fn interrupted_below(&self, frame: &Frame) -> bool {
        let sp = frame.sp().checked_add(GREGS + 8 * RSP);
        sp.and_then(|at| self.word(at))
            .is_some_and(|sp| self.0.contains(&sp) && sp <= frame.sp())
    }

    /// The address of the saved PC, if the words around `selectors` look like a signal frame with
    /// its segment selectors there.
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
