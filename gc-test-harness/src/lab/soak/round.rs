//! One round: threads that work, storms that stop them, and signals of the host program.

use std::time::{Duration, Instant};

use super::counts::Counts;
use super::plan::{Kind, Plan, ROUND};
use super::shared::{Round, Tally, count};
use super::work;
use crate::kernels::codegen::Arena;
use crate::lab::crew::{Crew, Kernels, Sizes, Work};

/// With these sizes one call of a kernel takes some hundred microseconds.
const SIZES: Sizes = Sizes {
    turns: 100_000,
    ring: 200,
    depth: 20,
    lists: (100, 50),
};

/// Runs the round of a seed in this process.
///
/// # Errors
/// The first wrong answer. The round's threads may then be in any state, so the caller
/// should end the process.
pub fn run_round(seed: u64) -> Result<Counts, String> {
    let plan = Plan::of(seed);
    let mut arena = Arena::new().map_err(|e| e.to_string())?;
    let kernels = Kernels::compile(&mut arena)?;
    let heap = plan.heap().build().map_err(|e| e.to_string())?;
    let _guards = kernels.register(&heap)?;
    let round = Round {
        crew: Crew::new(&heap, &kernels, SIZES)?,
        kernels: &kernels,
        heap: &heap,
        tally: Tally::default(),
    };
    let signals = work::HostSignals::start(plan.signals)?;
    std::thread::scope(|scope| {
        let over = round.crew.until_dropped();
        for (number, kind) in plan.threads.iter().enumerate() {
            let (round, seed) = (&round, seed.wrapping_mul(31).wrapping_add(number as u64));
            scope.spawn(move || round.thread(*kind, seed));
        }
        for gap in &plan.storms {
            let round = &round;
            scope.spawn(move || round.storm(*gap));
        }
        let begun = Instant::now();
        while begun.elapsed() < ROUND && !round.crew.is_over() {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(over);
    });
    if let Some(failure) = round.crew.failure() {
        return Err(failure);
    }
    let stats = heap.stats();
    let tally = round.tally;
    Ok(Counts {
        rounds: 0,
        stops: tally.stops.into_inner() + stats.stops.pause.len(),
        idle_stops: tally.idle_stops.into_inner(),
        signalled: tally.signalled.into_inner(),
        held: tally.held.into_inner(),
        collections: tally.collections.into_inner() + stats.collections,
        answers: round.crew.answers(),
        threads: tally.threads.into_inner(),
        forks: tally.forks.into_inner(),
        programs: tally.programs.into_inner(),
        cases: tally.cases.into_inner(),
        turns: tally.turns.into_inner(),
        signals: signals.stop(),
    })
}

impl<'a> Round<'a> {
    /// Runs a kernel of the crew. The crew itself keeps the first wrong answer.
    fn kernel(&self, work: Work<'a>) -> Result<(), String> {
        self.crew.thread(work);
        Ok(())
    }

    /// Runs one thread of the round. A wrong answer or a panic ends the round.
    fn thread(&self, kind: Kind, seed: u64) {
        let work = std::panic::AssertUnwindSafe(|| match kind {
            Kind::Count => self.kernel(Crew::count),
            Kind::Chase => self.kernel(Crew::chase),
            Kind::Recurse => self.kernel(Crew::recurse),
            Kind::Allocate => self.kernel(Crew::allocate),
            Kind::Safe => work::safe(self),
            Kind::Churn => work::churn(self, seed),
            Kind::Hold => work::hold(self, seed),
            Kind::Coroutine => work::coroutine(self),
            Kind::Block => work::block(self),
            Kind::Lox => work::lox(self, seed),
            Kind::Fuzz => work::fuzz(self, seed),
            Kind::Fork => work::fork(self),
        });
        match std::panic::catch_unwind(work) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => self.crew.fail(format!("{kind:?}: {why}")),
            Err(_) => self.crew.fail(format!("{kind:?}: a panic")),
        }
    }

    /// Stops the world repeatedly, with `gap` after each resume. Every sixteenth turn also stops a
    /// single thread.
    fn storm(&self, gap: Duration) {
        let world = self.heap.world();
        for turn in 0_u64.. {
            if self.crew.is_over() {
                return;
            }
            let stopped = match world.stop() {
                Ok(stopped) => stopped,
                Err(why) => return self.crew.fail(format!("a stop: {why}")),
            };
            let one = stopped.mutators().nth(turn as usize % 4).map(|m| m.id());
            let report = stopped.resume();
            let tally = &self.tally;
            let stops = if report.signalled > 0 {
                &tally.stops
            } else {
                &tally.idle_stops
            };
            count(stops, 1);
            count(&self.tally.signalled, report.signalled.into());
            count(&self.tally.held, report.held.into());
            if turn % 16 == 0
                && let Some(id) = one
                // A thread that has ended since the stop is not an error.
                && world.handshake(id, |_| ()).is_ok()
            {
                count(&self.tally.stops, 1);
            }
            if !gap.is_zero() {
                std::thread::sleep(gap);
            }
        }
    }
}
