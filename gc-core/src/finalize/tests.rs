//! Tests of `finalize.rs`.

use super::*;

fn register(f: &Finalizers, cell: usize) {
    assert!(f.register(Registration { cell, token: cell }));
}

/// Judges all, and returns the cells to mark: those that were moved, and those that were left.
fn judge(f: &Finalizers, marked: impl Fn(usize) -> bool) -> [Vec<usize>; 2] {
    while f.judge_piece(7, &marked) != 0 {}
    let mut kept = [vec![], vec![]];
    while f.keep_piece(5, |cell, moved| kept[usize::from(!moved)].push(cell)) != 0 {}
    kept
}

fn taken(f: &Finalizers) -> Vec<usize> {
    core::iter::from_fn(|| f.next().map(|e| e.cell)).collect()
}

#[test]
fn deaths_come_out_once_and_in_order_and_not_before_the_cycle_is_over() {
    let f = Finalizers::new(1 << 9).unwrap();
    (1..=6).for_each(|i| register(&f, i * 16));
    assert_eq!(judge(&f, |cell| cell % 32 == 0), [vec![16, 48, 80], vec![]]);
    assert_eq!((f.waiting(), f.next()), (0, None));
    assert_eq!((f.publish(), f.waiting()), (3, 3));
    let mut ready = Vec::new();
    assert_eq!(f.ready_piece(0, 2, |cell| ready.push(cell)), Some(2));
    assert_eq!(f.ready_piece(2, 2, |cell| ready.push(cell)), None);
    assert_eq!(ready, [16, 48, 80]);
    assert_eq!(f.next().map(|e| e.token), Some(16));
    f.begin();
    assert_eq!(judge(&f, |_| true), [vec![], vec![]]);
    assert_eq!(f.publish(), 0);
    assert_eq!((taken(&f), f.waiting()), (vec![48, 80], 0));
}

#[test]
fn a_full_queue_keeps_its_cells_registered() {
    let f = Finalizers::new(1 << 9).unwrap();
    let n = f.ready.capacity();
    for round in 0..3 {
        (1..=n).for_each(|i| register(&f, (round * n + i) * 16));
        if round == 2 {
            assert!(!f.register(Registration { cell: 16, token: 0 }));
        }
        f.begin();
        let [moved, left] = judge(&f, |_| false);
        assert_eq!(moved.len(), if round == 0 { n } else { 0 });
        assert_eq!(left.len(), round * n);
        assert_eq!(f.publish(), moved.len() as u64);
        f.trim();
    }
    assert_eq!(taken(&f).len(), n);
    f.begin();
    let [moved, left] = judge(&f, |_| false);
    assert_eq!((moved.len(), left.len()), (n, n));
}

#[test]
fn what_is_found_alive_after_the_pass_is_not_dead_and_what_registers_then_is_not_asked() {
    let f = Finalizers::new(1 << 9).unwrap();
    (1..=100).for_each(|i| register(&f, i * 16));
    // Multiples of 32 are alive; those of 48 are found so in the stop.
    f.begin();
    let mut pieces = 1;
    while f.select_piece(7, |cell| cell % 32 == 0) {
        pieces += 1;
        register(&f, 16 * (1000 + pieces));
    }
    assert_eq!(pieces, 17);
    register(&f, 1 << 20);
    let asked = core::cell::Cell::new(0);
    let [died, left] = judge(&f, |cell| {
        asked.set(asked.get() + 1);
        cell % 32 == 0 || cell % 48 == 0
    });
    // Of the first hundred 50 were not marked, and of those that came during the pass 8 of 16.
    assert_eq!((asked.get(), left), (58, vec![]));
    f.publish();
    let dead = taken(&f);
    assert!(dead.is_sorted() && dead == died);
    // All that are left are there once, in the order of their registration, whether a pass is
    // abandoned or not.
    f.begin();
    assert!(f.select_piece(20, |_| false));
    register(&f, 1 << 21);
    f.begin();
    judge(&f, |_| false);
    f.publish();
    let left = taken(&f);
    assert!(left.is_sorted() && left.contains(&(1 << 20)) && left.contains(&(1 << 21)));
    assert_eq!(left.len() + dead.len(), 100 + 16 + 2);
}

#[test]
fn a_cycle_that_is_abandoned_anywhere_leaves_all_registered_in_their_order() {
    for pieces in 0..12 {
        let f = Finalizers::new(1 << 9).unwrap();
        (1..=30).for_each(|i| register(&f, i * 16));
        f.begin();
        for _ in 0..pieces {
            f.judge_piece(5, |cell| cell % 48 == 0);
        }
        if pieces > 8 {
            f.keep_piece(3, |_, _| ());
        }
        register(&f, 31 * 16);
        f.begin();
        assert_eq!((f.dying(), f.next()), (0, None));
        let [died, _] = judge(&f, |_| false);
        assert_eq!(died, (1..=31).map(|i| i * 16).collect::<Vec<_>>());
    }
}

#[test]
fn memory_goes_back_once_a_peak_is_over() {
    let f = Finalizers::new(1 << 20).unwrap();
    let n = 5 * Registrations::CHUNK;
    let chunks = || [&f.registered.0, &f.ready.0].map(|list| list.chunks());
    for round in 1..=3 {
        (1..=n).for_each(|i| register(&f, i * 16));
        f.begin();
        judge(&f, |cell| cell == 16);
        assert!(chunks()[0] >= 5);
        f.publish();
        f.trim();
        assert!(chunks()[0] == 1 && chunks()[1] >= 5);
        assert_eq!(taken(&f).len(), n - 1);
        f.begin();
        judge(&f, |_| true);
        f.publish();
        f.trim();
        assert_eq!((chunks(), f.registered()), ([1, 1], round));
        assert_eq!(f.unmarked.chunks(), 1);
    }
}
