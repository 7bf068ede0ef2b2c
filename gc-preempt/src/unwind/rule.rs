//! What unwind tables say of one frame: how to get to its caller.

use std::ops::Range;

use crate::context::{PRESERVED, RSP};

/// How to get to the caller of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The canonical frame address: SP in the caller, once this frame has returned.
    pub(crate) cfa: Value,
    pub(crate) back: Back,
    /// Where the caller's values of the [`PRESERVED`] registers are.
    pub(crate) saved: [Saved; PRESERVED.len()],
    /// The registers that the frame has saved for its caller, and the return address, lie within so
    /// many bytes below the CFA.
    pub(crate) saves: u32,
}

/// How a frame returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    /// To the address in the word below the CFA.
    Address,
    /// It has no caller: the outermost frame of its stack.
    Outermost,
    /// By `rt_sigreturn`: it is the restorer of a signal handler, and the ucontext at SP holds the
    /// interrupted registers. The other fields mean nothing.
    Signal,
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saved {
    /// In the register.
    Same,
    /// Nowhere.
    Lost,
    /// In memory, so many bytes from the CFA.
    Cfa(i32),
    /// In memory, at this address.
    At(Value),
}

/// A number that depends on the frame's registers and on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// DWARF number of a general register.
    pub(crate) register: u8,
    /// Added to it.
    pub(crate) offset: i32,
    /// `Some`: the sum is an address, and the value is the word there plus this.
    pub(crate) loaded: Option<i32>,
}

impl Rule {
    pub(super) const SIGNAL: Self = Self {
        cfa: Value {
            register: RSP as u8,
            offset: 0,
            loaded: None,
        },
        back: Back::Signal,
        saved: [Saved::Lost; PRESERVED.len()],
        saves: 0,
    };
}

/// A rule, and the PCs that it holds for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) pcs: Range<usize>,
    pub(crate) rule: Rule,
}
