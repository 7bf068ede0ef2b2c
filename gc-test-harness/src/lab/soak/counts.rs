//! The counts of a round, and how the soak's process reads them from the round's process.

use serde_json::Value;

use crate::search::counts;

counts! {
    /// The counts of a round, or of all rounds.
    pub struct Counts {
        /// Rounds.
        rounds,
        /// Stops by a storm that met a running thread, and stops by collections.
        stops,
        /// Stops by a storm that met no running thread.
        idle_stops,
        /// Running threads that storms stopped.
        signalled,
        /// Threads that storms met in a blocking region, or still parked.
        held,
        /// Collections.
        collections,
        /// Answers that were compared and were right.
        answers,
        /// Threads that attached, worked and ended.
        threads,
        /// Forks.
        forks,
        /// Lox programs.
        programs,
        /// Cases of `gclab fuzz`.
        cases,
        /// Turns on a coroutine's stack.
        turns,
        /// Signals of the host program.
        signals,
    }
}

impl Counts {
    /// Reads the counts from the text that [`Count::json`](crate::search::Count::json) wrote.
    pub fn read(text: &str) -> Option<Counts> {
        let value: Value = serde_json::from_str(text).ok()?;
        let count = |name| value.get(name)?.as_u64();
        Some(Counts {
            rounds: count("rounds")?,
            stops: count("stops")?,
            idle_stops: count("idle_stops")?,
            signalled: count("signalled")?,
            held: count("held")?,
            collections: count("collections")?,
            answers: count("answers")?,
            threads: count("threads")?,
            forks: count("forks")?,
            programs: count("programs")?,
            cases: count("cases")?,
            turns: count("turns")?,
            signals: count("signals")?,
        })
    }
}
