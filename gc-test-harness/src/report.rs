//! Times as people and programs read them: histograms, their five numbers, a table's lines and
//! JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The longest time that a histogram tells from a longer one.
const LONGEST: Duration = Duration::from_secs(100);

/// Stops as they were measured: nanoseconds, to three digits.
#[derive(Clone, Debug)]
pub struct Samples {
    /// From the request until the last thread is stopped.
    pub stop: Histogram<u64>,
    /// From the request until the resume is published.
    pub pause: Histogram<u64>,
    /// What each stopped thread lost by its own clock.
    pub stall: Histogram<u64>,
    /// Threads that were running when a stop met them, over all stops.
    met_running: u64,
}

impl Default for Samples {
    fn default() -> Samples {
        Samples::new()
    }
}

impl Samples {
    /// No samples yet.
    pub fn new() -> Samples {
        let empty = histogram();
        Samples {
            stop: empty.clone(),
            pause: empty.clone(),
            stall: empty,
            met_running: 0,
        }
    }

    /// One stop.
    pub fn record(&mut self, stop: Duration, pause: Duration) {
        add(&mut self.stop, stop);
        add(&mut self.pause, pause);
    }

    /// How many threads a stop met running.
    pub fn met(&mut self, running: u32) {
        self.met_running += u64::from(running);
    }

    /// The mean of that over all stops.
    pub fn running(&self) -> f64 {
        self.met_running as f64 / self.stop.len().max(1) as f64
    }

    /// One thread's stall.
    pub fn record_stall(&mut self, stall: Duration) {
        add(&mut self.stall, stall);
    }

    /// Takes another block's samples in.
    pub fn merge(&mut self, other: &Samples) {
        self.met_running += other.met_running;
        for (into, from) in [
            (&mut self.stop, &other.stop),
            (&mut self.pause, &other.pause),
            (&mut self.stall, &other.stall),
        ] {
            for value in from.iter_recorded() {
                into.saturating_record_n(value.value_iterated_to(), value.count_at_value());
            }
        }
    }
}

impl fmt::Display for Samples {
    /// A table of times to stop and pauses, without the stalls.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Quantiles::head("microseconds"))?;
        for (label, histogram) in [("time to stop", &self.stop), ("pause", &self.pause)] {
            writeln!(f, "{}", Quantiles::of(histogram).line(label))?;
        }
        Ok(())
    }
}

fn histogram() -> Histogram<u64> {
    // The bounds are constants that satisfy the constructor's three conditions; a histogram of one
    // bucket would at worst lose digits.
    Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
        .unwrap_or_else(|_| unreachable!("1 ns to 100 s with three digits are valid bounds"))
}

fn add(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// A histogram's five numbers, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantiles {
    /// The least.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// Nine in ten are no longer.
    pub p90: f64,
    /// 99 in 100 are no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Quantiles {
    /// Reads them off; all 0 without a sample.
    pub fn of(histogram: &Histogram<u64>) -> Quantiles {
        let ends = [histogram.min(), histogram.max()];
        Quantiles::read(ends, |q| histogram.value_at_quantile(q))
    }

    /// Reads them off a heap's stops; all 0 without one.
    pub fn of_stops(times: &gc_core::Times) -> Quantiles {
        Quantiles::read([times.min(), times.max()], |q| times.value_at_quantile(q))
    }

    fn read([min, max]: [u64; 2], at: impl Fn(f64) -> u64) -> Quantiles {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Quantiles {
            min: micros(min),
            p50: micros(at(0.50)),
            p90: micros(at(0.90)),
            p99: micros(at(0.99)),
            max: micros(max),
        }
    }

    /// Of a few times; all 0 without one.
    pub fn of_times(times: impl IntoIterator<Item = Duration>) -> Quantiles {
        let mut all = histogram();
        for time in times {
            add(&mut all, time);
        }
        Quantiles::of(&all)
    }

    /// The object under a key that ends in `_us`.
    pub fn json(&self) -> Value {
        json!({
            "min": self.min, "p50": self.p50, "p90": self.p90, "p99": self.p99, "max": self.max,
        })
    }

    /// The head over [`line`](Quantiles::line)'s columns.
    pub fn head(label: &str) -> String {
        format!(
            "{label:<24}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "min", "p50", "p90", "p99", "max"
        )
    }

    /// A table's line.
    pub fn line(&self, label: &str) -> String {
        let cell = |value: f64| {
            if value < 1000.0 {
                format!("{value:>9.1}")
            } else {
                format!("{value:>9.0}")
            }
        };
        let cells = [self.min, self.p50, self.p90, self.p99, self.max].map(cell);
        format!("{label:<24}{}", cells.concat())
    }
}

/// The middle of a list of numbers; 0 of an empty one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The most memory that this process has had resident so far.
pub fn peak_rss_bytes() -> u64 {
    // SAFETY: plain data, filled by the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_maxrss.cast_unsigned() * 1024
}

/// What the process's threads have used of the processors so far.
pub fn processor_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// What this thread has used of the processors so far.
pub fn thread_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(clock: libc::clockid_t) -> Duration {
    // SAFETY: plain data, filled by the call, which cannot fail for these clocks.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(clock, &mut time);
        time
    };
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// A count with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_microseconds() {
        let mut samples = Samples::new();
        for micros in 1..=100 {
            samples.record(
                Duration::from_micros(micros),
                Duration::from_micros(2 * micros),
            );
        }
        let stop = Quantiles::of(&samples.stop);
        assert!(
            (stop.p50 - 50.0).abs() < 0.1 && (stop.max - 100.0).abs() < 0.1,
            "{stop:?}"
        );
        let mut twice = samples.clone();
        twice.merge(&samples);
        assert_eq!(
            (twice.pause.len(), twice.pause.max()),
            (200, samples.pause.max())
        );
        assert_eq!(Quantiles::of(&samples.stall), Quantiles::default());
    }

    #[test]
    fn medians_and_thousands() {
        assert_eq!(
            [median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])],
            [0.0, 2.0, 2.5]
        );
        assert_eq!(
            [7, 1_234, 1_000_000].map(grouped),
            ["7", "1,234", "1,000,000"]
        );
    }
}
