//! Machine code of an embedder: its stack maps, its restart ranges and its unsafe ranges.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use gc_preempt::stackmap::StackMaps;
use gc_preempt::{CodeWhat, FrameRule};

use crate::api::heap::Heap;
use crate::encoding::Encoding;

/// A description of machine code, for [`Heap::register_code`].
///
/// ```
/// use gc_core::jit::{CodeSpec, FrameRule};
///
/// let spec = CodeSpec::new(0x1000..0x2000, FrameRule::Rbp)
///     .restart_range(0x1100..0x1118)
///     .owner(vec![0u8; 64]);
/// assert_eq!(spec.range(), 0x1000..0x2000);
/// ```
#[must_use = "a spec does nothing until it is registered"]
pub struct CodeSpec {
    range: Range<usize>,
    frames: FrameRule,
    maps: StackMaps,
    encoding: Encoding,
    restart: Vec<Range<usize>>,
    uninterrupted: Vec<Range<usize>>,
    owner: Option<Box<dyn Any + Send>>,
}

impl CodeSpec {
    /// Describes the code at the addresses of `range`, whose frames have the layout of `frames`.
    /// Without [`stack_maps`](Self::stack_maps), no slot of its frames holds a reference at a call.
    pub fn new(range: Range<usize>, frames: FrameRule) -> CodeSpec {
        CodeSpec {
            range,
            frames,
            maps: StackMaps::default(),
            encoding: Encoding::RAW,
            restart: Vec::new(),
            uninterrupted: Vec::new(),
            owner: None,
        }
    }

    /// Sets the stack maps of the code's calls. The slots that they name hold edges of `encoding`.
    pub fn stack_maps(mut self, maps: StackMaps, encoding: Encoding) -> CodeSpec {
        (self.maps, self.encoding) = (maps, encoding);
        self
    }

    /// Adds a restart range inside the code: a thread that is stopped in it continues at its first
    /// address. An inline allocation and an inline barrier are restart ranges. Any number of them
    /// may be added.
    pub fn restart_range(mut self, range: Range<usize>) -> CodeSpec {
        self.restart.push(range);
        self
    }

    /// Adds an unsafe range inside the code: no thread is stopped in it. It must be short and must
    /// not wait, since a stop sends its signal again and again until the thread has left the range.
    /// Any number of them may be added.
    pub fn unsafe_range(mut self, range: Range<usize>) -> CodeSpec {
        self.uninterrupted.push(range);
        self
    }

    /// Sets the owner of the code's memory. It is dropped after the guard has been dropped and no
    /// stack returns into the code. Without an owner the code must stay mapped as long as the
    /// process lives.
    pub fn owner(mut self, owner: impl Any + Send) -> CodeSpec {
        self.owner = Some(Box::new(owner));
        self
    }

    /// The code's addresses.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

impl fmt::Debug for CodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeSpec")
            .field("range", &format_args!("{:#x?}", self.range))
            .field("restart_ranges", &self.restart.len())
            .field("unsafe_ranges", &self.uninterrupted.len())
            .finish_non_exhaustive()
    }
}

/// Keeps machine code registered. Its drop ends the registration: no thread may enter the code
/// after that, but threads inside of it may finish it, and return into it.
#[must_use = "dropping the guard removes the code at the next stop"]
#[derive(Debug)]
pub struct CodeGuard {
    range: Range<usize>,
    _guards: Vec<gc_preempt::CodeGuard>,
}

impl CodeGuard {
    /// The code's addresses.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

/// Code could not be registered.
#[derive(Debug)]
#[non_exhaustive]
pub enum CodeError {
    /// A range is empty, overlaps other code, or does not contain the return addresses of its stack
    /// maps.
    Range(gc_preempt::CodeError),
    /// The heap has as many encodings as it can have (1024).
    TooManyEncodings,
}

impl fmt::Display for CodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodeError::Range(error) => error.fmt(f),
            CodeError::TooManyEncodings => {
                f.write_str("the heap has 1024 encodings already: describe edges by fewer of them")
            }
        }
    }
}

impl std::error::Error for CodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CodeError::Range(error) => Some(error),
            CodeError::TooManyEncodings => None,
        }
    }
}

impl From<gc_preempt::CodeError> for CodeError {
    fn from(error: gc_preempt::CodeError) -> CodeError {
        CodeError::Range(error)
    }
}

impl Heap {
    /// Registers machine code. A frame of the code at a call is scanned exactly, by its stack maps.
    /// Restart and unsafe ranges take effect at once. The drop of the guard ends the registration
    /// after no stack returns into the code. From this call on, stacks are roots, unless the heap
    /// was built with [`exact(true)`](crate::HeapBuilder::exact). Call it outside of
    /// [`no_preempt`](crate::Mutator::no_preempt).
    ///
    /// # Errors
    /// [`CodeError`]: a range is empty or overlaps other code, or the heap has too many encodings.
    /// Nothing is registered.
    ///
    /// # Safety
    /// * The code stays mapped until the owner is dropped.
    /// * The code follows the System V convention and the frame rule.
    /// * At each call, every reference that is used after it is in a slot that the stack maps name.
    /// * A restart range may begin again after any of its instructions. It does not change its
    ///   inputs, and only its last instruction has an effect, except for effects that may be
    ///   repeated, such as a second log of a word.
    pub unsafe fn register_code(&self, spec: CodeSpec) -> Result<CodeGuard, CodeError> {
        let shared = self.shared();
        shared.stacks.are_used();
        let encoding = shared.encodings.number(spec.encoding);
        let encoding = encoding.ok_or(CodeError::TooManyEncodings)?;
        // Each range is a registration of its own, and each keeps the code mapped until it has
        // ended.
        let owner = spec.owner.map(|owner| Arc::new(Mutex::new(owner)));
        let register = |range, what| {
            let owner = owner
                .clone()
                .map(|owner| Box::new(owner) as Box<dyn Any + Send>);
            let spec = gc_preempt::CodeSpec { range, what, owner };
            // SAFETY: forwarded.
            unsafe { shared.world.register_code(spec) }
        };
        let mut guards = Vec::with_capacity(1 + spec.restart.len() + spec.uninterrupted.len());
        for range in spec.restart {
            guards.push(register(range, CodeWhat::Restart)?);
        }
        for range in spec.uninterrupted {
            guards.push(register(range, CodeWhat::Unsafe)?);
        }
        let what = CodeWhat::Managed {
            frames: spec.frames,
            maps: spec.maps,
            encoding,
        };
        guards.push(register(spec.range.clone(), what)?);
        Ok(CodeGuard {
            range: spec.range,
            _guards: guards,
        })
    }
}
