//! `gclab pause`: time to stop, pause and stall over poll-free managed loops, beside the signal
//! floor of the same run.
//!
//! The threads are the same for both: mutators of a world that are members of the floor as well,
//! all in the same counting loop, which says in memory how far it is: a round begins when each was
//! seen to run since the one before. Blocks of rounds alternate, floor, ours, floor, ours, ...,
//! floor, so that whatever else the machine does meanwhile meets both. Medians are taken over all
//! rounds. A tail is claimed as the median of the blocks' ratios, since a 99th percentile swings by
//! several times even for the floor against itself; that swing is reported beside it.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use gc_core::Heap;
use gc_core::raw::{Encoding, Site};
use serde_json::{Value, json};

use super::baselines::signal::{Floor, FloorError, Wait};
use crate::kernels::alloc::{Allocator, node_site, ring};
use crate::kernels::codegen::{Arena, CodegenError};
use crate::kernels::loops::{CountAloud, Loops, count_oracle};
use crate::report::{Quantiles, Samples, median, peak_rss_bytes};

/// Turns of the counting loop a call, with one thread: some 20 ms, so that nearly every stop meets
/// the loop and not the Rust around it. Many threads have shorter calls, or it would take a minute
/// until the last of a thousand has had its first.
const TURNS: u64 = 15_000_000;
const LEAST_TURNS: u64 = 200_000;
/// The loop's seed; its answer is known before.
const SEED: u64 = 7;
/// How long a round waits for all threads to run again: a little more than the 4 ms of a common
/// kernel's tick.
const PATIENCE: Duration = Duration::from_millis(5);
/// For no longer than this does a stop let the threads run before it begins.
const RUNS_MOST: Duration = Duration::from_millis(10);
/// Nodes that each thread keeps alive: small live data.
const LIVE: usize = 100;
/// A block of collections has one round for so many rounds of stops.
const COLLECT_EVERY: u32 = 5;
/// Blocks of rounds that decide whether the floor spins or sleeps, for each of the two.
const CALIBRATION_BLOCKS: usize = 7;
/// Rounds of such a block.
const CALIBRATION: u32 = 30;

/// Rounds a block that end in a minute or so. With many threads beyond the processors a round takes
/// the square of their number: each must have its turn before it can answer, and so must the
/// stopper between two of its signals.
pub fn rounds_for(threads: usize) -> u32 {
    let beyond = (threads.max(16) / 16) as u32;
    (500 / (beyond * beyond)).max(1)
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads in loops.
    pub threads: usize,
    /// Rounds a block.
    pub rounds: u32,
    /// Blocks of ours; the floor has one more.
    pub blocks: usize,
    /// Sleep after each resume, before looking whether all threads have run again.
    pub gap: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            threads: 1,
            rounds: 500,
            blocks: 9,
            gap: Duration::from_micros(100),
        }
    }
}

/// Why nothing was measured.
#[derive(Debug)]
pub enum PauseError {
    /// The kernels could not be compiled or registered.
    Codegen(CodegenError),
    /// The floor could not be measured.
    Floor(FloorError),
    /// The heap could not be set up or stopped, or a thread not attached.
    Heap(String),
    /// A loop gave a wrong answer: a stop changed what a thread computed.
    WrongAnswer {
        /// What it gave.
        got: u64,
        /// What it should have given.
        expected: u64,
    },
}

impl fmt::Display for PauseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PauseError::Codegen(e) => write!(f, "{e}"),
            PauseError::Floor(e) => write!(f, "{e}"),
            PauseError::Heap(why) => f.write_str(why),
            PauseError::WrongAnswer { got, expected } => write!(
                f,
                "a stopped and resumed loop computed {got:#x} instead of {expected:#x}: a stop changed its registers"
            ),
        }
    }
}

impl std::error::Error for PauseError {}

impl PauseError {
    fn heap(error: impl fmt::Display) -> PauseError {
        PauseError::Heap(error.to_string())
    }
}

impl From<CodegenError> for PauseError {
    fn from(e: CodegenError) -> PauseError {
        PauseError::Codegen(e)
    }
}

impl From<FloorError> for PauseError {
    fn from(e: FloorError) -> PauseError {
        PauseError::Floor(e)
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was asked for.
    pub options: Options,
    /// The library's times, over all blocks.
    pub ours: Samples,
    /// Full collections with a little live data.
    pub collections: Samples,
    /// The floor's.
    pub floor: Samples,
    /// How the floor waited: the better of the two ways at this number of threads.
    pub wait: Wait,
    /// Each block's p99 over its floor neighbours': time to stop and stall.
    pub tail_ratios: Tails,
    /// Each floor block's p99 over the one before it, or the reverse, whichever is above 1.
    pub floor_tail_ratios: Tails,
    /// How long it took.
    pub took: Duration,
}

/// Ratios of 99th percentiles, one a pair of blocks.
#[derive(Clone, Debug, Default)]
pub struct Tails {
    /// Of the time to stop.
    pub stop: Vec<f64>,
    /// Of the stall.
    pub stall: Vec<f64>,
}

impl Tails {
    fn push(&mut self, above: &Samples, below: &[&Samples]) {
        let p99 = |histogram: &hdrhistogram::Histogram<u64>| {
            histogram.value_at_quantile(0.99).max(1) as f64
        };
        let below = |pick: fn(&Samples) -> &hdrhistogram::Histogram<u64>| {
            below.iter().map(|s| p99(pick(s))).sum::<f64>() / below.len() as f64
        };
        self.stop.push(p99(&above.stop) / below(|s| &s.stop));
        self.stall.push(p99(&above.stall) / below(|s| &s.stall));
    }

    fn spread(mut self) -> Tails {
        for ratio in self.stop.iter_mut().chain(&mut self.stall) {
            *ratio = ratio.max(1.0 / *ratio);
        }
        self
    }
}

/// Measures.
pub fn measure(options: &Options) -> Result<Outcome, PauseError> {
    let begun = Instant::now();
    let mut arena = Arena::new()?;
    let loops = Loops::compile(&mut arena)?;
    // No collections but those that are measured.
    let heap = Heap::builder().gc_percent(u32::MAX).build();
    let heap = heap.map_err(PauseError::heap)?;
    let mut guards = Vec::new();
    for code in &loops.code {
        guards.push(code.register_with(&heap, Encoding::RAW)?);
    }
    let floor = Floor::new()?;
    let turns = (TURNS * 4 / options.threads.max(4) as u64).max(LEAST_TURNS);
    let crew = Crew {
        turns,
        expected: count_oracle(SEED, turns),
        gap: options.gap,
        site: node_site(&heap).map_err(PauseError::heap)?,
        heap: &heap,
        floor: &floor,
        working: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        places: (0..options.threads)
            .map(|_| CachePadded::default())
            .collect(),
    };
    std::thread::scope(|scope| {
        let crew = &crew;
        // On every path `over` is set in the end, or the scope would never end.
        let over = Over(&crew.over);
        let threads: Vec<_> = crew
            .places
            .iter()
            .map(|place| scope.spawn(|| crew.work(loops.count_aloud, place)))
            .collect();
        let measured = crew
            .wait_for_all()
            .and_then(|()| crew.alternate(options, begun));
        drop(over);
        for thread in threads {
            let outcome = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome?;
        }
        measured
    })
}

/// The threads that are stopped, and what stops them.
struct Crew<'a> {
    turns: u64,
    expected: u64,
    gap: Duration,
    site: Site,
    heap: &'a Heap,
    floor: &'a Floor,
    working: AtomicUsize,
    over: AtomicBool,
    /// Where each thread's loop says that it runs.
    places: Vec<CachePadded<AtomicU64>>,
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Crew<'_> {
    /// One thread's life: a loop without polls, with a little live data besides.
    fn work(&self, count: CountAloud, place: &AtomicU64) -> Result<(), PauseError> {
        // However the thread ends, the measurement does not wait for it any more.
        let _over = Over(&self.over);
        let mutator = self.heap.attach().map_err(PauseError::heap)?;
        let _member = self.floor.enroll();
        let live = ring(&Allocator::new(&mutator, self.site), &[1; LIVE]);
        self.working.fetch_add(1, Ordering::Release);
        // All threads attach before the first one loops: else each of a thousand threads would wait
        // for a time slice of every other.
        while self.working.load(Ordering::Acquire) < self.places.len() && !self.is_over() {
            mutator.blocking(|| std::thread::sleep(PATIENCE));
        }
        while !self.over.load(Ordering::Acquire) {
            // SAFETY: the place outlives the threads, and all others only read it.
            let got = unsafe { count(SEED, self.turns, place.as_ptr()) };
            if got != self.expected {
                let expected = self.expected;
                return Err(PauseError::WrongAnswer { got, expected });
            }
            std::hint::black_box(&live);
            mutator.thread().poll(); // for `URGE_ASYNC=0`, which has no other stops
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn wait_for_all(&self) -> Result<(), PauseError> {
        while self.working.load(Ordering::Acquire) < self.places.len() && !self.is_over() {
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Gives the threads time until each has been seen to run, so that the next stop meets running
    /// threads and not such as are still parked, to be taken over where they stand. With more
    /// threads than processors that could take as many time slices as there are threads, so
    /// patience has an end; how many were running is counted.
    ///
    /// The threads run at first for as long as the last stop `took`. A stop sees to that before it
    /// begins: were it to wait here after the threads were seen to run, other programs could have
    /// their processors by the time that it asks.
    fn settle(&self, took: Duration) {
        std::thread::sleep(self.gap.max(took.min(RUNS_MOST)));
        let begun = Instant::now();
        let seen: Vec<u64> = self
            .places
            .iter()
            .map(|p| p.load(Ordering::Relaxed))
            .collect();
        for (place, seen) in self.places.iter().zip(seen) {
            while place.load(Ordering::Relaxed) == seen
                && begun.elapsed() < PATIENCE
                && !self.is_over()
            {
                std::thread::sleep(self.gap);
            }
        }
    }

    fn floor(&self, rounds: u32, wait: Wait) -> Result<Samples, FloorError> {
        self.floor.rounds(rounds, wait, |took| self.settle(took))
    }

    /// A block of the library's own stops.
    fn stops(&self, rounds: u32) -> Result<Samples, PauseError> {
        let mut samples = Samples::new();
        for _ in 0..rounds {
            let stopped = self.heap.world().stop().map_err(PauseError::heap)?;
            for mutator in stopped.mutators() {
                if let Some(stall) = mutator.last_stall() {
                    samples.record_stall(stall);
                }
            }
            let report = stopped.resume();
            samples.record(report.time_to_stop, report.pause);
            samples.met(report.signalled);
            self.settle(report.pause);
        }
        Ok(samples)
    }

    /// A block of full collections.
    fn collections(&self, rounds: u32) -> Samples {
        let mut samples = Samples::new();
        for _ in 0..rounds {
            self.heap.collect();
            let last = self.heap.stats().last;
            samples.record(last.time_to_stop, last.pause);
            samples.met(last.signalled);
            self.settle(last.pause);
        }
        samples
    }

    /// Which way for the floor to wait is better here: the one that nine rounds in ten are quicker
    /// with, in the median of alternating blocks. A median of all rounds would not do: with more
    /// threads than processors a spinning floor does well at times, when it happens to share its
    /// processor with none of the threads, and waits for time slices of milliseconds at others.
    fn better_wait(&self, rounds: u32) -> Result<Wait, FloorError> {
        // With far more threads than processors it is known: to spin takes one of the processors
        // from threads that must run, for minutes in all at a thousand.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        if self.places.len() > 8 * processors {
            return Ok(Wait::Sleep);
        }
        let (mut spin, mut sleep) = (Vec::new(), Vec::new());
        for _ in 0..CALIBRATION_BLOCKS {
            for (times, wait) in [(&mut spin, Wait::Spin), (&mut sleep, Wait::Sleep)] {
                let samples = self.floor(rounds.min(CALIBRATION), wait)?;
                times.push(samples.stop.value_at_quantile(0.9) as f64);
            }
        }
        let spins = median(&spin) <= median(&sleep);
        Ok(if spins { Wait::Spin } else { Wait::Sleep })
    }

    fn alternate(&self, options: &Options, begun: Instant) -> Result<Outcome, PauseError> {
        ask_for_short_slices();
        let wait = self.better_wait(options.rounds)?;
        self.stops(options.rounds.min(CALIBRATION))?;
        let mut outcome = Outcome {
            options: *options,
            ours: Samples::new(),
            collections: Samples::new(),
            floor: Samples::new(),
            wait,
            tail_ratios: Tails::default(),
            floor_tail_ratios: Tails::default(),
            took: Duration::ZERO,
        };
        let mut before = self.floor(options.rounds, wait)?;
        for number in 0..options.blocks {
            progress(number, options.blocks);
            let block = self.stops(options.rounds)?;
            let after = self.floor(options.rounds, wait)?;
            let collections = self.collections(options.rounds.div_ceil(COLLECT_EVERY));
            outcome.tail_ratios.push(&block, &[&before, &after]);
            outcome.floor_tail_ratios.push(&after, &[&before]);
            outcome.ours.merge(&block);
            outcome.collections.merge(&collections);
            outcome.floor.merge(&before);
            before = after;
        }
        progress(options.blocks, options.blocks);
        outcome.floor.merge(&before);
        outcome.floor_tail_ratios = outcome.floor_tail_ratios.spread();
        outcome.took = begun.elapsed();
        Ok(outcome)
    }
}

/// On a terminal, how far it is.
fn progress(done: usize, blocks: usize) {
    if std::io::stderr().is_terminal() {
        let line = if done < blocks {
            format!("\rblock {} of {blocks}", done + 1)
        } else {
            "\r\x1b[K".to_owned()
        };
        let _ = write!(std::io::stderr(), "{line}");
    }
}

/// Lets this thread come to its turn quickly after a sleep although the loops use up their time
/// slices (Linux 6.12 and later; elsewhere the rounds only take longer). What is measured begins
/// when it is awake.
pub(super) fn ask_for_short_slices() {
    const SLICE_NANOS: u64 = 100_000;
    // SAFETY: zero is a valid sched_attr, the call reads as many bytes as its size says, and its
    // failure is no matter.
    unsafe {
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        attributes.size = size_of::<libc::sched_attr>() as u32;
        attributes.sched_policy = libc::SCHED_OTHER as u32;
        attributes.sched_runtime = SLICE_NANOS;
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
    }
}

impl Outcome {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        let of = |histogram| Quantiles::of(histogram).json();
        let ratio = |ours: &hdrhistogram::Histogram<u64>, floor: &hdrhistogram::Histogram<u64>| {
            ours.value_at_quantile(0.5) as f64 / floor.value_at_quantile(0.5).max(1) as f64
        };
        json!({
            "threads": self.options.threads,
            "rounds": self.options.rounds,
            "blocks": self.options.blocks,
            "stop_us": of(&self.ours.stop),
            "pause_us": of(&self.collections.pause),
            "stop_and_resume_us": of(&self.ours.pause),
            "stall_us": of(&self.ours.stall),
            "floor_us": of(&self.floor.stop),
            "floor_pause_us": of(&self.floor.pause),
            "floor_stall_us": of(&self.floor.stall),
            "floor_wait": self.wait.name(),
            "stop_ratio_p50": ratio(&self.ours.stop, &self.floor.stop),
            "stall_ratio_p50": ratio(&self.ours.stall, &self.floor.stall),
            "pause_ratio_p50": ratio(&self.collections.pause, &self.floor.pause),
            "stop_ratio_p99": median(&self.tail_ratios.stop),
            "stall_ratio_p99": median(&self.tail_ratios.stall),
            "floor_spread_p99": median(&self.floor_tail_ratios.stop),
            "floor_stall_spread_p99": median(&self.floor_tail_ratios.stall),
            "running_threads": self.ours.running(),
            "floor_running_threads": self.floor.running(),
            "collect_stop_us": of(&self.collections.stop),
            "seconds": self.took.as_secs_f64(),
            "peak_rss_bytes": peak_rss_bytes(),
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options {
            threads,
            rounds,
            blocks,
            ..
        } = self.options;
        writeln!(
            f,
            "Threads in poll-free loops: {threads}; {blocks} blocks of {rounds} rounds beside the signal floor, which does best to {}.",
            self.wait.name()
        )?;
        writeln!(f)?;
        writeln!(f, "{}", Quantiles::head("microseconds"))?;
        for (label, histogram) in [
            ("time to stop", &self.ours.stop),
            ("  floor", &self.floor.stop),
            ("stall", &self.ours.stall),
            ("  floor", &self.floor.stall),
            ("stop and resume", &self.ours.pause),
            ("  floor", &self.floor.pause),
            ("full collection", &self.collections.pause),
            ("  its time to stop", &self.collections.stop),
        ] {
            writeln!(f, "{}", Quantiles::of(histogram).line(label))?;
        }
        writeln!(f)?;
        let p50 = |ours: &hdrhistogram::Histogram<u64>, floor: &hdrhistogram::Histogram<u64>| {
            ours.value_at_quantile(0.5) as f64 / floor.value_at_quantile(0.5).max(1) as f64
        };
        for (label, ours, floor, tails, spread) in [
            (
                "time to stop",
                &self.ours.stop,
                &self.floor.stop,
                &self.tail_ratios.stop,
                &self.floor_tail_ratios.stop,
            ),
            (
                "stall",
                &self.ours.stall,
                &self.floor.stall,
                &self.tail_ratios.stall,
                &self.floor_tail_ratios.stall,
            ),
        ] {
            writeln!(
                f,
                "{label:<14} p50 {:.2} x the floor; p99 {:.2} x (median of {blocks} blocks), the floor against itself {:.2} x",
                p50(ours, floor),
                median(tails),
                median(spread),
            )?;
        }
        writeln!(
            f,
            "{:<14} p50 {:.2} x the floor's stop and resume; {LIVE} live objects a thread
{:<14} {:.1} a stop, {:.1} for the floor; the others were parked still and taken over",
            "collection",
            p50(&self.collections.pause, &self.floor.pause),
            "were running",
            self.ours.running(),
            self.floor.running(),
        )
    }
}
