//! What a heap has done so far, in numbers: totals, the last collection, and how long stops took.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use gc_preempt::StopReport;

/// A heap's figures, as [`Heap::stats`](crate::Heap::stats) gives them. All figures of `last` are
/// of one collection.
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
    /// Collections that have come to their end.
    pub collections: u64,
    /// Of these, young ones.
    pub young_collections: u64,
    /// The sweep is not finished: the collector and mutators that allocate still look for what the
    /// last collection freed. In the child of a fork it may be so until the child's first
    /// collection.
    pub sweeping: bool,
    /// Bytes of spans and large objects in use, now: what the hard limit counts.
    pub used_bytes: u64,
    /// Bytes of the address range that were ever in use.
    pub high_water_bytes: u64,
    /// Bytes of the heap's tables: mark and allocation bits, page words, records of spans, sites.
    pub metadata_bytes: u64,
    /// The most bytes that the mark queue has had.
    pub queue_peak_bytes: u64,
    /// Bytes handed out to mutators (in runs and large objects) since the last collection.
    pub allocated_since: u64,
    /// Bytes handed out since the heap was built.
    pub allocated_total: u64,
    /// Memory outside of the heap that cells keep, as reported, in bytes.
    pub external_bytes: u64,
    /// The bytes (live, external and newly allocated) at which the next collection begins.
    pub trigger_bytes: u64,
    /// The bytes at which it is meant to have come to its end.
    pub goal_bytes: u64,
    /// Finalizable cells that died and wait to be drained.
    pub finalizers_waiting: u64,
    /// Cells freed by all collections.
    pub cells_freed: u64,
    /// Time stopped by all collections.
    pub pause_total: Duration,
    /// Processor time of the collector's threads, in all collections.
    pub collector_cpu_total: Duration,
    /// Time that mutators have spent in assists.
    pub assist_total: Duration,
    /// How long all stops of all collections took.
    pub stops: Arc<StopTimes>,
    /// The last collection.
    pub last: CollectionStats,
}

/// One collection's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionStats {
    /// The collection's number; the first has 1.
    pub number: u64,
    /// It was a young collection, which took old cells for alive: see
    /// [`HeapBuilder::young_collections`](crate::HeapBuilder::young_collections).
    pub young: bool,
    /// When it came to its end, counted from when the heap was built.
    pub ended_at: Duration,
    /// From the end of the collection before (or the heap's beginning) to the end of this one.
    pub interval: Duration,
    /// From the stop's request until the last mutator stood; of several stops, the longest.
    pub time_to_stop: Duration,
    /// From the stop's request until the resume was published; of several stops, the longest.
    pub pause: Duration,
    /// How often it stopped the world: once for a small heap, twice as a rule, more often where
    /// much was left to mark.
    pub stops: u32,
    /// All its pauses together.
    pub pause_sum: Duration,
    /// Of the first pause: looking at stacks, ranges, handles and callbacks.
    pub scan: Duration,
    /// From the first marked cell to the last: beside the mutators, and in stops.
    pub mark: Duration,
    /// Of [`mark`](Self::mark): while mutators ran.
    pub mark_concurrent: Duration,
    /// Threads that marked, with the collector's own, without mutators.
    pub markers: u32,
    /// Processor time of the collector's threads in [`interval`](Self::interval), sweeping
    /// included.
    pub collector_cpu: Duration,
    /// Time that mutators spent in assists.
    pub assist: Duration,
    /// Cells that mutators marked in assists.
    pub assist_cells: u64,
    /// Cells that were marked at the end while the world stood: what logs held back, and all of a
    /// heap that is marked in one stop.
    pub cells_in_stops: u64,
    /// Weak words, registered cells and dead cells that the collector looked at while the world
    /// stood. Where there are more than some hundred, it looks at most of them beside the mutators.
    pub looked_in_stops: u64,
    /// Sites that stops looked at, counted once for each mutator with a run of the site. A mutator
    /// that allocates or waits returns runs that it has not refilled in the last two collections; a
    /// mutator that does neither keeps them.
    pub sites_in_stops: u64,
    /// Processors that this process may use.
    pub cores: u32,
    /// The bytes (live, external and newly allocated) at which it was to begin.
    pub trigger_bytes: u64,
    /// The bytes at which it was meant to come to its end.
    pub goal_bytes: u64,
    /// The bytes at which it began.
    pub begin_bytes: u64,
    /// The bytes at which it ended: the heap's peak.
    pub end_bytes: u64,
    /// What it found alive leaves no room below the soft
    /// [`memory_limit`](crate::HeapBuilder::memory_limit), or collecting took too much time there:
    /// until the next collection the heap may pass the limit.
    pub over_memory_limit: bool,
    /// Mutators that the first stop stopped, or found in `blocking`.
    pub mutators: u32,
    /// Of these, stopped by a signal.
    pub signalled: u32,
    /// Of these, found in `blocking`.
    pub held: u32,
    /// Besides them, mutators that had been in `blocking` for two collections or more: no stop
    /// looks at them.
    pub aside: u32,
    /// Times a mutator was met where it must not be stopped.
    pub deferrals: u32,
    /// Stops that were requested while a mutator assisted: they waited until its cells were in the
    /// queue.
    pub stops_on_assists: u32,
    /// Frames whose references a stack map named.
    pub frames_precise: u32,
    /// Frames that were scanned word by word.
    pub frames_conservative: u32,
    /// Of those, managed frames at a return address that no stack map names.
    pub unknown_sites: u32,
    /// Words that may have been anything and were looked up.
    pub conservative_words: u64,
    /// Words that a stack map, a range, a handle or a callback named.
    pub exact_words: u64,
    /// Cells that a conservative word reached first.
    pub conservative_marked: u64,
    /// Cells that an exact root reached first.
    pub exact_marked: u64,
    /// Cells alive after it. The unallocated rests of mutators' runs do not count, except those of
    /// runs that were handed out while it marked: the collector does not know how far such a run
    /// was used.
    pub cells_live: u64,
    /// Their bytes.
    pub bytes_live: u64,
    /// Of these, bytes handed out while it marked, which it keeps without a look.
    pub bytes_born: u64,
    /// Cells freed.
    pub cells_freed: u64,
    /// Weak words cleared.
    pub weak_cleared: u64,
    /// Finalizable cells that died.
    pub finalizable: u64,
}

impl CollectionStats {
    /// Enters one of its stops.
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

    /// What collecting took of all processors over [`interval`](Self::interval), assists included:
    /// 0 to 1.
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

/// How long stops took, in nanoseconds, each histogram to two significant digits.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StopTimes {
    /// From the request until the last mutator stood.
    pub time_to_stop: Times,
    /// From the request until the resume was published.
    pub pause: Times,
}

/// A histogram of times in nanoseconds, to two significant digits.
#[derive(Clone, PartialEq)]
pub struct Times(hdrhistogram::Histogram<u64>);

impl Times {
    /// How many times there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The shortest, in nanoseconds; 0 if there is none.
    pub fn min(&self) -> u64 {
        self.0.min()
    }

    /// The longest, in nanoseconds; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.0.max()
    }

    /// The time in nanoseconds that this part of all times do not exceed: 0.5 gives the median.
    pub fn value_at_quantile(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }
}

/// A longer time is entered as this: then something is broken, and the watchdog has said so.
const LONGEST: Duration = Duration::from_secs(100);

impl Default for StopTimes {
    fn default() -> Self {
        // 64 ns is about the clock's precision. Some 25 KiB.
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
    /// Calls no malloc: the histograms have all their counts from the beginning.
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
