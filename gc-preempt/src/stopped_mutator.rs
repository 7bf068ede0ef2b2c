//! The stopper's view of one mutator that stands still.

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::Ordering;
use std::time::Duration;

use crate::code::CODE;
use crate::context::Snapshot;
use crate::registry::{MutatorId, Record};
use crate::state::Phase;
use crate::walk::{self, RootSink, WalkStats};

/// One mutator while it is stopped: by a [`Stopped`](crate::Stopped) world, or because it is aside.
pub struct StoppedMutator<'s> {
    pub(crate) record: &'static Record,
    pub(crate) data: *mut (),
    /// Whether `attach_with` attached the mutator.
    pub(crate) vouched: bool,
    /// The number of the stop that holds it; [`NEVER`](crate::unwind::NEVER) if it is aside.
    pub(crate) number: u64,
    /// Borrows from the holder of the registry lock.
    pub(crate) _held: PhantomData<&'s ()>,
}

impl<'s> StoppedMutator<'s> {
    /// The id of the thread.
    pub fn id(&self) -> MutatorId {
        self.record.id()
    }

    /// The `data` that was passed to [`World::attach`](crate::World::attach).
    pub fn data(&self) -> *mut () {
        self.data
    }

    /// Whether [`World::attach_with`](crate::World::attach_with) attached the mutator: then its
    /// caller vouches for the data.
    pub fn vouched(&self) -> bool {
        self.vouched
    }

    /// Whether the mutator is in [`blocking`](crate::Mutator::blocking).
    pub fn is_blocked(&self) -> bool {
        self.record.state.load().phase() == Phase::Blocked
    }

    /// The registers of the mutator, and how it came to stop.
    pub fn snapshot(&self) -> &'s Snapshot {
        // SAFETY: the stop that this value borrows holds the thread.
        unsafe { self.record.snapshot() }
    }

    /// The addresses of the stack that the thread runs on, in use or not: its own, or a
    /// [`Stack`](crate::Stack). Of the main thread's stack, which grows, only the known part.
    pub fn stack(&self) -> Range<usize> {
        self.record.frames().stack
    }

    /// The time for which the stop before this one held the thread, from its handler's first
    /// instruction to its last. `None` if the thread was not running at that stop.
    pub fn last_stall(&self) -> Option<Duration> {
        // Acquire pairs with the Release in `note_stall`.
        let of = self.record.stall_of.load(Ordering::Acquire);
        (of + 1 == self.number)
            .then(|| Duration::from_nanos(self.record.stall.load(Ordering::Relaxed)))
    }

    /// Walks the thread's frames from the innermost outwards, and reports their words to `sink`. If
    /// the thread runs on a [`Stack`](crate::Stack), the stacks from which that one was resumed
    /// follow, down to the thread's own.
    ///
    /// A thread in `blocking` runs on meanwhile. If it has ended by the bare `exit` system call
    /// since the stop began, no frames are reported, since its stack may be unmapped. If a mutator
    /// ended without detaching, its stack must not be unmapped while a stop walks it: the walk
    /// would crash.
    pub fn walk(&self, sink: &mut dyn RootSink) -> WalkStats {
        if self.record.lifeline.is_cut() {
            return WalkStats::default();
        }
        self.record.note_walk(self.snapshot().registers.sp());
        // SAFETY: the stop that this value borrows holds the thread and the registry lock; its
        // stack is mapped while it lives, and code that a stack returns into stays registered and
        // mapped.
        let mut stats = unsafe {
            walk::walk(
                &CODE,
                self.number,
                self.snapshot(),
                self.record.frames(),
                sink,
            )
        };
        for (left, bounds) in self.record.left_stacks() {
            // SAFETY: as above. A stack in the chain of a thread stays registered, and mapped.
            stats += unsafe { walk::walk_left(&CODE, self.number, left, bounds, sink) };
        }
        stats
    }
}
