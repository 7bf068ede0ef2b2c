//! `gclab fuzz`: arbitrary words in arbitrary places over arbitrary heaps, and an exact model of
//! what they keep alive.
//!
//! Nothing reachable may be freed, nothing may be marked but cells of handed-out runs, and nothing
//! retained but what the words name and what that reaches. The words are valid cells, their
//! insides, one past their ends, tagged, boxed; free cells, tails of runs and spans, released
//! memory, the heap's own tables, other heaps, unmapped addresses, and anything.
//!
//! Each case is one of three sorts: [`body`] has no threads and takes its decisions from a fuzzing
//! engine as well, [`threads`] has real threads, stopped and scanned, [`mutate`] has threads that
//! change their graphs while cycles mark them; a fuzzing engine decides for one of them in
//! [`operations`].

pub mod body;
pub mod choices;
mod counts;
pub mod model;
pub mod mutate;
pub mod threads;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

pub use body::fuzz_one;
use choices::Choices;
pub use counts::Counts;
use counts::message;
pub use mutate::operations;

use crate::search::{self, Options};

/// A run without a wrong answer.
pub type Report = search::Report<Counts>;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            cases,
            objects,
            words,
            collections,
            kept,
            freed,
        } = self.counts;
        writeln!(
            f,
            "{cases} cases from seed {} in {:.1} s: no wrong answer",
            self.seed,
            self.time.as_secs_f64()
        )?;
        writeln!(
            f,
            "{objects} cells, {words} words, {collections} collections, which kept {kept} cells and freed {freed}"
        )
    }
}

/// The first wrong answer.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// The seed that repeats it.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "wrong answer in the case of seed {0}: {1}\nrepeat it with `gclab fuzz --seconds 0 --seed {0}`",
            self.seed, self.what
        )
    }
}

impl std::error::Error for Wrong {}

/// Of so many cases one has threads that are scanned; those without threads are a few hundred times
/// cheaper.
const THREADS_EVERY: u64 = 4;
/// Of so many one has threads that change their graphs, which take some hundred times as long
/// again.
const MUTATE_EVERY: u64 = 12;

/// Fuzzes until the time is over or an answer is wrong.
///
/// # Errors
/// The first wrong answer, after which threads may be in any state: end the process.
pub fn run(options: &Options) -> Result<Report, Wrong> {
    let first = options.seed.unwrap_or_else(search::by_the_clock);
    search::name_in_crashes();
    let wrong = |seed, what| Wrong { seed, what };
    let pool = threads::Pool::new().map_err(|e| wrong(first, format!("no threads: {e}")))?;
    let begun = Instant::now();
    let mut counts = Counts::default();
    for seed in (0..).map(|case| first.wrapping_add(case)) {
        search::set(seed);
        let mut choices = Choices::Seeded(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let case = || {
            if seed % THREADS_EVERY == 0 {
                pool.check(&mut choices)
            } else if seed % MUTATE_EVERY == 2 {
                mutate::check(&mut choices)
            } else {
                body::check(&mut choices)
            }
        };
        let outcome =
            catch_unwind(AssertUnwindSafe(case)).unwrap_or_else(|panic| Err(message(&panic)));
        counts += outcome.map_err(|what| wrong(seed, what))?;
        if begun.elapsed() >= options.time {
            break;
        }
    }
    Ok(Report {
        seed: first,
        counts,
        time: begun.elapsed(),
    })
}
