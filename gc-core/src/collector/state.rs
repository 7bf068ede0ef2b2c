//! What the collector and the slow paths of mutators share besides the heap itself: requests, the
//! pace, the ledger, and what a fork needs.

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
    /// Cells that are freed are filled.
    pub(crate) poison: bool,
    pub(crate) pace: Pace,
    /// Mutators run while cells are marked (not so with `URGE_STW=1`).
    pub(crate) concurrent: bool,
    /// When collections are young ones.
    pub(crate) young: Young,
    /// How long after the last collection a heap is collected that no thread uses.
    pub(crate) idle_after: Option<Duration>,
    /// Collections for room that were in vain.
    pub(crate) vain: gc_preempt::Mutex<Vain>,
    /// Threads that mark, where the embedder has said so.
    pub(crate) markers: Option<u32>,
    pub(crate) phase: AtomicU8,
    /// Cells that the last collection left allocated, the rests of runs included.
    pub(crate) cells: AtomicU64,
    /// Of these, what the next collection finds marked if it is a young one.
    pub(crate) old: OldMarks,
}

impl Deref for State {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// Cells that are old, and their bytes. The collector's alone.
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

/// What the forking thread holds of a heap, from the prepare hook to the parent's and the child's.
#[derive(Default)]
pub(crate) struct OverFork(pub(super) UnsafeCell<Option<Box<dyn Any>>>);

// SAFETY: touched by fork hooks only, one fork at a time, on the forking thread.
unsafe impl Send for OverFork {}
// SAFETY: as above.
unsafe impl Sync for OverFork {}

impl Drop for State {
    fn drop(&mut self) {
        end_fork_hooks(self);
    }
}

/// Ends what `fork::enrol` began: the world may outlive the heap.
fn end_fork_hooks(state: &State) {
    unsafe fn nothing(_: *mut ()) {}
    let hooks = ForkHooks {
        prepare: nothing,
        parent: nothing,
        child: nothing,
        data: core::ptr::null_mut(),
    };
    // SAFETY: the hooks do nothing.
    unsafe { state.world.on_fork(hooks) };
}

impl State {
    /// Cells and bytes that mutators were handed since the bitmaps swapped last.
    pub(super) fn handed(&self) -> Marked {
        Marked {
            cells: self.space.cells_since().max(0) as u64,
            bytes: self.space.allocated_since(),
        }
    }

    /// How many mutators want a processor, up to `most`. By the collector, outside of stops.
    pub(super) fn running(&self, most: u32) -> u32 {
        let mut running = 0;
        let mut contexts = self.contexts.lock();
        let mut from = 0;
        while running < most
            && let Some((at, attached)) = contexts.next(from)
        {
            from = at + 1;
            // SAFETY: a mutator takes its record out, under this lock, before it frees it; and it
            // has its thread before it puts it in.
            let context = unsafe { attached.context() };
            // Relaxed: a hint.
            let is_busy = context.is_busy.load(Ordering::Relaxed);
            running += u32::from(is_busy || !context.thread().is_blocking());
        }
        running
    }

    /// Gives back what mutators have claimed of the heap and not used. By the collector, outside of
    /// stops.
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

    /// Gives back the memory of the root tables and of handle tables that a peak has left, and what
    /// is kept of its size. Outside of stops.
    pub(super) fn trim_tables(&self, handles: bool) {
        self.roots.trim();
        let mut from = 0;
        // One table at a time: attaching and detaching wait meanwhile.
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

    /// How many cells wait to be finalized or dropped.
    pub(super) fn ready(&self) -> u64 {
        self.finalizers.waiting() + self.drops.waiting()
    }

    /// All locks of the heap's tables, for a fork.
    pub(crate) fn lock_tables(&self) -> impl Sized + '_ {
        (
            // First: a thread that makes a type's kind takes the locks of other tables meanwhile.
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
