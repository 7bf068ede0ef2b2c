//! Run queues: a global one, and one for each worker, from which idle workers steal.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_deque::{Injector, Steal, Stealer, Worker};

/// Every so often a worker looks into the global queue first, as in Go: otherwise two green threads
/// that wake each other would keep a worker for ever.
const GLOBAL_FIRST: u32 = 61;

/// All queues, and the sleep of idle workers.
pub(super) struct Queues<T> {
    global: Injector<T>,
    stealers: Vec<Stealer<T>>,
    /// Workers that sleep, or are about to.
    idle: AtomicUsize,
    lock: Mutex<()>,
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
            global: Injector::new(),
            stealers: locals.iter().map(|local| local.own.stealer()).collect(),
            idle: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        };
        (queues, locals)
    }

    /// Adds to the end of the global queue.
    pub(super) fn inject(&self, item: T) {
        self.global.push(item);
        self.wake_one();
    }

    /// Does any item wait?
    pub(super) fn has_work(&self) -> bool {
        !self.global.is_empty() || self.stealers.iter().any(|stealer| !stealer.is_empty())
    }

    /// Sleeps until there is work, at most for so long. `is_over` is asked first.
    pub(super) fn sleep(&self, at_most: Duration, is_over: impl Fn() -> bool) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.idle.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `wake_one`: either this sees the new item, or the other thread
        // sees an idle worker, and waits for the lock, which the condition variable gives back.
        fence(Ordering::SeqCst);
        if !self.has_work() && !is_over() {
            let _ = self.wake.wait_timeout(guard, at_most);
        }
        self.idle.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_one(&self) {
        fence(Ordering::SeqCst); // see `sleep`
        if self.idle.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_one();
        }
    }

    pub(super) fn wake_all(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}

impl<T> Local<T> {
    /// Adds to the end of this worker's queue.
    pub(super) fn push(&self, queues: &Queues<T>, item: T) {
        self.own.push(item);
        queues.wake_one();
    }

    /// The next item: of this queue, of the global one, or of another worker's.
    pub(super) fn next(&self, queues: &Queues<T>) -> Option<T> {
        let ticks = self.ticks.get().wrapping_add(1);
        self.ticks.set(ticks);
        if ticks.is_multiple_of(GLOBAL_FIRST)
            && let Some(item) = until_sure(|| queues.global.steal())
        {
            return Some(item);
        }
        self.own
            .pop()
            .or_else(|| until_sure(|| queues.global.steal_batch_and_pop(&self.own)))
            .or_else(|| {
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
