//! `gclab pause`: time to stop, pause and stall of managed loops without polls, beside the signal
//! floor of the same run.
//!
//! The same threads serve both: each is a mutator of a world and a member of the floor. All run the
//! same counting loop, which stores its progress in memory. A round begins when each thread was
//! seen to run since the round before. Blocks of rounds alternate (floor, ours, floor, ours, ...,
//! floor), so that other load on the machine reaches both. Medians are over all rounds. A tail is
//! the median of the blocks' ratios, because a 99th percentile varies by several times, even
//! between two blocks of the floor. That variation is reported, too.

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

/// Iterations of the counting loop in one call, with one thread: long enough that nearly every stop
/// meets the loop and not the Rust code around it. Many threads have shorter calls, so that the
/// last of a thousand threads has its first call soon.
const TURNS: u64 = 15_000_000;
const LEAST_TURNS: u64 = 200_000;
/// The loop's seed. The answer for it is computed in advance.
const SEED: u64 = 7;
/// The longest time that a round waits for all threads to run again: a little more than the 4 ms of
/// a common kernel's tick.
const PATIENCE: Duration = Duration::from_millis(5);
/// The longest time that a round lets the threads run after a stop.
const RUNS_MOST: Duration = Duration::from_millis(10);
/// Nodes that each thread keeps alive.
const LIVE: usize = 100;
/// Rounds of stops for each round of collections.
const COLLECT_EVERY: u32 = 5;
/// Blocks of rounds that decide whether the floor spins or sleeps, for each of the two.
const CALIBRATION_BLOCKS: usize = 7;
/// Rounds of a calibration block.
const CALIBRATION: u32 = 30;

/// Rounds of a block that end in a minute or so. With many more threads than processors, a round's
/// time grows with the square of their number: each thread waits for its time slice before it can
/// answer, and the stopper waits for its own between two signals.
pub fn rounds_for(threads: usize) -> u32 {
    let beyond = (threads.max(16) / 16) as u32;
    (500 / (beyond * beyond)).max(1)
}

/// A measurement's options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads in loops.
    pub threads: usize,
    /// Rounds in a block.
    pub rounds: u32,
    /// Blocks of the library's stops; the floor has one block more.
    pub blocks: usize,
    /// The time to sleep after each resume, before the check that all threads have run again.
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

/// The reason why there is no measurement.
#[derive(Debug)]
pub enum PauseError {
    /// The kernels could not be compiled or registered.
    Codegen(CodegenError),
    /// The floor could not be measured.
    Floor(FloorError),
    /// The heap could not be set up or stopped, or a thread could not be attached.
    Heap(String),
    /// A loop gave a wrong answer: a stop changed what a thread computed.
    WrongAnswer {
        /// The loop's answer.
        got: u64,
        /// The right answer.
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

/// The figures of a measurement.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The options of the measurement.
    pub options: Options,
    /// The library's stops, over all blocks.
    pub ours: Samples,
    /// Full collections with a little live data.
    pub collections: Samples,
    /// The floor's rounds, over all blocks.
    pub floor: Samples,
    /// The floor's way to wait: the better of the two at this number of threads.
    pub wait: Wait,
    /// For each block, its p99 over the mean p99 of the floor's blocks before and after it.
    pub tail_ratios: Tails,
    /// For each floor block, the ratio of its p99 and that of the floor block before it, or the
    /// reciprocal if that is above 1.
    pub floor_tail_ratios: Tails,
    /// The time of the measurement.
    pub took: Duration,
}

/// Ratios of 99th percentiles, one for each pair of blocks.
#[derive(Clone, Debug, Default)]
pub struct Tails {
    /// Ratios of the time to stop.
    pub stop: Vec<f64>,
    /// Ratios of the stall.
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

/// Measures stops, collections and the floor.
pub fn measure(options: &Options) -> Result<Outcome, PauseError> {
    let begun = Instant::now();
    let mut arena = Arena::new()?;
    let loops = Loops::compile(&mut arena)?;
    // The pacer starts no collection, so all collections are measured ones.
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
        // Every path sets `over`. Otherwise the scope would never end.
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

/// The threads that are stopped, and the means to stop them.
struct Crew<'a> {
    turns: u64,
    expected: u64,
    gap: Duration,
    site: Site,
    heap: &'a Heap,
    floor: &'a Floor,
    working: AtomicUsize,
    over: AtomicBool,
    /// The words in which the threads' loops store their progress.
    places: Vec<CachePadded<AtomicU64>>,
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire loads of `over` by the threads and the measurement.
        self.0.store(true, Ordering::Release);
    }
}

impl Crew<'_> {
    /// One thread of the crew: a loop without polls, with a few live nodes.
    fn work(&self, count: CountAloud, place: &AtomicU64) -> Result<(), PauseError> {
        // However the thread ends, the measurement then stops waiting for it.
        let _over = Over(&self.over);
        let mutator = self.heap.attach().map_err(PauseError::heap)?;
        let _member = self.floor.enroll();
        let live = ring(&Allocator::new(&mutator, self.site), &[1; LIVE]);
        // Release: pairs with the Acquire loads of `working`, so that the thread has attached and
        // joined the floor by then.
        self.working.fetch_add(1, Ordering::Release);
        // All threads attach before the first one loops. Otherwise each of a thousand threads would
        // wait for a time slice of every other.
        while self.working.load(Ordering::Acquire) < self.places.len() && !self.is_over() {
            mutator.blocking(|| std::thread::sleep(PATIENCE));
        }
        while !self.over.load(Ordering::Acquire) {
            // SAFETY: the word outlives the threads, and all other threads only read it.
            let got = unsafe { count(SEED, self.turns, place.as_ptr()) };
            if got != self.expected {
                let expected = self.expected;
                return Err(PauseError::WrongAnswer { got, expected });
            }
            std::hint::black_box(&live);
            mutator.thread().poll(); // with `URGE_ASYNC=0` there is no other stop
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        // Acquire: pairs with the Release store in `Over::drop`.
        self.over.load(Ordering::Acquire)
    }

    fn wait_for_all(&self) -> Result<(), PauseError> {
        while self.working.load(Ordering::Acquire) < self.places.len() && !self.is_over() {
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Waits until each thread was seen to run, so that the next stop meets running threads and not
    /// threads that are still parked and are taken over where they are. With more threads than
    /// processors that could take as many time slices as there are threads, so the wait is bounded.
    /// The number of running threads is reported.
    ///
    /// First the threads run for as long as the last stop `took`. This comes before the check: if
    /// the wait came after the threads were seen to run, other programs could have the threads'
    /// processors when the next stop begins.
    fn settle(&self, took: Duration) {
        std::thread::sleep(self.gap.max(took.min(RUNS_MOST)));
        let begun = Instant::now();
        // Relaxed, here and below: only a change of the words counts.
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

    /// Measures a block of the library's stops.
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

    /// Measures a block of full collections.
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

    /// The better way for the floor to wait on this machine: the one whose 90th percentile is
    /// lower, in the median of alternating blocks. The median of all rounds would mislead. With
    /// more threads than processors, a spinning floor is quick in the rounds in which it shares its
    /// processor with no thread, and waits for time slices of milliseconds in the others.
    fn better_wait(&self, rounds: u32) -> Result<Wait, FloorError> {
        // With far more threads than processors, sleeping is better: a floor that spins takes a
        // processor from threads that must run, which costs minutes at a thousand threads.
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

/// Shows the progress, if standard error is a terminal.
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

/// Asks for short time slices, so that this thread runs soon after a sleep although the loops use
/// up their slices (Linux 6.12 and later; elsewhere the rounds only take longer). The measurements
/// begin when this thread is awake.
pub(crate) fn ask_for_short_slices() {
    const SLICE_NANOS: u64 = 100_000;
    // SAFETY: zero is a valid sched_attr, and the call reads as many bytes as its size says. A
    // failure does not matter.
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
            "Threads in loops without polls: {threads}; {blocks} blocks of {rounds} rounds beside the signal floor, which does best to {}.",
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
{:<14} {:.1} a stop, {:.1} for the floor; the others were still parked and were taken over",
            "collection",
            p50(&self.collections.pause, &self.floor.pause),
            "were running",
            self.ours.running(),
            self.floor.running(),
        )
    }
}
