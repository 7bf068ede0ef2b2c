//! Simulated programs, paced: what the pacer promises, over seconds of simulated time.
//!
//! A program is a rate of allocation and a number of live bytes, both functions of time, on some
//! mutators. A machine is a number of processors and the speed at which one of them marks. Time
//! goes in small steps. In each step the markers mark with the share that they have, and each
//! mutator allocates run by run in the time that is left, and assists when it owes.

use super::plan::MINIMUM;
use super::*;
use crate::config::Young;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MS: f64 = 1e6;
const S: f64 = 1e9;

/// Bytes of one refill.
const RUN: u64 = 8 << 10;
/// Nanoseconds from the trigger to the snapshot, and from the last cell to the resume.
const WAKE: f64 = 60_000.0;
const STOP: f64 = 40_000.0;
/// The most cells of a heap that is marked in one stop.
const TINY: u64 = 4096;

struct Program<'a> {
    mutators: u32,
    /// Bytes that a mutator allocates in a nanosecond of its own time.
    rate: &'a dyn Fn(f64) -> f64,
    /// Bytes alive.
    live: &'a dyn Fn(f64) -> u64,
    /// Bytes of a cell.
    cell: u64,
    /// Whether assists find cells to mark.
    parallel: bool,
    policy: Policy,
}

struct Machine {
    cores: u32,
    /// Cells that one processor marks in a nanosecond.
    marks: f64,
    /// The factor by which its speed may differ from cycle to cycle.
    noise: f64,
}

const TWO: Machine = Machine {
    cores: 2,
    marks: 0.05,
    noise: 0.0,
};

const HUNDRED: Policy = Policy {
    gc_percent: 100,
    memory_limit: None,
    hard_limit: None,
    young: Young::WherePays,
};

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: f64,
    goal: u64,
    end: u64,
    live: u64,
    /// The time for which it marked beside the mutators, and the collector's processor time.
    beside: f64,
    collector: f64,
    assist: f64,
    /// The least part of a window of 10 ms that a mutator had while marking went on.
    utilisation: f64,
    /// The mutators' processor time since the cycle before.
    mutators: f64,
}

impl Seen {
    /// The bytes at which the cycle ended, as a part of its goal.
    fn met(&self) -> f64 {
        self.end as f64 / self.goal as f64
    }
}

struct Lcg(u64);

impl Lcg {
    /// A number from -1 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Runs the program for `nanos` nanoseconds, and returns its cycles.
fn run(machine: &Machine, program: &Program<'_>, nanos: f64, step: f64) -> Vec<Seen> {
    let mut pacer = Pacer::new(program.policy, true, machine.cores);
    let mut plan = pacer.plan();
    let mut seen = Vec::new();
    let mut random = Lcg(42);
    let (mut t, mut used, mut ended) = (0.0, 0u64, 0.0);
    let n = f64::from(program.mutators);
    let cores = f64::from(machine.cores);
    // Allocates for a step of `time` for each mutator; `help` returns the time of the assist after
    // a refill.
    let allocate =
        |t: f64, time: f64, debt: &mut f64, help: &mut dyn FnMut(f64, u64) -> f64| -> u64 {
            let per_run = RUN as f64 / (program.rate)(t).max(1e-9);
            let mut bytes = 0;
            *debt += time;
            while *debt >= per_run {
                *debt -= per_run;
                bytes += RUN;
                *debt -= help(time - *debt, bytes);
            }
            bytes
        };
    let mut debts = vec![0.0; program.mutators as usize];
    while t < nanos {
        // Between cycles.
        let speed = (cores / n).min(1.0);
        // The processor time of mutators in this cycle, and since the one before.
        let mut ran = 0.0;
        let mut wake = f64::MAX;
        while t < nanos && t < wake {
            // The steps are large while the trigger is far.
            let far = plan.trigger.saturating_sub(used) as f64 / ((program.rate)(t) * n) / 2.0;
            let step = far.clamp(WAKE / 2.0, 2.0 * MS);
            for debt in &mut debts {
                used += allocate(t, step * speed, debt, &mut |_, _| 0.0);
            }
            t += step;
            ran += step * speed * n;
            if used >= plan.trigger && wake == f64::MAX {
                wake = t + WAKE;
            }
        }
        if t >= nanos {
            break;
        }
        // Stop 1.
        t += STOP;
        let begin = used;
        let live = (program.live)(t).min(used);
        let cells = live / program.cell;
        let marking = plan.marking(used, used / program.cell);
        let marks = machine.marks * (1.0 + machine.noise * random.next());
        let (mut done, mut assisted_cells, mut assist) = (0.0, 0.0, 0.0);
        let (mut beside, mut collector) = (0.0, 0.0);
        let mut utilisation: f64 = 1.0;
        if cells <= TINY {
            t += cells as f64 / marks;
            collector += cells as f64 / marks;
        } else {
            let share = share(machine.cores, program.mutators);
            let background = f64::from(share.processors()) / 1000.0;
            let speed = ((cores - background) / n).min(1.0);
            let mut free_at = vec![t; program.mutators as usize];
            let mut window = (t, 0.0);
            while done < cells as f64 {
                done += background * step * marks;
                collector += background * step;
                let mut waits = false;
                for (debt, free_at) in debts.iter_mut().zip(&mut free_at) {
                    let from = used;
                    let bytes = allocate(t, step * speed, debt, &mut |into, so_far| {
                        let used = from + so_far;
                        let owed = marking.owed(used, done as u64, RUN);
                        if owed == 0 || t + into < *free_at || pacer.is_limiting() {
                            return 0.0;
                        }
                        if !program.parallel {
                            // There are no cells to mark: a mutator waits only if the heap is far
                            // too large.
                            waits |= marking.waits(used);
                            return if marking.waits(used) { MS } else { 0.0 };
                        }
                        let cells = (owed as f64).min((cells as f64 - done).max(0.0));
                        let spent = cells / marks;
                        done += cells;
                        assisted_cells += cells;
                        assist += spent;
                        *free_at = t
                            + into
                            + spent
                            + assist_credit(spent as u64, marking.share(used)) as f64;
                        spent
                    });
                    used += bytes;
                }
                t += step;
                beside += step;
                ran += step * speed * n;
                window.1 = if window.0 + 10.0 * MS <= t {
                    let lost = (assist - window.1) / n / (t - window.0);
                    utilisation = utilisation.min(1.0 - lost);
                    window.0 = t;
                    assist
                } else {
                    window.1
                };
            }
        }
        // Stop 2.
        t += STOP;
        let live = cells * program.cell;
        let interval = t - ended;
        ended = t;
        let mutators = ran - assist;
        seen.push(Seen {
            at: t,
            goal: plan.goal,
            end: used,
            live,
            beside,
            collector,
            assist,
            utilisation,
            mutators,
        });
        plan = pacer.ended(&Cycle {
            begin,
            live,
            allocated_black: used - begin,
            marked: done as u64,
            assisted: assisted_cells as u64,
            beside: beside as u64,
            running: program.mutators,
            assist: assist as u64,
            cost: (collector + 2.0 * STOP * n) as u64,
            interval: interval as u64,
            ..Cycle::default()
        });
        used = live + (used - begin);
    }
    seen
}

fn check_met(seen: &[Seen], within: f64) {
    for s in seen {
        assert!(
            (s.met() - 1.0).abs() <= within,
            "{:.3} of the goal: {s:?}",
            s.met()
        );
    }
}

/// All cycles but those in which the heap fills.
fn immutable(seen: &[Seen]) -> &[Seen] {
    assert!(seen.len() >= 12, "only {} cycles", seen.len());
    &seen[8..]
}

#[test]
fn a_steady_program_meets_its_goal_without_help() {
    for mutators in [1, 2] {
        for rate in [0.05, 0.2, 0.4] {
            for noise in [0.0, 0.1] {
                let program = Program {
                    mutators,
                    // Two mutators leave the collector half of the time that one leaves it.
                    rate: &|_| rate / f64::from(mutators * mutators),
                    live: &|_| 64 * MIB,
                    cell: 32,
                    parallel: true,
                    policy: HUNDRED,
                };
                let seen = run(&Machine { noise, ..TWO }, &program, 60.0 * S, 50_000.0);
                let seen = immutable(&seen);
                check_met(seen, 0.05);
                for s in seen {
                    assert!((120 * MIB..137 * MIB).contains(&s.goal), "{s:?}");
                    assert!(s.assist <= 0.1 * s.beside * f64::from(mutators), "{s:?}");
                }
            }
        }
    }
}

#[test]
fn the_collector_takes_a_quarter_of_busy_processors() {
    for cores in [1, 2, 3, 4, 8, 64] {
        let machine = Machine { cores, ..TWO };
        let program = Program {
            mutators: cores,
            rate: &|_| 0.05,
            live: &|_| 256 * MIB,
            cell: 32,
            parallel: true,
            policy: HUNDRED,
        };
        let seen = run(&machine, &program, 60.0 * S, 200_000.0);
        let seen = immutable(&seen);
        check_met(seen, 0.05);
        for s in seen {
            let share = s.collector / (s.beside * f64::from(cores));
            assert!(share <= 0.25, "{share} of {cores} processors: {s:?}");
        }
    }
}

#[test]
fn a_growing_program_is_followed() {
    let program = Program {
        mutators: 1,
        rate: &|_| 0.3,
        live: &|t| 8 * MIB + (t * 0.05) as u64,
        cell: 32,
        parallel: true,
        policy: HUNDRED,
    };
    let seen = run(&TWO, &program, 20.0 * S, 50_000.0);
    check_met(immutable(&seen), 0.05);
    assert!(seen.last().unwrap().live > 800 * MIB);
    // A program that keeps all that it makes.
    let program = Program {
        live: &|_| u64::MAX,
        ..program
    };
    let seen = run(&TWO, &program, 20.0 * S, 50_000.0);
    for s in &seen[2..] {
        assert!(s.met() < 1.05, "{s:?}");
    }
}

#[test]
fn a_new_phase_is_learnt_in_four_cycles_and_costs_a_bounded_peak() {
    let phase = |t: f64| (t / S) as u64 % 4;
    let program = Program {
        mutators: 1,
        rate: &|t| [0.05, 0.5, 0.5, 0.1][phase(t) as usize],
        live: &|t| [64, 64, 200, 30][phase(t) as usize] * MIB,
        cell: 32,
        parallel: true,
        policy: HUNDRED,
    };
    let seen = run(&TWO, &program, 16.0 * S, 50_000.0);
    for (i, s) in seen.iter().enumerate() {
        assert!(s.met() < 1.6, "{s:?}");
        let immutable = i >= 4 && phase(seen[i - 4].at) == phase(s.at);
        if immutable {
            assert!(s.met() < 1.05, "{s:?}");
        }
    }
    let over = seen.iter().filter(|s| s.met() > 1.05).count();
    assert!(
        over * 8 < seen.len(),
        "{over} of {} cycles ended too late",
        seen.len()
    );
}

#[test]
fn bursts_do_not_outrun_the_markers() {
    let program = Program {
        mutators: 2,
        rate: &|t| {
            if ((t / (50.0 * MS)) as u64).is_multiple_of(5) {
                1.0
            } else {
                0.01
            }
        },
        live: &|_| 64 * MIB,
        cell: 32,
        parallel: true,
        policy: HUNDRED,
    };
    let seen = run(&TWO, &program, 20.0 * S, 50_000.0);
    for s in immutable(&seen) {
        assert!((0.7..1.2).contains(&s.met()), "{s:?}");
    }
}

#[test]
fn a_tiny_heap_collects_at_the_minimum_and_in_one_stop() {
    let program = Program {
        mutators: 1,
        rate: &|_| 1.0,
        live: &|_| 100 * KIB,
        cell: 32,
        parallel: true,
        policy: HUNDRED,
    };
    let seen = run(&TWO, &program, S, 10_000.0);
    check_met(immutable(&seen), 0.05);
    assert!(seen.iter().all(|s| s.beside == 0.0 && s.assist == 0.0));
    assert!(immutable(&seen).iter().all(|s| s.goal == MINIMUM));
}

#[test]
fn a_huge_heap_is_paced_like_a_small_one() {
    let machine = Machine { cores: 16, ..TWO };
    let program = Program {
        mutators: 16,
        rate: &|_| 0.1,
        live: &|_| 1024 * GIB,
        cell: 64,
        parallel: true,
        policy: HUNDRED,
    };
    let seen = run(&machine, &program, 20_000.0 * S, 10.0 * MS);
    let seen = &seen[2..];
    assert!(seen.len() >= 8);
    check_met(&seen[2..], 0.05);
}

#[test]
fn a_mutator_keeps_sixty_percent_of_each_window() {
    // A marker here marks 1.6 bytes in a nanosecond.
    for rate in [0.5, 1.0, 1.25] {
        let program = Program {
            mutators: 1,
            rate: &|_| rate,
            live: &|_| 256 * MIB,
            cell: 32,
            parallel: true,
            policy: HUNDRED,
        };
        for s in immutable(&run(&TWO, &program, 10.0 * S, 50_000.0)) {
            assert!(s.utilisation >= 0.6, "at {rate} bytes/ns: {s:?}");
            assert!(s.met() < 1.3, "at {rate} bytes/ns: {s:?}");
        }
    }
}

/// The binary trees' numbers: a cell takes 3 ns, and while 32 MiB are marked mutators allocate
/// nearly as much as the heap may grow by.
#[test]
fn a_collector_that_is_kept_busy_rests_as_long_as_it_marks() {
    let machine = Machine { marks: 0.3, ..TWO };
    for rate in [2.0, 3.0, 4.0] {
        let program = Program {
            mutators: 1,
            rate: &|_| rate,
            live: &|_| 32 * MIB,
            cell: 16,
            parallel: true,
            policy: HUNDRED,
        };
        let seen = run(&machine, &program, 2.0 * S, 5_000.0);
        for pair in immutable(&seen).windows(2) {
            let (before, s) = (pair[0], pair[1]);
            let share = s.beside / (s.at - before.at);
            assert!(share < 0.55, "at {rate} bytes/ns, marking {share}: {s:?}");
            assert!(s.assist < 0.05 * s.beside, "at {rate} bytes/ns: {s:?}");
            // The goal is no further off than if all cells that were allocated black before were
            // alive.
            assert!(
                s.goal <= 2 * (before.end - before.goal / 2 + 32 * MIB),
                "{before:?} {s:?}"
            );
            assert!((s.met() - 1.0).abs() < 0.05, "at {rate} bytes/ns: {s:?}");
        }
    }
}

#[test]
fn what_is_born_in_a_large_heap_counts_for_little() {
    let machine = Machine { marks: 0.3, ..TWO };
    let program = Program {
        mutators: 1,
        rate: &|_| 3.0,
        live: &|_| GIB,
        cell: 16,
        parallel: true,
        policy: HUNDRED,
    };
    for s in immutable(&run(&machine, &program, 20.0 * S, 20_000.0)) {
        // The end is at 2,655 MiB; it would be at 2,944 if all cells allocated black counted as
        // alive.
        assert!(s.end < 2800 * MIB, "{s:?}");
    }
}

/// 1 GiB of cells that lie at random: 80 ns each. While they are marked, mutators allocate two
/// thirds to all of the bytes by which the heap may grow.
#[test]
fn a_large_heap_is_marked_early_enough() {
    let machine = Machine {
        marks: 0.0125,
        ..TWO
    };
    for rate in [0.25, 0.35] {
        let program = Program {
            mutators: 1,
            rate: &|_| rate,
            live: &|_| GIB,
            cell: 32,
            parallel: true,
            policy: HUNDRED,
        };
        let seen = run(&machine, &program, 100.0 * S, 200_000.0);
        for s in &immutable(&seen)[8..] {
            assert!((s.met() - 1.0).abs() < 0.05, "at {rate} bytes/ns: {s:?}");
            assert!(s.assist < 0.05 * s.beside, "at {rate} bytes/ns: {s:?}");
        }
    }
}

#[test]
fn what_allocates_faster_than_can_be_marked_is_slowed_down_and_stays_bounded() {
    for (parallel, mutators) in [(true, 1), (true, 4), (false, 1), (false, 4)] {
        let program = Program {
            mutators,
            rate: &|_| 10.0,
            live: &|_| 64 * MIB,
            cell: 16,
            parallel,
            policy: HUNDRED,
        };
        let seen = run(&TWO, &program, 10.0 * S, 20_000.0);
        for s in &seen {
            assert!(s.end <= 64 * MIB * 6, "{parallel} {mutators} {s:?}");
        }
    }
}

#[test]
fn a_memory_limit_is_kept_where_it_can_be() {
    let limit = 160 * MIB;
    let program = Program {
        mutators: 1,
        rate: &|_| 0.2,
        live: &|_| 128 * MIB,
        cell: 32,
        parallel: true,
        policy: Policy {
            memory_limit: Some(limit),
            ..HUNDRED
        },
    };
    let seen = run(&TWO, &program, 20.0 * S, 50_000.0);
    // In the first cycles it may pass the limit by a hundredth.
    assert!(seen.iter().all(|s| s.end <= limit / 100 * 101));
    check_met(immutable(&seen), 0.05);
    assert!(immutable(&seen)[4..].iter().all(|s| s.end <= limit));
}

/// The number of cycles for each time that the program allocates as many bytes as it has alive,
/// under a soft limit, after the first hundred; and the heap's peak.
fn cycles_under(limit: u64, live: u64) -> (f64, u64) {
    let program = Program {
        mutators: 1,
        // So slow that collecting always takes a small share of the time.
        rate: &|_| 0.001,
        live: &|_| live,
        cell: 32,
        parallel: true,
        policy: Policy {
            memory_limit: Some(limit),
            ..HUNDRED
        },
    };
    let seen = run(&TWO, &program, 600.0 * S, 100_000.0);
    let late = &seen[100.min(seen.len() / 2)..];
    let bytes = 0.001 * (late[late.len() - 1].at - late[0].at);
    let peak = late.iter().map(|s| s.end).max().unwrap();
    (late.len() as f64 / (bytes / live as f64), peak)
}

#[test]
fn h95_a_limit_below_what_is_alive_costs_a_bounded_number_of_cycles() {
    for (limit, live) in [
        (32 * MIB, 64 * MIB),
        (63 * MIB, 64 * MIB),
        (4 * MIB, 16 * MIB),
    ] {
        let (cycles, peak) = cycles_under(limit, live);
        // Each cycle begins at least half of a tenth after the one before.
        assert!(cycles <= 21.0, "{cycles} for {limit} of {live}");
        assert!(peak <= live + live / 8, "{peak} for {limit} of {live}");
    }
    // It fits, with nearly no room.
    let limit = 64 * MIB;
    let (cycles, peak) = cycles_under(limit, 63 * MIB + MIB / 4);
    assert!(cycles <= 130.0, "{cycles}");
    assert!(peak <= limit + limit / 64, "{peak}");
    // It fits.
    let (_, peak) = cycles_under(limit, 60 * MIB);
    assert!(peak <= limit, "{peak}");
}

#[test]
fn at_the_limit_the_program_keeps_half_of_the_time() {
    for live in [155, 160, 200] {
        for mutators in [1, 2] {
            let program = Program {
                mutators,
                rate: &|_| 0.2,
                live: &|_| live * MIB,
                cell: 32,
                parallel: true,
                policy: Policy {
                    memory_limit: Some(160 * MIB),
                    ..HUNDRED
                },
            };
            let seen = run(&TWO, &program, 60.0 * S, 200_000.0);
            // Once the bucket has had time to fill.
            let late: Vec<_> = seen.iter().filter(|s| s.at > 20.0 * S).collect();
            let spent: f64 = late.iter().map(|s| s.collector + s.assist).sum();
            let had: f64 = late.iter().map(|s| s.mutators).sum();
            assert!(
                spent <= 1.1 * had,
                "{live} MiB: {spent} ns of collecting for {had} ns"
            );
            // The heap passes its limit for that, but by no more than without one.
            for s in &late {
                assert!(s.end <= 2 * live * MIB, "{s:?}");
            }
        }
    }
}
