//! A program's share of each millisecond, by two measures.
//!
//! *Utilisation* is the part of a window's time that was neither a stop nor an assist (Cheng and
//! Blelloch 2001, "A parallel, real-time garbage collector", whose minimum over all windows is the
//! minimum mutator utilisation).
//!
//! *Progress* is stricter. The program counts pieces of equal work. Its progress in a window is the
//! count over that of a window without a collection. So progress also shows the cost of barriers,
//! of a core or a page that the system takes away, and of a memory bus that markers share.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The length of a tick.
pub const TICK: Duration = Duration::from_millis(1);
/// Ticks in a window.
pub const WINDOW: usize = 10;
/// The number of ticks, 17 minutes. Later work falls into the last tick, which does not count.
const MOST: usize = 1 << 20;

/// Flag: a collection was under way in the tick.
const COLLECTING: u8 = 1;
/// Flag: the program did work in the tick that is not counted.
const OTHER: u8 = 2;

/// A program's progress. All memory is allocated at the start, so that a measurement allocates
/// nothing.
#[derive(Debug)]
pub struct Gauge {
    start: Instant,
    work: Vec<u32>,
    /// Nanoseconds of each tick in which a stop or an assist held the program.
    held: Vec<u32>,
    flags: Vec<u8>,
    last: usize,
    assisted: Duration,
}

impl Gauge {
    /// Starts the clock.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Gauge {
        Gauge {
            start: Instant::now(),
            work: vec![0; MOST],
            held: vec![0; MOST],
            flags: vec![0; MOST],
            last: 0,
            assisted: Duration::ZERO,
        }
    }

    /// The instant at which tick 0 began.
    pub fn start(&self) -> Instant {
        self.start
    }

    fn tick(time: Duration) -> usize {
        ((time.as_nanos() / TICK.as_nanos()) as usize).min(MOST - 1)
    }

    /// Counts a piece of work. `collecting` says whether a collection is under way, and `assisted`
    /// is the program's assist time so far.
    #[inline]
    pub fn add(&mut self, collecting: bool, assisted: Duration) {
        let now = self.start.elapsed();
        let tick = Self::tick(now);
        self.work[tick] += 1;
        self.flags[tick] |= u8::from(collecting) * COLLECTING;
        self.last = tick;
        if assisted > self.assisted {
            let assist = assisted - self.assisted;
            self.hold(now.saturating_sub(assist), assist);
            self.assisted = assisted;
        }
    }

    /// Notes that a stop or an assist held the program for `time`, from `at` on.
    fn hold(&mut self, at: Duration, time: Duration) {
        let end = at + time;
        for tick in Self::tick(at)..=Self::tick(end) {
            let begin = TICK * tick as u32;
            let held = end.min(begin + TICK).saturating_sub(at.max(begin));
            let held = u64::from(self.held[tick]) + held.as_nanos() as u64;
            self.held[tick] = held.min(TICK.as_nanos() as u64) as u32;
        }
    }

    /// Notes that the program has done other work since the last piece.
    pub fn other(&mut self) {
        let tick = Self::tick(self.start.elapsed());
        self.flags[self.last..=tick].fill(OTHER);
        self.last = tick;
    }

    /// Notes a collection between `from` and `to`. Its stops at the beginning and at the end each
    /// took at most `pause`.
    pub fn collected(&mut self, from: Duration, to: Duration, pause: Duration) {
        for at in [from, to.saturating_sub(pause).max(from)] {
            self.hold(at, pause);
            let end = Self::tick(at + pause).min(self.last);
            for flags in self.flags.iter_mut().take(end + 1).skip(Self::tick(at)) {
                *flags |= COLLECTING;
            }
        }
    }

    /// The utilisation and progress of the windows.
    ///
    /// A collection shorter than a window counts with the windows that contain it, a longer one
    /// with the windows that lie in it.
    pub fn windows(&self) -> Windows {
        let ticks = self.last; // the last tick is not complete
        let (work, flags) = (&self.work[..ticks], &self.flags[..ticks]);
        let usual = self.usual(ticks);
        let progress = |from: usize| {
            let done: u32 = work[from..from + WINDOW].iter().sum();
            (f64::from(done) / (usual * WINDOW as f64)).min(1.0)
        };
        let left = |from: usize| {
            let held: u32 = self.held[from..from + WINDOW].iter().sum();
            1.0 - f64::from(held) / (TICK.as_nanos() as f64 * WINDOW as f64)
        };
        let is_other = |from: usize| flags[from..from + WINDOW].iter().any(|f| f & OTHER != 0);
        let (mut during, mut between) = (Vec::new(), Vec::new());
        for from in 0..ticks.saturating_sub(WINDOW) {
            let window = &flags[from..from + WINDOW];
            if !is_other(from) && window.iter().all(|flags| flags & COLLECTING == 0) {
                between.push(from);
            }
        }
        let mut tick = 0;
        while tick < ticks {
            if flags[tick] & COLLECTING == 0 {
                tick += 1;
                continue;
            }
            let from = tick;
            while tick < ticks && flags[tick] & COLLECTING != 0 {
                tick += 1;
            }
            let windows = if tick - from >= WINDOW {
                from..tick - WINDOW + 1
            } else {
                tick.saturating_sub(WINDOW)..from + 1
            };
            during.extend(windows.filter(|&from| from + WINDOW <= ticks && !is_other(from)));
        }
        let of = |windows: &[usize], share: &dyn Fn(usize) -> f64| {
            Shares::of(windows.iter().map(|from| share(*from)).collect())
        };
        Windows {
            utilisation: of(&during, &left),
            progress: of(&during, &progress),
            progress_between: of(&between, &progress),
        }
    }

    /// The work of a tick that is undisturbed and without a collection: the 90th percentile of such
    /// ticks. Where collections leave too few of them, all ticks count.
    fn usual(&self, ticks: usize) -> f64 {
        const ENOUGH: usize = 20;
        let of = |unwanted: u8| {
            let all = self.work[..ticks].iter().zip(&self.flags);
            let mut wanted: Vec<u32> = all
                .filter(|(_, flags)| *flags & unwanted == 0)
                .map(|(work, _)| *work)
                .collect();
            wanted.sort_unstable();
            wanted
        };
        let mut wanted = of(OTHER | COLLECTING);
        if wanted.len() < ENOUGH {
            wanted = of(OTHER);
        }
        f64::from(
            wanted
                .get(wanted.len() * 9 / 10)
                .copied()
                .unwrap_or(1)
                .max(1),
        )
    }
}

/// A program's share of its windows, by both measures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Windows {
    /// The utilisation of windows during a collection.
    pub utilisation: Shares,
    /// The progress of windows during a collection, over the usual progress without one.
    pub progress: Shares,
    /// The progress of windows without a collection.
    pub progress_between: Shares,
}

/// Shares of windows, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// The worst window.
    pub min: f64,
    /// The first percentile.
    pub p01: f64,
    /// The tenth percentile.
    pub p10: f64,
    /// The median.
    pub p50: f64,
    /// The best.
    pub max: f64,
    /// The number of windows.
    pub windows: usize,
}

impl Shares {
    fn of(mut shares: Vec<f64>) -> Shares {
        shares.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = ((q * shares.len() as f64).ceil() as usize).max(1);
            shares.get(rank - 1).copied().unwrap_or(0.0)
        };
        Shares {
            min: at(0.0),
            p01: at(0.01),
            p10: at(0.1),
            p50: at(0.5),
            max: at(1.0),
            windows: shares.len(),
        }
    }

    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "min": self.min, "p01": self.p01, "p10": self.p10, "p50": self.p50, "max": self.max,
            "windows": self.windows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gauge with this work in each tick; `true` marks a tick in a collection.
    fn gauge(ticks: &[(u32, bool)]) -> Gauge {
        let mut gauge = Gauge::new();
        for (at, &(work, collecting)) in ticks.iter().enumerate() {
            gauge.work[at] = work;
            gauge.flags[at] = u8::from(collecting) * COLLECTING;
        }
        gauge.last = ticks.len();
        gauge
    }

    #[test]
    fn a_long_collection_counts_by_the_windows_that_lie_in_it() {
        let mut ticks = vec![(100, false); 40];
        ticks.extend([(50, true); 12]);
        ticks.extend([(100, false); 40]);
        let windows = gauge(&ticks).windows();
        let (during, between) = (windows.progress, windows.progress_between);
        assert_eq!((during.windows, during.min, during.max), (3, 0.5, 0.5));
        assert_eq!((between.min, between.max), (1.0, 1.0));
    }

    #[test]
    fn a_short_collection_counts_by_the_windows_that_hold_it() {
        let mut ticks = vec![(100, false); 40];
        ticks.extend([(0, true); 4]);
        ticks.extend([(100, false); 40]);
        let during = gauge(&ticks).windows().progress;
        assert_eq!((during.windows, during.min, during.max), (7, 0.6, 0.6));
    }

    #[test]
    fn stops_and_other_work_are_told_apart() {
        let mut gauge = gauge(&[(100, false); 60]);
        gauge.flags[20..30].fill(OTHER);
        gauge.work[40] = 0;
        gauge.collected(40 * TICK, 40 * TICK, TICK / 2);
        let windows = gauge.windows();
        let (during, between) = (windows.progress, windows.progress_between);
        assert_eq!((during.windows, during.p50), (WINDOW, 0.9));
        assert_eq!(between.min, 1.0);
        let ends = [0, 10, 30, 30, 41, 49];
        assert_eq!(
            between.windows,
            (ends[1] - ends[0] + 1) + 1 + (ends[5] - ends[4] + 1)
        );
    }

    #[test]
    fn stops_and_help_are_what_a_window_is_without() {
        let mut gauge = gauge(&[(100, true); 60]);
        // A stop across the boundary of two ticks, and one at the collection's end.
        gauge.collected(20 * TICK - TICK / 4, 59 * TICK, TICK / 2);
        assert_eq!(gauge.held[19], gauge.held[20]);
        // An assist of two and a half ticks.
        gauge.hold(40 * TICK, 2 * TICK + TICK / 2);
        let found = gauge.windows().utilisation;
        assert!((found.min - 0.75).abs() < 1e-9, "{found:?}");
        assert_eq!((found.windows, found.max), (51, 1.0));
        // A tick is held for its own length at most, however often something is noted.
        gauge.hold(40 * TICK, TICK);
        assert_eq!(u128::from(gauge.held[40]), TICK.as_nanos());
    }
}
