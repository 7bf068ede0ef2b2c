//! Full markings of a random graph, beside the limit program on the same graph in the same run.
//!
//! The graph consists of cells of 32 bytes with two edges each to random older cells. One table
//! holds all of them in the order of their allocation. The heap's markings and the limit program's
//! alternate, so that other load on the machine reaches both, and the figure is the ratio within
//! each pair. No mutator runs beside a marking, but the heap marks as it would beside one. With
//! several markers, each turn also measures a second heap with one marker and the limit program
//! with one thread.

use std::fmt;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use gc_core::raw::{Encoding, Kind, RawRoot, Site};
use gc_core::{AllocError, Heap, HeapBuilder, Mutator};
use serde_json::{Value, json};

use super::baselines::mark::{CELL, LimitMarker, Marking};
use super::progress::Progress;
use super::random::Random;
use crate::report::{Quantiles, grouped, median, peak_rss_bytes};

/// The alignment of cells, in bytes.
const GRANULE: usize = 16;

/// The largest graph that the options allow, in MiB.
pub const LARGEST: u32 = 64 << 10;

/// Pairs of markings that are measured, after one to warm up.
pub const ROUNDS: usize = 9;

/// The reason why there is no result.
#[derive(Debug)]
pub enum MarkError {
    /// The heap could not be built, or the thread could not be attached.
    Heap(String),
    /// The graph does not fit.
    Full(AllocError),
    /// A cell that the table leads to does not hold what was written into it.
    Damaged,
    /// A marking did not reach the right number of cells.
    Wrong {
        /// The collector or the limit program.
        who: &'static str,
        /// Cells that the marking found alive.
        found: u64,
        /// Cells that are alive.
        expected: u64,
    },
}

impl fmt::Display for MarkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MarkError::Heap(why) => write!(f, "no heap for the graph: {why}"),
            MarkError::Full(why) => write!(f, "the graph does not fit: {why}"),
            MarkError::Damaged => f.write_str(
                "wrong answer: a cell that the table leads to does not hold what was written into it: the cell was freed too early",
            ),
            MarkError::Wrong {
                who,
                found,
                expected,
            } => write!(
                f,
                "wrong answer: {who} found {found} cells alive instead of {expected}"
            ),
        }
    }
}

impl std::error::Error for MarkError {}

/// A measurement's options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MiB of cells.
    pub mib: u32,
    /// Threads that mark.
    pub markers: u32,
}

/// The graph in a heap of its own. The thread that made the graph is the heap's mutator.
pub struct Graph {
    heap: Heap,
    mutator: Mutator,
    site: Site,
    table: NonNull<usize>,
    cells: usize,
    // The root that keeps the table.
    _root: RawRoot,
}

/// The times of one collection in which all cells are alive.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The time to stop.
    pub stop: Duration,
    /// From a stop request until the resume; of several stops, the longest.
    pub pause: Duration,
    /// From the first marked cell to the last, in stops and between them.
    pub mark: Duration,
}

impl Graph {
    /// Builds a graph of `mib` MiB of cells, in a heap with `markers` markers. The heap starts no
    /// collection by itself.
    ///
    /// # Errors
    /// [`MarkError::Heap`] and [`MarkError::Full`].
    pub fn build(mib: u32, markers: u32) -> Result<Graph, MarkError> {
        Graph::with(Heap::builder().gc_percent(u32::MAX).markers(markers), mib)
    }

    /// Builds a graph in a heap with other settings.
    ///
    /// # Errors
    /// [`MarkError::Heap`] and [`MarkError::Full`].
    pub fn with(builder: HeapBuilder, mib: u32) -> Result<Graph, MarkError> {
        let error = |e: &dyn fmt::Display| MarkError::Heap(e.to_string());
        let cells = ((mib as usize) << 20) / CELL;
        let heap = builder.build().map_err(|e| error(&e))?;
        let object = heap
            .kind(Kind::words_at("object", &[0, 1], Encoding::RAW))
            .map_err(|e| error(&e))?;
        let holder = heap
            .kind(Kind::array("table", 0, Encoding::RAW))
            .map_err(|e| error(&e))?;
        let site = heap.site(object, CELL).map_err(|e| error(&e))?;
        let mutator = heap.attach().map_err(|e| error(&e))?;
        // SAFETY: an array of words needs no least size. The cell is on this stack until the handle
        // keeps it.
        let table = unsafe { mutator.alloc_raw(holder, cells * size_of::<usize>()) };
        let table = table.map_err(MarkError::Full)?;
        // SAFETY: the cell is new, and this stack still holds it.
        let root = unsafe { mutator.root_raw(table) }
            .map_err(|error| MarkError::Heap(error.to_string()))?;
        let table = table.cast::<usize>();
        let mut random = Random::default();
        for n in 0..cells {
            // SAFETY: the stores are the first to two words of a cell of four words. The table has
            // `cells` words, and the handle keeps it.
            unsafe {
                let cell = mutator.alloc_at(site).map_err(MarkError::Full)?;
                if n > 0 {
                    let mut older = || table.add(random.below(n)).read();
                    cell.cast::<[usize; 2]>().write([older(), older()]);
                }
                mutator.write(table.add(n).as_ptr(), cell.as_ptr() as usize);
            }
        }
        Ok(Graph {
            heap,
            mutator,
            site,
            table,
            cells,
            _root: root,
        })
    }

    pub(super) fn heap(&self) -> &Heap {
        &self.heap
    }

    pub(super) fn mutator(&self) -> &Mutator {
        &self.mutator
    }

    pub(super) fn site(&self) -> Site {
        self.site
    }

    pub(super) fn collect(&self) {
        self.mutator.collect();
    }

    /// Cells that a collection finds alive, without the table, and cells that the table leads to.
    /// The second number is at most the first. The last two words of each cell that the table leads
    /// to are checked to be complements.
    pub(super) fn alive(&self) -> Result<(u64, u64), MarkError> {
        self.collect();
        let found = self.heap.stats().last.cells_live - 1;
        let reserved = self.heap.reserved();
        // A bit for each granule of the reserve. Only the touched part of the vector becomes
        // memory.
        let mut seen = vec![0u64; reserved.len() / (64 * GRANULE)];
        let mut reached = 0;
        let mut queue: Vec<usize> = Vec::new();
        for &cell in self.table() {
            queue.push(cell);
            while let Some(cell) = queue.pop() {
                if cell == 0 {
                    continue;
                }
                let at = (cell - reserved.start) / GRANULE;
                let (word, bit) = (&mut seen[at / 64], 1 << (at % 64));
                if *word & bit != 0 {
                    continue;
                }
                *word |= bit;
                reached += 1;
                // SAFETY: the table's words lead to live cells of four words, and so do the edges
                // of these cells.
                let [left, right, number, complement] = unsafe { *(cell as *const [usize; 4]) };
                if number != !complement {
                    return Err(MarkError::Damaged);
                }
                queue.extend([left, right]);
            }
        }
        Ok((found, reached))
    }

    /// The number of cells in the graph.
    pub fn objects(&self) -> u64 {
        self.cells as u64
    }

    /// Collects, and checks that all cells are still alive.
    ///
    /// # Errors
    /// [`MarkError::Wrong`].
    pub fn mark(&self) -> Result<Round, MarkError> {
        self.mutator.collect();
        let last = self.heap.stats().last;
        let table_too = self.objects() + 1;
        right("the collector", last.cells_live, table_too)?;
        Ok(Round {
            stop: last.time_to_stop,
            pause: last.pause,
            mark: last.mark,
        })
    }

    /// The addresses of all cells.
    pub(super) fn table(&self) -> &[usize] {
        // SAFETY: the table has that many words. The handle keeps it, and `build` alone writes
        // them.
        unsafe { std::slice::from_raw_parts(self.table.as_ptr(), self.cells) }
    }

    fn mark_bare(&self, limit: &mut LimitMarker, threads: u32) -> Result<Marking, MarkError> {
        // SAFETY: the words of the table and of the cells are as `build` made them, and cells do
        // not move.
        let marking = unsafe { limit.mark(self.table(), threads as usize) };
        right("the limit program", marking.cells, self.objects())?;
        Ok(marking)
    }
}

fn over(above: Duration, below: Duration) -> f64 {
    above.as_secs_f64() / below.as_secs_f64().max(1e-9)
}

/// Minimum, median and maximum; all 0 of an empty sequence.
fn spread(ratios: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let at = |end: Option<&f64>| end.copied().unwrap_or(0.0);
    [at(ratios.first()), median(&ratios), at(ratios.last())]
}

fn right(who: &'static str, found: u64, expected: u64) -> Result<(), MarkError> {
    if found == expected {
        return Ok(());
    }
    Err(MarkError::Wrong {
        who,
        found,
        expected,
    })
}

/// The figures of a measurement.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The options of the measurement.
    pub options: Options,
    /// Cells of the graph, without the table.
    pub objects: u64,
    /// The heap's markings, each with a marking of the limit program by as many threads.
    pub rounds: Vec<(Round, Marking)>,
    /// With several markers: markings of the same turns by one marker and by the limit program with
    /// one thread.
    pub single: Vec<(Round, Marking)>,
    /// The peak of the heap's bytes in use, its metadata bytes, and the peak of its mark queue's
    /// bytes.
    pub memory: [u64; 3],
    /// The time to build the graph.
    pub building: Duration,
    /// The time of the whole measurement.
    pub took: Duration,
    /// The process's peak resident memory after a collection of the graph and before the limit
    /// program's tables were made.
    pub peak_rss_bytes: u64,
}

/// Builds the graph and marks it, in alternation with the limit program.
///
/// # Errors
/// [`MarkError`].
pub fn measure(options: &Options) -> Result<Outcome, MarkError> {
    let begun = Instant::now();
    let markers = options.markers;
    let graph = Graph::build(options.mib, markers)?;
    // A heap's number of markers is fixed when it is built, so one marker needs a graph of its own.
    let other = (markers > 1).then(|| Graph::build(options.mib, 1));
    let other = other.transpose()?;
    let building = begun.elapsed();
    graph.mark()?;
    let peak_rss_bytes = peak_rss_bytes();
    let mut limit = LimitMarker::of(graph.table(), markers as usize);
    graph.mark_bare(&mut limit, markers)?;
    let mut progress = Progress::new("rounds");
    let (mut rounds, mut single) = (Vec::with_capacity(ROUNDS), Vec::new());
    for round in 0..ROUNDS {
        progress.show(round as u64, ROUNDS as u64);
        rounds.push((graph.mark()?, graph.mark_bare(&mut limit, markers)?));
        if let Some(other) = &other {
            single.push((other.mark()?, graph.mark_bare(&mut limit, 1)?));
        }
    }
    let stats = graph.heap.stats();
    Ok(Outcome {
        options: *options,
        objects: graph.objects(),
        rounds,
        single,
        memory: [
            stats.high_water_bytes,
            stats.metadata_bytes,
            stats.queue_peak_bytes,
        ],
        building,
        took: begun.elapsed(),
        peak_rss_bytes,
    })
}

impl Outcome {
    /// Objects that the heap marks in a second: the median.
    pub fn objects_per_s(&self) -> f64 {
        self.per_second(|round| round.0.mark)
    }

    /// Objects that the limit program marks in a second: the median.
    pub fn limit_objects_per_s(&self) -> f64 {
        self.per_second(|round| round.1.time)
    }

    fn per_second(&self, time: impl Fn(&(Round, Marking)) -> Duration) -> f64 {
        let rates = self.rounds.iter().map(|round| {
            let seconds = time(round).as_secs_f64().max(1e-9);
            self.objects as f64 / seconds
        });
        median(&rates.collect::<Vec<_>>())
    }

    /// The heap's speed over the limit program's, pair by pair: minimum, median, maximum.
    pub fn limit_ratio(&self) -> [f64; 3] {
        spread(
            self.rounds
                .iter()
                .map(|(round, limit)| over(limit.time, round.mark)),
        )
    }

    /// The speed of several markers over that of one, turn by turn: minimum, median, maximum. All 0
    /// with one marker.
    pub fn markers_ratio(&self) -> [f64; 3] {
        let turns = self.rounds.iter().zip(&self.single);
        spread(turns.map(|(many, one)| over(one.0.mark, many.0.mark)))
    }

    /// The speed of the limit program with several threads over that with one, as for
    /// [`markers_ratio`](Outcome::markers_ratio).
    pub fn limit_markers_ratio(&self) -> [f64; 3] {
        let turns = self.rounds.iter().zip(&self.single);
        spread(turns.map(|(many, one)| over(one.1.time, many.1.time)))
    }

    fn quantiles(&self, time: impl Fn(&(Round, Marking)) -> Duration) -> Quantiles {
        Quantiles::of_times(self.rounds.iter().map(time))
    }

    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        let spread = |[min, p50, max]: [f64; 3]| json!({ "min": min, "p50": p50, "max": max });
        let mut object = json!({
            "mib": self.options.mib,
            "markers": self.options.markers,
            "objects": self.objects,
            "rounds": self.rounds.len(),
            "objects_per_s": self.objects_per_s(),
            "limit_objects_per_s": self.limit_objects_per_s(),
            "limit_ratio": spread(self.limit_ratio()),
            "mark_us": self.quantiles(|round| round.0.mark).json(),
            "limit_us": self.quantiles(|round| round.1.time).json(),
            "stop_us": self.quantiles(|round| round.0.stop).json(),
            "pause_us": self.quantiles(|round| round.0.pause).json(),
            "high_water_bytes": self.memory[0],
            "metadata_bytes": self.memory[1],
            "queue_peak_bytes": self.memory[2],
            "build_seconds": self.building.as_secs_f64(),
            "seconds": self.took.as_secs_f64(),
            "peak_rss_bytes": self.peak_rss_bytes,
        });
        if !self.single.is_empty() {
            object["markers_ratio"] = spread(self.markers_ratio());
            object["limit_markers_ratio"] = spread(self.limit_markers_ratio());
        }
        object
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} MiB: {} objects of {CELL} bytes, two random edges each, held by one table; {} MiB resident at most",
            self.options.mib,
            grouped(self.objects),
            self.peak_rss_bytes >> 20
        )?;
        writeln!(
            f,
            "{} full markings by {} marker(s), no mutator running, in alternation with the limit program",
            self.rounds.len(),
            self.options.markers
        )?;
        writeln!(f)?;
        writeln!(f, "{}", Quantiles::head("microseconds"))?;
        for (label, quantiles) in [
            ("marking", self.quantiles(|round| round.0.mark)),
            ("  limit", self.quantiles(|round| round.1.time)),
            ("time to stop", self.quantiles(|round| round.0.stop)),
            ("pause", self.quantiles(|round| round.0.pause)),
        ] {
            writeln!(f, "{}", quantiles.line(label))?;
        }
        let [min, p50, max] = self.limit_ratio();
        writeln!(f)?;
        writeln!(
            f,
            "{:.1} million objects a second, the limit program {:.1}; ratio {min:.2} to {max:.2}, median {p50:.2}",
            self.objects_per_s() / 1e6,
            self.limit_objects_per_s() / 1e6,
        )?;
        let [reached, beside, queue] = self.memory;
        writeln!(
            f,
            "{} bytes of heap; the tables beside it {} ({:.2} %), the mark queue at its peak {}",
            grouped(reached),
            grouped(beside),
            100.0 * beside as f64 / reached as f64,
            grouped(queue)
        )?;
        if self.single.is_empty() {
            return Ok(());
        }
        let [min, p50, max] = self.markers_ratio();
        let [_, limit, _] = self.limit_markers_ratio();
        writeln!(
            f,
            "{} markers beside one in the same turns: {min:.2} to {max:.2} times as fast, median {p50:.2}; the limit program {limit:.2}",
            self.options.markers
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_is_marked_by_both_in_every_round() {
        let options = Options { mib: 1, markers: 1 };
        let outcome = measure(&options).expect("it fits");
        assert_eq!(outcome.objects, 32 << 10);
        assert_eq!(outcome.rounds.len(), ROUNDS);
        for (round, limit) in &outcome.rounds {
            assert!(!round.mark.is_zero() && limit.cells == outcome.objects);
        }
        let [min, p50, max] = outcome.limit_ratio();
        assert!(0.0 < min && min <= p50 && p50 <= max);
    }

    #[test]
    fn a_cell_that_is_missed_is_a_wrong_answer() {
        let error = right("the collector", 7, 8).expect_err("one is missing");
        assert!(
            error.to_string().contains("the collector found 7"),
            "{error}"
        );
    }
}
