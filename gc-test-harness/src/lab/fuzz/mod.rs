//! `gclab fuzz`: arbitrary words in arbitrary places over arbitrary heaps, and an exact model of
//! the cells that they keep alive.
//!
//! No collection may free a reachable cell. Markers may mark only allocated cells and tails of
//! runs. A collection may keep only the cells that the words name, and the cells that those reach.
//! The words are addresses of cells, of their interior, or one past their ends, plain, tagged or
//! boxed; addresses of free cells, of tails of runs and spans, of memory given back, of the heap's
//! own tables, of other heaps or of unmapped memory; or any other words.
//!
//! There are three sorts of cases. A case of [`body`] has no threads. A case of [`threads`] has
//! real threads, which are stopped and scanned. A case of [`mutate`] has threads that change their
//! graphs while the collector marks. A fuzzing engine runs cases of `body`, and cases of `mutate`
//! with one thread ([`operations`]).

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

/// The report of a search without a wrong answer.
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
    /// The seed that repeats the case.
    pub seed: u64,
    /// The difference between the heap and the model.
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

/// One case in this many has threads that are scanned. Cases without threads are much cheaper.
const THREADS_EVERY: u64 = 4;
/// One case in this many has threads that change their graphs. Such a case takes much longer still.
const MUTATE_EVERY: u64 = 12;

/// Runs cases until the time is over or an answer is wrong.
///
/// # Errors
/// The first wrong answer. Threads may then be in any state, so the caller should end the process.
pub fn run(options: &Options) -> Result<Report, Wrong> {
    search::name_in_crashes();
    let pool = threads::Pool::new().map_err(|e| Wrong {
        seed: options.seed.unwrap_or_default(),
        what: format!("cannot start the worker threads: {e}"),
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
