//! `gclab fuzz`: arbitrary words in arbitrary places over arbitrary heaps, and an exact model of
//! what they keep alive.
//!
//! No reachable cell may be freed. Only allocated cells and runs' tails may be marked. Only the
//! cells that the words name, and the cells that those reach, may be kept. The words are addresses
//! of cells, of their interior, one past their ends, tagged, boxed; of free cells, tails of runs
//! and spans, released memory, the heap's own tables, other heaps, unmapped memory; and any others.
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
        let n = &self.counts;
        let (seed, seconds) = (self.seed, self.time.as_secs_f64());
        writeln!(
            f,
            "{} cases from seed {seed} in {seconds:.1} s: no wrong answer",
            n.cases
        )?;
        writeln!(
            f,
            "{} cells, {} words, {} collections, which kept {} cells and freed {}",
            n.objects, n.words, n.collections, n.kept, n.freed
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
    search::name_in_crashes();
    let pool = threads::Pool::new().map_err(|e| Wrong {
        seed: options.seed.unwrap_or_default(),
        what: format!("no threads: {e}"),
    })?;
    search::run(options, |seed| {
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
        let outcome = catch_unwind(AssertUnwindSafe(case));
        let outcome = outcome.unwrap_or_else(|panic| Err(message(&panic)));
        outcome.map_err(|what| Wrong { seed, what })
    })
}
