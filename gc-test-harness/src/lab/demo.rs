//! `gclab` without a command: threads in loops without polls beside threads that allocate. For a
//! few seconds all are stopped, scanned, collected and resumed.
//!
//! The threads are those of a [`Crew`]: each computes a value that is known in advance, and the
//! demo fails if one value is wrong.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use gc_core::Heap;
use serde_json::{Value, json};

use super::baselines::signal::{Floor, Wait};
use super::crew::{Crew, Kernels, Sizes, Work};
use crate::kernels::codegen::Arena;
use crate::report::{Quantiles, Samples, grouped, peak_rss_bytes};

/// The length of the demo.
const LENGTH: Duration = Duration::from_secs(3);
/// Collections between two measurements of the floor, and rounds of each measurement.
const BLOCK: u32 = 10;
/// The time between two collections, in which the threads leave the stop and compute.
const GAP: Duration = Duration::from_millis(2);
/// The time between two lines of progress, on a terminal and elsewhere.
const PROGRESS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// With these sizes one call of a kernel takes some tens of milliseconds.
const SIZES: Sizes = Sizes {
    turns: 10_000_000,
    ring: 1_000,
    depth: 50,
    lists: (2_000, 200),
};

/// The reason why the demo failed.
#[derive(Debug)]
pub struct DemoError(String);

impl DemoError {
    fn of(error: impl fmt::Display) -> DemoError {
        DemoError(error.to_string())
    }
}

impl fmt::Display for DemoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DemoError {}

/// The demo's figures.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Time to stop and pause of each collection.
    pub ours: Samples,
    /// The signal floor, measured between collections.
    pub floor: Samples,
    /// The number of full collections.
    pub collections: u64,
    /// The cells that the collections freed.
    pub cells_freed: u64,
    /// Frames that stack maps described.
    pub frames_precise: u64,
    /// Frames that were scanned word by word.
    pub frames_conservative: u64,
    /// Answers of threads that were compared with the known value.
    pub answers: u64,
    /// The time that the demo took.
    pub took: Duration,
}

/// Runs the demo.
pub fn run() -> Result<Outcome, DemoError> {
    let mut arena = Arena::new().map_err(DemoError::of)?;
    let kernels = Kernels::compile(&mut arena).map_err(DemoError::of)?;
    // The pacer starts no collection, so none is under way while the floor is measured.
    let heap = Heap::builder().gc_percent(u32::MAX).build();
    let heap = heap.map_err(DemoError::of)?;
    let _guards = kernels.register(&heap).map_err(DemoError::of)?;
    let floor = Floor::new().map_err(DemoError::of)?;
    let crew = Crew::new(&heap, &kernels, SIZES).map_err(DemoError::of)?;
    let work: [Work<'_>; 5] = [
        Crew::count,
        Crew::chase,
        Crew::recurse,
        Crew::allocate,
        Crew::allocate,
    ];
    let outcome = std::thread::scope(|scope| {
        let over = crew.until_dropped();
        let threads = work.map(|work| {
            let (crew, floor) = (&crew, &floor);
            scope.spawn(move || {
                let _member = floor.enroll();
                crew.thread(work);
            })
        });
        while crew.started() < work.len() && !crew.is_over() {
            std::thread::sleep(Duration::from_micros(100));
        }
        let outcome = conduct(&crew, &floor);
        drop(over);
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        outcome
    })?;
    match crew.failure() {
        Some(failure) => Err(DemoError(failure)),
        None => Ok(Outcome {
            answers: crew.answers(),
            ..outcome
        }),
    }
}

/// Runs collections and measurements of the floor in alternation, and shows the progress.
fn conduct(crew: &Crew<'_>, floor: &Floor) -> Result<Outcome, DemoError> {
    let mut outcome = Outcome {
        ours: Samples::new(),
        floor: Samples::new(),
        collections: 0,
        cells_freed: 0,
        frames_precise: 0,
        frames_conservative: 0,
        answers: 0,
        took: Duration::ZERO,
    };
    let mut progress = Progress::new();
    let begun = Instant::now();
    while begun.elapsed() < LENGTH && !crew.is_over() {
        for _ in 0..BLOCK {
            crew.heap().collect();
            let last = crew.heap().stats().last;
            outcome.ours.record(last.time_to_stop, last.pause);
            outcome.collections += 1;
            outcome.cells_freed += last.cells_freed;
            outcome.frames_precise += u64::from(last.frames_precise);
            outcome.frames_conservative += u64::from(last.frames_conservative);
            std::thread::sleep(GAP);
        }
        let gap = || std::thread::sleep(GAP);
        let samples = floor.rounds(BLOCK, Wait::Sleep, |_| gap());
        outcome.floor.merge(&samples.map_err(DemoError::of)?);
        progress.show(begun.elapsed(), &outcome, crew.answers());
    }
    progress.end();
    outcome.took = begun.elapsed();
    Ok(outcome)
}

/// The progress line: overwritten on a terminal, a new line once a second elsewhere.
struct Progress {
    terminal: bool,
    last: Option<Duration>,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            terminal: std::io::stderr().is_terminal(),
            last: None,
        }
    }

    fn show(&mut self, now: Duration, outcome: &Outcome, answers: u64) {
        let every = PROGRESS[usize::from(!self.terminal)];
        if self.last.is_some_and(|last| now - last < every) {
            return;
        }
        self.last = Some(now);
        let stop = Quantiles::of(&outcome.ours.stop);
        let line = format!(
            "{:4.1} s  {} collections  stopped in {:.0} us (median)  {} cells freed  {} answers checked",
            now.as_secs_f64(),
            grouped(outcome.collections),
            stop.p50,
            grouped(outcome.cells_freed),
            grouped(answers),
        );
        // A closed standard error does not end the demo.
        let _ = if self.terminal {
            write!(std::io::stderr(), "\r{line}\x1b[K")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
    }

    fn end(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Outcome {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "stop_us": Quantiles::of(&self.ours.stop).json(),
            "pause_us": Quantiles::of(&self.ours.pause).json(),
            "floor_us": Quantiles::of(&self.floor.stop).json(),
            "floor_pause_us": Quantiles::of(&self.floor.pause).json(),
            "floor_stall_us": Quantiles::of(&self.floor.stall).json(),
            "collections": self.collections,
            "cells_freed": self.cells_freed,
            "frames_precise": self.frames_precise,
            "frames_conservative": self.frames_conservative,
            "answers_checked": self.answers,
            "seconds": self.took.as_secs_f64(),
            "peak_rss_bytes": peak_rss_bytes(),
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Three threads in loops without polls and two that allocate, for {:.1} s.",
            self.took.as_secs_f64()
        )?;
        writeln!(f)?;
        writeln!(f, "{}", Quantiles::head("microseconds"))?;
        for (label, histogram) in [
            ("time to stop", &self.ours.stop),
            ("signal floor", &self.floor.stop),
            ("pause (full collection)", &self.ours.pause),
        ] {
            writeln!(f, "{}", Quantiles::of(histogram).line(label))?;
        }
        writeln!(f)?;
        for (label, number) in [
            ("collections", self.collections),
            ("cells freed", self.cells_freed),
            ("frames scanned by stack map", self.frames_precise),
            ("frames scanned word by word", self.frames_conservative),
            ("answers checked, all right", self.answers),
        ] {
            writeln!(f, "{label:<30}{:>15}", grouped(number))?;
        }
        Ok(())
    }
}
