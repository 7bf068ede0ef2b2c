//! Machine code that an embedder has made: its frames are scanned by stack maps, and its units are
//! begun again or left alone by stops.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use gc_preempt::stackmap::StackMaps;
use gc_preempt::{CodeWhat, FrameRule};

use crate::api::heap::Heap;
use crate::encoding::Encoding;

/// A piece of machine code, for [`Heap::register_code`].
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
    /// The code at these addresses, with frames laid out by `frames`, and without stack maps: no
    /// slot of its frames holds a reference at a call.
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

    /// The stack maps of its calls. The slots that they name hold edges of `encoding`.
    pub fn stack_maps(mut self, maps: StackMaps, encoding: Encoding) -> CodeSpec {
        (self.maps, self.encoding) = (maps, encoding);
        self
    }

    /// Addresses inside the code that are a restart range: a thread that is stopped there goes on
    /// at the first of them. An inline allocation or barrier is one.
    pub fn restart_range(mut self, range: Range<usize>) -> CodeSpec {
        self.restart.push(range);
        self
    }

    /// Addresses inside the code at which no thread is ever stopped. They must be few, and must not
    /// wait: a stop signals such a thread again and again until it has left them.
    pub fn unsafe_range(mut self, range: Range<usize>) -> CodeSpec {
        self.uninterrupted.push(range);
        self
    }

    /// What keeps the code mapped. It is dropped once the guard is gone and no stack returns into
    /// the code. Without an owner the code stays mapped for as long as the process lives.
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

/// Keeps machine code registered. Its drop ends that: no thread may begin to run the code after it;
/// threads inside of it may finish, and return through it.
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

/// Why code could not be registered.
#[derive(Debug)]
#[non_exhaustive]
pub enum CodeError {
    /// One of its ranges is empty, overlaps other code, or does not hold what the stack maps
    /// describe.
    Range(gc_preempt::CodeError),
    /// The heap has as many encodings as it can have.
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
    /// Registers machine code. Frames of it that are stopped at a call are scanned exactly, by its
    /// stack maps; its restart and unsafe ranges hold from now on. Dropping the guard ends that
    /// once no stack returns into the code any more.
    ///
    /// # Errors
    /// [`CodeError`]: a range is empty or overlaps other code, or the heap has too many encodings.
    /// Nothing is registered then.
    ///
    /// # Safety
    /// The code stays mapped until the owner is dropped. It keeps the System V convention and the
    /// frame rule. At each call every reference that lives across it stands in a slot that the
    /// stack maps name. A restart range may be begun again from every instruction in it: it keeps
    /// its inputs, and only its last instruction has an effect.
    pub unsafe fn register_code(&self, spec: CodeSpec) -> Result<CodeGuard, CodeError> {
        let shared = self.shared();
        shared.stacks.are_used();
        let encoding = shared.encodings.number(spec.encoding);
        let encoding = encoding.ok_or(CodeError::TooManyEncodings)?;
        // Each range keeps the code mapped until its own registration has ended.
        let owner = spec.owner.map(|owner| Arc::new(Mutex::new(owner)));
        let register = |range, what| {
            let owner = owner
                .clone()
                .map(|owner| Box::new(owner) as Box<dyn Any + Send>);
            let spec = gc_preempt::CodeSpec { range, what, owner };
            // SAFETY: the caller's contract.
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
