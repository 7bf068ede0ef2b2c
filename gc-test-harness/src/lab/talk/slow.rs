//! A kernel's slow-down under a strategy: blocks of the reference and of the strategy's code in
//! pairs, on the same input in the same memory.
//!
//! Other load, a change of the clock rate or a migration reaches both blocks of a pair, so the ratio
//! of a pair varies less than its times. Pairs begin with either block in turn. They are added until
//! the sign of the difference is certain, or until the difference is certainly below half a percent.

use std::time::Duration;

use gc_core::raw::Encoding;

use super::figures::SlowDown;
use super::stage::{Player, Stage, TalkError};
use crate::kernels::talk::maker::Run;
use crate::kernels::talk::{Kernel, Strategy};
use crate::report::{median, thread_time};

/// How many pairs are measured.
#[derive(Clone, Copy, Debug)]
pub struct Pairs {
    /// The fewest.
    pub least: usize,
    /// The most, where the sign stays uncertain.
    pub most: usize,
    /// The least time of a block.
    pub block: Duration,
}

/// A difference below this ratio counts as none.
const NOTHING: f64 = 0.005;

/// Measures the strategy's code beside the reference's.
///
/// # Errors
/// The refusal of Cranelift, of the system or of the heap, or a wrong answer.
pub fn slow_down(kernel: Kernel, strategy: Strategy, pairs: Pairs) -> Result<SlowDown, TalkError> {
    let stage = Stage::new(kernel, strategy)?;
    let reference = kernel.compile(Strategy::Unstopped)?;
    let _guards = reference
        .code
        .iter()
        .map(|code| code.register_with(&stage.heap, Encoding::RAW))
        .collect::<Result<Vec<_>, _>>()?;
    stage.on_this_thread(1, |player| {
        let own = stage.made.run;
        let warm = time(player, reference.run, 1)?.max(time(player, own, 1)?);
        let passes = pairs.block.div_duration_f64(warm).ceil().max(1.0) as u64;
        let mut ratios = Vec::with_capacity(pairs.most);
        loop {
            let turns = match ratios.len() % 2 {
                0 => [reference.run, own],
                _ => [own, reference.run],
            };
            let mut times = [Duration::ZERO; 2];
            for (time_of, run) in times.iter_mut().zip(turns) {
                *time_of = time(player, run, passes)?;
            }
            if ratios.len() % 2 == 1 {
                times.reverse();
            }
            ratios.push(times[1].div_duration_f64(times[0]));
            if kernel == Kernel::Stores && ratios.len().is_multiple_of(8) {
                player.mutator.collect();
            }
            let found = interval(&ratios);
            let is_enough =
                found.is_certain() || (found.low > 1.0 - NOTHING && found.high < 1.0 + NOTHING);
            if ratios.len() >= pairs.most || ratios.len() >= pairs.least && is_enough {
                return Ok(found);
            }
        }
    })
}

/// The thread's processor time of a block.
fn time(player: &mut Player<'_>, run: Run, passes: u64) -> Result<Duration, TalkError> {
    let begun = thread_time();
    let answer = player.answer_of(run, passes);
    let time = thread_time() - begun;
    player.check(answer)?;
    Ok(time.max(Duration::from_nanos(1)))
}

/// The median of ratios, and its 95 % confidence interval by the order of the ratios: no
/// distribution is assumed.
fn interval(ratios: &[f64]) -> SlowDown {
    let mut sorted = ratios.to_vec();
    sorted.sort_by(f64::total_cmp);
    let pairs = sorted.len();
    // The number of ratios below the median is binomial, with the standard deviation sqrt(n) / 2.
    let half = 0.98 * (pairs as f64).sqrt();
    let from = (pairs as f64 / 2.0 - half).floor().max(0.0) as usize;
    SlowDown {
        ratio: median(&sorted),
        low: sorted[from],
        high: sorted[pairs - 1 - from],
        pairs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_narrows_as_pairs_are_added() {
        let ratios = |pairs: u32| -> Vec<f64> {
            (0..pairs)
                .map(|i| 1.0 + f64::from(i * 7 % pairs) / f64::from(pairs))
                .collect()
        };
        let few = interval(&ratios(9));
        let many = interval(&ratios(900));
        assert!(few.low <= few.ratio && few.ratio <= few.high);
        assert!(many.high - many.low < few.high - few.low);
        assert!((many.ratio - 1.5).abs() < 0.01 && many.is_certain());
        assert!(!interval(&[0.9, 1.1, 1.0]).is_certain());
    }
}
