//! What a stop does at one instruction, for people who look at machine code.
//!
//! The answer comes from the code map that the signal handler asks, and from a walk of a made-up
//! frame (`walk/rehearsal.rs`), so it holds for real stops by construction.

use crate::arch;
use crate::blocking::lock;
use crate::code::{CODE, PcClass};
use crate::errors::StopError;
use crate::walk::{FrameReport, rehearse};

/// What a stop does with a thread that a signal has interrupted at one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopAt {
    /// The thread stops there: the code is not registered, and its frame ends where its unwind
    /// table says.
    Native,
    /// The thread stops there: the code is managed.
    Managed,
    /// The thread stops, and continues at the first instruction of its restart range.
    Restart {
        /// The address of that instruction.
        start: usize,
    },
    /// The thread does not stop there. The stopper signals it again until it is elsewhere.
    Unsafe,
}

/// What a stop does at one instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// Whether the thread stops there, and where it continues.
    pub stop: StopAt,
    /// What a stop at the instruction scans of the innermost frame, besides all registers. `None`
    /// where no stop takes place.
    pub innermost: Option<FrameReport>,
    /// What a stop scans of a frame further out that a call will return to at the instruction.
    /// `None` where the instruction before it is no managed code.
    pub calling: Option<FrameReport>,
}

/// Says what a stop does with a thread at the instruction at `pc`, from the tables that stops use.
///
/// Any address is allowed, also one without code.
///
/// ```
/// use gc_preempt::{Config, FrameEnd, StopAt, World, explain};
/// let world = World::new(Config::default())?;
/// let explained = explain(main as *const () as usize)?;
/// assert_eq!(explained.stop, StopAt::Native);
/// // At a function's first instruction the return address is the word at SP.
/// let innermost = explained.innermost.unwrap();
/// assert_eq!(innermost.end, FrameEnd::Sp(8));
/// assert_eq!(innermost.words.first(), Some(&(-128..8))); // the red zone, too
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`StopError::HoldsAStop`]: the calling thread holds a stop.
pub fn explain(pc: usize) -> Result<Explanation, StopError> {
    let _lock = lock().map_err(|_| StopError::HoldsAStop)?;
    // SAFETY: the registry lock is held.
    let class = unsafe { CODE.classify(pc) };
    let (stop, from) = match class {
        PcClass::Native => (StopAt::Native, Some(pc)),
        PcClass::Managed => (StopAt::Managed, Some(pc)),
        // The handler moves the PC before the walk.
        PcClass::Restart { start } => (StopAt::Restart { start }, Some(start)),
        PcClass::Unsafe => (StopAt::Unsafe, None),
    };
    // SAFETY: the registry lock is held, and no stop is under way, as the lock was free.
    let report = |pc, interrupted| unsafe { rehearse(&CODE, pc, interrupted) };
    // SAFETY: the registry lock is held.
    let is_managed = |pc| unsafe { CODE.managed(pc) }.is_some();
    let is_call = pc != arch::trampoline_back() && is_managed(pc.wrapping_sub(1));
    Ok(Explanation {
        stop,
        innermost: from.map(|pc| report(pc, true)),
        calling: is_call.then(|| report(pc, false)),
    })
}
