//! The state that a heap's marking threads share: who may work, who sleeps, what they have marked.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use gc_preempt::{futex_wait, futex_wake};

use super::termination::Termination;
use crate::marked::Marked;

/// The workers' shared state, a part of their queue.
#[derive(Default)]
pub(super) struct WorkerState {
    pub(super) termination: Termination,
    /// Workers that may be at work.
    pub(super) wanted: AtomicU32,
    /// The leader has nothing to do.
    pub(super) waiting: AtomicBool,
    /// Changes with every call for workers, which sleep on it.
    pub(super) calls: AtomicU32,
    pub(super) asleep: AtomicU32,
    /// The threads are to end.
    pub(super) ending: AtomicBool,
    /// The part of its time, in thousandths, for which a worker may mark.
    pub(super) permille: AtomicU32,
    /// Cells and bytes that workers have marked and the collector has not added to its count, and
    /// the processor time that workers needed, in nanoseconds.
    pub(super) cells: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) cpu: AtomicU64,
    /// A bit for each worker that has been at work; the highest for all from number 63 on.
    pub(super) worked: AtomicU64,
    /// How often a worker has joined, for tests.
    pub(super) joined: AtomicU64,
}

impl WorkerState {
    /// Has a worker, or the leader, nothing to do?
    pub(super) fn has_idle_worker(&self) -> bool {
        // Relaxed: a hint.
        self.termination.is_open()
            && (self.waiting.load(Ordering::Relaxed)
                || self.termination.at_work() < u64::from(self.wanted.load(Ordering::Relaxed)))
    }

    /// The queue has a packet: wakes a worker that sleeps and may work.
    #[inline]
    pub(super) fn call(&self) {
        if self.has_idle_worker() {
            self.wake(1);
        }
    }

    #[cold]
    pub(super) fn wake(&self, count: i32) {
        // Ordering: SeqCst here and in `sleep`. Either this thread sees the sleeper, or the
        // sleeper's futex sees the call.
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) != 0 {
            futex_wake(&self.calls, count);
        }
    }

    pub(super) fn sleep(&self, seen: u32) {
        self.asleep.fetch_add(1, Ordering::SeqCst);
        futex_wait(&self.calls, seen, None);
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }

    /// Adds the cells that a worker has marked, less the cells that it has posted before.
    pub(super) fn post(&self, marked: Marked, posted: Marked) {
        // Relaxed: for the pace; `Termination::close` orders it for the final count.
        self.cells
            .fetch_add(marked.cells - posted.cells, Ordering::Relaxed);
        self.bytes
            .fetch_add(marked.bytes - posted.bytes, Ordering::Relaxed);
    }

    /// In the child of a fork.
    pub(super) fn forget(&self) {
        self.termination.forget();
        // Relaxed: there is one thread.
        self.waiting.store(false, Ordering::Relaxed);
        self.wanted.store(0, Ordering::Relaxed);
        self.asleep.store(0, Ordering::Relaxed);
        self.ending.store(false, Ordering::Relaxed);
        self.cells.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.cpu.store(0, Ordering::Relaxed);
        self.worked.store(0, Ordering::Relaxed);
    }
}
