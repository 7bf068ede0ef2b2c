//! The errors of making, joining and stopping a world.

use core::fmt;
use std::error::Error;
use std::io;

use crate::code::CodeError;
use crate::registry::MutatorId;
use crate::stopper::{HOLDS_A_STOP, HoldsAStop};

/// [`World::new`](crate::World::new) has failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum SetupError {
    /// The processor or the system lacks the named feature.
    Processor(&'static str),
    /// The system refused the SIGURG handler or the fork handlers.
    Signal(io::Error),
    /// Urge's own code ranges could not be registered.
    Code(CodeError),
    /// The loader refuses to keep Urge's library loaded; this is its message.
    Library(io::Error),
    /// The calling thread has stopped a world, and must resume it first.
    HoldsAStop,
}

/// [`World::attach`](crate::World::attach) has failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// The thread is attached to this world already: use its [`Mutator`](crate::Mutator).
    AlreadyAttached,
    /// The registry has no room for another thread (about ten thousand).
    TooManyThreads,
    /// The system refused the named resource, or did not give the bounds of the thread's stack.
    System(&'static str, io::Error),
    /// The calling thread has stopped a world, and must resume it first.
    HoldsAStop,
}

/// [`World::stop`](crate::World::stop) has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopError {
    /// The caller is a mutator of this world and cannot stop itself. Let another thread stop the
    /// world, and wait for that thread in `blocking`.
    CallerIsMutator,
    /// The caller has stopped a world already, this one or another. Stops are one at a time in the
    /// process.
    HoldsAStop,
}

/// [`World::handshake`](crate::World::handshake) has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// No such thread is attached to this world.
    NoSuchMutator(MutatorId),
    /// A mutator cannot stop itself.
    IsCaller(MutatorId),
    /// The calling thread has stopped a world, and must resume it first.
    HoldsAStop,
}

impl From<HoldsAStop> for SetupError {
    fn from(_: HoldsAStop) -> Self {
        Self::HoldsAStop
    }
}

impl From<HoldsAStop> for AttachError {
    fn from(_: HoldsAStop) -> Self {
        Self::HoldsAStop
    }
}

impl From<HoldsAStop> for StopError {
    fn from(_: HoldsAStop) -> Self {
        Self::HoldsAStop
    }
}

impl From<HoldsAStop> for CodeError {
    fn from(_: HoldsAStop) -> Self {
        Self::HoldsAStop
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processor(what) => f.write_str(what),
            Self::Signal(e) => write!(f, "the system refused the SIGURG handler: {e}"),
            Self::Code(e) => write!(f, "Urge's own code could not be registered: {e}"),
            Self::Library(e) => write!(
                f,
                "the library that Urge is part of could not be kept loaded (its signal handler \
                 stays after dlclose): {e}"
            ),
            Self::HoldsAStop => f.write_str(HOLDS_A_STOP),
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyAttached => f.write_str(
                "this thread is attached to this world already: use its Mutator, or drop it first",
            ),
            Self::TooManyThreads => {
                f.write_str("too many attached threads: detach some, or use a pool")
            }
            Self::System(what, e) => write!(f, "{what}: {e}"),
            Self::HoldsAStop => f.write_str(HOLDS_A_STOP),
        }
    }
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CallerIsMutator => "the caller is a mutator of this world and cannot stop itself: stop from a thread that is not attached",
            Self::HoldsAStop => HOLDS_A_STOP,
        })
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchMutator(id) => write!(f, "{id} is not attached to this world"),
            Self::IsCaller(id) => write!(f, "{id} is the caller, which cannot stop itself"),
            Self::HoldsAStop => f.write_str(HOLDS_A_STOP),
        }
    }
}

impl Error for SetupError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Signal(error) | Self::Library(error) => Some(error),
            Self::Code(error) => Some(error),
            Self::Processor(_) | Self::HoldsAStop => None,
        }
    }
}

impl Error for AttachError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::System(_, error) => Some(error),
            Self::AlreadyAttached | Self::TooManyThreads | Self::HoldsAStop => None,
        }
    }
}

impl Error for StopError {}

impl Error for HandshakeError {}
