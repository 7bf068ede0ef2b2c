//! One mutator that stands still, as the stopper sees it.

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::Ordering;
use std::time::Duration;

use crate::code::CODE;
use crate::context::Snapshot;
use crate::registry::{MutatorId, Record};
use crate::state::Phase;
use crate::walk::{self, RootSink, WalkStats};

/// One mutator that stands still: of a [`Stopped`](crate::Stopped) world, or one that is set aside.
pub struct StoppedMutator<'s> {
    pub(crate) record: &'static Record,
    pub(crate) data: *mut (),
    /// The mutator was attached by `attach_with`.
    pub(crate) vouched: bool,
    /// The stop that holds it; [`NEVER`](crate::unwind::NEVER) if it is aside.
    pub(crate) number: u64,
    /// The registry lock is held for so long.
    pub(crate) _held: PhantomData<&'s ()>,
}

impl<'s> StoppedMutator<'s> {
    /// The thread.
    pub fn id(&self) -> MutatorId {
        self.record.id()
    }

    /// What [`World::attach`](crate::World::attach) was given.
    pub fn data(&self) -> *mut () {
        self.data
    }

    /// Was it attached by [`World::attach_with`](crate::World::attach_with), whose caller vouches for the data?
    pub fn vouched(&self) -> bool {
        self.vouched
    }

    /// Is it in a blocking region, and so held without a signal?
    pub fn is_blocked(&self) -> bool {
        self.record.state.load().phase() == Phase::Blocked
    }

    /// Where it stands.
    pub fn snapshot(&self) -> &'s Snapshot {
        // SAFETY: the stop that this value borrows holds the thread.
        unsafe { self.record.snapshot() }
    }

    /// The addresses of its own stack, in use or not. Of the main thread's, which grows, the part
    /// that is known to be there.
    pub fn stack(&self) -> Range<usize> {
        self.record.stack()
    }

    /// What the stop before this one cost the thread by its own clock, from its handler's first
    /// instruction to its last, if it took part in it running.
    pub fn last_stall(&self) -> Option<Duration> {
        // Acquire pairs with the Release in `note_stall`.
        let of = self.record.stall_of.load(Ordering::Acquire);
        (of + 1 == self.number)
            .then(|| Duration::from_nanos(self.record.stall.load(Ordering::Relaxed)))
    }

    /// Walks its frames from the innermost outwards.
    ///
    /// A thread in `blocking` runs on meanwhile. One that has ended there by the bare `exit` system
    /// call since the stop began has no frames: its stack may be unmapped. One whose stack is
    /// unmapped while this walks it makes this crash: do not unmap a stack on which a mutator ended
    /// without detaching.
    pub fn walk(&self, sink: &mut dyn RootSink) -> WalkStats {
        if self.record.lifeline.is_cut() {
            return WalkStats::default();
        }
        self.record.note_walk(self.snapshot().registers.sp());
        // SAFETY: the stop that this value borrows holds the thread and the registry lock; its
        // stack is mapped while it lives, and code that a stack returns into stays registered and
        // mapped.
        unsafe {
            walk::walk(
                &CODE,
                self.number,
                self.snapshot(),
                self.record.frames(),
                sink,
            )
        }
    }
}
