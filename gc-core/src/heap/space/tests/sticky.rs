//! In a young collection exactly the old cells are marked at the start: the cells that were made
//! before the last collection's stop 1 and that it found alive.

use super::*;

/// The cells that a round allocates, and which of them live.
#[derive(Debug, Clone)]
struct Round {
    before: Vec<usize>,
    /// Cells that are allocated while marking is on.
    allocated_black: Vec<usize>,
    keep: u64,
    /// True if the collection is a whole one.
    whole: bool,
    /// True if the mutator sweeps, and not the collector.
    lazy: bool,
    retire: bool,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let bytes = || prop_oneof![8 => 1usize..64, 3 => 64usize..4000, 1 => 4000usize..150_000];
    let cells = move |most| prop::collection::vec(bytes(), 0..most);
    let round = (cells(600), cells(200), any::<u64>(), 0..4, 0..2, 0..3).prop_map(
        |(before, allocated_black, keep, whole, lazy, retire)| Round {
            before,
            allocated_black,
            keep,
            whole: whole == 0,
            lazy: lazy == 0,
            retire: retire == 0,
        },
    );
    prop::collection::vec(round, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Random rounds of allocation and of young and whole collections: the marks are those of the
    /// old cells, and exactly the dead cells are freed.
    #[test]
    fn old_is_what_was_found_alive_and_nothing_else(rounds in rounds()) {
        let mut toy = Toy::new(SpaceConfig { reserve: 256 << 20, ..SpaceConfig::default() });
        let kind = leaf(&toy);
        // The cells that no collection has found dead.
        let mut cells: BTreeSet<usize> = BTreeSet::new();
        let mut old: BTreeSet<usize> = BTreeSet::new();
        let mut first = true;
        for round in rounds {
            for bytes in &round.before {
                prop_assert!(cells.insert(toy.alloc(kind, *bytes)), "a live cell was allocated again");
            }
            let young = !round.whole && !first;
            first = false;
            toy.prepare(young, &mut old);
            for cell in &cells {
                prop_assert_eq!(toy.space.is_marked(*cell), old.contains(cell));
            }
            let mut unallocated = 0;
            // SAFETY: this test's own runs.
            unsafe { toy.runs.for_each_unallocated(&toy.space, &mut |cell| {
                unallocated += usize::from(toy.space.is_marked(cell));
            }) };
            prop_assert_eq!(unallocated, 0, "the tail of a run is marked");
            let roots = kept(&cells, &old, round.keep);
            let marked = toy.mark(&roots);
            prop_assert_eq!(marked.cells as usize, roots.len() - old.len());
            let allocated_black: Vec<usize> = round.allocated_black.iter().map(|bytes| toy.alloc(kind, *bytes)).collect();
            if round.retire {
                toy.runs.retire(&toy.space);
            }
            toy.space.swap(young, true);
            // SAFETY: this test's own runs.
            unsafe { toy.runs.keep_owned(&toy.space) };
            old = roots.iter().copied().collect();
            cells = roots.into_iter().chain(allocated_black).collect();
            if !round.lazy {
                while toy.space.sweep_piece() {}
            }
        }
        // In the end all cells die.
        toy.runs.retire(&toy.space);
        while toy.space.sweep_piece() {}
        toy.space.forget_marks();
        while toy.space.clear_spare_piece() {}
        toy.collect(&[]);
        prop_assert_eq!(toy.cells().len(), 0);
        prop_assert_eq!(toy.space.used_bytes(), 0);
    }
}

/// A span that was filled while marking was on is swept again in the next cycle.
#[test]
fn a_span_that_was_filled_while_marking_is_swept_again() {
    let mut toy = Toy::small();
    let kind = leaf(&toy);
    for young in [false, true] {
        if young {
            toy.space.unmark_allocated_black();
        }
        toy.mark(&[]);
        if !young {
            for _ in 0..20_000 {
                toy.alloc(kind, 16);
            }
            toy.runs.retire(&toy.space);
        }
        toy.space.swap(young, true);
        while toy.space.sweep_piece() {}
        assert_eq!(toy.space.used_bytes() != 0, !young);
    }
}
