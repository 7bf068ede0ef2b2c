//! A kernel's slow-down under a strategy: blocks of the reference and of the strategy's code in
//! pairs, on the same input in the same memory.
//!
//! Other load, a change of the clock rate or a migration reaches both blocks of a pair, so the
//! ratio of a pair varies less than its times. Pairs begin with either block in turn.
//!
//! The speed of a small loop depends on where it lies in a cache line, and code before the loop
//! moves it. That is an accident of the kernel, and no cost of a strategy. So both codes are
//! measured at each of the four places of a function in a cache line, and the geometric mean of the
//! four ratios counts as one.
//!
//! Ratios are added until the sign of the difference is certain, or until the difference is
//! certainly below half a percent. To ask after each ratio would find a difference by chance, so
//! the question is asked whenever their number has doubled.

use std::time::Duration;

use gc_core::raw::Encoding;

use super::figures::SlowDown;
use super::stage::{Player, Stage, TalkError};
use crate::kernels::talk::maker::{PLACE_BYTES, Run};
use crate::kernels::talk::{Kernel, Strategy};
use crate::report::{median, thread_time};

/// The places of a function in a cache line.
const PLACES: u32 = 64 / PLACE_BYTES as u32;
/// The part of an input that a block computes at least once.
const PART: u64 = 4;

/// How many pairs are measured, at each place.
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
    let at = |place| {
        let compile = |strategy| kernel.compile_at(strategy, place);
        Ok::<_, TalkError>([compile(Strategy::Unstopped)?, compile(strategy)?])
    };
    let places = (0..PLACES).map(at).collect::<Result<Vec<_>, _>>()?;
    let code = places.iter().flatten().flat_map(|made| &made.code);
    let _guards = code
        .map(|code| code.register_with(&stage.heap, Encoding::RAW))
        .collect::<Result<Vec<_>, _>>()?;
    stage.on_this_thread(PART, |player| {
        let mut longest = Duration::ZERO;
        for made in places.iter().flatten() {
            longest = longest.max(time(player, made.run, 1)?);
        }
        let passes = pairs.block.div_duration_f64(longest).ceil().max(1.0) as u64;
        let mut ratios: Vec<f64> = Vec::with_capacity(pairs.most);
        let mut enough = pairs.least;
        loop {
            let mut logarithms = 0.0;
            for (place, [reference, own]) in places.iter().enumerate() {
                let reference_first = (ratios.len() + place).is_multiple_of(2);
                let mut order = [reference.run, own.run];
                if !reference_first {
                    order.reverse();
                }
                let mut times = [Duration::ZERO; 2];
                for (time_of, run) in times.iter_mut().zip(order) {
                    *time_of = time(player, run, passes)?;
                }
                if !reference_first {
                    times.reverse();
                }
                logarithms += times[1].div_duration_f64(times[0]).ln();
            }
            ratios.push((logarithms / f64::from(PLACES)).exp());
            if kernel == Kernel::Stores {
                player.mutator.collect();
            }
            if ratios.len() >= enough.min(pairs.most) {
                let found = interval(&ratios);
                let is_nothing = found.low > 1.0 - NOTHING && found.high < 1.0 + NOTHING;
                if found.is_certain() || is_nothing || ratios.len() >= pairs.most {
                    return Ok(found);
                }
                enough *= 2;
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
