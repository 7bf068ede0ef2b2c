//! Holes that are taken together, one bitmap word at a time. Each free cell is allocated once, and
//! no live cell is.

use std::collections::BTreeSet;

use super::*;

/// A heap of `count` cells of `bytes` bytes, of which those that `lives` selects are alive. Returns
/// the live cells too.
fn mixed(bytes: usize, count: usize, lives: impl Fn(usize) -> bool) -> (Toy, KindId, Vec<usize>) {
    let mut toy = Toy::small();
    let kind = leaf(&toy);
    let cells: Vec<usize> = (0..count).map(|_| toy.alloc(kind, bytes)).collect();
    for cell in &cells {
        // SAFETY: a cell of this test.
        unsafe { std::ptr::write_bytes(*cell as *mut u8, 0xa5, bytes) };
    }
    let kept = |(i, cell): (usize, &usize)| lives(i).then_some(*cell);
    let live: Vec<usize> = cells.iter().enumerate().filter_map(kept).collect();
    // Without this, the mutator would own its last span until the span is full.
    toy.runs.retire(&toy.space);
    toy.collect(&live);
    (toy, kind, live)
}

/// Allocates a cell, checks that it is zero, and fills it.
fn alloc(toy: &mut Toy, kind: KindId, bytes: usize) -> usize {
    let cell = toy.alloc(kind, bytes);
    // SAFETY: a cell of this test.
    let content = unsafe { std::slice::from_raw_parts_mut(cell as *mut u8, bytes) };
    assert!(content.iter().all(|byte| *byte == 0));
    content.fill(0x5a);
    cell
}

proptest! {
    /// For random cells that live, each hole is allocated once, and collections in between keep all
    /// cells.
    #[test]
    fn every_hole_is_allocated_once(
        bytes in prop::sample::select(&[16usize, 32, 48, 64, 112, 320, 512, 1024, 1280][..]),
        density in 0.02f64..0.98,
        seed in any::<u64>(),
        collect_after in 1usize..200,
    ) {
        let random = |i: usize| {
            let mixed = (i as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed >> 11) as f64 / (1u64 << 53) as f64
        };
        let count = 3 * (64 << 10) / bytes;
        let (mut toy, kind, live) = mixed(bytes, count, |i| random(i) < density);
        let mut all: BTreeSet<usize> = live.iter().copied().collect();
        // Collections keep all cells, so only cells that were free at first may be allocated.
        for n in 0..count - live.len() {
            if n % collect_after == 0 {
                let roots: Vec<usize> = all.iter().copied().collect();
                toy.collect(&roots);
                prop_assert_eq!(toy.cells().len(), all.len());
            }
            prop_assert!(all.insert(alloc(&mut toy, kind, bytes)));
        }
        prop_assert_eq!(toy.cells().keys().copied().collect::<BTreeSet<_>>(), all);
    }
}

/// The holes of one word are taken and counted together.
#[test]
fn holes_of_a_word_are_taken_together_and_counted_once() {
    let (mut toy, kind, live) = mixed(32, 2048, |i| i % 2 == 0);
    assert_eq!((live.len(), toy.space.cells_since()), (1024, 0));
    for n in 0..64 {
        let cell = alloc(&mut toy, kind, 32);
        // A word has 32 cells of this size.
        assert_eq!(toy.space.cells_since(), 16 * (n / 16 + 1));
        assert_eq!(
            toy.space.allocated_since() as i64,
            32 * toy.space.cells_since()
        );
        assert!(toy.space.resolve(cell).is_some());
    }
}

/// A stop marks the holes that a mutator took before it. Without that, a cell that is allocated
/// from them afterwards is freed.
#[test]
fn without_blackened_holes_a_new_cell_would_be_free() {
    for cure in [true, false] {
        let (mut toy, kind, live) = mixed(32, 2048, |i| i % 2 == 0);
        let first = alloc(&mut toy, kind, 32);
        toy.weak.begin(&toy.space);
        toy.space.begin_marking();
        if cure {
            // SAFETY: this test's own runs.
            let tails = unsafe { toy.runs.blacken_tails(&toy.space) };
            assert_eq!((tails.cells, tails.bytes), (15, 15 * 32));
        }
        let second = alloc(&mut toy, kind, 32);
        toy.finish();
        assert!(second != first && !live.contains(&second));
        assert_eq!(toy.space.resolve(second).is_some(), cure);
    }
}

/// Holes that a mutator gives back are free again and no longer counted.
#[test]
fn holes_that_are_given_back_are_free_again() {
    let (mut toy, kind, live) = mixed(48, 1000, |i| i % 3 == 0);
    let first = alloc(&mut toy, kind, 48);
    toy.runs.retire(&toy.space);
    assert_eq!(toy.space.cells_since(), 1);
    assert_eq!(toy.cells().len(), live.len() + 1);
    // The same holes are allocated again, in the same order.
    let second = alloc(&mut toy, kind, 48);
    assert_eq!(second, first + 48);
}

/// Holes that are taken while marking is on are marked, and stay so when they are given back.
#[test]
fn holes_taken_while_marking_are_black_and_stay_so_when_they_are_given_back() {
    let (mut toy, kind, live) = mixed(32, 2048, |i| i % 2 == 0);
    toy.mark(&live);
    let first = alloc(&mut toy, kind, 32);
    let taken = toy.space.cells_since();
    let mut spare = 0;
    let mut see = |cell| {
        spare += 1;
        assert!(toy.space.is_marked(cell));
    };
    // SAFETY: this test's own runs.
    unsafe { toy.runs.for_each_unallocated(&toy.space, &mut see) };
    assert!(toy.space.is_marked(first) && spare == taken - 1 && spare > 10);
    toy.runs.retire(&toy.space);
    toy.finish();
    // No program has these cells, so the next cycle finds them dead.
    assert_eq!(toy.cells().len() as i64, live.len() as i64 + taken);
    toy.collect(&live);
    assert_eq!(toy.cells().len(), live.len());
}

/// `collect_every` counts single cells also where a run has many holes.
#[test]
fn collections_that_are_due_by_number_are_so_among_holes() {
    for every in [1, 2, 7, 16, 33] {
        let mut toy = Toy::new(SpaceConfig {
            reserve: 64 << 20,
            collect_every: Some(every),
            ..SpaceConfig::default()
        });
        let kind = leaf(&toy);
        let mut live = Vec::new();
        for n in 0..3000u64 {
            let before = toy.collections as u64;
            let cell = toy.try_alloc(kind, 32, &live).unwrap();
            let due = n != 0 && n % every == 0;
            assert_eq!(toy.collections as u64, before + u64::from(due), "cell {n}");
            if n % 3 != 0 {
                live.push(cell);
            }
        }
    }
}
