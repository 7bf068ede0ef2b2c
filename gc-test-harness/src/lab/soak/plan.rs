//! What one round of a soak mixes: all of it follows from the round's seed.

use std::fmt;
use std::time::Duration;

use gc_core::{Heap, HeapBuilder};

use crate::lab::fuzz::choices::Choices;

/// How long one round lasts.
pub(super) const ROUND: Duration = Duration::from_secs(4);

/// What a thread of a round does until the round is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A kernel of the [crew](crate::lab::crew).
    Count,
    /// Likewise.
    Chase,
    /// Likewise.
    Recurse,
    /// Likewise: the raw tier, allocation in compiled code.
    Allocate,
    /// The safe tier: lists, roots, weak words, values with `Drop`.
    Safe,
    /// Threads that attach, work and end, some with their mutator leaked.
    Churn,
    /// Registers, vectors and stack that hold arbitrary words over many stops.
    Hold,
    /// Turns on a coroutine's stack.
    Coroutine,
    /// Waits in `blocking`, with handles open.
    Block,
    /// Lox programs on heaps of their own.
    Lox,
    /// Cases of `gclab fuzz` on heaps of their own.
    Fuzz,
    /// Forks, whose child allocates and collects.
    Fork,
}

/// Of [`KINDS`], those whose threads run all the time.
const RUNNING: usize = 5;

const KINDS: [Kind; 12] = [
    Kind::Count,
    Kind::Chase,
    Kind::Recurse,
    Kind::Allocate,
    Kind::Safe,
    Kind::Churn,
    Kind::Hold,
    Kind::Coroutine,
    Kind::Block,
    Kind::Lox,
    Kind::Fuzz,
    Kind::Fork,
];

/// What a round mixes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed that it follows from.
    pub seed: u64,
    /// What each thread does.
    pub threads: Vec<Kind>,
    /// Between two stops of each storm.
    pub storms: Vec<Duration>,
    /// Signals of the host's a second.
    pub signals: u32,
    /// Stops are injected where they can be.
    pub inject: bool,
    /// Collections stop the world from beginning to end.
    pub stop_the_world: bool,
    /// Each collection marks twice.
    pub verify: bool,
    /// A collection every so many allocations.
    pub collect_every: Option<u64>,
    /// Collections follow each other without being asked for.
    pub continuous: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut choices = Choices::Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let c = &mut choices;
        // One of them always runs, so that there is something to stop.
        let mut threads = vec![KINDS[c.below(RUNNING)]];
        threads.extend((0..1 + c.below(4)).map(|_| KINDS[c.below(KINDS.len())]));
        let storms = (0..1 + c.below(2))
            .map(|_| Duration::from_micros([0, 5, 20, 100][c.below(4)]))
            .collect();
        let collect_every = [None, None, Some(50), Some(2_000)][c.below(4)];
        Plan {
            seed,
            threads,
            storms,
            signals: [0, 1_000][c.below(2)],
            inject: c.one_in(2),
            stop_the_world: c.one_in(5),
            verify: c.one_in(3),
            collect_every,
            continuous: collect_every.is_none() && c.one_in(3),
        }
    }

    /// Variables that a round's process gets.
    pub fn environment(&self) -> [(&'static str, &'static str); 1] {
        [("URGE_INJECT", if self.inject { "1" } else { "0" })]
    }

    /// A heap as the plan wants it.
    pub fn heap(&self) -> HeapBuilder {
        Heap::builder()
            .stop_the_world(self.stop_the_world)
            .verify(self.verify)
            .stress(gc_core::Stress {
                collect_every: self.collect_every,
                phases: self.continuous,
                continuous: self.continuous,
            })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, storms every {:?}", self.threads, self.storms)?;
        for (on, name) in [
            (self.signals > 0, "host signals"),
            (self.inject, "injected"),
            (self.stop_the_world, "stop the world"),
            (self.verify, "verified"),
            (self.continuous, "continuous"),
        ] {
            if on {
                write!(f, ", {name}")?;
            }
        }
        match self.collect_every {
            Some(n) => write!(f, ", a collection every {n} allocations"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_in_a_row_mix_everything() {
        let plans: Vec<Plan> = (0..200).map(Plan::of).collect();
        for kind in KINDS {
            let with = plans.iter().filter(|plan| plan.threads.contains(&kind));
            assert!(with.count() > 10, "{kind:?}");
        }
        let some: [fn(&Plan) -> bool; 7] = [
            |p| p.inject,
            |p| p.stop_the_world,
            |p| p.verify,
            |p| p.continuous,
            |p| p.collect_every.is_some(),
            |p| p.signals > 0,
            |p| p.storms.len() > 1,
        ];
        for what in some {
            let with = plans.iter().filter(|p| what(p)).count();
            assert!((10..190).contains(&with), "{with} of 200");
        }
    }
}
