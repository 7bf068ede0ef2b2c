//! Times for people and programs: histograms, their five quantiles, lines of tables and JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The largest time that a histogram distinguishes from larger ones.
const LONGEST: Duration = Duration::from_secs(100);

/// The times of stops, in nanoseconds with three digits.
#[derive(Clone, Debug)]
pub struct Samples {
    /// From the stop request until the last thread is stopped.
    pub stop: Histogram<u64>,
    /// From the stop request until the resume is published.
    pub pause: Histogram<u64>,
    /// The stall of each stopped thread, by its own clock.
    pub stall: Histogram<u64>,
    /// Running threads that stops met, over all stops.
    met_running: u64,
}

impl Default for Samples {
    fn default() -> Samples {
        Samples::new()
    }
}

impl Samples {
    /// Samples of no stop.
    pub fn new() -> Samples {
        let empty = histogram();
        Samples {
            stop: empty.clone(),
            pause: empty.clone(),
            stall: empty,
            met_running: 0,
        }
    }

    /// Adds one stop.
    pub fn record(&mut self, stop: Duration, pause: Duration) {
        add(&mut self.stop, stop);
        add(&mut self.pause, pause);
    }

    /// Adds the running threads that a stop met.
    pub fn met(&mut self, running: u32) {
        self.met_running += u64::from(running);
    }

    /// The running threads that a stop met, on average.
    pub fn running(&self) -> f64 {
        self.met_running as f64 / self.stop.len().max(1) as f64
    }

    /// Adds one thread's stall.
    pub fn record_stall(&mut self, stall: Duration) {
        add(&mut self.stall, stall);
    }

    /// Adds the samples of another block.
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

/// An empty histogram of nanoseconds, with three digits.
pub fn histogram() -> Histogram<u64> {
    // The bounds are constants that satisfy the constructor's three conditions, so it cannot fail.
    Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
        .unwrap_or_else(|_| unreachable!("1 ns to 100 s with three digits are valid bounds"))
}

/// Adds a time to a histogram of nanoseconds.
pub fn add(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// The five quantiles of a histogram, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantiles {
    /// The least time.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The longest time.
    pub max: f64,
}

impl Quantiles {
    /// The quantiles of a histogram; all 0 without a sample.
    pub fn of(histogram: &Histogram<u64>) -> Quantiles {
        let ends = [histogram.min(), histogram.max()];
        Quantiles::read(ends, |q| histogram.value_at_quantile(q))
    }

    /// The quantiles of a heap's stops; all 0 without a stop.
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

    /// The quantiles of a list of times; all 0 of an empty one.
    pub fn of_times(times: impl IntoIterator<Item = Duration>) -> Quantiles {
        let mut all = histogram();
        for time in times {
            add(&mut all, time);
        }
        Quantiles::of(&all)
    }

    /// The JSON object for a key that ends in `_us`.
    pub fn json(&self) -> Value {
        json!({
            "min": self.min, "p50": self.p50, "p90": self.p90, "p99": self.p99, "max": self.max,
        })
    }

    /// The heading of a table whose lines [`line`](Quantiles::line) makes.
    pub fn head(label: &str) -> String {
        format!(
            "{label:<24}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "min", "p50", "p90", "p99", "max"
        )
    }

    /// A line of a table.
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

/// The median of a list of numbers; 0 of an empty one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The process's peak resident memory so far, in bytes.
pub fn peak_rss_bytes() -> u64 {
    // SAFETY: zero is a valid rusage, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_maxrss.cast_unsigned() * 1024
}

/// The processor time of all threads of the process so far.
pub fn processor_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The processor time of the calling thread so far.
pub fn thread_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(clock: libc::clockid_t) -> Duration {
    // SAFETY: zero is a valid timespec, which the call fills. The call cannot fail for these
    // clocks.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(clock, &mut time);
        time
    };
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// A number with its thousands separated.
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
