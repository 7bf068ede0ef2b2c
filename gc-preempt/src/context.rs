//! The state of a stopped thread: its registers, its vector state, and how it came to stop.
//!
//! The thread fills a [`Snapshot`] before it acknowledges a stop, and the walker reads it. A
//! snapshot does not move while the thread is stopped, so the walker reports the registers to a
//! root sink as a range of words.

use std::ops::Range;

/// DWARF number of RSP, the index of the stack pointer in [`Registers::gpr`].
pub const RSP: usize = 7;
/// DWARF number of RBP, the index of the frame pointer in [`Registers::gpr`].
pub const RBP: usize = 6;

/// DWARF numbers of the registers that a callee preserves, except RSP.
pub(crate) const PRESERVED: [usize; 6] = [3, RBP, 12, 13, 14, 15];

/// The general registers of a stopped thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// The registers in DWARF's order: RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP, R8 to R15.
    pub gpr: [usize; 16],
    /// The instruction that runs next when the thread is resumed.
    pub pc: usize,
    /// RFLAGS.
    pub flags: usize,
}

impl Registers {
    /// The stack pointer.
    pub fn sp(&self) -> usize {
        self.gpr[RSP]
    }

    /// The registers of a thread that called this crate: SP, FP and PC of the calling frame; the
    /// others are zero.
    pub fn at_call(sp: usize, fp: usize, pc: usize) -> Self {
        let mut registers = Self {
            pc,
            ..Self::default()
        };
        registers.gpr[RSP] = sp;
        registers.gpr[RBP] = fp;
        registers
    }

    /// The frame pointer, RBP. In code without frame pointers it holds any value.
    pub fn fp(&self) -> usize {
        self.gpr[RBP]
    }
}

/// How a thread came to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A signal interrupted the thread, and it waits in the handler. The PC may be any instruction,
    /// and the red zone below SP is in use.
    Signal,
    /// The thread runs an injected call of `async_preempt`. The PC, the registers and the red zone
    /// are those of the interrupted instruction.
    Injected,
    /// The thread called this crate: a blocking region, or a poll. The PC is a return address, and
    /// SP is its value after that return. The registers that a callee preserves were pushed at or
    /// above SP, and there is no red zone. Registers that hold no value of the caller are zero in
    /// the snapshot.
    Call,
}

/// The state of a stopped thread at the instant of its stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The general registers.
    pub registers: Registers,
    /// The addresses of the vector state, as XSAVE wrote it. Empty for [`Origin::Call`], since no
    /// vector register keeps its value over a call.
    pub vectors: Range<usize>,
    /// How the thread came to stop.
    pub origin: Origin,
}

impl Default for Snapshot {
    /// A snapshot of no thread: all registers are zero, and there are no vectors.
    fn default() -> Self {
        Self {
            registers: Registers::default(),
            vectors: 0..0,
            origin: Origin::Call,
        }
    }
}
