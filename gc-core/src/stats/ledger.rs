//! The ledger of a heap's figures: the collector enters them, and any thread reads them.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use gc_preempt::Mutex;

use super::figures::{CollectionStats, HeapStats, StopTimes};
use super::trace_line;
use crate::thread::thread_cpu;

/// The figures of a heap, kept under a lock that mutators hold inside `no_preempt` only and the
/// collector takes outside of any stop.
///
/// No thread calls malloc under it. So the histograms lie in an `Arc`: readers take a reference,
/// and the collector, which alone writes, makes a copy of its own, outside of the lock, only if a
/// reader still has the present one.
pub(crate) struct Ledger {
    all: Mutex<HeapStats>,
    /// The time at which the heap was built.
    built: Instant,
    /// Nanoseconds of processor time of the collector's thread at the end of the last collection.
    /// Used by the collector alone.
    cpu_before: AtomicU64,
    /// Nanoseconds from the heap's building to that end.
    ended: AtomicU64,
    /// Processors that this process may use.
    cores: u32,
    /// Whether to print a line for each cycle.
    trace: bool,
}

impl Ledger {
    pub(crate) fn new(trace: bool) -> Self {
        Self {
            all: Mutex::new(HeapStats::default()),
            built: Instant::now(),
            cpu_before: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            cores: cores(),
            trace,
        }
    }

    /// Processors that this process may use.
    pub(crate) fn cores(&self) -> u32 {
        self.cores
    }

    /// The time since the last collection ended, and the processor time of the collector's thread
    /// since then, in nanoseconds. By the collector.
    pub(crate) fn since_last(&self) -> (u64, u64) {
        let now = self.built.elapsed().as_nanos() as u64;
        // Relaxed: used by the collector alone.
        (
            now.saturating_sub(self.ended.load(Ordering::Relaxed)),
            thread_cpu().saturating_sub(self.cpu_before.load(Ordering::Relaxed)),
        )
    }

    /// Copies the figures. Inside `no_preempt`, or by a thread that is no mutator.
    pub(crate) fn read(&self) -> HeapStats {
        self.all.lock().clone()
    }

    /// Takes the lock, for a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.all.lock()
    }

    /// Enters a stop, once the world runs again. By the collector.
    pub(crate) fn stopped(&self, time_to_stop: Duration, pause: Duration) {
        let mut spare: Option<Arc<StopTimes>> = None;
        loop {
            let mut all = self.all.lock();
            if let Some(fresh) = spare.take() {
                let read = core::mem::replace(&mut all.stops, fresh);
                if let Some(times) = Arc::get_mut(&mut all.stops) {
                    times.record(time_to_stop, pause);
                }
                drop(all);
                // It may be the last reference, so it is dropped outside of the lock.
                drop(read);
                return;
            }
            if let Some(times) = Arc::get_mut(&mut all.stops) {
                times.record(time_to_stop, pause);
                return;
            }
            let read = all.stops.clone();
            drop(all);
            spare = Some(Arc::new((*read).clone()));
        }
    }

    /// Enters a collection, and prints its line if tracing is on. By the collector, outside of any
    /// stop. The function finds the end time and the processor time of the collector's own thread
    /// itself. `last.collector_cpu` has the time of the helpers.
    pub(crate) fn enter(&self, mut last: CollectionStats, allocated: u64) {
        let cpu = thread_cpu();
        // Relaxed, here and below: used by the collector alone. The collector of a fork's child is
        // a new thread, whose processor time begins at 0.
        let before = self.cpu_before.swap(cpu, Ordering::Relaxed);
        last.collector_cpu += Duration::from_nanos(cpu.saturating_sub(before));
        last.cores = self.cores;
        last.ended_at = self.built.elapsed();
        let ended = last.ended_at.as_nanos() as u64;
        let before = self.ended.swap(ended, Ordering::Relaxed);
        last.interval = Duration::from_nanos(ended.saturating_sub(before));
        let mut all = self.all.lock();
        all.collections += 1;
        all.young_collections += u64::from(last.young);
        all.cells_freed += last.cells_freed;
        all.pause_total += last.pause_sum;
        all.collector_cpu_total += last.collector_cpu;
        all.assist_total += last.assist;
        all.allocated_total += allocated;
        all.last = last;
        drop(all);
        if self.trace {
            trace_line::Line::of(&last).write();
        }
    }
}

/// Processors that this process may use: what its affinity mask and its control group allow.
fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collection(number: u64) -> CollectionStats {
        CollectionStats {
            number,
            cells_freed: 10,
            time_to_stop: Duration::from_micros(number),
            pause: Duration::from_micros(5),
            stops: 1,
            pause_sum: Duration::from_micros(5),
            ..CollectionStats::default()
        }
    }

    /// Enters a collection of one stop.
    fn enter(ledger: &Ledger, number: u64, allocated: u64) {
        let last = collection(number);
        ledger.stopped(last.time_to_stop, last.pause);
        ledger.enter(last, allocated);
    }

    #[test]
    fn collections_add_up() {
        let ledger = Ledger::new(false);
        for number in 1..=3 {
            enter(&ledger, number, 100);
        }
        let all = ledger.read();
        assert_eq!(
            (
                all.collections,
                all.cells_freed,
                all.last.number,
                all.allocated_total
            ),
            (3, 30, 3, 300)
        );
        assert_eq!(all.pause_total, Duration::from_micros(15));
        assert_eq!(all.stops.pause.len(), 3);
        assert!(all.last.ended_at >= all.last.interval && all.last.cores >= 1);
        assert!(all.collector_cpu_total >= all.last.collector_cpu);
    }

    #[test]
    fn what_a_reader_has_does_not_change_under_it() {
        let ledger = Ledger::new(false);
        enter(&ledger, 1, 0);
        let first = ledger.read();
        enter(&ledger, 2, 0);
        let second = ledger.read();
        enter(&ledger, 9, 0);
        assert_eq!(
            [&first, &second, &ledger.read()].map(|s| s.stops.time_to_stop.len()),
            [1, 2, 3]
        );
        let max = Duration::from_nanos(ledger.read().stops.time_to_stop.max());
        assert!((9000..9200).contains(&max.as_nanos()), "{max:?}");
        // When the readers have dropped their copies, the collector uses its histograms again
        // without a copy.
        drop((first, second));
        let at = Arc::as_ptr(&ledger.read().stops);
        enter(&ledger, 10, 0);
        assert_eq!(at, Arc::as_ptr(&ledger.read().stops));
    }

    #[test]
    fn a_stop_of_any_length_is_entered() {
        let mut times = StopTimes::default();
        for pause in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            times.record(pause, pause);
        }
        assert_eq!(times.pause.len(), 3);
        let text = format!("{times:?}");
        assert!(text.len() < 400 && text.contains("count: 3"), "{text}");
    }

    #[test]
    fn the_share_is_of_all_processors() {
        let mut last = CollectionStats {
            interval: Duration::from_millis(100),
            collector_cpu: Duration::from_millis(30),
            assist: Duration::from_millis(20),
            cores: 2,
            ..CollectionStats::default()
        };
        assert_eq!(last.cpu_share(), 0.25);
        last.interval = Duration::ZERO;
        assert_eq!(last.cpu_share(), 0.0);
    }
}
