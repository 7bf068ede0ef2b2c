//! `URGE_TRACE=1`: a line for each cycle on stderr (wrapped here), made and written without malloc
//! and without a lock.
//!
//! ```text
//! urge: gc=12 kind=whole at=1.234s trigger=12.0M goal=14.2M begin=12.1M end=14.1M live=7.1M
//!       black=2.0M pauses=115us/2 longest=80us stop=15us mark=4210us beside=4100us assist=310us
//!       collector=23690us cpu=12%
//! ```
//!
//! | field | meaning |
//! |---|---|
//! | `gc` | the cycle's number |
//! | `kind` | `young`: old cells counted as alive; `whole`: all cells were marked |
//! | `at` | the time of its end, since the heap was built |
//! | `trigger`, `goal` | the planned bytes in use at its begin and at its end |
//! | `begin`, `end` | the bytes in use at its begin and at its end |
//! | `live` | bytes of its snapshot that it found alive |
//! | `black` | bytes that mutators were given while it marked, and that it keeps |
//! | `pauses`, `longest` | the sum and the number of its pauses; the longest of them |
//! | `stop` | the longest time from a stop's request until the last mutator was stopped |
//! | `mark`, `beside` | the time of marking, and of that the time beside the mutators |
//! | `assist` | the time that mutators spent in assists |
//! | `collector` | processor time of the collector's threads since the cycle before ended |
//! | `cpu` | the part of all processors that `collector` and `assist` took |
//! | `over-limit` | present if the heap may pass its soft memory limit until the next cycle |
//!
//! The program itself reads its figures by [`Heap::stats`](crate::Heap::stats).

use core::fmt::{self, Write};
use core::time::Duration;

use super::figures::CollectionStats;

/// Bytes of a line with the longest numbers.
const LINE: usize = 512;

/// A line of text in a fixed buffer.
pub(crate) struct Line {
    text: [u8; LINE],
    len: usize,
}

impl Line {
    /// The line of one cycle.
    pub(crate) fn of(cycle: &CollectionStats) -> Self {
        let mut line = Self {
            text: [0; LINE],
            len: 0,
        };
        let us = |d: Duration| d.as_micros();
        // A line that is too long is cut, which is no error here.
        let _ = write!(
            line,
            "urge: gc={} kind={} at={:.3}s trigger={} goal={} begin={} end={} live={} black={} pauses={}us/{} longest={}us stop={}us mark={}us beside={}us \
             assist={}us collector={}us cpu={:.0}%{}",
            cycle.number,
            if cycle.young { "young" } else { "whole" },
            cycle.ended_at.as_secs_f64(),
            Mebibytes(cycle.trigger_bytes),
            Mebibytes(cycle.goal_bytes),
            Mebibytes(cycle.begin_bytes),
            Mebibytes(cycle.end_bytes),
            Mebibytes(cycle.bytes_live - cycle.bytes_allocated_black),
            Mebibytes(cycle.bytes_allocated_black),
            us(cycle.pause_sum),
            cycle.stops,
            us(cycle.pause),
            us(cycle.time_to_stop),
            us(cycle.mark),
            us(cycle.mark_concurrent),
            us(cycle.assist),
            us(cycle.collector_cpu),
            cycle.cpu_share() * 100.0,
            if cycle.over_memory_limit {
                " over-limit"
            } else {
                ""
            },
        );
        line.len = line.len.min(LINE - 1);
        line.text[line.len] = b'\n';
        line.len += 1;
        line
    }

    /// The line with its end.
    fn bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }

    /// Writes the line to stderr without std's lock: a thread that holds the lock may wait for this
    /// cycle.
    pub(crate) fn write(&self) {
        // SAFETY: the buffer is ours. A short write loses the rest.
        let _ = unsafe { libc::write(2, self.bytes().as_ptr().cast(), self.len) };
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let n = s.len().min(LINE - self.len);
        self.text[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        if n < s.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Displays bytes in MiB, and `none` for no bound.
struct Mebibytes(u64);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            u64::MAX => f.write_str("none"),
            bytes => write!(f, "{:.1}M", bytes as f64 / f64::from(1 << 20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_a_line() {
        let us = Duration::from_micros;
        let line = Line::of(&CollectionStats {
            number: 12,
            ended_at: Duration::from_millis(1234),
            interval: Duration::from_millis(100),
            trigger_bytes: 12 << 20,
            goal_bytes: u64::MAX,
            begin_bytes: (12 << 20) + (1 << 18),
            end_bytes: 14 << 20,
            bytes_live: 9 << 20,
            bytes_allocated_black: 2 << 20,
            pause_sum: us(115),
            pause: us(80),
            stops: 2,
            time_to_stop: us(15),
            mark: us(4210),
            mark_concurrent: us(4100),
            assist: us(310),
            collector_cpu: us(23_690),
            cores: 2,
            ..CollectionStats::default()
        });
        assert_eq!(
            std::str::from_utf8(line.bytes()).unwrap(),
            "urge: gc=12 kind=whole at=1.234s trigger=12.0M goal=none begin=12.2M end=14.0M live=7.0M black=2.0M pauses=115us/2 longest=80us stop=15us mark=4210us \
             beside=4100us assist=310us collector=23690us cpu=12%\n"
        );
    }

    #[test]
    fn the_longest_numbers_fit() {
        let long = Duration::MAX;
        let line = Line::of(&CollectionStats {
            number: u64::MAX,
            ended_at: long,
            trigger_bytes: u64::MAX - 1,
            goal_bytes: u64::MAX - 1,
            begin_bytes: u64::MAX - 1,
            end_bytes: u64::MAX - 1,
            bytes_live: u64::MAX - 1,
            pause_sum: long,
            pause: long,
            stops: u32::MAX,
            time_to_stop: long,
            mark: long,
            mark_concurrent: long,
            assist: Duration::from_secs(u64::MAX / 2),
            collector_cpu: Duration::from_secs(u64::MAX / 2),
            ..CollectionStats::default()
        });
        assert!(line.bytes().ends_with(b"%\n"), "{}", line.len);
    }
}
