//! How much of each millisecond a program had for itself: its progress, tick by tick, and what that makes of a collector.
//!
//! A program that always does the same work counts it per tick of the clock. What a window of ten ticks holds, over what
//! ten ticks hold while no collection is under way, is the program's utilisation of that window. That is stricter than to
//! add up pauses: stops, assists, barriers, a core that is taken away and a cache that is shared all show.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A tick of the clock.
pub const TICK: Duration = Duration::from_millis(1);
/// Ticks in a window.
pub const WINDOW: usize = 10;
/// Ticks that are counted: 17 minutes. What comes later is not.
const MOST: usize = 1 << 20;

/// Set: the tick was seen inside a collection.
const COLLECTING: u8 = 1;
/// Set: the program did other work in it than what is counted.
const OTHER: u8 = 2;

/// A program's progress. All memory is there from the start.
#[derive(Debug)]
pub struct Gauge {
    start: Instant,
    work: Vec<u32>,
    flags: Vec<u8>,
    last: usize,
}

impl Gauge {
    /// The clock starts.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Gauge {
        Gauge {
            start: Instant::now(),
            work: vec![0; MOST],
            flags: vec![0; MOST],
            last: 0,
        }
    }

    /// When tick 0 began.
    pub fn start(&self) -> Instant {
        self.start
    }

    fn tick(time: Duration) -> usize {
        ((time.as_nanos() / TICK.as_nanos()) as usize).min(MOST - 1)
    }

    /// A piece of work has been done, inside a collection or not.
    #[inline]
    pub fn add(&mut self, collecting: bool) {
        let tick = Self::tick(self.start.elapsed());
        self.work[tick] += 1;
        self.flags[tick] |= u8::from(collecting) * COLLECTING;
        self.last = tick;
    }

    /// The program does something else now.
    pub fn other(&mut self) {
        let tick = Self::tick(self.start.elapsed());
        self.flags[self.last..=tick].fill(OTHER);
        self.last = tick;
    }

    /// A collection had the program stopped then, for so long.
    pub fn stopped(&mut self, at: Duration, pause: Duration) {
        let to = Self::tick(at + pause).min(self.last);
        for flags in self.flags.iter_mut().take(to + 1).skip(Self::tick(at)) {
            *flags |= COLLECTING;
        }
    }

    /// What the program had of its windows while a collection was under way, and what while none was.
    ///
    /// Of a collection shorter than a window, the windows that hold it wholly count; of a longer one, those that lie in it.
    pub fn utilisation(&self) -> (Utilisation, Utilisation) {
        let ticks = self.last; // the last one is not over
        let (work, flags) = (&self.work[..ticks], &self.flags[..ticks]);
        let usual = self.usual(ticks);
        let share = |from: usize| {
            let done: u32 = work[from..from + WINDOW].iter().sum();
            (f64::from(done) / (usual * WINDOW as f64)).min(1.0)
        };
        let is_other = |from: usize| flags[from..from + WINDOW].iter().any(|f| f & OTHER != 0);
        let (mut during, mut between) = (Vec::new(), Vec::new());
        for from in 0..ticks.saturating_sub(WINDOW) {
            let window = &flags[from..from + WINDOW];
            if !is_other(from) && window.iter().all(|flags| flags & COLLECTING == 0) {
                between.push(share(from));
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
            let whole = windows.filter(|&from| from + WINDOW <= ticks && !is_other(from));
            during.extend(whole.map(share));
        }
        (Utilisation::of(during), Utilisation::of(between))
    }

    /// The work of a tick without a collection that nobody else disturbs: what one tick in ten exceeds. Where collections
    /// leave too few of them, all ticks count.
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

/// Parts of windows that a program had for itself, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Utilisation {
    /// The worst window.
    pub min: f64,
    /// One window in a hundred is no better.
    pub p01: f64,
    /// One in ten is no better.
    pub p10: f64,
    /// The median.
    pub p50: f64,
    /// The best.
    pub max: f64,
    /// Windows.
    pub windows: usize,
}

impl Utilisation {
    fn of(mut shares: Vec<f64>) -> Utilisation {
        shares.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = ((q * shares.len() as f64).ceil() as usize).max(1);
            shares.get(rank - 1).copied().unwrap_or(0.0)
        };
        Utilisation {
            min: at(0.0),
            p01: at(0.01),
            p10: at(0.1),
            p50: at(0.5),
            max: at(1.0),
            windows: shares.len(),
        }
    }

    /// The object under `utilisation`.
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

    /// Ticks of so much work each; those that are true are in a collection.
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
        let (during, between) = gauge(&ticks).utilisation();
        assert_eq!((during.windows, during.min, during.max), (3, 0.5, 0.5));
        assert_eq!((between.min, between.max), (1.0, 1.0));
    }

    #[test]
    fn a_short_collection_counts_by_the_windows_that_hold_it() {
        let mut ticks = vec![(100, false); 40];
        ticks.extend([(0, true); 4]);
        ticks.extend([(100, false); 40]);
        let (during, _) = gauge(&ticks).utilisation();
        assert_eq!((during.windows, during.min, during.max), (7, 0.6, 0.6));
    }

    #[test]
    fn stops_and_other_work_are_told_apart() {
        let mut gauge = gauge(&[(100, false); 60]);
        gauge.flags[20..30].fill(OTHER);
        gauge.work[40] = 0;
        gauge.stopped(40 * TICK, TICK / 2);
        let (during, between) = gauge.utilisation();
        assert_eq!((during.windows, during.p50), (WINDOW, 0.9));
        assert_eq!(between.min, 1.0);
        let ends = [0, 10, 30, 30, 41, 49];
        assert_eq!(
            between.windows,
            (ends[1] - ends[0] + 1) + 1 + (ends[5] - ends[4] + 1)
        );
    }
}
