//! Tests of `generation.rs`.

use super::*;

fn cycle(live: u64, immutable: u64) -> Cycle {
    Cycle {
        live,
        immutable,
        ..Cycle::default()
    }
}

/// The state after several whole cycles like `cycle`.
fn used_to(cycle: &Cycle) -> Generation {
    let mut generation = Generation::default();
    for _ in 0..10 {
        generation.begins(Young::WherePays, cycle);
    }
    generation
}

#[test]
fn a_heap_of_cells_that_may_change_has_none() {
    for (live, immutable, pays) in [
        (100 << 20, 60 << 20, true),
        (100 << 20, 40 << 20, false),
        (100 << 10, 100 << 10, false),
    ] {
        let cycle = cycle(live, immutable);
        let mut generation = used_to(&cycle);
        assert_eq!(generation.begins(Young::WherePays, &cycle), pays);
        assert_eq!(generation.goes_on(Young::WherePays, &cycle, u64::MAX), pays);
        assert!(!generation.begins(Young::Never, &cycle));
        assert!(!generation.goes_on(Young::Never, &cycle, u64::MAX));
        assert!(generation.begins(Young::Always, &cycle));
    }
}

#[test]
fn they_go_on_while_half_of_the_room_is_left() {
    let cycle = cycle(100 << 20, 100 << 20);
    let mut generation = used_to(&cycle);
    assert!(generation.begins(Young::WherePays, &cycle));
    generation.room = 100;
    assert!(generation.goes_on(Young::WherePays, &cycle, 80));
    assert!(generation.goes_on(Young::WherePays, &cycle, 50));
    assert!(!generation.goes_on(Young::WherePays, &cycle, 49));
    // The room was used up slowly, as it is meant to be.
    assert!(generation.begins(Young::WherePays, &cycle));
}

#[test]
fn they_become_more_while_what_is_old_lives_on() {
    let mut generation = Generation::default();
    let rows = |generation: &mut Generation, live: u64, n: usize| -> Vec<u32> {
        (0..n)
            .map(|_| {
                let mut young = 0;
                let mut goes_on = generation.begins(Young::WherePays, &cycle(live, live));
                generation.room = 100;
                while goes_on {
                    young += 1;
                    goes_on = generation.goes_on(Young::WherePays, &cycle(live, live), 100);
                }
                young
            })
            .collect()
    };
    let live = 100 << 20;
    assert_eq!(
        rows(&mut generation, live, 8),
        [0, 4, 8, 16, 32, 32, 32, 32]
    );
    // A quarter less or more is about as much.
    assert_eq!(rows(&mut generation, live * 4 / 5, 2), [32, 32]);
    // Most cells have died, or as many again were allocated.
    assert_eq!(rows(&mut generation, live / 4, 3), [0, 4, 8]);
    assert_eq!(rows(&mut generation, live, 3), [0, 4, 8]);
}

#[test]
fn what_does_not_pay_is_tried_less_and_less_and_never_given_up() {
    let cycle = cycle(100 << 20, 100 << 20);
    let mut generation = used_to(&cycle);
    let mut gaps = Vec::new();
    let mut gap = 0;
    for _ in 0..300 {
        let young = generation.begins(Young::WherePays, &cycle);
        generation.room = 100;
        if young {
            assert!(!generation.goes_on(Young::WherePays, &cycle, 10));
            gaps.push(gap);
            gap = 0;
        } else {
            gap += 1;
        }
    }
    assert_eq!(gaps[..6], [0, 1, 2, 3, 4, 5]);
    assert_eq!(*gaps.iter().max().unwrap(), MOST_SHUNNED);
    assert_eq!(gaps.last(), Some(&MOST_SHUNNED));
    // A young cycle that pays ends that.
    while !generation.begins(Young::WherePays, &cycle) {}
    assert!(generation.goes_on(Young::WherePays, &cycle, 90));
    assert!(generation.begins(Young::WherePays, &cycle));
    assert!(!generation.goes_on(Young::WherePays, &cycle, 10));
    assert!(!generation.begins(Young::WherePays, &cycle));
    assert!(generation.begins(Young::WherePays, &cycle));
}
