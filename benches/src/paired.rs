//! Measures contenders in alternation, in blocks of work A B C A B C ..., and compares them block
//! by block.
//!
//! Other load, a change of the clock rate or a migration affects adjacent blocks in the same way,
//! so the ratio of two blocks of one turn varies less than their times. Each ratio is reported as
//! min, p50, p90, p99 and max over the turns.

use std::fmt;
use std::time::{Duration, Instant};

use gc_test_harness::report::{median, processor_time};

/// The fewest turns of a claim.
pub const LEAST_TURNS: usize = 9;

/// One block of one contender.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// The number of units of work.
    pub units: u64,
    /// The time of the block.
    pub time: Duration,
    /// The processor time of all threads of the process in this time, if it was measured.
    pub processor: Option<Duration>,
}

impl Block {
    /// A block whose time the contender has measured.
    pub fn new(units: u64, time: Duration) -> Block {
        Block {
            units,
            time,
            processor: None,
        }
    }

    /// Measures the clock time and the processor time of `work`, which returns its number of units.
    pub fn timed(work: impl FnOnce() -> u64) -> Block {
        let processor = processor_time();
        let start = Instant::now();
        let units = work();
        let time = start.elapsed();
        Block {
            units,
            time,
            processor: Some(processor_time().saturating_sub(processor)),
        }
    }
}

/// A contender: a name, and a function that runs one block.
pub struct Contender<'a> {
    name: &'a str,
    block: Box<dyn FnMut() -> Block + 'a>,
}

/// The contenders of one table.
pub struct Paired<'a> {
    title: &'a str,
    unit: &'a str,
    contenders: Vec<Contender<'a>>,
}

impl<'a> Paired<'a> {
    /// A table with this title. `unit` is the name of a block's unit of work.
    pub fn new(title: &'a str, unit: &'a str) -> Paired<'a> {
        Paired {
            title,
            unit,
            contenders: Vec::new(),
        }
    }

    /// Adds a contender.
    pub fn contender(mut self, name: &'a str, block: impl FnMut() -> Block + 'a) -> Paired<'a> {
        self.contenders.push(Contender {
            name,
            block: Box::new(block),
        });
        self
    }

    /// Runs one turn to warm up and then `turns` turns to measure.
    pub fn measure(mut self, turns: usize) -> Measured {
        let mut rows: Vec<Row> = self
            .contenders
            .iter()
            .map(|contender| Row {
                name: contender.name.to_owned(),
                nanos: Vec::with_capacity(turns),
                processor: Vec::with_capacity(turns),
            })
            .collect();
        for turn in 0..=turns {
            for (contender, row) in self.contenders.iter_mut().zip(&mut rows) {
                let block = (contender.block)();
                if turn > 0 {
                    let per_unit =
                        |time: Duration| time.as_nanos() as f64 / block.units.max(1) as f64;
                    row.nanos.push(per_unit(block.time));
                    row.processor.extend(block.processor.map(per_unit));
                }
            }
        }
        Measured {
            title: self.title.to_owned(),
            unit: self.unit.to_owned(),
            rows,
            ratios: Vec::new(),
        }
    }
}

/// One contender's blocks, in nanoseconds per unit.
#[derive(Clone, Debug)]
struct Row {
    name: String,
    nanos: Vec<f64>,
    processor: Vec<f64>,
}

/// The blocks of all contenders, and the ratios of the table.
#[derive(Clone, Debug)]
pub struct Measured {
    title: String,
    unit: String,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
}

/// The ratio of two contenders.
#[derive(Clone, Debug)]
struct Ratio {
    name: String,
    time: Spread,
    /// The ratio of their processor times, if measured. Load on the machine affects it less.
    processor: Option<f64>,
}

/// Five quantiles of a list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The quantiles of a list; all 0 for an empty list.
    pub fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (q * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
        };
        Spread {
            min: at(0.0),
            p50: median(values),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }

    fn line(&self, scale: f64) -> String {
        [self.min, self.p50, self.p90, self.p99, self.max]
            .map(|value| format!("{:>10.2}", value / scale))
            .concat()
    }
}

impl Measured {
    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The ratio of the time of `long` to that of `short`, turn by turn. `None`: one of them was
    /// not measured.
    pub fn ratio(&self, long: &str, short: &str) -> Option<Spread> {
        let (long, short) = (self.row(long)?, self.row(short)?);
        let ratios = long.nanos.iter().zip(&short.nanos).map(|(a, b)| a / b);
        Some(Spread::of(&ratios.collect::<Vec<_>>()))
    }

    fn processor_ratio(&self, long: &str, short: &str) -> Option<f64> {
        let (long, short) = (self.row(long)?, self.row(short)?);
        let ratios = long.processor.iter().zip(&short.processor);
        let ratios: Vec<f64> = ratios.map(|(a, b)| a / b).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// Adds the ratio to the table, if both contenders were measured.
    pub fn with_ratio(mut self, long: &str, short: &str) -> Measured {
        if let Some(time) = self.ratio(long, short) {
            self.ratios.push(Ratio {
                name: format!("{long} / {short}"),
                time,
                processor: self.processor_ratio(long, short),
            });
        }
        self
    }

    /// The number of turns.
    pub fn turns(&self) -> usize {
        self.rows.first().map_or(0, |row| row.nanos.len())
    }

    /// A contender's median time per unit, in nanoseconds.
    pub fn nanos(&self, name: &str) -> Option<f64> {
        self.row(name).map(|row| median(&row.nanos))
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let turns = self.turns();
        let largest = self.rows.iter().map(|row| median(&row.nanos));
        let (scale, time) = match largest.fold(0.0, f64::max) {
            0.0..1e4 => (1.0, "ns"),
            1e4..1e7 => (1e3, "us"),
            _ => (1e6, "ms"),
        };
        writeln!(f, "{}: {turns} blocks of each in alternation", self.title)?;
        let head = ["min", "p50", "p90", "p99", "max"].map(|name| format!("{name:>10}"));
        let head = head.concat();
        let label = format!("  {time} per {}", self.unit);
        writeln!(f, "{label:<44}{head}{:>12}", "processors")?;
        for row in &self.rows {
            let spread = Spread::of(&row.nanos).line(scale);
            write!(f, "  {:<42}{spread}", row.name)?;
            if row.processor.is_empty() {
                writeln!(f)?;
            } else {
                writeln!(f, "{:>12.2}", median(&row.processor) / scale)?;
            }
        }
        if !self.ratios.is_empty() {
            writeln!(f, "{:<44}{head}{:>12}", "  ratio", "processors")?;
        }
        for ratio in &self.ratios {
            write!(f, "  {:<42}{}", ratio.name, ratio.time.line(1.0))?;
            match ratio.processor {
                Some(processor) => writeln!(f, "{processor:>12.2}")?,
                None => writeln!(f)?,
            }
        }
        if turns < LEAST_TURNS {
            writeln!(f, "  (only {turns} blocks: a trial, and no figure)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn blocks_alternate_and_ratios_are_of_one_turn() {
        let order = RefCell::new(String::new());
        let mut slow = [9, 10, 40, 10].into_iter();
        let mut quick = [9, 5, 20, 4].into_iter();
        let measured = Paired::new("trial", "thing")
            .contender("slow", || {
                order.borrow_mut().push('s');
                Block::new(2, Duration::from_nanos(slow.next().expect("four blocks")))
            })
            .contender("quick", || {
                order.borrow_mut().push('q');
                Block::new(2, Duration::from_nanos(quick.next().expect("four blocks")))
            })
            .measure(3);
        assert_eq!(*order.borrow(), "sqsqsqsq");
        let ratio = measured.ratio("slow", "quick").expect("both are there");
        assert_eq!((ratio.min, ratio.p50, ratio.max), (2.0, 2.0, 2.5));
        assert_eq!(measured.nanos("slow"), Some(5.0));
        assert_eq!(measured.ratio("slow", "absent"), None);
    }

    #[test]
    fn a_spread_takes_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let spread = Spread::of(&values);
        assert_eq!(
            (spread.min, spread.p90, spread.p99, spread.max),
            (1.0, 90.0, 99.0, 100.0)
        );
        assert_eq!(Spread::of(&[]).p50, 0.0);
    }
}
