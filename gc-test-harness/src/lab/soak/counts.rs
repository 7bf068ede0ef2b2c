//! What a round counts, and how its process hands that to the soak's.

use serde_json::Value;

use crate::search::counts;

counts! {
    /// What was done.
    pub struct Counts {
        /// Rounds.
        rounds,
        /// Stops of a world by a storm that met a thread running, and those of collections.
        stops,
        /// Stops by a storm that met no thread running.
        idle_stops,
        /// Threads that storms stopped while these ran.
        signalled,
        /// Threads that storms met blocked, or parked still.
        held,
        /// Collections.
        collections,
        /// Answers that were compared, and right.
        answers,
        /// Threads that came and went.
        threads,
        /// Forks.
        forks,
        /// Lox programs.
        programs,
        /// Cases of `gclab fuzz`.
        cases,
        /// Turns on a coroutine's stack.
        turns,
        /// Signals of the host's.
        signals,
    }
}

impl Counts {
    /// What [`Count::json`](crate::search::Count::json) wrote.
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
