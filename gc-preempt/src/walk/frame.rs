//! One frame of a stack, and the rules for where it ends.

use std::ops::Range;
use std::ptr;

use crate::code::Managed;
use crate::context::{PRESERVED, RBP, RSP, Registers};
use crate::unwind::{Back, Rule, Saved, Value};

/// A stack: the addresses whose words a walk may read.
pub(super) struct Stack(pub(super) Range<usize>);

impl Stack {
    /// The word at that address, if the address is a word's on the stack.
    #[inline]
    pub(super) fn word(&self, address: usize) -> Option<usize> {
        (address.is_multiple_of(8) && self.0.contains(&address)).then(|| {
            // SAFETY: on the stack, which is readable by `walk`'s contract, and aligned. The bounds
            // are multiples of eight, so the whole word lies inside. Volatile: it is another
            // thread's memory.
            unsafe { ptr::read_volatile(address as *const usize) }
        })
    }
}

/// A frame, with the registers that are known in it.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) pc: usize,
    registers: [usize; 16],
    /// Bit n: `registers[n]` is known. RSP always is.
    known: u16,
    /// The PC is any instruction, and there is a red zone. Otherwise the PC is a return address.
    pub(super) interrupted: bool,
}

impl Frame {
    pub(super) fn interrupted(registers: &Registers) -> Self {
        Self {
            pc: registers.pc,
            registers: registers.gpr,
            known: u16::MAX,
            interrupted: true,
        }
    }

    pub(super) fn called(registers: &Registers) -> Self {
        Self {
            pc: registers.pc,
            registers: registers.gpr,
            known: 1 << RSP | 1 << RBP,
            interrupted: false,
        }
    }

    pub(super) fn caller(pc: usize, sp: usize, rbp: Option<usize>) -> Self {
        let mut frame = Self {
            pc,
            registers: [0; 16],
            known: 0,
            interrupted: false,
        };
        frame.set(RSP, Some(sp));
        frame.set(RBP, rbp);
        frame
    }

    pub(super) fn set(&mut self, register: usize, value: Option<usize>) {
        if let Some(value) = value {
            self.registers[register] = value;
            self.known |= 1 << register;
        }
    }

    pub(super) fn get(&self, register: usize) -> Option<usize> {
        (self.known & 1 << register != 0).then_some(self.registers[register])
    }

    pub(super) fn sp(&self) -> usize {
        self.registers[RSP]
    }

    /// The PC to look up in tables. For a calling frame it is inside of the call instruction, which
    /// may be the last of its function.
    #[inline]
    pub(super) fn inside(&self) -> usize {
        if self.interrupted {
            self.pc
        } else {
            self.pc.wrapping_sub(1)
        }
    }

    /// Where the frame's own words begin.
    #[inline]
    pub(super) fn low(&self) -> usize {
        let red_zone = if self.interrupted {
            seam::red_zone()
        } else {
            0
        };
        self.sp().saturating_sub(red_zone) & !7
    }
}

/// The step from a frame to its caller. Its addresses were compared with the stack's bounds.
pub(super) struct Step {
    /// Where this frame ends.
    pub(super) cfa: usize,
    pub(super) next: Next,
    /// Bytes below the CFA that may hold registers of the caller.
    pub(super) saves: u32,
}

pub(super) enum Next {
    Frame(Frame),
    /// The frame is the outermost, and ends there.
    End {
        cfa: usize,
    },
}

/// The rules. Each returns `None` if it does not know the frame's end, or if that end is
/// impossible.
impl Stack {
    /// The end of an interrupted frame that is laid out by RBP.
    pub(super) fn by_place(
        &self,
        frame: &Frame,
        managed: &Managed<'_>,
        limit: usize,
    ) -> Option<Step> {
        /// `push rbp; mov rbp, rsp`
        const PROLOGUE: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];
        const RET: [u8; 2] = [0xc3, 0xc2];
        let function = managed.maps.function(frame.pc)?;
        // SAFETY: both lie in a registered function, which is mapped by `walk`'s contract. A
        // function of fewer than four bytes does not begin with the prologue, and a page does not
        // end inside of these four bytes unless the function does, since it is not registered to
        // begin there otherwise.
        let (start, here) = unsafe {
            let start: [u8; 4] = ptr::read_unaligned(function as *const [u8; 4]);
            (start, ptr::read(frame.pc as *const u8))
        };
        if start != PROLOGUE {
            return None;
        }
        let sp = frame.sp();
        let (cfa, rbp) = if seam::rbp_is_the_frames() {
            let rbp = frame.get(RBP)?;
            (rbp.checked_add(16)?, self.word(rbp))
        } else if frame.pc == function || RET.contains(&here) {
            (sp.checked_add(8)?, frame.get(RBP))
        } else if frame.pc == function + 1 {
            (sp.checked_add(16)?, self.word(sp))
        } else {
            let rbp = frame.get(RBP)?;
            (rbp.checked_add(16)?, self.word(rbp))
        };
        self.step(frame, cfa, limit, |pc| Frame::caller(pc, cfa, rbp))
    }

    /// The end of a frame laid out by RBP that stands at a call.
    #[inline]
    pub(super) fn by_rbp(&self, frame: &Frame, limit: usize) -> Option<Step> {
        let rbp = frame.get(RBP)?;
        let cfa = rbp.checked_add(16)?;
        let above = self.word(rbp);
        self.step(frame, cfa, limit, |pc| Frame::caller(pc, cfa, above))
    }

    /// The end of a frame by its unwind rule.
    #[inline]
    pub(super) fn by_rule(&self, frame: &Frame, rule: &Rule, limit: usize) -> Option<Step> {
        let cfa = self.value(frame, rule.cfa)?;
        if rule.back == Back::Outermost {
            return (cfa > frame.sp() && cfa <= limit && cfa.is_multiple_of(8)).then_some(Step {
                cfa,
                next: Next::End { cfa },
                saves: rule.saves,
            });
        }
        let mut step = self.step(frame, cfa, limit, |pc| {
            let mut caller = Frame::caller(pc, cfa, None);
            for (register, saved) in PRESERVED.into_iter().zip(rule.saved) {
                let value = match saved {
                    Saved::Same => frame.get(register),
                    Saved::Lost => None,
                    Saved::Cfa(offset) => cfa
                        .checked_add_signed(offset as isize)
                        .and_then(|a| self.word(a)),
                    Saved::At(at) => self.value(frame, at).and_then(|a| self.word(a)),
                };
                caller.set(register, value);
            }
            caller
        })?;
        step.saves = rule.saves;
        Some(step)
    }

    /// A step over a frame that returns through the word below its CFA.
    #[inline]
    pub(super) fn step(
        &self,
        frame: &Frame,
        cfa: usize,
        limit: usize,
        caller: impl FnOnce(usize) -> Frame,
    ) -> Option<Step> {
        if cfa <= frame.sp() || cfa > limit {
            return None;
        }
        let pc = self.word(cfa - 8)?;
        Some(Step {
            cfa,
            next: Next::Frame(caller(pc)),
            saves: 16,
        })
    }

    #[inline]
    pub(super) fn value(&self, frame: &Frame, value: Value) -> Option<usize> {
        let Value {
            register,
            offset,
            loaded,
        } = value;
        let sum = frame
            .get(register.into())?
            .checked_add_signed(offset as isize)?;
        match loaded {
            None => Some(sum),
            Some(add) => self.word(sum)?.checked_add_signed(add as isize),
        }
    }
}

/// What tests may break here.
mod seam {
    use crate::arch::RED_ZONE;
    use crate::faults::Fault;

    pub(super) fn red_zone() -> usize {
        if Fault::NoRedZone.planted() {
            0
        } else {
            RED_ZONE
        }
    }

    /// As if every instruction were behind the prologue.
    pub(super) fn rbp_is_the_frames() -> bool {
        Fault::EndByRbpOnly.planted()
    }
}
