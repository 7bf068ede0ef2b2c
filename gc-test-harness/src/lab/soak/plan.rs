//! The mixture of one round of a soak, which follows from the round's seed.

use std::fmt;
use std::time::Duration;

use gc_core::{Heap, HeapBuilder};

use crate::lab::fuzz::choices::Choices;

/// The length of one round.
pub(super) const ROUND: Duration = Duration::from_secs(4);

/// The work of one thread of a round, which lasts until the round is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The counting kernel of the [crew](crate::lab::crew).
    Count,
    /// The crew's chasing kernel.
    Chase,
    /// The crew's recursing kernel.
    Recurse,
    /// The crew's allocating kernel: the raw tier, with allocation in compiled code.
    Allocate,
    /// The safe tier: lists, roots, weak words, values with `Drop`.
    Safe,
    /// Threads that attach, work and end. Some leak their mutators.
    Churn,
    /// A thread that holds arbitrary words in registers, vectors and stack over many stops.
    Hold,
    /// Turns on a coroutine's stack.
    Coroutine,
    /// Waits in `blocking`, with open handles.
    Block,
    /// Lox programs on heaps of their own.
    Lox,
    /// Cases of `gclab fuzz` on heaps of their own.
    Fuzz,
    /// Forks. The child allocates and collects.
    Fork,
}

/// The number of kinds at the front of [`KINDS`] whose threads run all the time.
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

/// The mixture of one round.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed that determines the plan.
    pub seed: u64,
    /// The work of each thread.
    pub threads: Vec<Kind>,
    /// For each storm, the time between two stops.
    pub storms: Vec<Duration>,
    /// Signals of the host program in a second.
    pub signals: u32,
    /// Whether stops are injected where possible.
    pub inject: bool,
    /// Whether collections stop the world from beginning to end.
    pub stop_the_world: bool,
    /// Whether each collection marks twice.
    pub verify: bool,
    /// The number of allocations between two collections, if allocations trigger them.
    pub collect_every: Option<u64>,
    /// Whether collections follow each other without requests.
    pub continuous: bool,
}

impl Plan {
    /// The plan for a seed.
    pub fn of(seed: u64) -> Plan {
        let mut choices = Choices::Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let c = &mut choices;
        // At least one thread always runs, so that stops meet a running thread.
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

    /// Environment variables of the round's process.
    pub fn environment(&self) -> [(&'static str, &'static str); 1] {
        [("URGE_INJECT", if self.inject { "1" } else { "0" })]
    }

    /// A builder for the plan's heap.
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
