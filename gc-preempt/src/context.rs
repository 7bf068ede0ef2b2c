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

/// DWARF numbers of the registers that a callee preserves, RSP aside.
pub(crate) const PRESERVED: [usize; 6] = [3, RBP, 12, 13, 14, 15];

/// The general registers of a stopped thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// In DWARF's order: RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP, R8 to R15.
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

    /// The registers of a thread that called us: SP, FP and PC of the calling frame, and zeros.
    pub fn at_call(sp: usize, fp: usize, pc: usize) -> Self {
        let mut registers = Self {
            pc,
            ..Self::default()
        };
        registers.gpr[RSP] = sp;
        registers.gpr[RBP] = fp;
        registers
    }

    /// The frame pointer, RBP. Code that keeps no frame pointer uses it for anything.
    pub fn fp(&self) -> usize {
        self.gpr[RBP]
    }
}

/// How a thread came to stop where its snapshot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A signal interrupted it, and it waits in the handler. The PC may be any instruction, and the
    /// red zone below SP is alive.
    Signal,
    /// It runs a call to `async_preempt` that a signal pushed. The PC, the registers and the red
    /// zone are as at the interruption.
    Injected,
    /// It called us: a blocking region, or a poll. The PC is a return address, and SP its value
    /// after that return. The registers that a callee must keep were pushed at or above SP, and
    /// there is no red zone. Registers that hold no value of the caller are zero in the snapshot.
    Call,
}

/// A stopped thread's state at the instant of its stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The general registers.
    pub registers: Registers,
    /// Where the vector state lies in memory, as XSAVE wrote it. Empty for [`Origin::Call`]: no
    /// vector register outlives a call.
    pub vectors: Range<usize>,
    /// How the thread came to stop.
    pub origin: Origin,
}

impl Default for Snapshot {
    /// The state of no thread: all registers zero, no vectors.
    fn default() -> Self {
        Self {
            registers: Registers::default(),
            vectors: 0..0,
            origin: Origin::Call,
        }
    }
}
