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
    /// The thread runs on a [`Stack`](crate::Stack), and could go on there as another thread.
    OnAStack,
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

/// An operation on a [`Stack`](crate::Stack) has failed, and has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackError {
    /// The memory is null, smaller than 4 KiB, or an end of it is no multiple of 16; or the
    /// function does not fit.
    Memory,
    /// The memory overlaps another registered stack, or the own stack of an attached thread.
    Overlaps,
    /// The calling thread is not attached to the stack's world.
    NotAttached,
    /// The calling thread has stopped a world, and must resume it first.
    HoldsAStop,
    /// The calling thread is inside `no_preempt`.
    InNoPreempt,
    /// The calling thread is inside `blocking`.
    Blocking,
    /// SP does not lie on the stack that the calling thread is known to run on: a signal handler on
    /// an alternate stack, or a coroutine on a stack that is not registered.
    ElsewhereNow,
    /// The calling thread does not run on a registered stack.
    NotOnAStack,
    /// Nothing was started on the stack.
    Idle,
    /// The stack is suspended: its frames may still run.
    Suspended,
    /// A thread runs on the stack.
    Running,
    /// The calling thread runs on the stack, or on one that was resumed from it.
    Ancestor,
    /// The function on the stack has ended.
    Finished,
    /// The thread that ran on the stack has ended, or is not in this process.
    Lost,
    /// The stack was started by [`Stack::start`](crate::Stack::start) and is switched by code of
    /// the host's, or the other way round.
    OtherSwitch,
}

impl From<HoldsAStop> for StackError {
    fn from(_: HoldsAStop) -> Self {
        Self::HoldsAStop
    }
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => {
                "a stack's memory must not be null, has 4 KiB at least, ends that are multiples of \
                 16, and room for the function that is started on it"
            }
            Self::Overlaps => {
                "the memory overlaps another registered stack or an attached thread's own"
            }
            Self::NotAttached => "this thread is not attached to the stack's world",
            Self::HoldsAStop => HOLDS_A_STOP,
            Self::InNoPreempt => "a switch of stacks inside no_preempt: leave the section first",
            Self::Blocking => "a switch of stacks inside blocking: leave it first",
            Self::ElsewhereNow => {
                "this code runs on a stack that is not registered, or on an alternate signal stack"
            }
            Self::NotOnAStack => "this thread does not run on a registered stack",
            Self::Idle => "nothing was started on this stack",
            Self::Suspended => "the stack is suspended, and its frames may still run",
            Self::Running => "a thread runs on the stack",
            Self::Ancestor => "the stack waits for this very code to suspend or to end",
            Self::Finished => "the function on this stack has ended",
            Self::Lost => "the thread that ran on this stack is gone",
            Self::OtherSwitch => {
                "a stack that `start` has begun is switched by `resume` and `suspend`, every other \
                 by `resume_with` and `suspend_with`"
            }
        })
    }
}

impl Error for StackError {}

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
            Self::OnAStack => {
                f.write_str("attaching on a coroutine's stack: attach on the thread's own stack")
            }
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
            Self::AlreadyAttached | Self::TooManyThreads | Self::HoldsAStop | Self::OnAStack => {
                None
            }
        }
    }
}

impl Error for StopError {}

impl Error for HandshakeError {}
