//! Every collection's pause, written down where all of them pass: in the stopped world.
//!
//! A heap keeps the figures of its last collection only, and a program that allocates fast may collect between any two
//! looks at them. A root callback runs in every collection; there the collection before is entered, so none is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gc_core::{Heap, RootCallback};

use super::report::Samples;

/// Collections that are written down; those beyond are counted only. 1 MiB in all.
const MOST: usize = 1 << 16;

/// One collection: nanoseconds until all stood, and nanoseconds of the pause.
struct Times {
    stop: AtomicU64,
    pause: AtomicU64,
}

struct Book {
    times: Vec<Times>,
    /// Number of the last collection that was entered.
    entered: AtomicU64,
    /// How many were.
    count: AtomicU64,
}

impl Book {
    /// Enters the heap's last collection, once. Safe in the stopped world: it stores into memory that is there, and the
    /// heap's figures are locked inside `no_preempt` or by threads that are not stopped.
    fn enter(&self, heap: &Heap) {
        let last = heap.stats().last;
        // Ordering: Relaxed throughout; the collector's thread alone writes, and `finish` runs when its callback is gone.
        if last.number <= self.entered.load(Ordering::Relaxed) {
            return;
        }
        self.entered.store(last.number, Ordering::Relaxed);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(times) = self.times.get(count as usize) {
            let nanos = |time: Duration| time.as_nanos() as u64;
            times
                .stop
                .store(nanos(last.time_to_stop), Ordering::Relaxed);
            times.pause.store(nanos(last.pause), Ordering::Relaxed);
        }
    }
}

/// Writes down the pauses of a heap from here on.
pub struct Pauses {
    heap: Heap,
    book: Arc<Book>,
    callback: RootCallback,
}

impl Pauses {
    /// Collections that have ended are not counted.
    pub fn of(heap: &Heap) -> Pauses {
        let times = || Times {
            stop: AtomicU64::new(0),
            pause: AtomicU64::new(0),
        };
        let book = Arc::new(Book {
            times: std::iter::repeat_with(times).take(MOST).collect(),
            entered: AtomicU64::new(heap.stats().last.number),
            count: AtomicU64::new(0),
        });
        let (its_heap, its_book) = (heap.clone(), Arc::clone(&book));
        // SAFETY: `Book::enter` neither allocates nor takes a lock that a stopped thread may hold; it reports no roots.
        let callback = unsafe { heap.add_root_callback(move |_| its_book.enter(&its_heap)) };
        Pauses {
            heap: heap.clone(),
            book,
            callback,
        }
    }

    /// All of them, and how many there were. No collection may be under way or begin.
    pub fn finish(self) -> (Samples, u64) {
        drop(self.callback);
        self.book.enter(&self.heap);
        let count = self.book.count.load(Ordering::Relaxed);
        let mut samples = Samples::new();
        for times in self.book.times.iter().take(count as usize) {
            let time = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Ordering::Relaxed));
            samples.record(time(&times.stop), time(&times.pause));
        }
        (samples, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_collection_is_missed_nor_counted_twice() {
        let heap = Heap::builder().build().expect("a heap");
        heap.collect();
        let pauses = Pauses::of(&heap);
        for _ in 0..5 {
            heap.collect();
        }
        let (samples, count) = pauses.finish();
        assert_eq!((count, samples.pause.len()), (5, 5));
        assert!(samples.pause.min() > 0);
    }
}
