//! A claim: a comparison of Urge with a peer, with a limit program or with itself. It has the
//! figures, their ratio, the ratio that is wanted, and whether it is reached.

use std::fmt;

use serde_json::{Value, json};

use super::machine;
use crate::paired::{Measured, Spread};

/// The wanted median of a ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// More than this.
    MoreThan(f64),
    /// There is no wanted ratio.
    Nothing,
}

impl Wanted {
    /// Whether a ratio is as wanted; `None` if there is no wanted ratio.
    pub fn is_reached(self, ratio: f64) -> Option<bool> {
        match self {
            Wanted::AtLeast(least) => Some(ratio >= least),
            Wanted::AtMost(most) => Some(ratio <= most),
            Wanted::MoreThan(bound) => Some(ratio > bound),
            Wanted::Nothing => None,
        }
    }

    fn json(self) -> Value {
        match self {
            Wanted::AtLeast(least) => json!({ "at_least": least }),
            Wanted::AtMost(most) => json!({ "at_most": most }),
            Wanted::MoreThan(bound) => json!({ "more_than": bound }),
            Wanted::Nothing => Value::Null,
        }
    }

    fn read(value: &Value) -> Wanted {
        let bound = |key: &str| value.get(key).and_then(Value::as_f64);
        bound("at_least")
            .map(Wanted::AtLeast)
            .or(bound("at_most").map(Wanted::AtMost))
            .or(bound("more_than").map(Wanted::MoreThan))
            .unwrap_or(Wanted::Nothing)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::AtLeast(least) => write!(f, "at least {least}"),
            Wanted::AtMost(most) => write!(f, "at most {most}"),
            Wanted::MoreThan(bound) => write!(f, "more than {bound}"),
            Wanted::Nothing => f.write_str("-"),
        }
    }
}

/// The contender that Urge is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Another collector or allocator.
    Peer(String),
    /// A limit program, or the signal floor.
    Limit(String),
    /// Urge with other settings.
    Itself(String),
}

impl Beside {
    /// The name in tables.
    pub fn name(&self) -> &str {
        match self {
            Beside::Peer(name) | Beside::Limit(name) | Beside::Itself(name) => name,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Beside::Peer(_) => "peer",
            Beside::Limit(_) => "limit",
            Beside::Itself(_) => "itself",
        }
    }
}

/// The side of 1 on which a ratio is in Urge's favour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Favourable {
    /// Above 1: the ratio is the other's cost over Urge's, or Urge's speed over the other's.
    Above,
    /// Below 1.
    Below,
}

/// Quantiles of a ratio over all turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The smallest.
    pub min: f64,
    /// The median, which is claimed.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl From<Spread> for Ratio {
    fn from(spread: Spread) -> Ratio {
        Ratio {
            min: spread.min,
            p50: spread.p50,
            p99: spread.p99,
            max: spread.max,
        }
    }
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The work.
    pub work: String,
    /// The quantity that is measured.
    pub measure: String,
    /// The contender that Urge is compared with.
    pub beside: Beside,
    /// The medians of Urge's figure and of the other's, and their unit. `None` if only the ratio
    /// counts.
    pub figures: Option<(f64, f64, String)>,
    /// The ratio, turn by turn.
    pub ratio: Ratio,
    /// The side of 1 on which the ratio is in Urge's favour.
    pub favourable: Favourable,
    /// The wanted median.
    pub wanted: Wanted,
    /// The number of turns.
    pub turns: usize,
    /// The time of the measurement in UTC, and the load of the minute before.
    pub taken: String,
}

impl Claim {
    /// A claim of the time of contender `ours` of a table beside that of contender `theirs`.
    /// `None`: one of them was not measured.
    pub fn of_times(
        measured: &Measured,
        work: &str,
        (ours, theirs): (&str, &str),
        beside: Beside,
        wanted: Wanted,
    ) -> Option<Claim> {
        let figures = measured.nanos(ours).zip(measured.nanos(theirs));
        Some(Claim {
            work: work.to_owned(),
            measure: "time".to_owned(),
            beside,
            figures: figures.map(|(ours, theirs)| (ours, theirs, "ns".to_owned())),
            ratio: measured.ratio(theirs, ours)?.into(),
            favourable: Favourable::Above,
            wanted,
            turns: measured.turns(),
            taken: machine::now(),
        })
    }

    /// Whether the ratio is as wanted; `None` if there is no wanted ratio.
    pub fn is_reached(&self) -> Option<bool> {
        self.wanted.is_reached(self.ratio.p50)
    }

    /// The ratio, turned so that it is above 1 in Urge's favour.
    pub fn advantage(&self) -> f64 {
        match self.favourable {
            Favourable::Above => self.ratio.p50,
            Favourable::Below => 1.0 / self.ratio.p50,
        }
    }

    /// The key of the claim: a later claim with the same work, measure and contender replaces it.
    pub fn key(&self) -> (&str, &str, &str) {
        (&self.work, &self.measure, self.beside.name())
    }

    /// The claim as an object of a data file.
    pub fn json(&self) -> Value {
        let Ratio { min, p50, p99, max } = self.ratio;
        let mut object = json!({
            "work": self.work,
            "measure": self.measure,
            "beside": self.beside.name(),
            "kind": self.beside.kind(),
            "ratio": { "min": min, "p50": p50, "p99": p99, "max": max },
            "favourable": match self.favourable {
                Favourable::Above => "above",
                Favourable::Below => "below",
            },
            "wanted": self.wanted.json(),
            "turns": self.turns,
            "taken": self.taken,
        });
        if let Some((ours, theirs, unit)) = &self.figures {
            object["ours"] = json!(ours);
            object["theirs"] = json!(theirs);
            object["unit"] = json!(unit);
        }
        object
    }

    /// Parses an object that [`json`](Claim::json) made.
    pub fn read(value: &Value) -> Option<Claim> {
        let text = |key: &str| Some(value.get(key)?.as_str()?.to_owned());
        let number = |key: &str| value.get(key)?.as_f64();
        let ratio = |key: &str| value.get("ratio")?.get(key)?.as_f64();
        let beside = text("beside")?;
        Some(Claim {
            work: text("work")?,
            measure: text("measure")?,
            beside: match text("kind")?.as_str() {
                "peer" => Beside::Peer(beside),
                "limit" => Beside::Limit(beside),
                _ => Beside::Itself(beside),
            },
            figures: number("ours")
                .zip(number("theirs"))
                .zip(text("unit"))
                .map(|((ours, theirs), unit)| (ours, theirs, unit)),
            ratio: Ratio {
                min: ratio("min")?,
                p50: ratio("p50")?,
                p99: ratio("p99")?,
                max: ratio("max")?,
            },
            favourable: match text("favourable")?.as_str() {
                "above" => Favourable::Above,
                _ => Favourable::Below,
            },
            wanted: Wanted::read(value.get("wanted")?),
            turns: usize::try_from(value.get("turns")?.as_u64()?).ok()?,
            taken: text("taken")?,
        })
    }

    /// The claim as a line for a terminal.
    pub fn line(&self) -> String {
        let Ratio { min, p50, p99, max } = self.ratio;
        let (work, measure, beside) = self.key();
        let what = format!("{work}: {measure}, {beside}");
        let figures = match &self.figures {
            Some((ours, theirs, unit)) => {
                format!("{}, {}", figure(*ours, unit), figure(*theirs, unit))
            }
            None => String::new(),
        };
        let verdict = match self.is_reached() {
            Some(true) => "reached",
            Some(false) => "not reached",
            None => "-",
        };
        format!(
            "{what:<76}{min:>9.2}{p50:>9.2}{p99:>9.2}{max:>9.2}  {:<14}{verdict:<13}{figures}",
            self.wanted.to_string(),
        )
    }

    /// The head over [`line`](Claim::line)'s columns.
    pub fn head() -> String {
        format!(
            "{:<76}{:>9}{:>9}{:>9}{:>9}  {:<14}{:<13}figures (medians)",
            "work: measure, contender: ratios", "min", "p50", "p99", "max", "wanted", ""
        )
    }
}

/// A figure with its unit, to about three digits.
pub fn figure(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        0.1.. => 2,
        _ => 3,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(wanted: Wanted) -> Claim {
        Claim {
            work: "work".to_owned(),
            measure: "time".to_owned(),
            beside: Beside::Peer("peer".to_owned()),
            figures: Some((1.0, 4.0, "s".to_owned())),
            ratio: Spread::of(&[3.0, 4.0, 9.0]).into(),
            favourable: Favourable::Below,
            wanted,
            turns: 3,
            taken: "today".to_owned(),
        }
    }

    #[test]
    fn a_claim_is_judged_by_its_median() {
        for (wanted, reached) in [
            (Wanted::AtLeast(4.0), Some(true)),
            (Wanted::MoreThan(4.0), Some(false)),
            (Wanted::AtMost(3.9), Some(false)),
            (Wanted::Nothing, None),
        ] {
            assert_eq!(claim(wanted).is_reached(), reached);
        }
        assert_eq!(claim(Wanted::Nothing).advantage(), 0.25);
    }

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        for wanted in [Wanted::AtLeast(4.0), Wanted::Nothing] {
            let claim = claim(wanted);
            assert_eq!(Claim::read(&claim.json()), Some(claim));
        }
    }
}
