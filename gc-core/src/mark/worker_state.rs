//! What a workers's threads tell each other: part of the queue that they share.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use gc_preempt::{futex_wait, futex_wake};

use super::termination::Termination;
use crate::marked::Marked;

/// What a workers's threads have in common. Part of the queue that they share.
#[derive(Default)]
pub(super) struct WorkerState {
    pub(super) termination: Termination,
    /// Helpers that may be at work.
    pub(super) wanted: AtomicU32,
    /// The leader has nothing to do.
    pub(super) waiting: AtomicBool,
    /// Changes with every call to come and look. Helpers sleep on it.
    pub(super) calls: AtomicU32,
    pub(super) asleep: AtomicU32,
    /// The threads are to end.
    pub(super) ending: AtomicBool,
    /// Of each helper's time, in thousandths, what it may mark.
    pub(super) permille: AtomicU32,
    /// What helpers have marked and the collector has not added to its own count, and the processor
    /// time that they needed, in nanoseconds.
    pub(super) cells: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) cpu: AtomicU64,
    /// A bit a helper that has been at work: the highest for all that have no bit of their own.
    pub(super) worked: AtomicU64,
    /// How often one has joined, for tests.
    pub(super) joined: AtomicU64,
}

impl WorkerState {
    /// Has a helper, or the leader, nothing to do?
    pub(super) fn has_idle_worker(&self) -> bool {
        // Relaxed: a hint.
        self.termination.is_open()
            && (self.waiting.load(Ordering::Relaxed)
                || self.termination.at_work() < u64::from(self.wanted.load(Ordering::Relaxed)))
    }

    /// There is a packet for somebody. Wakes a helper if one sleeps that may work.
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

    /// Adds what a helper has marked, less what it has posted of that before.
    pub(super) fn post(&self, marked: Marked, posted: Marked) {
        // Relaxed: for the pace; when it counts, the team's closing orders it.
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
