//! `gclab` alone: threads in poll-free loops beside threads that allocate, all stopped, scanned, collected and resumed, for a few seconds.
//!
//! Nobody is asked to believe the figures: each thread computes something whose answer it knows, out of registers and
//! objects that a lost root, a bent register or a cell freed too early would spoil, and the demo fails if one is wrong.
//!
//! | thread | stands at a stop | checks |
//! |---|---|---|
//! | counting | in a loop without memory access | its sum |
//! | chasing | in a loop over a ring that hangs from a register alone | the ring's sum |
//! | recursing | in a loop below 50 managed frames that each hold an object | what all of them say |
//! | two allocating | anywhere between an inlined allocation and the collector's own code | each list's sum |

use std::ffi::c_void;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gc_core::{Encoding, Heap, Mutator, Site};
use serde_json::{Value, json};

use super::floor::{Floor, Wait};
use super::report::{Quantiles, Samples, grouped, peak_rss_bytes};
use crate::kernels::alloc::{Allocating, Allocator, Lists, lists_oracle, node_site, ring};
use crate::kernels::codegen::Arena;
use crate::kernels::deep::{Deep, Frames, deep_oracle};
use crate::kernels::loops::{Chase, Count, Loops, chase_oracle, count_oracle};

/// How long the demo runs.
const LENGTH: Duration = Duration::from_secs(3);
/// Collections before the floor is measured a while, and rounds of that.
const BLOCK: u32 = 10;
/// Between two collections. Time for the threads to come out of the stop and compute.
const GAP: Duration = Duration::from_millis(2);
/// Between two lines of progress, on a terminal and elsewhere.
const PROGRESS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// Turns of the counting loop a call, and nodes chased a call: some tens of milliseconds.
const TURNS: u64 = 10_000_000;
/// Nodes of the ring that is chased.
const RING: u64 = 1_000;
/// Frames of the recursion.
const DEPTH: u64 = 50;
/// Lists a call, and nodes of one.
const LISTS: (u64, u64) = (2_000, 200);

/// Why the demo failed.
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

/// What happened.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Time to stop and pause of every collection.
    pub ours: Samples,
    /// The signal floor, measured in between.
    pub floor: Samples,
    /// Full collections.
    pub collections: u64,
    /// Cells that they freed.
    pub cells_freed: u64,
    /// Frames that stack maps described.
    pub frames_precise: u64,
    /// Frames that were scanned word by word.
    pub frames_conservative: u64,
    /// Times that a thread's answer was compared with the one known beforehand.
    pub answers: u64,
    /// How long it took.
    pub took: Duration,
}

/// The machine code of all threads.
#[derive(Clone, Copy)]
struct Code {
    count: Count,
    chase: Chase,
    deep: Deep,
    lists: Lists,
}

/// What the threads share.
struct Crew<'a> {
    heap: &'a Heap,
    floor: &'a Floor,
    site: Site,
    code: Code,
    started: AtomicUsize,
    over: AtomicBool,
    answers: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// Sets `over` also on an early return, or the threads' scope would never end.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs the demo.
pub fn run() -> Result<Outcome, DemoError> {
    let mut arena = Arena::new().map_err(DemoError::of)?;
    let loops = Loops::compile(&mut arena).map_err(DemoError::of)?;
    let frames = Frames::compile(&mut arena).map_err(DemoError::of)?;
    let allocating = Allocating::compile(&mut arena).map_err(DemoError::of)?;
    // Collections come from here alone, so that the floor is never measured in the middle of one.
    let heap = Heap::builder().gc_percent(u32::MAX).build();
    let heap = heap.map_err(DemoError::of)?;
    let mut guards = Vec::new();
    for code in [&loops.code, &frames.code, &allocating.code]
        .into_iter()
        .flatten()
    {
        let guard = code.register_with(&heap, Encoding::RAW);
        guards.push(guard.map_err(DemoError::of)?);
    }
    let floor = Floor::new().map_err(DemoError::of)?;
    let crew = Crew {
        heap: &heap,
        floor: &floor,
        site: node_site(&heap).map_err(DemoError::of)?,
        code: Code {
            count: loops.count,
            chase: loops.chase,
            deep: frames.deep,
            lists: allocating.lists,
        },
        started: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        answers: AtomicU64::new(0),
        failure: Mutex::new(None),
    };
    let work: [Work<'_>; 5] = [
        Crew::count,
        Crew::chase,
        Crew::recurse,
        Crew::allocate,
        Crew::allocate,
    ];
    let outcome = std::thread::scope(|scope| {
        let over = Over(&crew.over);
        let threads = work.map(|work| {
            let crew = &crew;
            scope.spawn(move || crew.thread(work))
        });
        while crew.started.load(Ordering::Acquire) < work.len() && !crew.is_over() {
            std::thread::sleep(Duration::from_micros(100));
        }
        let outcome = crew.conduct();
        drop(over);
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        outcome
    })?;
    match crew
        .failure
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(failure) => Err(DemoError(failure)),
        None => Ok(Outcome {
            answers: crew.answers.into_inner(),
            ..outcome
        }),
    }
}

/// What a thread does until the demo is over.
type Work<'a> = fn(&Crew<'a>, &Mutator) -> Result<(), String>;

impl<'a> Crew<'a> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Collects, measures the floor, collects, ..., and says how it goes.
    fn conduct(&self) -> Result<Outcome, DemoError> {
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
        while begun.elapsed() < LENGTH && !self.is_over() {
            for _ in 0..BLOCK {
                self.heap.collect();
                let last = self.heap.stats().last;
                outcome.ours.record(last.time_to_stop, last.pause);
                outcome.collections += 1;
                outcome.cells_freed += last.cells_freed;
                outcome.frames_precise += u64::from(last.frames_precise);
                outcome.frames_conservative += u64::from(last.frames_conservative);
                std::thread::sleep(GAP);
            }
            let gap = || std::thread::sleep(GAP);
            let samples = self.floor.rounds(BLOCK, Wait::Sleep, gap);
            outcome.floor.merge(&samples.map_err(DemoError::of)?);
            progress.show(
                begun.elapsed(),
                &outcome,
                self.answers.load(Ordering::Relaxed),
            );
        }
        progress.end();
        outcome.took = begun.elapsed();
        Ok(outcome)
    }

    /// One thread's life.
    fn thread(&self, work: Work<'a>) {
        let worked = self
            .heap
            .attach()
            .map_err(|e| e.to_string())
            .and_then(|mutator| {
                let _member = self.floor.enroll();
                self.started.fetch_add(1, Ordering::Release);
                work(self, &mutator)
            });
        if let Err(why) = worked {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(why);
            self.over.store(true, Ordering::Release);
        }
    }

    /// Calls `compute` until the demo is over; its answers must be as expected.
    fn check(
        &self,
        mutator: &Mutator,
        what: &str,
        expected: u64,
        mut compute: impl FnMut() -> u64,
    ) -> Result<(), String> {
        while !self.is_over() {
            let got = compute();
            if got != expected {
                return Err(format!(
                    "the {what} thread computed {got:#x} instead of {expected:#x}: a stop or a collection spoiled a register or an object"
                ));
            }
            self.answers.fetch_add(1, Ordering::Relaxed);
            // For `URGE_ASYNC=0`: without signals, here is where a thread stops, after tens of milliseconds.
            mutator.thread().poll();
        }
        Ok(())
    }

    fn count(&self, mutator: &Mutator) -> Result<(), String> {
        let expected = count_oracle(1, TURNS);
        self.check(mutator, "counting", expected, || {
            (self.code.count)(1, TURNS)
        })
    }

    fn chase(&self, mutator: &Mutator) -> Result<(), String> {
        let allocator = Allocator::new(mutator, self.site);
        let values: Vec<u64> = (0..RING).map(|i| i * i).collect();
        // On this stack between two calls, in a register during one.
        let mut slot = ring(&allocator, &values).ok_or("the heap has no room for a ring")?;
        let expected = chase_oracle(&values, TURNS);
        // SAFETY: the slot names a ring of live nodes.
        self.check(mutator, "chasing", expected, || unsafe {
            (self.code.chase)(&raw mut slot, TURNS)
        })
    }

    fn recurse(&self, mutator: &Mutator) -> Result<(), String> {
        let allocator = Allocator::new(mutator, self.site);
        let call = Recursion {
            allocator: &allocator,
            count: self.code.count,
        };
        let data = (&raw const call).cast_mut().cast();
        let expected = deep_oracle(DEPTH, 1, 2, 3, |depth| depth * 3);
        self.check(mutator, "recursing", expected, || {
            // SAFETY: `fresh` and `bottom` take what `data` points to, which outlives the call.
            unsafe {
                let outermost = fresh(data, DEPTH + 1);
                (self.code.deep)(DEPTH, fresh, bottom, data, 1, 2, outermost, 3)
            }
        })
    }

    fn allocate(&self, mutator: &Mutator) -> Result<(), String> {
        let allocator = Allocator::new(mutator, self.site);
        let (lists, length) = LISTS;
        let expected = lists_oracle(lists, length);
        // SAFETY: the allocator and its run outlive the call.
        self.check(mutator, "allocating", expected, || unsafe {
            (self.code.lists)(&allocator, allocator.run(), lists, length)
        })
    }
}

/// What the recursion's callbacks get.
struct Recursion<'a> {
    allocator: &'a Allocator<'a>,
    count: Count,
}

/// A node that says three times its frame's depth. An exhausted heap ends the process: the frames above cannot know.
unsafe extern "C" fn fresh(data: *mut c_void, depth: u64) -> usize {
    // SAFETY: `recurse` passes this.
    let recursion = unsafe { &*data.cast::<Recursion<'_>>() };
    match ring(recursion.allocator, &[depth * 3]) {
        Some(node) => node,
        None => {
            eprintln!("gclab: the heap has no room for a node of 16 bytes");
            std::process::abort()
        }
    }
}

/// Stays at the bottom of the recursion for a while, in a loop.
unsafe extern "C" fn bottom(data: *mut c_void) {
    // SAFETY: as above.
    let recursion = unsafe { &*data.cast::<Recursion<'_>>() };
    std::hint::black_box((recursion.count)(1, TURNS / 4));
}

/// The live line: on a terminal it is written over and over, elsewhere once a second.
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
        // Nobody to tell is no reason to stop.
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
            "Three threads in poll-free loops and two that allocate, for {:.1} s.",
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
