//! A record of every collection's pause, written in the stopped world.
//!
//! A heap keeps the figures of its last collection only, and a program that allocates fast may
//! collect several times between two reads of them. A root callback runs in each collection and
//! records the collection before, so none is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gc_core::Heap;
use gc_core::raw::RootCallback;

use crate::report::Samples;

/// The number of collections that are recorded, 2.5 MiB in all. Further ones are only counted.
const MOST: usize = 1 << 16;

/// The times of one collection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cycle {
    /// The collection's number in its heap.
    pub number: u64,
    /// The time at which roots were scanned, since the instant that [`Pauses::since`] was given.
    pub scanned: Duration,
    /// The time to stop.
    pub stop: Duration,
    /// The pause.
    pub pause: Duration,
    /// The time of marking.
    pub mark: Duration,
}

/// The times of one collection as they are recorded, in nanoseconds.
#[derive(Default)]
struct Times {
    number: AtomicU64,
    scanned: AtomicU64,
    stop: AtomicU64,
    pause: AtomicU64,
    mark: AtomicU64,
}

struct Book {
    start: Instant,
    times: Vec<Times>,
    /// The number of the last collection that was recorded.
    entered: AtomicU64,
    /// The number of collections since recording began.
    count: AtomicU64,
    /// The time at which the current collection scanned its roots.
    scanned: AtomicU64,
}

impl Book {
    /// Records the heap's last collection once, and the time at which this one scans its roots. It
    /// may run in the stopped world: it stores into memory that is allocated, and the heap's
    /// figures are locked only inside `no_preempt` or by threads that are not stopped.
    fn enter(&self, heap: &Heap, scanning: bool) {
        let last = heap.stats().last;
        let scanned = self.start.elapsed().as_nanos() as u64;
        let scanned = scanned * u64::from(scanning);
        let scanned = self.scanned.swap(scanned, Ordering::Relaxed);
        // Relaxed, here and below: the collector's thread alone writes, and `finish` runs after the
        // callback is removed.
        if last.number <= self.entered.load(Ordering::Relaxed) {
            return;
        }
        self.entered.store(last.number, Ordering::Relaxed);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(times) = self.times.get(count as usize) {
            times.number.store(last.number, Ordering::Relaxed);
            times.scanned.store(scanned, Ordering::Relaxed);
            for (into, time) in [
                (&times.stop, last.time_to_stop),
                (&times.pause, last.pause),
                (&times.mark, last.mark),
            ] {
                into.store(time.as_nanos() as u64, Ordering::Relaxed);
            }
        }
    }
}

/// The recorder of a heap's pauses.
pub struct Pauses {
    heap: Heap,
    book: Arc<Book>,
    callback: RootCallback,
}

impl Pauses {
    /// Records the collections of `heap` that end from now on.
    pub fn of(heap: &Heap) -> Pauses {
        Pauses::since(heap, Instant::now())
    }

    /// As [`of`](Pauses::of), with times since `start`.
    pub fn since(heap: &Heap, start: Instant) -> Pauses {
        let book = Arc::new(Book {
            start,
            times: std::iter::repeat_with(Times::default).take(MOST).collect(),
            scanned: AtomicU64::new(0),
            entered: AtomicU64::new(heap.stats().last.number),
            count: AtomicU64::new(0),
        });
        let (its_heap, its_book) = (heap.clone(), Arc::clone(&book));
        // SAFETY: `Book::enter` neither allocates nor takes a lock that a stopped thread may hold,
        // and it reports no roots.
        let callback = unsafe {
            heap.add_root_callback(move |_| its_book.enter(&its_heap, true))
                .expect("room for a callback")
        };
        Pauses {
            heap: heap.clone(),
            book,
            callback,
        }
    }

    /// The samples of the recorded collections, and the number of all. No collection may be under
    /// way or begin.
    pub fn finish(self) -> (Samples, u64) {
        let (cycles, count) = self.finish_cycles();
        let mut samples = Samples::new();
        for cycle in cycles {
            samples.record(cycle.stop, cycle.pause);
        }
        (samples, count)
    }

    /// The recorded collections, and the number of all. As for [`finish`](Pauses::finish), no
    /// collection may be under way or begin.
    pub fn finish_cycles(self) -> (Vec<Cycle>, u64) {
        drop(self.callback);
        self.book.enter(&self.heap, false);
        // Relaxed, here and below: the callback is removed, so no thread writes any more.
        let count = self.book.count.load(Ordering::Relaxed);
        let time = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Ordering::Relaxed));
        let written = self.book.times.iter().take(count as usize);
        let cycles = written.map(|times| Cycle {
            number: times.number.load(Ordering::Relaxed),
            scanned: time(&times.scanned),
            stop: time(&times.stop),
            pause: time(&times.pause),
            mark: time(&times.mark),
        });
        (cycles.collect(), count)
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
