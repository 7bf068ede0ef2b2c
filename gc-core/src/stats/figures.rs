//! The figures of a heap: totals, the last collection, and the times of stops.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use gc_preempt::StopReport;

/// The figures of a heap, as [`Heap::stats`](crate::Heap::stats) returns them. All figures of
/// [`last`](Self::last) are of one collection.
///
/// ```
/// # fn main() -> Result<(), gc_core::BuildError> {
/// let heap = gc_core::Heap::builder().build()?;
/// heap.collect();
/// let stats = heap.stats();
/// assert_eq!(stats.last.number, 1);
/// // Nanoseconds, from the request of a stop until the resume.
/// println!("99 of 100 pauses took less than {} ns", stats.stops.pause.value_at_quantile(0.99));
/// println!("the collector's part of the time: {:.0} %", stats.last.cpu_share() * 100.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct HeapStats {
    /// The number of collections that have ended.
    pub collections: u64,
    /// The number of young collections among them.
    pub young_collections: u64,
    /// Whether the sweep is unfinished: the collector and mutators that allocate are still finding
    /// the cells that the last collection freed. In the child of a fork it may stay unfinished
    /// until the child's first collection.
    pub sweeping: bool,
    /// Bytes of spans and large objects in use now. The hard limit bounds them.
    pub used_bytes: u64,
    /// Bytes of the address range that were ever in use.
    pub high_water_bytes: u64,
    /// Bytes of the heap's tables: bitmaps, page words, records of spans, sites.
    pub metadata_bytes: u64,
    /// The most bytes that the mark queue has had.
    pub queue_peak_bytes: u64,
    /// Bytes that mutators were given (in runs and large objects) since the last collection.
    pub allocated_since: u64,
    /// Bytes that mutators were given since the heap was built.
    pub allocated_total: u64,
    /// Bytes of memory outside of the heap that cells keep, as reported.
    pub external_bytes: u64,
    /// The bytes (live, external and newly allocated) at which the next collection begins.
    pub trigger_bytes: u64,
    /// The bytes (live, external and newly allocated) at which the next collection should end.
    pub goal_bytes: u64,
    /// The number of dead finalizable cells that wait to be drained.
    pub finalizers_waiting: u64,
    /// The number of cells that all collections have freed.
    pub cells_freed: u64,
    /// The sum of the pauses of all collections.
    pub pause_total: Duration,
    /// Processor time of the collector's threads in all collections.
    pub collector_cpu_total: Duration,
    /// Time that mutators have spent in assists in all collections.
    pub assist_total: Duration,
    /// The times of all stops of all collections.
    pub stops: Arc<StopTimes>,
    /// The figures of the last collection.
    pub last: CollectionStats,
}

/// The figures of one collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionStats {
    /// The collection's number; the first has 1.
    pub number: u64,
    /// Whether it was a young collection, which takes old cells for alive: see
    /// [`HeapBuilder::young_collections`](crate::HeapBuilder::young_collections).
    pub young: bool,
    /// The time of its end, since the heap was built.
    pub ended_at: Duration,
    /// The time from the end of the collection before (or from the building of the heap) to its
    /// end.
    pub interval: Duration,
    /// The time from a stop's request until the last mutator was stopped; of several stops, the
    /// longest.
    pub time_to_stop: Duration,
    /// The time from a stop's request until the resume was published; of several stops, the
    /// longest.
    pub pause: Duration,
    /// The number of its stops: one for a small heap, two as a rule, more if much was left to mark.
    pub stops: u32,
    /// The sum of its pauses.
    pub pause_sum: Duration,
    /// The part of the first pause that scanned stacks, ranges, handles and callbacks.
    pub scan: Duration,
    /// The time from the first marked cell to the last, beside the mutators and in stops.
    pub mark: Duration,
    /// The part of [`mark`](Self::mark) in which mutators ran.
    pub mark_concurrent: Duration,
    /// The number of threads that marked: the collector's own and its helpers, without mutators.
    pub markers: u32,
    /// Processor time of the collector's threads in [`interval`](Self::interval), with sweeping.
    pub collector_cpu: Duration,
    /// Time that mutators spent in assists.
    pub assist: Duration,
    /// Cells that mutators marked in assists.
    pub assist_cells: u64,
    /// Cells that were marked in stops at the end: what logs held back, and all cells of a heap
    /// that is marked in one stop.
    pub cells_in_stops: u64,
    /// Weak words, registered cells and dead cells that the collector looked at in stops. If there
    /// are more than some hundred, it looks at most of them beside the mutators.
    pub examined_in_stops: u64,
    /// Sites that stops looked at, counted once for each mutator with a run of the site. A mutator
    /// that allocates or waits returns runs that it has not refilled in the last two collections; a
    /// mutator that does neither keeps them.
    pub sites_in_stops: u64,
    /// The number of processors that this process may use.
    pub cores: u32,
    /// The bytes (live, external and newly allocated) at which it was to begin.
    pub trigger_bytes: u64,
    /// The bytes (live, external and newly allocated) at which it was to end.
    pub goal_bytes: u64,
    /// The bytes (live, external and newly allocated) at which it began.
    pub begin_bytes: u64,
    /// The bytes (live, external and newly allocated) at which it ended: the heap's peak.
    pub end_bytes: u64,
    /// Whether the heap may pass the soft [`memory_limit`](crate::HeapBuilder::memory_limit) until
    /// the next collection: its live cells leave no room below the limit, or collecting there took
    /// too much time.
    pub over_memory_limit: bool,
    /// The number of mutators that the first stop stopped, or found in `blocking`.
    pub mutators: u32,
    /// The number of these that a signal stopped.
    pub signalled: u32,
    /// The number of these that were in `blocking`.
    pub held: u32,
    /// The number of further mutators that had been in `blocking` for two collections or more:
    /// stops pass over them.
    pub aside: u32,
    /// The number of suspended stacks that the collector scanned beside the mutators.
    pub stacks_beside: u32,
    /// The number of suspended stacks that were scanned in a stop: few stacks, or those of a heap
    /// that marks in a stop or verifies.
    pub stacks_in_stops: u32,
    /// The number of suspended stacks that were resumed before the collector came to them, and that
    /// their resumers scanned.
    pub stacks_resumed: u32,
    /// The number of times that a stop found a mutator where it must not be stopped.
    pub deferrals: u32,
    /// Stops that were requested while a mutator assisted: they waited until its cells were in the
    /// queue.
    pub stops_on_assists: u32,
    /// Frames whose references a stack map named.
    pub frames_precise: u32,
    /// Frames that were scanned word by word.
    pub frames_conservative: u32,
    /// The number of these that were managed frames at a return address that no stack map names.
    pub unknown_sites: u32,
    /// Words without a known meaning that were looked up.
    pub conservative_words: u64,
    /// Words that a stack map, a range, a handle or a callback named.
    pub exact_words: u64,
    /// Cells that a conservative word was the first to reach.
    pub conservative_marked: u64,
    /// Cells that an exact root was the first to reach.
    pub exact_marked: u64,
    /// Cells alive after it. The tails of mutators' runs do not count, except the tails of runs
    /// that mutators were given while it marked, since the collector cannot tell them from
    /// allocated cells.
    pub cells_live: u64,
    /// Bytes of these cells.
    pub bytes_live: u64,
    /// Bytes of these cells that mutators were given while it marked: it keeps them without marking
    /// through them.
    pub bytes_allocated_black: u64,
    /// Cells that it freed.
    pub cells_freed: u64,
    /// Weak words that it cleared.
    pub weak_cleared: u64,
    /// Finalizable cells that it found dead.
    pub finalizable: u64,
}

impl CollectionStats {
    /// Enters one of the collection's stops.
    pub(crate) fn stopped(&mut self, report: &StopReport) {
        if self.stops == 0 {
            self.mutators = report.mutators;
            self.signalled = report.signalled;
            self.held = report.held;
        }
        self.stops += 1;
        self.deferrals += report.deferrals;
        self.time_to_stop = self.time_to_stop.max(report.time_to_stop);
        self.pause = self.pause.max(report.pause);
        self.pause_sum += report.pause;
    }

    /// Returns the part of all processors that collecting took over [`interval`](Self::interval),
    /// with assists: 0 to 1.
    pub fn cpu_share(&self) -> f64 {
        share(self.collector_cpu + self.assist, self.interval, self.cores)
    }
}

fn share(busy: Duration, wall: Duration, cores: u32) -> f64 {
    let all = wall.as_secs_f64() * f64::from(cores.max(1));
    if all > 0.0 {
        (busy.as_secs_f64() / all).min(1.0)
    } else {
        0.0
    }
}

/// The times of a heap's stops, in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StopTimes {
    /// Times from a stop's request until its last mutator was stopped.
    pub time_to_stop: Times,
    /// Times from a stop's request until its resume was published.
    pub pause: Times,
}

/// A histogram of times in nanoseconds, to two significant digits.
#[derive(Clone, PartialEq)]
pub struct Times(hdrhistogram::Histogram<u64>);

impl Times {
    /// Returns the number of times.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Returns whether there are no times.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the shortest time in nanoseconds; 0 if there is none.
    pub fn min(&self) -> u64 {
        self.0.min()
    }

    /// Returns the longest time in nanoseconds; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.0.max()
    }

    /// Returns the time in nanoseconds that the part `quantile` of all times does not exceed: 0.5
    /// gives the median.
    pub fn value_at_quantile(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }
}

/// The longest time that is entered as it is. A longer stop means a fault, which the watchdog has
/// reported.
const LONGEST: Duration = Duration::from_secs(100);

impl Default for StopTimes {
    fn default() -> Self {
        // 64 ns is about the clock's precision. A histogram takes some 25 KiB.
        let empty = || {
            let bounds = hdrhistogram::Histogram::new_with_bounds(64, LONGEST.as_nanos() as u64, 2);
            Times(bounds.expect("the bounds are a factor of two apart, and two digits are few"))
        };
        Self {
            time_to_stop: empty(),
            pause: empty(),
        }
    }
}

impl StopTimes {
    /// Enters one stop. Calls no malloc, since the histograms have all their counts from the
    /// beginning.
    pub(super) fn record(&mut self, time_to_stop: Duration, pause: Duration) {
        let nanos = |d: Duration| d.min(LONGEST).as_nanos() as u64;
        self.time_to_stop.0.saturating_record(nanos(time_to_stop));
        self.pause.0.saturating_record(nanos(pause));
    }
}

impl fmt::Debug for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |q| Duration::from_nanos(self.value_at_quantile(q));
        f.debug_struct("Times")
            .field("count", &self.len())
            .field("p50", &at(0.5))
            .field("p99", &at(0.99))
            .field("max", &Duration::from_nanos(self.max()))
            .finish()
    }
}
