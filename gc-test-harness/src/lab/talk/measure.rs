//! Measures all strategies with all kernels.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bell::LONGEST;
use super::claims::claims;
use super::figures::{KernelFigures, Stops, StrategyFigures, Talk};
use super::slow::{Pairs, slow_down};
use super::stage::{Stage, TalkError};
use super::{instructions, precision, spinlock, stops};
use crate::kernels::talk::{Kernel, Strategy};
use crate::lab::pause::ask_for_short_slices;
use crate::report::histogram;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The strategies.
    pub strategies: Vec<Strategy>,
    /// The kernels.
    pub kernels: Vec<Kernel>,
    /// A short run, whose figures are a trial.
    pub quick: bool,
}

/// How much is measured of each kernel under each strategy.
struct Effort {
    pairs: Pairs,
    stops: u32,
    judged: u32,
}

const FULL: Effort = Effort {
    pairs: Pairs {
        least: 25,
        most: 200,
        block: Duration::from_millis(1),
    },
    stops: 1000,
    judged: 300,
};

const QUICK: Effort = Effort {
    pairs: Pairs {
        least: 5,
        most: 10,
        block: Duration::from_micros(300),
    },
    stops: 60,
    judged: 30,
};

/// Measures what the options say. `progress` gets a line before each part.
///
/// # Errors
/// The refusal of Cranelift, of the system or of a heap, or a wrong answer.
pub fn measure(options: &Options, mut progress: impl FnMut(&str)) -> Result<Talk, TalkError> {
    let begun = Instant::now();
    ask_for_short_slices();
    let effort = if options.quick { QUICK } else { FULL };
    let mut strategies = Vec::new();
    for &strategy in &options.strategies {
        let mut kernels = Vec::new();
        for &kernel in &options.kernels {
            progress(&format!("{strategy}: {kernel}"));
            kernels.push(figures(kernel, strategy, &effort)?);
        }
        progress(&format!("{strategy}: the spinlock"));
        let spinlock = match strategy {
            Strategy::Unstopped => None,
            _ => Some(spinlock::play(strategy, LONGEST)?),
        };
        strategies.push(StrategyFigures {
            strategy,
            kernels,
            spinlock,
        });
    }
    Ok(Talk {
        claims: claims(&strategies),
        strategies,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        quick: options.quick,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn figures(
    kernel: Kernel,
    strategy: Strategy,
    effort: &Effort,
) -> Result<KernelFigures, TalkError> {
    let stage = Stage::new(kernel, strategy)?;
    let (code_bytes, metadata_bytes) = (stage.made.code_bytes(), stage.made.metadata_bytes());
    let mut stops = Stops {
        times: histogram(),
        missed: 0,
    };
    let mut precision = None;
    let mut slow = None;
    if strategy != Strategy::Unstopped {
        stops = stops::stops(&stage, effort.stops)?;
        if stops.missed == 0 {
            precision = precision::judge(&stage, effort.judged)?;
        }
        slow = Some(slow_down(kernel, strategy, effort.pairs)?);
    }
    Ok(KernelFigures {
        kernel,
        slow_down: slow,
        code_bytes,
        metadata_bytes,
        stops,
        precision,
        everywhere: instructions::judgement(kernel, strategy)?,
    })
}

/// What storms found.
#[derive(Clone, Debug)]
pub struct Storms {
    /// Stops and collections of each kernel under each strategy.
    pub stops: u32,
    /// For each of them the right answers; a wrong one is an error.
    pub answers: Vec<(Strategy, Kernel, u64)>,
}

impl Storms {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        let storm = |&(strategy, kernel, answers): &(Strategy, Kernel, u64)| {
            json!({
                "strategy": strategy.name(),
                "kernel": kernel.name(),
                "right_answers": answers,
            })
        };
        json!({
            "stops": self.stops,
            "storms": self.answers.iter().map(storm).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Storms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} stops and collections of each", self.stops)?;
        for (strategy, kernel, answers) in &self.answers {
            writeln!(
                f,
                "{strategy:<15}{kernel:<11}{answers:>9} answers, all right"
            )?;
        }
        Ok(())
    }
}

/// Runs a [`storm`] of each chosen kernel under each chosen strategy.
///
/// # Errors
/// As for [`storm`].
pub fn storms(options: &Options, stops: u32) -> Result<Storms, TalkError> {
    let mut answers = Vec::new();
    for &strategy in &options.strategies {
        for &kernel in &options.kernels {
            answers.push((strategy, kernel, storm(kernel, strategy, stops, 1)?));
        }
    }
    Ok(Storms { stops, answers })
}

/// Runs a kernel under so many stops, each fourth of them a collection, and checks each answer.
/// Gives the number of answers. A stop that the strategy cannot make waits for the end of a pass.
/// Inputs have the size `1 / part`.
///
/// # Errors
/// The refusal of Cranelift, of the system or of a heap, or a wrong answer.
pub fn storm(kernel: Kernel, strategy: Strategy, count: u32, part: u64) -> Result<u64, TalkError> {
    let stage = Stage::new(kernel, strategy)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let player = scope.spawn(|| {
            let played = stage.on_this_thread(part, |player| {
                let mut answers = 0;
                // Acquire: pairs with the Release below.
                while !done.load(Ordering::Acquire) || answers == 0 {
                    player.run(2)?;
                    answers += 1;
                    player.mutator.thread().poll();
                }
                Ok(answers)
            });
            stage.leave();
            played
        });
        let stop = || {
            stage.wait_until_it_plays();
            for round in 0..count {
                if round % 4 == 3 {
                    stage.collect()?;
                } else {
                    stage.stop(|_| ())?;
                }
                std::thread::sleep(Duration::from_micros(u64::from(round * 37 % 100)));
            }
            Ok::<_, TalkError>(())
        };
        let stopped = stop();
        done.store(true, Ordering::Release);
        let played = player.join();
        let played = played.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        stopped.and(played)
    })
}
