//! `gclab mark --concurrent`: a random graph that a mutator changes while the collector marks it,
//! beside the signal floor.
//!
//! In each turn the mutator replaces an edge of a random cell and allocates eight cells, which it
//! drops. Every sixteenth turn it puts the last of them into the table in place of a random cell,
//! with that cell's edges, and clears the edges of the cell that it replaced. So the number of live
//! cells stays about the same, and the program allocates some 100 times what it keeps. The mutator
//! checks each cell that it reads: the third word is the complement of the fourth. The pacer begins
//! the collections. `benches/programs/concurrent.go` does the same.
//!
//! Blocks of collections alternate with blocks of the signal floor's rounds, in which the mutator
//! allocates nothing and no collection is under way. [`gauge`](super::gauge) measures the mutator's
//! share of each millisecond.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gc_core::jit::CONTEXT_MARKING;
use gc_core::raw::Site;
use gc_core::{Heap, Mutator};
use serde_json::{Value, json};

use super::baselines::signal::{Floor, Wait};
use super::gauge::{Gauge, Shares, Windows};
use super::mark::{Graph, MarkError};
use super::pauses::{Cycle, Pauses};
use super::progress::Progress;
use super::random::Random;
use crate::report::{Quantiles, Samples, grouped, peak_rss_bytes};

/// The least number of collections that are measured.
pub const CYCLES: u32 = 20;

/// Blocks of collections. A block of the floor's rounds follows each.
const BLOCKS: u32 = 5;
/// Rounds of the floor in a block.
const ROUNDS: u32 = 100;
/// Rounds of the floor that decide whether it spins or sleeps, for each of the two.
const CALIBRATION: u32 = 30;
/// The bounds of the time that the driver sleeps between two reads of the heap's figures: a part of
/// the time between two collections. A read takes a processor from the mutator or the collector
/// where all are busy, so frequent reads lengthen stops (docs/experiments.md).
const LOOK: [Duration; 2] = [Duration::from_micros(500), Duration::from_millis(10)];
const LOOKS: u32 = 8;
/// Turns between two reads of the clock.
const TURNS: u32 = 16;
/// Cells allocated in a turn.
const CELLS: usize = 8;

/// A cell of the graph: two edges, a number and its complement.
type Object = [usize; 4];

/// The figures of a measurement.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// MiB of cells that the table holds.
    pub mib: u32,
    /// Cells that the table holds.
    pub objects: u64,
    /// All measured collections.
    pub cycles: Vec<Cycle>,
    /// The mutator's stalls by its own clock, one for each collection.
    pub stalls: Samples,
    /// The rounds of the floor.
    pub floor: Samples,
    /// The floor's way to wait: the better of the two.
    pub wait: Wait,
    /// Utilisation and progress of the mutator in windows of 10 ms.
    pub windows: Windows,
    /// The mutator's turns, except those beside floor rounds.
    pub turns: u64,
    /// The time of these turns.
    pub turning: Duration,
    /// Processor time of the collector's threads, and the mutator's assist time, over all
    /// collections.
    pub collecting: (Duration, Duration),
    /// Cells that a last collection found alive, and cells that a walk over the graph reached.
    /// Cells that stale words keep are in the first number only.
    pub alive: (u64, u64),
    /// The time of the whole measurement.
    pub took: Duration,
    /// The process's peak resident memory.
    pub peak_rss_bytes: u64,
}

/// The words by which the mutator and the driver synchronise.
struct Signs {
    quiet: AtomicBool,
    over: AtomicBool,
    /// Blocks of turns done, in any mode. A change says that the mutator runs.
    place: AtomicU32,
}

/// Builds the graph and measures at least `cycles` collections.
///
/// # Errors
/// [`MarkError`].
pub fn measure(mib: u32, cycles: u32) -> Result<Outcome, MarkError> {
    let begun = Instant::now();
    let graph = Graph::with(Heap::builder(), mib)?;
    let heap = graph.heap().clone();
    let mut program = Program::new(&graph);
    program.number_all();
    let floor = Floor::new().map_err(|e| MarkError::Heap(e.to_string()))?;
    let _member = floor.enroll();
    let signs = Signs {
        quiet: AtomicBool::new(false),
        over: AtomicBool::new(false),
        place: AtomicU32::new(0),
    };
    graph.collect();
    let before = heap.stats();
    let mut gauge = Gauge::new();
    let pauses = Pauses::since(&heap, gauge.start());
    let driver = Driver {
        heap: &heap,
        floor: &floor,
        signs: &signs,
    };
    let (measured, turned) = std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            let _over = Over(&signs.over);
            driver.run(cycles)
        });
        let turned = program.run(&signs, &mut gauge);
        let measured = graph.mutator().blocking(|| driver.join());
        let measured = measured.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (measured, turned)
    });
    let (turns, turning) = turned?;
    let Driven {
        stalls,
        floor,
        wait,
        asked,
    } = measured?;
    let (mut cycles, _) = pauses.finish_cycles();
    cycles.retain(|cycle| !asked.contains(&cycle.number));
    for cycle in &cycles {
        gauge.collected(cycle.scanned, cycle.scanned + cycle.mark, cycle.pause);
    }
    let windows = gauge.windows();
    let after = heap.stats();
    let collecting = (
        after.collector_cpu_total - before.collector_cpu_total,
        after.assist_total - before.assist_total,
    );
    let peak_rss_bytes = peak_rss_bytes();
    let alive = graph.alive()?;
    Ok(Outcome {
        mib,
        objects: graph.objects(),
        cycles,
        stalls,
        floor,
        wait,
        windows,
        turns,
        turning,
        collecting,
        alive,
        took: begun.elapsed(),
        peak_rss_bytes,
    })
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire loads of `over` by the mutator and the driver.
        self.0.store(true, Ordering::Release);
    }
}

/// The mutator's program.
struct Program<'g> {
    mutator: &'g Mutator,
    site: Site,
    table: *mut *mut Object,
    cells: usize,
    random: Random,
    turn: usize,
}

impl<'g> Program<'g> {
    fn new(graph: &'g Graph) -> Program<'g> {
        Program {
            mutator: graph.mutator(),
            site: graph.site(),
            table: graph.table().as_ptr() as *mut *mut Object,
            cells: graph.table().len(),
            random: Random::default(),
            turn: 0,
        }
    }

    /// Writes a number and its complement into every cell.
    fn number_all(&mut self) {
        for n in 0..self.cells {
            // SAFETY: the index is below the table's length, and the table leads to a live cell of
            // four words. Its last two words are not edges.
            unsafe {
                let cell = self.table.add(n).read();
                (*cell)[2] = n;
                (*cell)[3] = !n;
            }
        }
    }

    #[inline]
    fn pick(&mut self) -> *mut *mut Object {
        let n = self.random.below(self.cells);
        // SAFETY: the index is below the table's length.
        unsafe { self.table.add(n) }
    }

    #[inline]
    fn turn(&mut self, allocate: bool) -> Result<(), MarkError> {
        let turn = self.turn;
        self.turn += 1;
        let (a, b) = (self.pick(), self.pick());
        // SAFETY: the table's words lead to live cells of four words. This thread's registers keep
        // the new cells, whose first stores need no barrier. All other stores of edges use the
        // barrier.
        unsafe {
            let (a, b) = (a.read(), b.read());
            if (*a)[2] != !(*a)[3] {
                return Err(MarkError::Damaged);
            }
            self.mutator
                .write(a.cast::<usize>().add(turn & 1), b as usize);
            if !allocate {
                return Ok(());
            }
            let mut last = a;
            for _ in 0..CELLS {
                let cell = self.mutator.alloc_at(self.site).map_err(MarkError::Full)?;
                last = cell.as_ptr().cast::<Object>();
                last.write([a as usize, b as usize, turn, !turn]);
            }
            if turn.is_multiple_of(16) {
                let slot = self.pick();
                let old = slot.read().cast::<usize>();
                last.cast::<[usize; 2]>()
                    .write([old.read(), old.add(1).read()]);
                self.mutator.fill_words(old, 0, 2);
                self.mutator.write(slot.cast(), last as usize);
            }
        }
        Ok(())
    }

    /// Runs turns until the driver ends it. Gives their number and the time that they took.
    fn run(&mut self, signs: &Signs, gauge: &mut Gauge) -> Result<(u64, Duration), MarkError> {
        // However this function ends, the driver then stops waiting.
        let _over = Over(&signs.over);
        // SAFETY: the offset is that of an `AtomicU32` in this thread's context, which lives as
        // long as the mutator.
        let marking = unsafe {
            &*self
                .mutator
                .context()
                .cast::<u8>()
                .add(CONTEXT_MARKING)
                .cast::<AtomicU32>()
        };
        let (mut turns, mut turning) = (0, Duration::ZERO);
        let mut since = Instant::now();
        let mut was_quiet = false;
        // Acquire: pairs with the driver's Release store. The flags carry no data.
        while !signs.over.load(Ordering::Acquire) {
            let quiet = signs.quiet.load(Ordering::Acquire);
            if quiet != was_quiet {
                if quiet {
                    turning += since.elapsed();
                } else {
                    gauge.other();
                    since = Instant::now();
                }
                was_quiet = quiet;
            }
            for _ in 0..TURNS {
                self.turn(!quiet)?;
            }
            // with `URGE_ASYNC=0` there is no other stop while nothing is allocated
            self.mutator.thread().poll();
            // Relaxed: only a change counts; the word orders nothing.
            signs.place.fetch_add(1, Ordering::Relaxed);
            if !quiet {
                turns += u64::from(TURNS);
                // Relaxed: the collector writes the word while this thread is stopped.
                gauge.add(
                    marking.load(Ordering::Relaxed) != 0,
                    self.mutator.assisted(),
                );
            }
        }
        if !was_quiet {
            turning += since.elapsed();
        }
        Ok((turns, turning))
    }
}

/// The thread that reads the heap's figures and measures the floor.
struct Driver<'a> {
    heap: &'a Heap,
    floor: &'a Floor,
    signs: &'a Signs,
}

struct Driven {
    stalls: Samples,
    floor: Samples,
    wait: Wait,
    /// Collections that the driver requested before floor rounds. They are not measured, because
    /// the mutator allocated nothing beside them.
    asked: Vec<u64>,
}

impl Driver<'_> {
    fn is_over(&self) -> bool {
        // Acquire: pairs with the Release store in `Over::drop`.
        self.signs.over.load(Ordering::Acquire)
    }

    fn run(&self, cycles: u32) -> Result<Driven, MarkError> {
        super::pause::ask_for_short_slices();
        let mut driven = Driven {
            stalls: Samples::new(),
            floor: Samples::new(),
            wait: Wait::Spin,
            asked: Vec::new(),
        };
        let mut progress = Progress::new("collections");
        let first = self.heap.stats().collections;
        for block in 0..BLOCKS {
            let measured = u64::from(cycles.div_ceil(BLOCKS) * (block + 1));
            let wanted = first + driven.asked.len() as u64 + measured;
            let mut seen = self.heap.stats().collections;
            let mut since = Instant::now();
            let mut look = LOOK[0];
            while seen < wanted && !self.is_over() {
                std::thread::sleep(look);
                let now = self.heap.stats().collections;
                if now != seen {
                    look = (since.elapsed() / LOOKS).clamp(LOOK[0], LOOK[1]);
                    since = Instant::now();
                    seen = now;
                    self.take_stalls(&mut driven.stalls)?;
                    progress.show(seen - first - u64::from(block), u64::from(cycles));
                }
            }
            // Release, here and below: pairs with the mutator's Acquire load.
            self.signs.quiet.store(true, Ordering::Release);
            let measured = self.floor_block(&mut driven);
            self.signs.quiet.store(false, Ordering::Release);
            measured?;
        }
        Ok(driven)
    }

    /// Stops the world once more, and records the mutator's stall of the stop before.
    fn take_stalls(&self, stalls: &mut Samples) -> Result<(), MarkError> {
        let stopped = self.heap.world().stop();
        let stopped = stopped.map_err(|e| MarkError::Heap(e.to_string()))?;
        for mutator in stopped.mutators() {
            if let Some(stall) = mutator.last_stall() {
                stalls.record_stall(stall);
            }
        }
        Ok(())
    }

    fn floor_block(&self, driven: &mut Driven) -> Result<(), MarkError> {
        let rounds = |rounds, wait| {
            self.floor
                .rounds(rounds, wait, |_| self.settle())
                .map_err(|e| MarkError::Heap(e.to_string()))
        };
        // After this collection none is under way, because the mutator does not allocate. The floor
        // is measured after sweeping, which would keep a processor busy.
        driven.asked.push(self.heap.collect());
        while self.heap.stats().sweeping && !self.is_over() {
            std::thread::sleep(LOOK[1]);
        }
        if driven.floor.stop.is_empty() {
            let tail = |wait| Ok(rounds(CALIBRATION, wait)?.stop.value_at_quantile(0.9));
            driven.wait = if tail(Wait::Spin)? <= tail(Wait::Sleep)? {
                Wait::Spin
            } else {
                Wait::Sleep
            };
        }
        driven.floor.merge(&rounds(ROUNDS, driven.wait)?);
        Ok(())
    }

    /// Waits until the mutator was seen to run.
    fn settle(&self) {
        // Relaxed, here and below: only a change counts.
        let seen = self.signs.place.load(Ordering::Relaxed);
        let begun = Instant::now();
        while self.signs.place.load(Ordering::Relaxed) == seen
            && begun.elapsed() < Duration::from_millis(5)
            && !self.is_over()
        {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Outcome {
    fn quantiles(&self, time: impl Fn(&Cycle) -> Duration) -> Quantiles {
        Quantiles::of_times(self.cycles.iter().map(time))
    }

    /// The p99 of all pauses over the p99 of the floor's pauses.
    pub fn pause_ratio_p99(&self) -> f64 {
        let floor = Quantiles::of(&self.floor.pause).p99;
        self.quantiles(|cycle| cycle.pause).p99 / floor.max(1e-3)
    }

    /// The mutator's turns in a second.
    pub fn turns_per_s(&self) -> f64 {
        self.turns as f64 / self.turning.as_secs_f64().max(1e-9)
    }

    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "mib": self.mib,
            "objects": self.objects,
            "cycles": self.cycles.len(),
            "stop_us": self.quantiles(|cycle| cycle.stop).json(),
            "pause_us": self.quantiles(|cycle| cycle.pause).json(),
            "stall_us": Quantiles::of(&self.stalls.stall).json(),
            "mark_us": self.quantiles(|cycle| cycle.mark).json(),
            "floor_us": Quantiles::of(&self.floor.stop).json(),
            "floor_pause_us": Quantiles::of(&self.floor.pause).json(),
            "floor_stall_us": Quantiles::of(&self.floor.stall).json(),
            "floor_wait": self.wait.name(),
            "pause_ratio_p99": self.pause_ratio_p99(),
            "utilisation": self.windows.utilisation.json(),
            "progress": self.windows.progress.json(),
            "progress_between": self.windows.progress_between.json(),
            "collector_processor_seconds": self.collecting.0.as_secs_f64(),
            "assist_seconds": self.collecting.1.as_secs_f64(),
            "turns": self.turns,
            "turns_per_s": self.turns_per_s(),
            "cells_live": self.alive.0,
            "cells_reached": self.alive.1,
            "seconds": self.took.as_secs_f64(),
            "peak_rss_bytes": self.peak_rss_bytes,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} MiB: {} objects held by one table, changed by a mutator through {} collections; {} MiB resident at most",
            self.mib,
            grouped(self.objects),
            self.cycles.len(),
            self.peak_rss_bytes >> 20,
        )?;
        writeln!(f)?;
        writeln!(f, "{}", Quantiles::head("microseconds"))?;
        for (label, quantiles) in [
            ("pause", self.quantiles(|cycle| cycle.pause)),
            ("  floor", Quantiles::of(&self.floor.pause)),
            ("time to stop", self.quantiles(|cycle| cycle.stop)),
            ("  floor", Quantiles::of(&self.floor.stop)),
            ("stall", Quantiles::of(&self.stalls.stall)),
            ("  floor", Quantiles::of(&self.floor.stall)),
            ("marking", self.quantiles(|cycle| cycle.mark)),
        ] {
            writeln!(f, "{}", quantiles.line(label))?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<32}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "parts of 10 ms", "min", "p1", "p10", "p50", "max", "windows"
        )?;
        let line = |label: &str, of: Shares| {
            let cells = [of.min, of.p01, of.p10, of.p50, of.max].map(|part| format!("{part:>9.3}"));
            format!("{label:<32}{}{:>9}", cells.concat(), of.windows)
        };
        let windows = &self.windows;
        writeln!(
            f,
            "{}",
            line("left by stops and assists", windows.utilisation)
        )?;
        writeln!(
            f,
            "{}",
            line("progress during collections", windows.progress)
        )?;
        writeln!(f, "{}", line("  between them", windows.progress_between))?;
        writeln!(f)?;
        writeln!(
            f,
            "pauses' p99 {:.2} x the floor's, which does best to {}; {:.2} million turns a second",
            self.pause_ratio_p99(),
            self.wait.name(),
            self.turns_per_s() / 1e6,
        )?;
        writeln!(
            f,
            "{:.3} s of processors collected in {:.3} s, and the mutator assisted for {:.3} s",
            self.collecting.0.as_secs_f64(),
            self.turning.as_secs_f64(),
            self.collecting.1.as_secs_f64(),
        )?;
        writeln!(
            f,
            "in the end {} cells alive, {} of them reached from the table",
            grouped(self.alive.0),
            grouped(self.alive.1)
        )
    }
}
