//! The figures of `gclab talk`, apart from their measurement and from their printing.

use std::fmt;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::kernels::talk::{Kernel, Strategy};
use crate::report::Quantiles;

/// All figures of a run.
#[derive(Clone, Debug)]
pub struct Talk {
    /// One for each strategy, in the talk's order.
    pub strategies: Vec<StrategyFigures>,
    /// The talk's claims beside the figures.
    pub claims: Vec<Claim>,
    /// Threads that the machine runs at once.
    pub processors: usize,
    /// Whether the run was a short one (`--quick`), whose figures are a trial.
    pub quick: bool,
    /// The length of the run.
    pub seconds: f64,
}

/// The figures of one strategy.
#[derive(Clone, Debug)]
pub struct StrategyFigures {
    /// The strategy.
    pub strategy: Strategy,
    /// One for each kernel.
    pub kernels: Vec<KernelFigures>,
    /// What became of two threads and a spinlock, if the scene was played.
    pub spinlock: Option<Spinlock>,
}

/// The figures of one strategy with one kernel.
#[derive(Clone, Debug)]
pub struct KernelFigures {
    /// The kernel.
    pub kernel: Kernel,
    /// The time over that of the reference. `None` for the reference itself.
    pub slow_down: Option<SlowDown>,
    /// Bytes of machine code.
    pub code_bytes: u64,
    /// Bytes of stack maps and of other tables that stops read.
    pub metadata_bytes: u64,
    /// Times to stop.
    pub stops: Stops,
    /// The judgement of scans. `None` for kernels without references, and where nothing stopped.
    pub precision: Option<Precision>,
    /// The judgement of scans at every instruction. `None`: as for `precision`.
    pub everywhere: Option<Everywhere>,
}

/// The judgement of a kernel's scans by the oracle at each instruction at which the strategy stops
/// it, in a short run that is the same each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Everywhere {
    /// Instructions that the run executed and at which the strategy stops.
    pub executed: u64,
    /// Of these, the ones at which a live cell was missed.
    pub executed_wrong: u64,
    /// The offsets in the code of the instructions at which a live cell was missed.
    pub wrong: Vec<u32>,
    /// Dead cells that were kept, over all executed instructions.
    pub dead_kept: u64,
}

impl Everywhere {
    /// The object of one judgement.
    pub fn json(&self) -> Value {
        json!({
            "executed": self.executed,
            "executed_wrong": self.executed_wrong,
            "wrong_offsets": self.wrong,
            "dead_kept_cells": self.dead_kept,
        })
    }
}

/// The time of a kernel over the reference's, in pairs of neighbouring blocks. A ratio is the mean
/// of the pairs at all places of the code in a cache line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowDown {
    /// The median of the pairs' ratios; 1 is no slow-down.
    pub ratio: f64,
    /// The ends of the median's 95 % confidence interval, from the order of the ratios alone.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// The number of ratios.
    pub pairs: usize,
}

impl SlowDown {
    /// Whether the interval excludes 1, so that the sign of the difference is certain.
    pub fn is_certain(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }

    /// Percent above the reference.
    pub fn percent(&self) -> f64 {
        (self.ratio - 1.0) * 100.0
    }
}

/// Times to stop of one strategy with one kernel.
#[derive(Clone, Debug)]
pub struct Stops {
    /// The times of the stops that ended within a second, in nanoseconds.
    pub times: Histogram<u64>,
    /// Attempts that did not end within a second.
    pub missed: u64,
}

impl Stops {
    /// The quantiles, if any attempt ended within a second.
    pub fn quantiles(&self) -> Option<Quantiles> {
        (!self.times.is_empty()).then(|| Quantiles::of(&self.times))
    }
}

/// The judgement of a kernel's scans by the oracle, over all stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precision {
    /// Stops that were judged.
    pub stops: u64,
    /// Dead cells that scans kept, over all stops.
    pub dead_kept: u64,
    /// The most dead cells that one scan kept.
    pub dead_kept_most: u64,
    /// Stops whose scan kept a dead cell.
    pub stops_with_dead: u64,
    /// Live cells that scans missed, over all stops.
    pub roots_missed: u64,
}

/// The end of two threads that contend for a spinlock while one of them is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spinlock {
    /// Both ended.
    Ends,
    /// The stop did not end within a second.
    Deadlocks,
}

impl fmt::Display for Spinlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Spinlock::Ends => "ends",
            Spinlock::Deadlocks => "deadlocks",
        })
    }
}

/// A sentence of the talk, and what this run found.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The claim, with the talk's figure.
    pub claim: &'static str,
    /// The talk's figure, in `unit`.
    pub talk: f64,
    /// This run's figure, in `unit`. `None`: this run did not measure it.
    pub here: Option<f64>,
    /// `percent`, `us` or `s`.
    pub unit: &'static str,
    /// Whether this run agrees. `None`: this run did not measure it.
    pub reproduced: Option<bool>,
    /// Why the figure is as it is.
    pub reason: String,
}

impl Claim {
    /// `reproduced`, `refuted` or `not measured`.
    pub fn verdict(&self) -> &'static str {
        match self.reproduced {
            Some(true) => "reproduced",
            Some(false) => "refuted",
            None => "not measured",
        }
    }
}

impl StrategyFigures {
    /// The geometric mean of the kernels' ratios. `None` for the reference.
    pub fn mean_ratio(&self) -> Option<f64> {
        let ratios: Vec<f64> = self.ratios().map(|(_, slow)| slow.ratio).collect();
        let logarithms: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
        (!ratios.is_empty()).then(|| (logarithms / ratios.len() as f64).exp())
    }

    /// The kernel with the largest ratio.
    pub fn worst(&self) -> Option<(Kernel, SlowDown)> {
        self.ratios()
            .max_by(|a, b| f64::total_cmp(&a.1.ratio, &b.1.ratio))
    }

    fn ratios(&self) -> impl Iterator<Item = (Kernel, SlowDown)> {
        let with = |figures: &KernelFigures| Some((figures.kernel, figures.slow_down?));
        self.kernels.iter().filter_map(with)
    }

    /// Bytes of code of all kernels.
    pub fn code_bytes(&self) -> u64 {
        self.kernels.iter().map(|figures| figures.code_bytes).sum()
    }

    /// Bytes of tables of all kernels.
    pub fn metadata_bytes(&self) -> u64 {
        let bytes = self.kernels.iter().map(|figures| figures.metadata_bytes);
        bytes.sum()
    }

    /// The stops of all kernels.
    pub fn stops(&self) -> Option<Stops> {
        let mut all = self.kernels.iter().map(|figures| &figures.stops);
        let mut sum = all.next()?.clone();
        for stops in all {
            sum.missed += stops.missed;
            for value in stops.times.iter_recorded() {
                let count = value.count_at_value();
                let time = value.value_iterated_to();
                sum.times.saturating_record_n(time, count);
            }
        }
        Some(sum)
    }

    /// The object of one strategy.
    pub fn json(&self) -> Value {
        json!({
            "strategy": self.strategy.name(),
            "source": self.strategy.source(),
            "slow_down_percent_geomean": self.mean_ratio().map(|ratio| (ratio - 1.0) * 100.0),
            "slow_down_percent_worst": self.worst().map(|(_, slow)| slow.percent()),
            "slow_down_worst_kernel": self.worst().map(|(kernel, _)| kernel.name()),
            "code_bytes": self.code_bytes(),
            "metadata_bytes": self.metadata_bytes(),
            "spinlock": self.spinlock.map(|end| end.to_string()),
            "kernels": self.kernels.iter().map(KernelFigures::json).collect::<Vec<_>>(),
        })
    }
}

impl KernelFigures {
    /// The object of one kernel.
    pub fn json(&self) -> Value {
        json!({
            "kernel": self.kernel.name(),
            "slow_down": self.slow_down.map(|slow| slow.json()),
            "code_bytes": self.code_bytes,
            "metadata_bytes": self.metadata_bytes,
            "stop_us": self.stops.quantiles().map(|quantiles| quantiles.json()),
            "stops": self.stops.times.len(),
            "not_stopped_within_1_s": self.stops.missed,
            "precision": self.precision.map(|precision| precision.json()),
            "at_every_instruction": self.everywhere.as_ref().map(Everywhere::json),
        })
    }
}

impl SlowDown {
    /// The object of one comparison.
    pub fn json(&self) -> Value {
        json!({
            "percent": self.percent(),
            "percent_low": (self.low - 1.0) * 100.0,
            "percent_high": (self.high - 1.0) * 100.0,
            "pairs": self.pairs,
            "certain": self.is_certain(),
        })
    }
}

impl Precision {
    /// The object of one judgement.
    pub fn json(&self) -> Value {
        json!({
            "stops": self.stops,
            "dead_kept_cells": self.dead_kept,
            "dead_kept_most_cells": self.dead_kept_most,
            "stops_with_dead": self.stops_with_dead,
            "roots_missed_cells": self.roots_missed,
        })
    }
}

impl Claim {
    /// The object of one claim.
    pub fn json(&self) -> Value {
        json!({
            "claim": self.claim,
            "unit": self.unit,
            "talk": self.talk,
            "here": self.here,
            "verdict": self.verdict(),
            "reason": self.reason,
        })
    }
}

impl Talk {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "processors": self.processors,
            "quick": self.quick,
            "seconds": self.seconds,
            "strategies": self.strategies.iter().map(StrategyFigures::json).collect::<Vec<_>>(),
            "claims": self.claims.iter().map(Claim::json).collect::<Vec<_>>(),
        })
    }
}
