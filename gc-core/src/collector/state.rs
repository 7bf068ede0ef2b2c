//! The state that the collector and the slow paths of mutators share besides the heap itself:
//! requests, the pace, the ledger, and what a fork needs.

use core::any::Any;
use core::cell::UnsafeCell;
use core::ops::Deref;
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::Arc;

use gc_preempt::ForkHooks;

use super::pace::Pace;
use super::requests::Requests;
use crate::config::Young;
use crate::marked::Marked;
use crate::mutator::shared::Shared;
use crate::pacer::Vain;
use crate::stats::Ledger;

/// A heap's collector, as its thread and the heap's mutators share it. Derefs to the heap that it
/// collects.
pub(crate) struct State {
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: Requests,
    pub(crate) over_fork: OverFork,
    /// `pthread_self` of the collector's thread, or 0.
    pub(crate) collector: AtomicUsize,
    pub(crate) ledger: Ledger,
    /// Whether cells that are freed are filled with the poison.
    pub(crate) poison: bool,
    pub(crate) pace: Pace,
    /// Whether mutators run while cells are marked (`false` with `URGE_STW=1`).
    pub(crate) concurrent: bool,
    /// When collections are young ones.
    pub(crate) young: Young,
    /// The time from the last collection to the collection of an idle heap.
    pub(crate) idle_after: IdleAfter,
    /// Collections that were made for lack of memory and freed too little.
    pub(crate) vain: gc_preempt::Mutex<Vain>,
    /// The number of threads that mark, if the embedder has set it.
    pub(crate) markers: Option<u32>,
    pub(crate) phase: AtomicU8,
    /// Cells that the last collection left allocated, the tails of runs among them.
    pub(crate) cells: AtomicU64,
    /// The cells of these that the next collection finds marked if it is a young one.
    pub(crate) old: OldMarks,
}

impl Deref for State {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// The time from the last collection to the collection of an idle heap, in nanoseconds; 0: never.
/// Relaxed: a thread that changes it wakes the collector's thread through the lock of `Requests`.
pub(crate) struct IdleAfter(AtomicU64);

impl IdleAfter {
    pub(crate) fn new(after: Duration) -> Self {
        let this = Self(AtomicU64::new(0));
        this.set(after);
        this
    }

    pub(crate) fn set(&self, after: Duration) {
        let nanos = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::Relaxed);
    }

    /// `None`: never.
    pub(super) fn get(&self) -> Option<Duration> {
        let nanos = self.0.load(Ordering::Relaxed);
        (nanos != 0).then(|| Duration::from_nanos(nanos))
    }
}

/// The number of old cells, and of their bytes. Relaxed: used by the collector alone.
#[derive(Default)]
pub(crate) struct OldMarks {
    cells: AtomicU64,
    bytes: AtomicU64,
}

impl OldMarks {
    pub(super) fn get(&self) -> Marked {
        Marked {
            cells: self.cells.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set(&self, old: Marked) {
        self.cells.store(old.cells, Ordering::Relaxed);
        self.bytes.store(old.bytes, Ordering::Relaxed);
    }
}

/// The locks of a heap that the forking thread holds from the prepare hook to the parent's or the
/// child's.
#[derive(Default)]
pub(crate) struct OverFork(pub(super) UnsafeCell<Option<Box<dyn Any>>>);

// SAFETY: touched by fork hooks only, one fork at a time, on the forking thread.
unsafe impl Send for OverFork {}
// SAFETY: as above.
unsafe impl Sync for OverFork {}

impl Drop for State {
    fn drop(&mut self) {
        end_hooks(self);
    }
}

/// Removes the hooks of forks and of stacks: the world may outlive the heap.
fn end_hooks(state: &State) {
    unsafe fn nothing(_: *mut ()) {}
    let hooks = ForkHooks {
        prepare: nothing,
        parent: nothing,
        child: nothing,
        data: core::ptr::null_mut(),
    };
    // SAFETY: the hooks do nothing.
    unsafe {
        state.world.on_fork(hooks);
        state.world.set_stack_hooks(None);
    }
}

impl State {
    /// Cells and bytes of the allocation count: what mutators were given since the last swap of
    /// bitmaps.
    pub(super) fn given(&self) -> Marked {
        Marked {
            cells: self.space.cells_since().max(0) as u64,
            bytes: self.space.allocated_since(),
        }
    }

    /// The number of mutators that want a processor, up to `most`. By the collector, outside of
    /// stops.
    pub(super) fn running(&self, most: u32) -> u32 {
        let mut running = 0;
        let mut contexts = self.contexts.lock();
        let mut from = 0;
        while running < most
            && let Some((at, attached)) = contexts.next(from)
        {
            from = at + 1;
            // SAFETY: a mutator takes its record out, under this lock, before it frees it; and it
            // has its thread before it puts the record in.
            let context = unsafe { attached.context() };
            // Relaxed: a hint.
            let is_busy = context.is_busy.load(Ordering::Relaxed);
            running += u32::from(is_busy || !context.thread().is_blocking());
        }
        running
    }

    /// Gives back the span reserves of all mutators. By the collector, outside of stops.
    pub(super) fn give_back_reserve(&self) {
        let mut contexts = self.contexts.lock();
        let mut from = 0;
        while let Some((at, attached)) = contexts.next(from) {
            from = at + 1;
            // SAFETY: a mutator takes its record out, under this lock, before it frees it.
            self.space
                .give_back_reserve(unsafe { &attached.context().local.span_reserve });
        }
    }

    /// Gives back memory of the root tables, of the table of records, and with `handles` of handle
    /// tables, that a peak has left. Outside of stops.
    pub(super) fn trim_tables(&self, handles: bool) {
        self.roots.trim();
        let mut from = 0;
        // One table under one lock, so that attaching and detaching threads wait for no more.
        while handles && let Some((at, attached)) = self.contexts.lock().next(from) {
            from = at + 1;
            // SAFETY: a mutator takes its record out, under this lock, before it frees it.
            unsafe { attached.context().handles.trim() };
        }
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.contexts.lock().trim_piece(at);
        }
    }

    /// The number of cells that wait to be finalized or dropped.
    pub(super) fn ready(&self) -> u64 {
        self.finalizers.waiting() + self.drops.waiting()
    }

    /// All locks of the heap's tables, for a fork.
    pub(crate) fn lock_tables(&self) -> impl Sized + '_ {
        (
            // First: a thread that makes a type's kind holds this lock while it takes those of
            // other tables.
            self.types.lock_for_fork(),
            self.encodings.lock_for_fork(),
            self.requests.lock(),
            self.contexts.lock(),
            self.roots.lock(),
            self.finalizers.lock_for_fork(),
            self.drops.lock_for_fork(),
            self.dying.lock_for_fork(),
            self.weak.lock_for_fork(),
            self.ledger.lock_for_fork(),
            self.pace.lock_for_fork(),
            self.vain.lock(),
            self.space.lock_for_fork(),
        )
    }
}
