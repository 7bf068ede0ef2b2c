//! What a heap's collector and its mutators share: one record, and the locks of its tables.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use gc_preempt::World;

use super::requests::Requests;
use crate::api::fork::{self, OverFork};
use crate::api::types::Types;
use crate::barrier::SharedLog;
use crate::context::Context;
use crate::finalize::Finalizers;
use crate::heap::Space;
use crate::kind::KindId;
use crate::mapped::Slab;
use crate::mark::{MarkQueue, Marked};
use crate::pacer::{self, Found, Policy};
use crate::roots::Roots;
use crate::stats::Ledger;

/// A heap, as its collector and its mutators share it.
pub(crate) struct Shared {
    pub(crate) space: Space,
    pub(crate) world: World,
    pub(crate) queue: MarkQueue,
    pub(crate) log: SharedLog,
    pub(crate) roots: Roots,
    pub(crate) finalizers: Finalizers,
    /// Values that need `Drop`: whose cells they lie in, and which of them have died.
    pub(crate) drops: Finalizers,
    /// The Rust types that have cells here.
    pub(crate) types: Types,
    pub(crate) requests: Requests,
    /// The records of all mutators, for the child of a fork. Changed inside `no_preempt`.
    pub(crate) contexts: gc_preempt::Mutex<Slab<Attached>>,
    pub(crate) over_fork: OverFork,
    /// `pthread_self` of the collector's thread, or 0.
    pub(crate) collector: AtomicUsize,
    pub(crate) ledger: Ledger,
    pub(crate) pace: Pace,
    /// The kinds of weak cells, for `ClearWeak`. Changed inside `no_preempt`.
    pub(crate) weak_kinds: gc_preempt::Mutex<Slab<WeakKind>>,
    /// Whether mutators' stores are logged. Changes in stops only. Each mutator has a copy, [`Context::marking`], so that a unit's
    /// test is one compare.
    pub(crate) marking: AtomicBool,
    /// Mutators run while cells are marked (not so with `URGE_STW=1`).
    pub(crate) concurrent: bool,
    pub(crate) phase: AtomicU8,
    /// Cells that the last collection left allocated, the rests of runs included.
    pub(crate) cells: AtomicU64,
}

/// A mutator's record and whose it is.
pub(crate) struct Attached {
    /// `pthread_self` of its thread.
    pub(crate) owner: usize,
    pub(crate) context: *const Context,
}

// SAFETY: read in the child of a fork only, by the thread that is left.
unsafe impl Send for Attached {}

/// A kind whose cells are weak.
#[derive(Clone, Copy)]
pub(crate) struct WeakKind {
    pub(crate) kind: KindId,
    pub(crate) first_word: usize,
    pub(crate) encoding: crate::Encoding,
    pub(crate) cleared: usize,
}

/// Where the collector stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Idle,
    Prepare,
    Scan,
    Mark,
    Finish,
    Resurrect,
    ClearWeak,
    Condemn,
    Flip,
    Sweep,
}

/// The numbers that decide whether a collection is due.
pub(crate) struct Pace {
    pub(crate) policy: Policy,
    /// What the last collection left alive, in bytes.
    live: AtomicU64,
    /// The bytes at which the next one begins.
    trigger: AtomicU64,
    /// Memory outside of the heap that cells keep. Signed: a report may be withdrawn on another thread than it was made on.
    external: AtomicI64,
    /// A collection has been asked for because it was due, or is under way: from the first who notices until the bitmaps have swapped.
    asked: AtomicBool,
}

impl Pace {
    pub(crate) fn new(policy: Policy) -> Self {
        let trigger = AtomicU64::new(pacer::trigger(policy, Found::default()));
        Self {
            policy,
            live: AtomicU64::new(0),
            trigger,
            external: AtomicI64::new(0),
            asked: AtomicBool::new(false),
        }
    }

    // Relaxed throughout: hints, each read on its own; being late by a refill changes nothing.

    pub(crate) fn external(&self) -> u64 {
        self.external.load(Ordering::Relaxed).max(0) as u64
    }

    pub(crate) fn report(&self, delta: i64) {
        self.external.fetch_add(delta, Ordering::Relaxed);
    }

    /// Bytes that the last collection left alive.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn trigger(&self) -> u64 {
        self.trigger.load(Ordering::Relaxed)
    }

    /// Whether a collection is due, when `allocated` bytes have been handed out since the last.
    #[inline]
    pub(crate) fn due(&self, allocated: u64) -> bool {
        self.live
            .load(Ordering::Relaxed)
            .saturating_add(allocated)
            .saturating_add(self.external())
            >= self.trigger()
    }

    /// Whether the caller is to ask for a collection: it is due, and nobody has asked yet.
    #[inline]
    pub(crate) fn ask(&self, allocated: u64) -> bool {
        self.due(allocated)
            && !self.asked.load(Ordering::Relaxed)
            && !self.asked.swap(true, Ordering::Relaxed)
    }

    /// Whether mutators have outrun the collection so far that they must wait for its end: past the trigger by as much again as the heap
    /// was to grow.
    pub(crate) fn outrun(&self, allocated: u64) -> bool {
        let (live, trigger) = (self.live.load(Ordering::Relaxed), self.trigger());
        let growth = trigger.saturating_sub(live).max(pacer::MINIMUM);
        live.saturating_add(allocated)
            .saturating_add(self.external())
            >= trigger.saturating_add(growth)
    }

    /// A collection begins.
    pub(super) fn begun(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// There is no collection under way, and none that was asked for: in the child of a fork.
    pub(crate) fn abandoned(&self) {
        self.asked.store(false, Ordering::Relaxed);
    }

    /// The bitmaps have swapped.
    pub(super) fn found(&self, live: u64, roots: u64) {
        let found = Found {
            live,
            roots,
            external: self.external(),
        };
        self.live.store(live, Ordering::Relaxed);
        self.trigger
            .store(pacer::trigger(self.policy, found), Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        fork::strike_off(self);
    }
}

impl Shared {
    /// Cells and bytes that mutators were handed since the bitmaps swapped last.
    pub(super) fn handed(&self) -> Marked {
        Marked {
            cells: self.space.cells_since().max(0) as u64,
            bytes: self.space.allocated_since(),
        }
    }

    /// How many cells wait to be finalized or dropped.
    pub(super) fn ready(&self) -> u64 {
        self.finalizers.waiting() + self.drops.waiting()
    }

    /// All locks of the heap's tables, for a fork.
    pub(crate) fn lock_tables(&self) -> impl Sized + '_ {
        (
            // First: whoever makes a type's kind takes the locks of other tables meanwhile.
            self.types.lock_for_fork(),
            self.requests.lock(),
            self.weak_kinds.lock(),
            self.contexts.lock(),
            self.roots.lock(),
            self.finalizers.lock_for_fork(),
            self.drops.lock_for_fork(),
            self.ledger.lock_for_fork(),
            self.space.lock_for_fork(),
        )
    }
}
