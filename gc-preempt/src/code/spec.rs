//! What code is registered with, and why a registration is refused.

use std::any::Any;
use std::fmt;
use std::ops::Range;

use crate::stackmap::StackMaps;
use crate::stopper::HOLDS_A_STOP;

/// A range of code, and its kind, for [`World::register_code`](crate::World::register_code).
///
/// Registering takes time linear in the range's own stack maps and logarithmic in the number of
/// ranges. So a JIT compiler can register each function of an arena by itself when it is compiled,
/// with a clone of the arena's `Arc` as the owner. The arena is freed with its last function.
///
/// ```
/// use gc_preempt::{CodeSpec, CodeWhat, Config, World};
/// let world = World::new(Config::default())?;
/// let code = [0xc3u8; 16]; // never run here
/// let start = code.as_ptr() as usize;
/// let spec = CodeSpec {
///     range: start..start + code.len(),
///     what: CodeWhat::Unsafe,
///     owner: None,
/// };
/// // SAFETY: nothing runs this code.
/// let guard = unsafe { world.register_code(spec) }?;
/// assert_eq!(guard.range().len(), 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CodeSpec {
    /// The addresses that the code fills.
    pub range: Range<usize>,
    /// The kind of the code.
    pub what: CodeWhat,
    /// The owner of the code's memory. It is dropped after the guard was dropped and no stack
    /// returns into the range, on a thread that stops or drops the world.
    pub owner: Option<Box<dyn Any + Send>>,
}

/// A [`CodeSpec`] that does not contradict itself.
pub(crate) struct Checked(pub(super) CodeSpec);

impl CodeSpec {
    /// Checks the spec by itself, without the registry lock, since this takes time linear in the
    /// stack maps.
    pub(crate) fn checked(self) -> Result<Checked, CodeError> {
        let range = &self.range;
        if range.is_empty() {
            let range = range.clone();
            return Err(CodeError::Empty { range });
        }
        if let CodeWhat::Managed { maps, .. } = &self.what
            && let Some(address) = maps.outside(range)
        {
            let range = range.clone();
            return Err(CodeError::Outside { range, address });
        }
        Ok(Checked(self))
    }
}

impl fmt::Debug for CodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeSpec")
            .field("range", &Hex(&self.range))
            .field("what", &self.what)
            .field("owner", &self.owner.is_some())
            .finish()
    }
}

/// The kind of a range of code, with the data of that kind.
#[derive(Debug)]
pub enum CodeWhat {
    /// Managed code: its outer frames are scanned by its stack maps.
    Managed {
        /// The layout of its frames.
        frames: FrameRule,
        /// The stack maps of its calls.
        maps: StackMaps,
        /// A number that [`RootSink::exact`](crate::RootSink::exact) gets with each slot. The
        /// caller decides its meaning.
        encoding: u32,
    },
    /// A thread is never stopped at an instruction of this range; the stopper signals it again a
    /// little later. The range must be short and must not wait.
    ///
    /// A thread is also not stopped in a signal handler that has interrupted this range. Only a
    /// walk of the whole stack finds that out: while an unsafe range is registered, the time to
    /// stop a thread that has a signal blocked grows with the depth of its stack.
    /// [`Restart`](Self::Restart) ranges do not have this cost.
    Unsafe,
    /// A thread that is stopped inside this range continues at the range's first instruction. It
    /// must be safe to begin the range again after each of its instructions: it does not change its
    /// inputs, and only its last instruction has an effect, except for effects that may be
    /// repeated.
    Restart,
}

impl CodeWhat {
    pub(super) fn kind(&self) -> CodeKind {
        match self {
            CodeWhat::Managed { .. } => CodeKind::Managed,
            CodeWhat::Unsafe => CodeKind::Unsafe,
            CodeWhat::Restart => CodeKind::Restart,
        }
    }
}

/// The frame layout of managed code, which its compiler decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameRule {
    /// Cranelift's: a function begins with `push rbp; mov rbp, rsp`, ends with `pop rbp; ret`, and
    /// keeps RBP in between.
    Rbp,
    /// LLVM's: unwind tables, exact at every instruction (the attribute `uwtable`), in the
    /// `.eh_frame` of the loaded module or given with [`StackMaps::with_eh_frame`]. From a frame
    /// without a table on, the stack is scanned conservatively.
    Cfi,
}

/// The kind of a code range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeKind {
    /// See [`CodeWhat::Managed`].
    Managed,
    /// See [`CodeWhat::Unsafe`].
    Unsafe,
    /// See [`CodeWhat::Restart`].
    Restart,
}

impl fmt::Display for CodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CodeKind::Managed => "managed code",
            CodeKind::Unsafe => "an unsafe range",
            CodeKind::Restart => "a restart range",
        })
    }
}

/// [`World::register_code`](crate::World::register_code) has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodeError {
    /// The range is empty.
    Empty {
        /// The refused range.
        range: Range<usize>,
    },
    /// The range shares addresses with a registered one.
    Overlap {
        /// The refused range.
        range: Range<usize>,
        /// Its kind.
        kind: CodeKind,
        /// The registered range.
        other: Range<usize>,
        /// The kind of the registered range.
        other_kind: CodeKind,
        /// Whether the guard of the other range was dropped: one of the next stops removes it.
        leaving: bool,
    },
    /// A stack map describes code outside of the range.
    Outside {
        /// The range.
        range: Range<usize>,
        /// The address of the function, or the return address, in the stack map.
        address: usize,
    },
    /// The calling thread has stopped a world, and must resume it first.
    HoldsAStop,
}

impl fmt::Display for CodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodeError::Empty { range } => write!(
                f,
                "the code range {} is empty; it must end above its start",
                Hex(range)
            ),
            CodeError::Overlap {
                range,
                kind,
                other,
                other_kind,
                leaving,
            } => {
                write!(
                    f,
                    "{kind} at {} overlaps {other_kind} registered at {}; ",
                    Hex(range),
                    Hex(other)
                )?;
                f.write_str(match (leaving, kind, other_kind) {
                    (true, ..) => "that code's guard was dropped, but it stays until a stop finds no stack that returns into it: keep the memory until its owner is dropped",
                    (_, CodeKind::Managed, CodeKind::Managed) => "each address belongs to one registration: register an arena once, or each function by itself",
                    (_, CodeKind::Managed, _) | (_, _, CodeKind::Managed) => "an unsafe or a restart range lies either wholly inside managed code or wholly outside",
                    _ => "unsafe and restart ranges do not share addresses",
                })
            }
            CodeError::Outside { range, address } => write!(
                f,
                "a stack map describes code at {address:#x}, outside of the code range {}; addresses are those of the code where it runs, after relocation",
                Hex(range)
            ),
            CodeError::HoldsAStop => f.write_str(HOLDS_A_STOP),
        }
    }
}

impl std::error::Error for CodeError {}

/// Prints a range of addresses in hexadecimal.
pub(crate) struct Hex<'a>(pub(crate) &'a Range<usize>);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.0.start, self.0.end)
    }
}

impl fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
