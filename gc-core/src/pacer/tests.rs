//! Tests of the plans: trigger, goal, limits.

use super::plan::{LEAST_GROWTH, MINIMUM};
use super::{Cycle, Pacer, Policy};
use crate::config::Young;

const MIB: u64 = 1 << 20;

const HUNDRED: Policy = Policy {
    gc_percent: 100,
    memory_limit: None,
    hard_limit: None,
    young: Young::WherePays,
};

fn goal(policy: Policy, cycle: Cycle) -> u64 {
    Pacer::new(policy, true, 2).ended(&cycle).goal
}

/// A cycle that found `live` bytes alive, in one stop.
fn live(live: u64) -> Cycle {
    Cycle {
        live,
        begin: live,
        marked: live / 32,
        ..Cycle::default()
    }
}

#[test]
fn a_small_heap_waits_for_the_minimum() {
    for (gc_percent, expected) in [(100, MINIMUM), (50, MINIMUM / 2), (400, MINIMUM)] {
        let policy = Policy {
            gc_percent,
            ..HUNDRED
        };
        assert_eq!(Pacer::new(policy, true, 2).plan().goal, expected);
        assert_eq!(goal(policy, live(0)), expected);
    }
}

#[test]
fn the_goal_grows_with_live_bytes_and_roots() {
    assert_eq!(goal(HUNDRED, live(100 * MIB)), 200 * MIB);
    let roots = 10 * MIB;
    assert_eq!(
        goal(
            HUNDRED,
            Cycle {
                roots,
                ..live(100 * MIB)
            }
        ),
        210 * MIB
    );
    let external = 40 * MIB;
    assert_eq!(
        goal(
            HUNDRED,
            Cycle {
                external,
                ..live(60 * MIB)
            }
        ),
        200 * MIB
    );
    let policy = Policy {
        gc_percent: 50,
        ..HUNDRED
    };
    assert_eq!(goal(policy, live(100 * MIB)), 150 * MIB);
}

#[test]
fn what_was_allocated_black_counts_as_far_as_the_heap_grows() {
    let cycle = Cycle {
        begin: 200 * MIB,
        allocated_black: 20 * MIB,
        ..live(100 * MIB)
    };
    // A steady program: as much alive as before.
    let mut pacer = Pacer::new(HUNDRED, true, 2);
    pacer.ended(&live(100 * MIB));
    assert_eq!(pacer.ended(&cycle).goal, 200 * MIB);
    // A program that only builds: all that was allocated since is alive.
    let mut pacer = Pacer::new(HUNDRED, true, 2);
    pacer.ended(&live(50 * MIB));
    let cycle = Cycle {
        begin: 100 * MIB,
        ..cycle
    };
    assert_eq!(pacer.ended(&cycle).goal, 240 * MIB);
}

#[test]
fn what_became_old_is_no_reason_to_grow() {
    let mut pacer = Pacer::new(HUNDRED, true, 2);
    let whole = Cycle {
        immutable: 100 * MIB,
        ..live(100 * MIB)
    };
    // Of 100 MiB of young cells, 10 MiB are alive and old now.
    let young = |live_bytes: u64| Cycle {
        young: true,
        begin: 200 * MIB,
        marked: 1000,
        immutable: live_bytes,
        ..live(live_bytes)
    };
    assert!(
        !pacer.ended(&whole).young,
        "one cycle does not show how long cells live"
    );
    let plan = pacer.ended(&whole);
    assert!(plan.young && plan.goal == 200 * MIB);
    for old in [110, 150] {
        let mut pacer = pacer.clone();
        let plan = pacer.ended(&young(old * MIB));
        assert!(plan.young && plan.goal == 200 * MIB, "{old}: {plan:?}");
        assert!(
            (old * MIB..plan.goal).contains(&plan.trigger),
            "{old}: {plan:?}"
        );
    }
    // Half of the room is gone: a whole cycle follows. It has room, whatever is left.
    for old in [151, 199, 230] {
        let plan = pacer.clone().ended(&young(old * MIB));
        assert!(!plan.young, "{old}: {plan:?}");
        assert_eq!(plan.goal, (200 * MIB).max((old + 25) * MIB));
    }
    // Growth is counted from one whole cycle to the next, so most cells that became old are not
    // taken for growth.
    pacer.ended(&young(160 * MIB));
    assert_eq!(pacer.ended(&whole).goal, 200 * MIB);
}

#[test]
fn a_limit_that_presses_has_all_cells_looked_at() {
    let policy = Policy {
        memory_limit: Some(150 * MIB),
        ..HUNDRED
    };
    let whole = Cycle {
        immutable: 100 * MIB,
        ..live(100 * MIB)
    };
    for (policy, concurrent, young) in [
        (HUNDRED, true, true),
        (policy, true, false),
        (HUNDRED, false, false),
    ] {
        let mut pacer = Pacer::new(policy, concurrent, 2);
        pacer.ended(&whole);
        assert_eq!(pacer.ended(&whole).young, young);
    }
}

#[test]
fn limits_lower_the_goal() {
    for hard in [false, true] {
        let limit = Some(128 * MIB);
        let policy = Policy {
            young: Young::WherePays,
            gc_percent: 100,
            memory_limit: limit.filter(|_| !hard),
            hard_limit: limit.filter(|_| hard),
        };
        assert_eq!(goal(policy, live(100 * MIB)), 127 * MIB);
        assert_eq!(goal(policy, live(10 * MIB)), 20 * MIB);
        let overhead = 7 * MIB;
        assert_eq!(
            goal(
                policy,
                Cycle {
                    overhead,
                    ..live(100 * MIB)
                }
            ),
            120 * MIB
        );
        // There is no room below the limit: a distance is left even so.
        assert_eq!(goal(policy, live(128 * MIB)), 128 * MIB + LEAST_GROWTH);
    }
}

#[test]
fn a_limit_that_is_passed_in_vain_gives_way_and_is_kept_again_when_it_can_be() {
    let policy = Policy {
        memory_limit: Some(100 * MIB),
        ..HUNDRED
    };
    let mut pacer = Pacer::new(policy, true, 2);
    let above = live(160 * MIB);
    for n in 0..10 {
        let plan = pacer.ended(&above);
        let distance = (LEAST_GROWTH << n).min(16 * MIB);
        assert_eq!(plan.goal, 160 * MIB + distance);
        assert!(plan.over_limit);
    }
    // A forced cycle says nothing, and is no step.
    let mut other = Pacer::new(policy, true, 2);
    for _ in 0..10 {
        let forced = Cycle {
            forced: true,
            ..above
        };
        assert_eq!(other.ended(&forced).goal, 160 * MIB + LEAST_GROWTH);
    }
    // The program's peak is over.
    let plan = pacer.ended(&live(90 * MIB));
    assert!(plan.goal == 99 * MIB && !plan.over_limit);
    assert_eq!(pacer.ended(&above).goal, 160 * MIB + LEAST_GROWTH);
}

#[test]
fn collecting_can_be_left_to_a_limit() {
    let off = Policy {
        gc_percent: u32::MAX,
        ..HUNDRED
    };
    assert_eq!(Pacer::new(off, true, 2).plan().trigger, u64::MAX);
    assert_eq!(goal(off, live(MIB)), u64::MAX);
    let policy = Policy {
        memory_limit: Some(64 * MIB),
        ..off
    };
    assert_eq!(goal(policy, live(MIB)), 63 * MIB);
}

#[test]
fn a_cycle_that_was_asked_for_teaches_nothing_about_the_trigger() {
    let mut pacer = Pacer::new(HUNDRED, true, 2);
    let cycle = Cycle {
        begin: 190 * MIB,
        allocated_black: 10 * MIB,
        beside: 1_000_000,
        running: 1,
        ..live(100 * MIB)
    };
    pacer.ended(&cycle);
    let before = (pacer.ratio, pacer.lag);
    assert!(before.0.is_some());
    let forced = Cycle {
        begin: 120 * MIB,
        allocated_black: 0,
        beside: 50_000_000,
        forced: true,
        ..cycle
    };
    pacer.ended(&forced);
    assert_eq!((pacer.ratio, pacer.lag), before);
}

#[test]
fn nothing_overflows_and_there_is_always_room_to_allocate() {
    for gc_percent in [0, 1, 100, u32::MAX - 1, u32::MAX] {
        for bytes in [0, 1, MIB, u64::MAX / 4, u64::MAX] {
            for limit in [None, Some(MIB), Some(u64::MAX)] {
                let cycle = Cycle {
                    begin: bytes,
                    allocated_black: bytes / 2,
                    roots: bytes,
                    external: bytes,
                    overhead: bytes,
                    assist: bytes,
                    cost: bytes,
                    interval: bytes,
                    beside: bytes,
                    ..live(bytes)
                };
                let policy = Policy {
                    young: Young::WherePays,
                    gc_percent,
                    memory_limit: limit,
                    hard_limit: limit,
                };
                let mut pacer = Pacer::new(policy, true, 2);
                for _ in 0..4 {
                    let plan = pacer.ended(&cycle);
                    assert!(plan.trigger <= plan.goal);
                    let room = plan.trigger - plan.now;
                    assert!(
                        room >= (LEAST_GROWTH / 2).min(u64::MAX - plan.now),
                        "{plan:?}"
                    );
                    let marking = plan.marking(bytes, bytes);
                    assert!(marking.begin <= marking.goal && marking.goal <= marking.hard);
                    marking.owed(bytes, bytes / 2, bytes);
                }
            }
        }
    }
}
