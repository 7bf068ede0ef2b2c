//! `gclab pause`: time to stop, pause and stall over poll-free managed loops, beside the signal floor of the same run.
//!
//! The threads are the same for both: mutators of a world that are members of the floor as well, all in the same
//! counting loop. Blocks of rounds alternate, floor, ours, floor, ours, ..., floor, so that whatever else the machine
//! does meanwhile meets both. Medians are taken over all rounds. A tail is claimed as the median of the blocks' ratios,
//! since a 99th percentile swings by several times even for the floor against itself; that swing is reported beside it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gc_preempt::{Config, World};
use serde_json::{Value, json};

use super::floor::{Floor, FloorError, Wait};
use super::report::{Quantiles, Samples, median, peak_rss_bytes};
use crate::kernels::codegen::{Arena, CodegenError};
use crate::kernels::loops::{Count, Loops, count_oracle};

/// Turns of the counting loop a call: some 20 ms, so that nearly every stop meets the loop and not the Rust around it.
const TURNS: u64 = 15_000_000;
/// The loop's seed; its answer is known before.
const SEED: u64 = 7;
/// Blocks of rounds that decide whether the floor spins or sleeps, for each of the two.
const CALIBRATION_BLOCKS: usize = 4;
/// Rounds of such a block.
const CALIBRATION: u32 = 50;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads in loops.
    pub threads: usize,
    /// Rounds a block.
    pub rounds: u32,
    /// Blocks of ours; the floor has one more.
    pub blocks: usize,
    /// Sleep after each resume.
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
    /// The world could not be set up or stopped, or a thread not attached.
    World(String),
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
            PauseError::World(why) => f.write_str(why),
            PauseError::WrongAnswer { got, expected } => write!(
                f,
                "a stopped and resumed loop computed {got:#x} instead of {expected:#x}: a stop changed its registers"
            ),
        }
    }
}

impl std::error::Error for PauseError {}

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
    let config = Config::from_env().map_err(|e| PauseError::World(e.to_string()))?;
    let world = World::new(config).map_err(|e| PauseError::World(e.to_string()))?;
    let mut guards = Vec::new();
    for code in &loops.code {
        guards.push(code.register(&world, 0)?);
    }
    let floor = Floor::new()?;
    let crew = Crew::default();
    std::thread::scope(|scope| {
        let crew = &crew;
        let threads: Vec<_> = (0..options.threads)
            .map(|_| scope.spawn(|| crew.work(&world, &floor, loops.count)))
            .collect();
        // From here on every path sets `over`, or the scope would never end.
        let _over = Over(&crew.over);
        while crew.working.load(Ordering::Acquire) < options.threads {
            if threads
                .iter()
                .any(std::thread::ScopedJoinHandle::is_finished)
            {
                break;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        let measured = alternate(options, &world, &floor, begun);
        drop(_over);
        for thread in threads {
            let outcome = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome?;
        }
        measured
    })
}

/// The threads that are stopped.
#[derive(Debug, Default)]
struct Crew {
    working: AtomicUsize,
    over: AtomicBool,
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Crew {
    fn work(&self, world: &World, floor: &Floor, count: Count) -> Result<(), PauseError> {
        let _mutator = world
            .attach(std::ptr::null_mut())
            .map_err(|e| PauseError::World(e.to_string()))?;
        let _member = floor.enroll();
        let expected = count_oracle(SEED, TURNS);
        self.working.fetch_add(1, Ordering::Release);
        while !self.over.load(Ordering::Acquire) {
            let got = count(SEED, TURNS);
            if got != expected {
                return Err(PauseError::WrongAnswer { got, expected });
            }
        }
        Ok(())
    }
}

fn alternate(
    options: &Options,
    world: &World,
    floor: &Floor,
    begun: Instant,
) -> Result<Outcome, PauseError> {
    let wait = better_wait(floor, options.gap)?;
    ours(world, CALIBRATION, options.gap)?;
    let mut outcome = Outcome {
        options: *options,
        ours: Samples::new(),
        floor: Samples::new(),
        wait,
        tail_ratios: Tails::default(),
        floor_tail_ratios: Tails::default(),
        took: Duration::ZERO,
    };
    let mut before = floor.rounds(options.rounds, options.gap, wait)?;
    for _ in 0..options.blocks {
        let block = ours(world, options.rounds, options.gap)?;
        let after = floor.rounds(options.rounds, options.gap, wait)?;
        outcome.tail_ratios.push(&block, &[&before, &after]);
        outcome.floor_tail_ratios.push(&after, &[&before]);
        outcome.ours.merge(&block);
        outcome.floor.merge(&before);
        before = after;
    }
    outcome.floor.merge(&before);
    outcome.floor_tail_ratios = outcome.floor_tail_ratios.spread();
    outcome.took = begun.elapsed();
    Ok(outcome)
}

/// Which way to wait is better here: the one that nine rounds in ten are quicker with, tried in alternation. A median would
/// not do: with more threads than processors a spinning floor has a fine median at times, when it happens to share its
/// processor with none of the threads, and waits for time slices of milliseconds at others.
fn better_wait(floor: &Floor, gap: Duration) -> Result<Wait, FloorError> {
    let (mut spin, mut sleep) = (Samples::new(), Samples::new());
    for _ in 0..CALIBRATION_BLOCKS {
        for (samples, wait) in [(&mut spin, Wait::Spin), (&mut sleep, Wait::Sleep)] {
            samples.merge(&floor.rounds(CALIBRATION, gap, wait)?);
        }
    }
    let p90 = |samples: Samples| samples.stop.value_at_quantile(0.9);
    let spins = p90(spin) <= p90(sleep);
    Ok(if spins { Wait::Spin } else { Wait::Sleep })
}

/// A block of the library's own stops.
fn ours(world: &World, rounds: u32, gap: Duration) -> Result<Samples, PauseError> {
    let mut samples = Samples::new();
    for _ in 0..rounds {
        let stopped = world.stop().map_err(|e| PauseError::World(e.to_string()))?;
        for mutator in stopped.mutators() {
            if let Some(stall) = mutator.last_stall() {
                samples.record_stall(stall);
            }
        }
        let report = stopped.resume();
        samples.record(report.time_to_stop, report.pause);
        std::thread::sleep(gap);
    }
    Ok(samples)
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
            "pause_us": of(&self.ours.pause),
            "stall_us": of(&self.ours.stall),
            "floor_us": of(&self.floor.stop),
            "floor_pause_us": of(&self.floor.pause),
            "floor_stall_us": of(&self.floor.stall),
            "floor_wait": self.wait.name(),
            "stop_ratio_p50": ratio(&self.ours.stop, &self.floor.stop),
            "stall_ratio_p50": ratio(&self.ours.stall, &self.floor.stall),
            "pause_ratio_p50": ratio(&self.ours.pause, &self.floor.pause),
            "stop_ratio_p99": median(&self.tail_ratios.stop),
            "stall_ratio_p99": median(&self.tail_ratios.stall),
            "floor_spread_p99": median(&self.floor_tail_ratios.stop),
            "floor_stall_spread_p99": median(&self.floor_tail_ratios.stall),
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
            "{threads} threads in poll-free loops, {blocks} blocks of {rounds} rounds beside the signal floor, which does best to {}",
            self.wait.name()
        )?;
        writeln!(f)?;
        writeln!(f, "{}", Quantiles::head("microseconds"))?;
        for (label, histogram) in [
            ("time to stop", &self.ours.stop),
            ("  floor", &self.floor.stop),
            ("pause", &self.ours.pause),
            ("  floor", &self.floor.pause),
            ("stall", &self.ours.stall),
            ("  floor", &self.floor.stall),
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
        Ok(())
    }
}
