//! Many sites, of which a mutator uses a few at a time: the sites' lists and the mutator's runs,
//! against a model.

use super::*;

/// A swap of bitmaps visits no site: it is counted, and the sweep brings the lists up to date.
#[test]
fn a_swap_looks_at_no_site() {
    let mut toy = Toy::small();
    let kind = leaf(&toy);
    for bytes in (16..640).step_by(16) {
        toy.alloc(kind, bytes);
    }
    toy.runs.retire(&toy.space);
    let sites = toy.space.sites.count();
    assert!(sites > 20);
    toy.mark(&[]);
    assert_eq!(toy.space.sites_behind(), 0);
    for young in [false, true] {
        toy.space.swap(young, false);
        assert_eq!(toy.space.sites_behind(), sites);
        assert!(!toy.space.ready_to_mark());
        while toy.space.sweep_piece() {}
        assert_eq!(toy.space.sites_behind(), 0);
        while toy.space.clear_spare_piece() {}
        toy.mark(&[]);
    }
    assert_eq!(toy.space.used_bytes(), 0);
}

/// A site that missed several swaps moves its lists once: the full spans, and the old ones too if a
/// whole swap was among them.
#[test]
fn a_site_that_missed_several_swaps_has_moved_what_the_last_whole_one_asks_for() {
    let toy = Toy::small();
    let records = toy.space.records();
    let kind = leaf(&toy);
    for (youngs, moves_old) in [(vec![true, true], false), (vec![false, true], true)] {
        toy.space.site(kind, 16).unwrap();
        let entry = toy.space.sites.at(0);
        let [full, old] = [(); 2].map(|()| toy.space.take_pages(16).unwrap().0);
        let mut lists = toy.space.lists(entry);
        lists.full.push(records, full);
        lists.old.push(records, old);
        drop(lists);
        let before = toy.space.unswept.load(Ordering::Relaxed);
        // No thread sweeps between these swaps. In a heap, the sweep ends before the next swap.
        youngs
            .iter()
            .for_each(|young| toy.space.swaps.count(*young));
        let mut lists = toy.space.lists(entry);
        let moved = 1 + usize::from(moves_old);
        assert_eq!(lists.unswept.len(), moved);
        assert_eq!(toy.space.unswept.load(Ordering::Relaxed), before + moved);
        while lists.unswept.pop(records).is_some() {}
        while lists.old.pop(records).is_some() {}
    }
}

/// The child of a fork finds the spans of sites whose lists no thread had brought up to date, and
/// the span that another thread was sweeping.
#[test]
fn the_child_of_a_fork_finds_what_a_swap_has_left_at_sites_that_nobody_had_looked_at() {
    for pieces in [0, 1, 2] {
        let mut toy = Toy::small();
        let kind = leaf(&toy);
        for bytes in (16..640).step_by(16) {
            for _ in 0..5000 {
                toy.alloc(kind, bytes);
            }
        }
        toy.mark(&[]);
        toy.space.end_marking();
        for _ in 0..pieces {
            toy.space.sweep_piece();
        }
        // One thread forks after another has taken a span to sweep it.
        let entry = toy.space.sites.at(toy.space.sites.count() - 1);
        let span = toy.space.lists(entry).unswept.pop(toy.space.records());
        assert!(span.is_some());
        drop(toy.space.lock_for_fork());
        toy.space.forked(|site| toy.runs.owned_span(site));
        while toy.space.sweep_piece() {}
        while toy.space.clear_spare_piece() {}
        toy.runs.retire(&toy.space);
        toy.collect(&[]);
        toy.collect(&[]);
        assert_eq!(toy.space.used_bytes(), 0);
    }
}

const SITES: usize = 40;

/// The cells that a round allocates, by site, and which of them live.
#[derive(Debug, Clone)]
struct Round {
    before: Vec<usize>,
    /// Cells that are allocated while marking is on.
    allocated_black: Vec<usize>,
    keep: u64,
    whole: bool,
    /// True if the collector reviews the runs, as in a stop that finds the mutator in `blocking`.
    idle: bool,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    // A round uses few of the sites, so that runs become stale, and sometimes allocates many cells,
    // so that spans are filled.
    let cells = || prop::collection::vec(0..SITES * 20, 0..12);
    let round = (cells(), cells(), any::<u64>(), 0..3, any::<bool>()).prop_map(
        |(before, allocated_black, keep, whole, idle)| Round {
            before,
            allocated_black,
            keep,
            whole: whole == 0,
            idle,
        },
    );
    prop::collection::vec(round, 1..16)
}

/// Allocates one cell, or rarely thousands, at the site that `number` selects.
fn alloc_at(toy: &mut Toy, kind: KindId, number: usize) -> Vec<usize> {
    let cells = if number / SITES == 0 { 3000 } else { 1 };
    let bytes = 16 + 16 * (number % SITES);
    (0..cells).map(|_| toy.alloc(kind, bytes)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Runs that are taken and given back lose no cell and give none twice, through young and whole
    /// collections.
    #[test]
    fn runs_that_come_and_go_lose_no_cell_and_give_none_twice(rounds in rounds()) {
        let mut toy = Toy::new(SpaceConfig { reserve: 256 << 20, ..SpaceConfig::default() });
        let kind = leaf(&toy);
        let mut cells: BTreeSet<usize> = BTreeSet::new();
        let mut old: BTreeSet<usize> = BTreeSet::new();
        let mut first = true;
        for round in rounds {
            for number in &round.before {
                for cell in alloc_at(&mut toy, kind, *number) {
                    prop_assert!(cells.insert(cell), "a live cell was allocated again");
                }
            }
            let young = !round.whole && !first;
            first = false;
            toy.prepare(young, &mut old);
            if round.idle {
                toy.runs.review_idle(&toy.space);
            }
            prop_assert_eq!(toy.runs.sites().count(), toy.runs.sites_listed());
            let roots = kept(&cells, &old, round.keep);
            toy.mark(&roots);
            let mut allocated_black = Vec::new();
            for number in &round.allocated_black {
                allocated_black.extend(alloc_at(&mut toy, kind, *number));
            }
            prop_assert!(allocated_black.iter().all(|cell| toy.space.is_marked(*cell)));
            toy.space.swap(young, true);
            // SAFETY: this test's own runs.
            unsafe { toy.runs.keep_owned(&toy.space) };
            old = roots.iter().copied().collect();
            cells = roots.into_iter().chain(allocated_black).collect();
            let allocated: BTreeSet<usize> = toy.cells().into_keys().collect();
            prop_assert!(cells.is_subset(&allocated), "a cell that lives was freed");
        }
        while toy.space.sweep_piece() {}
        toy.space.forget_marks();
        while toy.space.clear_spare_piece() {}
        // Runs that are no longer used go back although the mutator does not detach.
        for _ in 0..8 {
            toy.runs.review_idle(&toy.space);
            toy.collect(&[]);
        }
        prop_assert_eq!(toy.runs.sites_listed(), 0);
        toy.space.give_back_reserve(&toy.runs.span_reserve);
        prop_assert_eq!(toy.space.used_bytes(), 0);
    }
}
