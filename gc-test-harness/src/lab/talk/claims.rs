//! The talk's claims, each beside this run's figure.
//!
//! The talk's figures are those of Go's design documents and of its issue tracker: proposal 24543
//! ("Non-cooperative goroutine preemption") and issue 10958.

use super::figures::{Claim, KernelFigures, Precision, Spinlock, StrategyFigures};
use crate::kernels::talk::Strategy;
use crate::report::Quantiles;

/// A slow-down below this is none, in percent.
const NOTHING_PERCENT: f64 = 0.5;
/// A cost is the talk's if it is at most this many times larger or smaller.
const FACTOR: f64 = 2.0;

/// Compares all claims with the figures.
pub fn claims(all: &[StrategyFigures]) -> Vec<Claim> {
    let find = |strategy| all.iter().find(|figures| figures.strategy == strategy);
    let mean = |strategy| {
        let ratio = find(strategy).and_then(StrategyFigures::mean_ratio);
        ratio.map(|ratio| (ratio - 1.0) * 100.0)
    };
    vec![
        stalls(find(Strategy::Cooperative)),
        prologues(find(Strategy::Prologue)),
        fault_polls(mean(Strategy::BackEdgeFault)),
        flag_polls(mean(Strategy::BackEdge), mean(Strategy::BackEdgeFault)),
        worst_loop(&[find(Strategy::BackEdge), find(Strategy::BackEdgeFault)]),
        steps(find(Strategy::Step)),
        map_bytes(find(Strategy::Maps), find(Strategy::Async)),
        map_errors(find(Strategy::Maps)),
        asynchronous_cost(mean(Strategy::Async)),
        asynchronous_time(find(Strategy::Async)),
        asynchronous_roots(find(Strategy::Async)),
        spinlocks(find(Strategy::Cooperative), find(Strategy::Async)),
    ]
}

fn missed(figures: &StrategyFigures) -> Vec<&KernelFigures> {
    let missed = |kernel: &&KernelFigures| kernel.stops.missed > 0;
    figures.kernels.iter().filter(missed).collect()
}

fn names(kernels: &[&KernelFigures]) -> String {
    let names: Vec<_> = kernels.iter().map(|kernel| kernel.kernel.name()).collect();
    names.join(", ")
}

fn stalls(cooperative: Option<&StrategyFigures>) -> Claim {
    let missed = cooperative.map(missed);
    Claim {
        claim: "cooperative scheduling stalls on tight loops",
        talk: 1.0,
        here: missed.as_ref().map(|missed| missed.len() as f64),
        unit: "kernels",
        reproduced: missed.as_ref().map(|missed| !missed.is_empty()),
        reason: missed.map_or_else(String::new, |missed| {
            format!(
                "not stopped within 1 s: {}; only calls that may block or allocate stop",
                names(&missed)
            )
        }),
    }
}

fn prologues(prologue: Option<&StrategyFigures>) -> Claim {
    let missed = prologue.map(missed);
    Claim {
        claim: "polls at function entries do not stop loops without calls",
        talk: 1.0,
        here: missed.as_ref().map(|missed| missed.len() as f64),
        unit: "kernels",
        reproduced: missed.as_ref().map(|missed| !missed.is_empty()),
        reason: missed.map_or_else(String::new, |missed| {
            format!("not stopped within 1 s: {}", names(&missed))
        }),
    }
}

fn fault_polls(percent: Option<f64>) -> Claim {
    const TALK: f64 = 7.8;
    Claim {
        claim: "a load on each back edge costs 7.8 % (geometric mean; the talk says 8 %)",
        talk: TALK,
        here: percent,
        unit: "percent",
        reproduced: percent.map(|here| (TALK / FACTOR..=TALK * FACTOR).contains(&here)),
        reason: "Go measured its whole standard benchmarks, and these are loops only: a load in a \
                 loop of two instructions costs much, and beside a chain of multiplications nothing"
            .to_owned(),
    }
}

fn flag_polls(flag: Option<f64>, fault: Option<f64>) -> Claim {
    let both = flag.zip(fault);
    Claim {
        claim: "a test of a flag costs more than a load that faults",
        talk: 0.0,
        here: both.map(|(flag, fault)| flag - fault),
        unit: "percent more",
        reproduced: both.map(|(flag, fault)| flag > fault),
        reason: "the test is a branch more, and its call has a stack map: Cranelift stores each \
                 reference that is live there on the stack, in each iteration"
            .to_owned(),
    }
}

fn worst_loop(both: &[Option<&StrategyFigures>]) -> Claim {
    let worst = both.iter().flatten().filter_map(|figures| figures.worst());
    let worst = worst.max_by(|a, b| f64::total_cmp(&a.1.ratio, &b.1.ratio));
    Claim {
        claim: "polls on back edges slow some loops down by 97 % (issue 10958)",
        talk: 97.0,
        here: worst.map(|(_, slow)| slow.percent()),
        unit: "percent",
        reproduced: worst.map(|(_, slow)| slow.percent() >= 97.0 / FACTOR),
        reason: worst.map_or_else(String::new, |(kernel, slow)| {
            let times = slow.pairs;
            format!("the worst kernel is {kernel}, in {times} pairs of blocks")
        }),
    }
}

fn quantiles(figures: &StrategyFigures) -> Option<Quantiles> {
    figures.stops().and_then(|stops| stops.quantiles())
}

fn steps(step: Option<&StrategyFigures>) -> Claim {
    let times = step.and_then(quantiles);
    Claim {
        claim: "stepping to a safe point needs a debugger",
        talk: 1.0,
        here: times.map(|times| times.p50),
        unit: "us (p50)",
        reproduced: times.map(|_| false),
        reason: times.map_or_else(String::new, |_| {
            "the trap flag in the signal's frame steps the thread within its own process; each step \
             is a signal"
                .to_owned()
        }),
    }
}

/// What the maps of every instruction add to the tables that signals need, too, in the kernels that
/// hold references. The others have no maps.
fn map_bytes(maps: Option<&StrategyFigures>, asynchronous: Option<&StrategyFigures>) -> Claim {
    const TALK: f64 = 10.0;
    let added = maps.zip(asynchronous).map(|(maps, asynchronous)| {
        let (mut bytes, mut code, mut kernels) = (0, 0, Vec::new());
        for with in &maps.kernels {
            let same = |without: &&KernelFigures| without.kernel == with.kernel;
            let without = asynchronous.kernels.iter().find(same);
            let more = without.map_or(0, |w| with.metadata_bytes.saturating_sub(w.metadata_bytes));
            if more > 0 {
                bytes += more;
                code += with.code_bytes;
                kernels.push(with);
            }
        }
        (100.0 * bytes as f64 / code.max(1) as f64, names(&kernels))
    });
    Claim {
        claim: "maps at every instruction make the program 10 % larger (5 % in Go 1.11)",
        talk: TALK,
        here: added.as_ref().map(|(percent, _)| *percent),
        unit: "percent",
        reproduced: added
            .as_ref()
            .map(|(percent, _)| (TALK / 2.0 / FACTOR..=TALK * FACTOR).contains(percent)),
        reason: added.map_or_else(String::new, |(_, kernels)| {
            format!("what the maps add to the code of {kernels}; other kernels hold no references")
        }),
    }
}

fn precision(figures: &StrategyFigures) -> Option<Precision> {
    let judged = figures.kernels.iter().filter_map(|kernel| kernel.precision);
    judged.reduce(|a, b| Precision {
        stops: a.stops + b.stops,
        dead_kept: a.dead_kept + b.dead_kept,
        dead_kept_most: a.dead_kept_most.max(b.dead_kept_most),
        stops_with_dead: a.stops_with_dead + b.stops_with_dead,
        roots_missed: a.roots_missed + b.roots_missed,
    })
}

fn map_errors(maps: Option<&StrategyFigures>) -> Claim {
    let judged = maps.and_then(precision);
    let kernels = maps.map_or(&[][..], |maps| &maps.kernels);
    let everywhere: Vec<_> = kernels
        .iter()
        .filter_map(|k| k.everywhere.as_ref())
        .collect();
    let wrong: u64 = everywhere.iter().map(|all| all.executed_wrong).sum();
    let executed: u64 = everywhere.iter().map(|all| all.executed).sum();
    Claim {
        claim: "maps at every instruction cannot be tested",
        talk: 0.0,
        here: judged.map(|judged| judged.roots_missed as f64),
        unit: "roots missed",
        reproduced: judged.map(|_| false),
        reason: judged.map_or_else(String::new, |judged| {
            format!(
                "an oracle judged {} stops at random instructions, and every instruction of a \
                 short run: Cranelift's ranges miss a root at {wrong} of {executed}, around calls, \
                 where a reference is in a stack slot that no range names",
                judged.stops
            )
        }),
    }
}

fn asynchronous_cost(percent: Option<f64>) -> Claim {
    Claim {
        claim: "signals cost the code between two stops nothing",
        talk: 0.0,
        here: percent,
        unit: "percent",
        reproduced: percent.map(|here| here.abs() < NOTHING_PERCENT),
        reason: "the code is that of no preemption, byte for byte".to_owned(),
    }
}

fn asynchronous_time(asynchronous: Option<&StrategyFigures>) -> Claim {
    const TALK: f64 = 25.0;
    let times = asynchronous.and_then(quantiles);
    Claim {
        claim: "a signal stops anything within 25 us",
        talk: TALK,
        here: times.map(|times| times.p99),
        unit: "us (p99)",
        reproduced: times.map(|times| times.p99 <= TALK),
        reason: times.map_or_else(String::new, |times| {
            format!(
                "p50 {:.1} us; the tail is that of the system's signals, and of the load beside",
                times.p50
            )
        }),
    }
}

fn asynchronous_roots(asynchronous: Option<&StrategyFigures>) -> Claim {
    let judged = asynchronous.and_then(precision);
    Claim {
        claim: "a conservative innermost frame misses no root",
        talk: 0.0,
        here: judged.map(|judged| judged.roots_missed as f64),
        unit: "roots missed",
        reproduced: judged.map(|judged| judged.roots_missed == 0),
        reason: judged.map_or_else(String::new, |judged| {
            format!(
                "of {} scans, {} kept a dead cell",
                judged.stops, judged.stops_with_dead
            )
        }),
    }
}

fn spinlocks(
    cooperative: Option<&StrategyFigures>,
    asynchronous: Option<&StrategyFigures>,
) -> Claim {
    let ends = |figures: Option<&StrategyFigures>| figures.and_then(|figures| figures.spinlock);
    let both = ends(cooperative).zip(ends(asynchronous));
    Claim {
        claim: "a spinlock deadlocks with cooperative stops, and ends with signals",
        talk: 1.0,
        here: both.map(|(first, _)| f64::from(u8::from(first == Spinlock::Deadlocks))),
        unit: "deadlocks",
        reproduced: both.map(|both| both == (Spinlock::Deadlocks, Spinlock::Ends)),
        reason: "the loop that waits for the lock has no call, and the lock's holder is stopped"
            .to_owned(),
    }
}
