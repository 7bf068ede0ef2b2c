//! Run queues: a global one, and one for each worker, from which idle workers steal.
//!
//! The global queue is a list under a lock, as in Go. A worker whose green thread has yielded puts
//! it there and takes the next one, in one go: two atomic operations.
//!
//! # No lost wake-up
//! `idle` changes under the lock only. Who adds to the global queue reads `idle` under the lock: a
//! worker that sleeps is counted, and one that is about to sleep looks at the queue after that. Who
//! adds to a worker's own queue does not hold the lock; a fence on both sides takes its place.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_deque::{Steal, Stealer, Worker};

/// Every so often a worker looks into the global queue first, as in Go: otherwise two green threads
/// that wake each other would keep a worker for ever.
const GLOBAL_FIRST: u32 = 61;

/// All queues, and the sleep of idle workers.
pub(super) struct Queues<T> {
    global: Mutex<VecDeque<T>>,
    /// The length of the global queue, for looks without the lock. Written under it.
    waiting: AtomicUsize,
    stealers: Vec<Stealer<T>>,
    /// Workers that sleep, or are about to. Written under the lock.
    idle: AtomicUsize,
    wake: Condvar,
}

/// One worker's queue, first in, first out. On its worker's thread.
pub(super) struct Local<T> {
    own: Worker<T>,
    index: usize,
    ticks: Cell<u32>,
}

impl<T> Queues<T> {
    /// The queues of so many workers.
    pub(super) fn new(workers: usize) -> (Queues<T>, Vec<Local<T>>) {
        let locals: Vec<Local<T>> = (0..workers)
            .map(|index| Local {
                own: Worker::new_fifo(),
                index,
                ticks: Cell::new(0),
            })
            .collect();
        let queues = Queues {
            global: Mutex::default(),
            waiting: AtomicUsize::new(0),
            stealers: locals.iter().map(|local| local.own.stealer()).collect(),
            idle: AtomicUsize::new(0),
            wake: Condvar::new(),
        };
        (queues, locals)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.global.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the length of the global queue, and gives the lock back. True: a worker sleeps, and
    /// an item waits.
    fn unlock(&self, global: MutexGuard<'_, VecDeque<T>>) -> bool {
        // Relaxed, both: under the lock, and `waiting` is a hint elsewhere.
        self.waiting.store(global.len(), Ordering::Relaxed);
        !global.is_empty() && self.idle.load(Ordering::Relaxed) > 0
    }

    /// Adds to the end of the global queue.
    pub(super) fn inject(&self, item: T) {
        let mut global = self.lock();
        global.push_back(item);
        if self.unlock(global) {
            self.wake.notify_one();
        }
    }

    /// Adds to the end of the global queue, and takes its first item.
    fn exchange(&self, item: T) -> T {
        let mut global = self.lock();
        let Some(first) = global.pop_front() else {
            return item;
        };
        global.push_back(item);
        if self.unlock(global) {
            self.wake.notify_one();
        }
        first
    }

    /// Takes the first item of the global queue.
    fn take(&self) -> Option<T> {
        // Relaxed: a hint. Who misses an item looks again under the lock before it sleeps.
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut global = self.lock();
        let first = global.pop_front();
        self.unlock(global);
        first
    }

    /// Does any item wait? A hint.
    pub(super) fn has_work(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 || self.any_to_steal()
    }

    fn any_to_steal(&self) -> bool {
        self.stealers.iter().any(|stealer| !stealer.is_empty())
    }

    /// Sleeps until there is work, at most for so long. `is_over` is asked first.
    pub(super) fn sleep(&self, at_most: Duration, is_over: impl Fn() -> bool) {
        let global = self.lock();
        self.idle.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `wake_one`: either this sees the new item, or the other thread
        // sees an idle worker, and waits for the lock, which the condition variable gives back.
        fence(Ordering::SeqCst);
        let is_idle = global.is_empty() && !self.any_to_steal() && !is_over();
        let _global = if is_idle {
            let woken = self.wake.wait_timeout(global, at_most);
            woken.unwrap_or_else(PoisonError::into_inner).0
        } else {
            global
        };
        self.idle.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_one(&self) {
        fence(Ordering::SeqCst); // see `sleep`
        if self.idle.load(Ordering::SeqCst) > 0 {
            drop(self.lock());
            self.wake.notify_one();
        }
    }

    pub(super) fn wake_all(&self) {
        drop(self.lock());
        self.wake.notify_all();
    }
}

impl<T> Local<T> {
    /// Adds to the end of this worker's queue.
    pub(super) fn push(&self, queues: &Queues<T>, item: T) {
        self.own.push(item);
        queues.wake_one();
    }

    /// Is the global queue asked first this time?
    fn is_global_first(&self) -> bool {
        let ticks = self.ticks.get().wrapping_add(1);
        self.ticks.set(ticks);
        ticks.is_multiple_of(GLOBAL_FIRST)
    }

    /// Adds an item that has had its turn to the end of the global queue: all others are served
    /// before. Gives the next one.
    pub(super) fn next_after(&self, queues: &Queues<T>, item: T) -> Option<T> {
        if self.is_global_first() || self.own.is_empty() {
            return Some(queues.exchange(item));
        }
        queues.inject(item);
        self.next_of_any(queues)
    }

    /// The next item: of this queue, of the global one, or of another worker's.
    pub(super) fn next(&self, queues: &Queues<T>) -> Option<T> {
        if self.is_global_first()
            && let Some(item) = queues.take()
        {
            return Some(item);
        }
        self.next_of_any(queues)
    }

    fn next_of_any(&self, queues: &Queues<T>) -> Option<T> {
        self.own.pop().or_else(|| queues.take()).or_else(|| {
            let others = queues.stealers.iter().enumerate();
            others
                .filter(|(index, _)| *index != self.index)
                .find_map(|(_, other)| until_sure(|| other.steal_batch_and_pop(&self.own)))
        })
    }
}

/// Tries again while another thread interferes.
fn until_sure<T>(steal: impl Fn() -> Steal<T>) -> Option<T> {
    loop {
        match steal() {
            Steal::Success(item) => return Some(item),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}
