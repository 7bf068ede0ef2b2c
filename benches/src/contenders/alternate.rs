//! Samples contenders in alternation, one sample of each per turn, and compares them turn by turn.

use crate::paired::Spread;

/// The samples of contenders, one of each per turn.
#[derive(Clone, Debug)]
pub struct Alternated<S> {
    names: Vec<String>,
    /// The samples, by contender, then by turn.
    samples: Vec<Vec<S>>,
}

/// The function that takes one sample.
pub type Piece<'a, S> = Box<dyn FnMut() -> Result<S, String> + 'a>;

/// Runs one turn to warm up if `warm` is set, and then `turns` turns to measure. A contender that
/// fails is left out from then on, and its name is printed with the reason. The first contender,
/// with which all others are compared, must not fail.
///
/// # Errors
/// The first contender's failure.
pub fn alternate<S>(
    turns: usize,
    warm: bool,
    contenders: Vec<(String, Piece<'_, S>)>,
) -> Result<Alternated<S>, String> {
    let mut running: Vec<(String, Piece<'_, S>, Vec<S>)> = contenders
        .into_iter()
        .map(|(name, piece)| (name, piece, Vec::with_capacity(turns)))
        .collect();
    for turn in 0..turns + usize::from(warm) {
        let counts = !warm || turn > 0;
        let mut at = 0;
        while at < running.len() {
            let (name, piece, samples) = &mut running[at];
            match piece() {
                Ok(sample) => {
                    if counts {
                        samples.push(sample);
                    }
                    at += 1;
                }
                Err(why) if at == 0 => return Err(format!("{name}: {why}")),
                Err(why) => {
                    println!("{name}: {why}, skipped");
                    drop(running.remove(at));
                }
            }
        }
    }
    let (names, samples) = running
        .into_iter()
        .map(|(name, _, samples)| (name, samples))
        .unzip();
    Ok(Alternated { names, samples })
}

impl<S> Alternated<S> {
    /// The contenders that did not fail.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A contender's samples.
    pub fn of(&self, name: &str) -> Option<&[S]> {
        let at = self.names.iter().position(|other| other == name)?;
        Some(&self.samples[at])
    }

    /// One figure of a contender, over all turns.
    pub fn spread(&self, name: &str, of: impl Fn(&S) -> f64) -> Option<Spread> {
        let values: Vec<f64> = self.of(name)?.iter().map(of).collect();
        Some(Spread::of(&values))
    }

    /// The ratio of one figure of `above` to that of `below`, turn by turn.
    pub fn ratio(&self, above: &str, below: &str, of: impl Fn(&S) -> f64) -> Option<Spread> {
        self.compare(above, below, |above, below| of(above) / of(below))
    }

    /// A number computed from two contenders' samples of the same turn, over all turns.
    pub fn compare(&self, a: &str, b: &str, of: impl Fn(&S, &S) -> f64) -> Option<Spread> {
        let pairs = self.of(a)?.iter().zip(self.of(b)?);
        let values: Vec<f64> = pairs.map(|(a, b)| of(a, b)).collect();
        Some(Spread::of(&values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contender_that_fails_is_left_out_and_ratios_are_of_one_turn() {
        let mut slow = [9.0, 10.0, 40.0, 10.0].into_iter();
        let mut quick = [9.0, 5.0, 20.0, 4.0].into_iter();
        let mut count = 0;
        let alternated = alternate(
            3,
            true,
            vec![
                (
                    "quick".to_owned(),
                    Box::new(move || quick.next().ok_or("over".to_owned())) as Piece<'_, f64>,
                ),
                (
                    "broken".to_owned(),
                    Box::new(|| {
                        count += 1;
                        if count < 3 {
                            Ok(1.0)
                        } else {
                            Err("it fell over".to_owned())
                        }
                    }),
                ),
                (
                    "slow".to_owned(),
                    Box::new(move || slow.next().ok_or("over".to_owned())),
                ),
            ],
        );
        let alternated = alternated.expect("the first does not fail");
        assert_eq!(alternated.names(), ["quick", "slow"]);
        let ratio = alternated.ratio("slow", "quick", |seconds| *seconds);
        let ratio = ratio.expect("both are there");
        assert_eq!((ratio.min, ratio.p50, ratio.max), (2.0, 2.0, 2.5));
        assert_eq!(alternated.ratio("slow", "broken", |seconds| *seconds), None);
    }
}
