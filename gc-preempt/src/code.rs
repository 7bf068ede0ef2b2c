//! The process's code map: which ranges of addresses hold managed code, and where inside or outside of it a thread must not be stopped.

use std::any::Any;
use std::fmt;
use std::ops::Range;

use crate::stackmap::StackMaps;

/// A range of code and what it is, as `World::register_code` takes it.
pub struct CodeSpec {
    /// The addresses that the code fills.
    pub range: Range<usize>,
    /// What the code is.
    pub what: CodeWhat,
    /// Whatever keeps the code mapped. It is dropped once the guard is gone and no stack returns into the range, on a thread that is not a mutator.
    pub owner: Option<Box<dyn Any + Send>>,
}

impl fmt::Debug for CodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeSpec")
            .field(
                "range",
                &format_args!("{:#x}..{:#x}", self.range.start, self.range.end),
            )
            .field("what", &self.what)
            .field("owner", &self.owner.is_some())
            .finish()
    }
}

/// What a range of code is.
#[derive(Debug)]
pub enum CodeWhat {
    /// Managed code: its outer frames are scanned by its stack maps.
    Managed {
        /// How its frames are laid out.
        frames: FrameRule,
        /// Its stack maps.
        maps: StackMaps,
        /// Handed to [`RootSink::exact`](crate::walk::RootSink::exact) with each slot; it means nothing here.
        encoding: u32,
    },
    /// A thread is never stopped at an instruction of this range; the stop is tried again a little later. It must be short and must not wait.
    Unsafe,
    /// A thread that is interrupted inside this range, at any instruction but its first, is moved back to the first. The range must be safe to begin again from
    /// everywhere in it: it keeps its inputs, and only its last instruction has an effect.
    Restart,
}

/// How the frames of managed code are laid out, which the code's compiler decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameRule {
    /// Cranelift's: a function begins with `push rbp; mov rbp, rsp`, ends with `pop rbp; ret`, and keeps RBP in between.
    Rbp,
    /// LLVM's: unwind tables in the module's `.eh_frame` that hold at every instruction (`uwtable`, which is LLVM's default for x86-64 code that may unwind).
    Cfi,
}
