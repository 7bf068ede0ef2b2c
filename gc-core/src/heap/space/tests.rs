//! Tests of `Space` as a whole: allocation, collections and `resolve`, against simple models.

mod holes;
mod large;
mod memory;
mod sites;
mod span_reserve;
mod sticky;
mod uninit;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::size_classes::{self, GRANULE};
use super::*;
use crate::alloc::{LocalAllocator, Refill, bump};
use crate::error::AllocError;
use crate::heap::{CLASS_TABLE, LargeStep};
use crate::mark::{MarkQueue, Marker};
use crate::weak::WeakWork;

/// The roots of a round: all old cells, and those of the others whose bits are set in `keep`.
fn kept(cells: &BTreeSet<usize>, old: &BTreeSet<usize>, keep: u64) -> Vec<usize> {
    let lives = |(n, cell): &(usize, &usize)| old.contains(*cell) || keep >> (n % 64) & 1 != 0;
    let living = cells.iter().enumerate().filter(lives);
    living.map(|(_, cell)| *cell).collect()
}

/// A mutator and a collector on one thread, so that no test needs a real stop.
pub(crate) struct Toy {
    pub(crate) space: Space,
    pub(crate) runs: LocalAllocator,
    pub(crate) queue: MarkQueue,
    pub(crate) weak: WeakWork,
    pub(crate) collections: u32,
}

impl Toy {
    pub(crate) fn new(config: SpaceConfig) -> Toy {
        let space = Space::new(config).unwrap();
        let queue = MarkQueue::new(&space, 1 << 20).unwrap();
        let weak = WeakWork::new(&space).unwrap();
        Toy {
            space,
            runs: LocalAllocator::new().unwrap(),
            queue,
            weak,
            collections: 0,
        }
    }

    pub(crate) fn small() -> Toy {
        Toy::new(SpaceConfig {
            reserve: 64 << 20,
            ..SpaceConfig::default()
        })
    }

    /// Prepares a collection, as `Cycle::prepare` does: no cell is `old` for a whole one.
    fn prepare(&mut self, young: bool, old: &mut BTreeSet<usize>) {
        while self.space.sweep_piece() {}
        if young {
            self.space.unmark_allocated_black();
        } else {
            self.space.forget_marks();
            old.clear();
        }
        while self.space.clear_spare_piece() {}
    }

    /// Allocates a cell, and collects with `roots` whenever a collection is due.
    pub(crate) fn try_alloc(
        &mut self,
        kind: KindId,
        bytes: usize,
        roots: &[usize],
    ) -> Result<usize, AllocError> {
        if self.space.is_large(bytes) {
            loop {
                match self.runs.reserve_large(&self.space, kind, bytes)? {
                    LargeStep::Reserved(mut large) => {
                        while !self.space.clear_large(&mut large) {}
                        return Ok(self.space.publish_large(large).as_ptr() as usize);
                    }
                    LargeStep::Due => self.collect(roots),
                    LargeStep::Again => {}
                }
            }
        }
        let site = self.space.site(kind, bytes).unwrap();
        loop {
            // SAFETY: this test's own runs, of this space.
            let cell = unsafe { bump(self.runs.as_mut_ptr(), site) };
            if !cell.is_null() {
                return Ok(cell as usize);
            }
            match self.runs.refill(&self.space, site)? {
                Refill::Due => self.collect(roots),
                Refill::Ready | Refill::Again | Refill::Cold(_) => {}
            }
        }
    }

    pub(crate) fn alloc(&mut self, kind: KindId, bytes: usize) -> usize {
        self.try_alloc(kind, bytes, &[]).unwrap()
    }

    /// Marks from `roots`, as a stop and a marker would.
    pub(crate) fn mark(&mut self, roots: &[usize]) -> crate::marked::Marked {
        self.weak.begin(&self.space);
        self.space.begin_marking();
        // SAFETY: this test's own runs.
        unsafe { self.runs.blacken_tails(&self.space) };
        let mut marker = Marker::new(&self.space, &self.queue, &self.weak);
        for &root in roots {
            marker.edge(root, Encoding::RAW);
        }
        marker.drain();
        marker.marked()
    }

    /// Ends the collection and sweeps all of it.
    pub(crate) fn finish(&mut self) {
        self.space.end_marking();
        self.collections += 1;
        while self.space.sweep_piece() {}
        while self.space.clear_spare_piece() {}
        assert!(self.space.ready_to_mark());
    }

    pub(crate) fn collect(&mut self, roots: &[usize]) {
        self.mark(roots);
        self.finish();
    }

    /// The allocated cells with their sizes, except those of the tails of the mutator's runs.
    pub(crate) fn cells(&self) -> BTreeMap<usize, usize> {
        let mut cells = BTreeMap::new();
        self.space.for_each_cell(&mut |cell| {
            assert!(cells.insert(cell.base, cell.size).is_none());
        });
        let mut take = |cell: usize| {
            assert!(
                cells.remove(&cell).is_some(),
                "a cell that the mutator does not own"
            );
        };
        // SAFETY: this test's own runs.
        unsafe { self.runs.for_each_unallocated(&self.space, &mut take) };
        cells
    }
}

fn leaf(toy: &Toy) -> KindId {
    toy.space.add_kind(Kind::leaf("leaf")).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Alloc { bytes: usize, kind: usize },
    Collect { keep: u64 },
    Release,
    Retire,
    GiveBackReserve,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![4 => 1usize..200, 2 => 200usize..40_000, 1 => 30_000usize..300_000];
    let step = prop_oneof![
        12 => (bytes, 0usize..3).prop_map(|(bytes, kind)| Step::Alloc { bytes, kind }),
        1 => any::<u64>().prop_map(|keep| Step::Collect { keep }),
        1 => Just(Step::Release),
        1 => Just(Step::Retire),
        1 => Just(Step::GiveBackReserve),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Random allocations and collections. Cells never overlap, are zero when they are new, and
    /// keep their content while they are roots. A cell that is no root is freed.
    #[test]
    fn the_heap_is_a_map_of_cells(steps in steps(), every in prop::option::of(1u64..40), large in prop::option::of(1usize..100_000)) {
        let mut toy = Toy::new(SpaceConfig { reserve: 1 << 30, collect_every: every, ..SpaceConfig::default() });
        // In a heap that is large already, a mutator takes a span reserve.
        let before = large.map_or(0, |pages| {
            toy.space.take_pages(pages).unwrap();
            toy.space.used_bytes()
        });
        let kinds: Vec<_> = (0..3).map(|k| toy.space.add_kind(Kind::leaf(format!("leaf {k}"))).unwrap()).collect();
        let mut model: BTreeMap<usize, (usize, u8)> = BTreeMap::new();
        let mut stamp = 0u8;
        for step in steps {
            match step {
                Step::Alloc { bytes, kind } => {
                    let roots: Vec<usize> = model.keys().copied().collect();
                    let base = toy.try_alloc(kinds[kind], bytes, &roots).unwrap();
                    prop_assert_eq!(base % GRANULE, 0);
                    let cell = toy.space.resolve(base).unwrap();
                    prop_assert!(cell.base == base && cell.size >= bytes && cell.kind == kinds[kind]);
                    if let Some((before, (size, _))) = model.range(..=base).next_back() {
                        prop_assert!(before + size <= base, "overlaps the cell before");
                    }
                    if let Some((after, _)) = model.range(base..).next() {
                        prop_assert!(base + cell.size <= *after, "overlaps the cell after");
                    }
                    // SAFETY: a cell of this test, of this size.
                    let contents = unsafe { std::slice::from_raw_parts_mut(base as *mut u8, cell.size) };
                    prop_assert!(contents.iter().all(|b| *b == 0), "a new cell is zero");
                    stamp = stamp % 255 + 1;
                    contents.fill(stamp);
                    model.insert(base, (cell.size, stamp));
                }
                Step::Collect { keep } => {
                    let mut keep = keep;
                    model.retain(|_, _| {
                        keep = keep.rotate_left(1);
                        keep & 1 != 0
                    });
                    toy.collect(&model.keys().copied().collect::<Vec<_>>());
                    prop_assert_eq!(
                        toy.cells(),
                        model.iter().map(|(b, (s, _))| (*b, *s)).collect::<BTreeMap<_, _>>()
                    );
                }
                Step::Release => while toy.space.scavenge_piece(0, 0, u64::MAX) > 0 {},
                Step::Retire => toy.runs.retire(&toy.space),
                Step::GiveBackReserve => toy.space.give_back_reserve(&toy.runs.span_reserve),
            }
            for (base, (size, stamp)) in &model {
                // SAFETY: the model's cells are alive.
                let contents = unsafe { std::slice::from_raw_parts(*base as *const u8, *size) };
                prop_assert!(contents.iter().all(|b| b == stamp), "a live cell changed");
            }
        }
        // All cells die: all pages come back, and the range is one free page run again.
        toy.runs.retire(&toy.space);
        toy.collect(&[]);
        prop_assert_eq!(toy.space.used_bytes(), before);
        prop_assert_eq!(toy.cells().len(), 0);
    }

    /// A word resolves to a cell if and only if it lies in one, for each address in and around the
    /// heap's spans.
    #[test]
    fn every_address_resolves_as_the_cells_say(bytes in 1usize..3000, count in 1usize..200, keep in any::<u64>()) {
        let mut toy = Toy::small();
        let kind = leaf(&toy);
        let cells: Vec<usize> = (0..count).map(|_| toy.alloc(kind, bytes)).collect();
        let large = toy.alloc(kind, 50_000);
        let kept: Vec<usize> =
            cells.iter().enumerate().filter(|(n, _)| keep >> (n % 64) & 1 != 0).map(|(_, c)| *c).chain([large]).collect();
        toy.collect(&kept);
        toy.runs.retire(&toy.space);
        let cells = toy.cells();
        prop_assert_eq!(cells.keys().copied().collect::<BTreeSet<_>>(), kept.into_iter().collect::<BTreeSet<_>>());
        let first = toy.space.reserved().start;
        for address in (first - 64..first + (512 << 10)).step_by(7).chain(cells.keys().copied()) {
            let expected = cells.range(..=address).next_back().filter(|(b, s)| address < **b + **s).map(|(b, _)| *b);
            prop_assert_eq!(toy.space.resolve(address).map(|c| c.base), expected, "at {:#x}", address);
        }
    }
}

/// Arbitrary words resolve to nothing in an empty heap.
#[test]
fn arbitrary_words_name_nothing() {
    let toy = Toy::small();
    let range = toy.space.reserved();
    for word in [
        0,
        1,
        usize::MAX,
        usize::MAX / 2,
        1 << 47,
        range.start,
        range.start - 1,
        range.end - 1,
        range.end,
    ] {
        assert_eq!(toy.space.resolve(word), None, "{word:#x}");
        assert!(!toy.space.is_marked(word & !15));
    }
}

/// Words that name a freed cell, a cell beyond a retired run's cursor, or the unused end of a span
/// resolve to nothing.
#[test]
fn a_freed_cell_a_free_cell_and_a_spans_tail_name_nothing() {
    let mut toy = Toy::small();
    let kind = leaf(&toy);
    // Spans of 3 KiB cells have bytes at their end that are part of no cell.
    let (a, b) = (toy.alloc(kind, 3072), toy.alloc(kind, 3072));
    toy.runs.retire(&toy.space);
    assert_eq!(
        toy.space.resolve(b + 3072),
        None,
        "beyond the cursor of a retired run"
    );
    toy.collect(&[b]);
    assert_eq!(toy.space.resolve(a), None);
    assert_eq!(toy.space.resolve(b + 3071).map(|c| c.base), Some(b));
    let class = &CLASS_TABLE[size_classes::class_of(3072)];
    let span = a;
    assert!((class.cells * class.size) < class.pages * PAGE as u32);
    // The end of the span has no cell even where every bit of the bitmap is set.
    for granule in 0..class.pages as usize * PAGE / GRANULE {
        toy.space
            .allocated_bits()
            .set(span - toy.space.base() + granule * GRANULE);
    }
    assert_eq!(
        toy.space
            .resolve(span + (class.cells * class.size) as usize),
        None
    );
}

/// With `past_the_end`, the address one past the requested bytes names the cell, in each size
/// class. Without it, only addresses inside the cell do.
#[test]
fn a_word_past_the_end_names_its_cell_only_where_configured() {
    for past_the_end in [false, true] {
        let mut toy = Toy::new(SpaceConfig {
            reserve: 64 << 20,
            past_the_end,
            ..SpaceConfig::default()
        });
        let kind = leaf(&toy);
        for bytes in [
            0,
            1,
            16,
            31,
            32,
            40,
            128,
            1024,
            MAX_SMALL - 1,
            MAX_SMALL,
            5 * PAGE,
        ] {
            let (a, b) = (toy.alloc(kind, bytes), toy.alloc(kind, bytes));
            let cell = toy.space.resolve(a).unwrap();
            let named = |address| toy.space.resolve(address).map(|c| c.base);
            assert_eq!(
                named(b),
                Some(b),
                "{bytes} bytes: the next cell is itself alone"
            );
            // With `past_the_end`, the address one past the requested bytes lies in their cell.
            if past_the_end || bytes < cell.size {
                assert_eq!(named(a + bytes), Some(a), "{bytes} bytes");
            } else {
                assert_ne!(named(a + bytes), Some(a), "{bytes} bytes");
            }
        }
        let largest = toy.space.site(kind, MAX_SMALL).is_ok();
        assert_eq!(largest, !past_the_end);
    }
}

/// A run and its tail stay a mutator's own through a collection.
#[test]
fn runs_survive_a_collection_with_their_tails() {
    let mut toy = Toy::small();
    let kind = leaf(&toy);
    let a = toy.alloc(kind, 48);
    let site = toy.space.site(kind, 48).unwrap();
    // SAFETY: this test's own runs.
    let run = unsafe { *toy.runs.as_mut_ptr().add(site.index()) };
    assert!(run.limit - run.cursor > 48);
    toy.collect(&[a]);
    // SAFETY: as above.
    assert_eq!(unsafe { *toy.runs.as_mut_ptr().add(site.index()) }, run);
    assert_eq!(toy.alloc(kind, 48), run.cursor);
    let others: Vec<usize> = (0..5000).map(|_| toy.alloc(kind, 48)).collect();
    assert!(others.iter().all(|o| *o != a && *o != run.cursor));
}

/// A run and a large object that are taken while marking is on are marked, and live through the
/// cycle.
#[test]
fn a_run_handed_out_while_marking_is_black() {
    let mut toy = Toy::small();
    let kind = leaf(&toy);
    toy.alloc(kind, 16);
    toy.mark(&[]);
    let (small, large) = (toy.alloc(kind, 64), toy.alloc(kind, 100_000));
    assert!(toy.space.is_marked(small) && toy.space.is_marked(large));
    toy.finish();
    assert!(toy.space.resolve(small).is_some() && toy.space.resolve(large).is_some());
}

/// A cell that is allocated after the stop from a run that was taken before it lives, because the
/// stop marks the run's tail. Without `blacken_tails`, the cell is freed.
#[test]
fn without_blackened_tails_a_new_cell_would_be_free() {
    // The second round leaves `blacken_tails` out.
    for cure in [true, false] {
        let mut toy = Toy::small();
        let kind = leaf(&toy);
        let site = toy.space.site(kind, 32).unwrap();
        toy.alloc(kind, 32);
        toy.space.begin_marking();
        if cure {
            // SAFETY: this test's own runs.
            unsafe { toy.runs.blacken_tails(&toy.space) };
        }
        // SAFETY: as above; the run has room.
        let cell = unsafe { bump(toy.runs.as_mut_ptr(), site) } as usize;
        toy.finish();
        assert_eq!(toy.space.resolve(cell).is_some(), cure);
    }
}

/// At the hard limit, allocation returns an error once all of the limit is in use, and succeeds
/// again after a collection.
#[test]
fn the_hard_limit_is_an_error_and_a_collection_lifts_it() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 64 << 20,
        hard_limit: Some(1 << 20),
        ..SpaceConfig::default()
    });
    let kind = leaf(&toy);
    let mut cells = Vec::new();
    let error = loop {
        match toy.try_alloc(kind, 64, &[]) {
            Ok(cell) => cells.push(cell),
            Err(e) => break e,
        }
    };
    assert_eq!(
        error,
        AllocError::HeapLimit {
            limit: 1 << 20,
            bytes: 64
        }
    );
    assert_eq!(toy.space.used_bytes(), 1 << 20);
    assert_eq!(cells.len(), (1 << 20) / 64, "all of the limit was used");
    assert!(matches!(
        toy.try_alloc(kind, 100_000, &[]),
        Err(AllocError::HeapLimit { .. })
    ));
    toy.collect(&cells[..10]);
    assert!(toy.try_alloc(kind, 100_000, &[]).is_ok());
}

/// An allocation at the limit sweeps the unswept spans before it fails.
#[test]
fn an_allocation_at_the_limit_sweeps_before_it_gives_up() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 64 << 20,
        hard_limit: Some(1 << 20),
        ..SpaceConfig::default()
    });
    let kind = leaf(&toy);
    while toy.try_alloc(kind, 64, &[]).is_ok() {}
    toy.mark(&[]);
    toy.space.end_marking();
    // No span is swept yet. The first cell of another size needs a span that only the sweep can
    // free.
    assert!(toy.try_alloc(kind, 1000, &[]).is_ok());
    assert!(toy.try_alloc(kind, 500_000, &[]).is_ok());
}

/// A request that is larger than the range is `TooLarge`; one that finds no pages is `Exhausted`.
#[test]
fn the_end_of_the_range_is_an_error() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: MIN_RESERVE,
        ..SpaceConfig::default()
    });
    let kind = leaf(&toy);
    assert_eq!(
        toy.try_alloc(kind, 17 << 20, &[]),
        Err(AllocError::TooLarge { bytes: 17 << 20 })
    );
    assert!(toy.try_alloc(kind, 10 << 20, &[]).is_ok());
    assert_eq!(
        toy.try_alloc(kind, 10 << 20, &[]),
        Err(AllocError::Exhausted { bytes: 10 << 20 })
    );
    while toy.try_alloc(kind, 4096, &[]).is_ok() {}
    assert!(matches!(
        toy.try_alloc(kind, 4096, &[]),
        Err(AllocError::Exhausted { .. })
    ));
}

/// Bad configurations, kinds and sizes are error values that name the bad value.
#[test]
fn bad_configurations_are_error_values() {
    let with = |f: fn(&mut SpaceConfig)| {
        let mut config = SpaceConfig::default();
        f(&mut config);
        Space::new(config).err()
    };
    assert_eq!(
        with(|c| c.hard_limit = Some(1)),
        Some(SpaceError::LimitTooSmall(1))
    );
    assert_eq!(with(|c| c.reserve = 5), Some(SpaceError::Reserve(5)));
    assert_eq!(
        with(|c| c.reserve = u64::MAX),
        Some(SpaceError::Reserve(u64::MAX))
    );
    assert_eq!(
        with(|c| c.conservative = vec![Encoding::RAW; 9]),
        Some(SpaceError::TooManyEncodings(9))
    );
    assert_eq!(with(|_| ()), None);
    let toy = Toy::small();
    assert_eq!(
        toy.space.site(KindId(3), 8),
        Err(SiteError::UnknownKind(KindId(3)))
    );
    let kind = toy
        .space
        .add_kind(Kind::words_at("wide", &[20], Encoding::RAW))
        .unwrap();
    assert_eq!(
        toy.space.site(kind, 32),
        Err(SiteError::TooSmall {
            bytes: 32,
            least: 168
        })
    );
    assert_eq!(
        toy.space.site(kind, MAX_SMALL + 1),
        Err(SiteError::Large {
            bytes: MAX_SMALL + 1
        })
    );
}

/// A large object must hold all words that its kind names.
#[test]
fn a_large_object_too_small_for_its_kinds_slots_is_refused() {
    let mut toy = Toy::small();
    let kind = toy
        .space
        .add_kind(Kind::words_at("wide", &[20_000], Encoding::RAW))
        .unwrap();
    let refused = |bytes| {
        AllocError::Site(SiteError::TooSmall {
            bytes,
            least: 160_008,
        })
    };
    assert_eq!(toy.try_alloc(kind, 100_000, &[]), Err(refused(100_000)));
    assert!(toy.try_alloc(kind, 160_008, &[]).is_ok());
    let unknown = AllocError::Site(SiteError::UnknownKind(KindId(9)));
    assert_eq!(toy.try_alloc(KindId(9), 100_000, &[]), Err(unknown));
}

/// `collect_every` has a collection due after exactly that many allocations.
#[test]
fn collect_every_is_due_after_exactly_that_many_allocations() {
    for every in [1, 2, 7] {
        let mut toy = Toy::new(SpaceConfig {
            reserve: 64 << 20,
            collect_every: Some(every),
            ..SpaceConfig::default()
        });
        let kind = leaf(&toy);
        // Sizes alternate, so that several runs have tails. Every tenth object is large.
        for n in 0..200u64 {
            toy.alloc(
                kind,
                if n % 10 == 9 {
                    40_000
                } else {
                    16 + 16 * (n % 5) as usize
                },
            );
            assert_eq!(
                u64::from(toy.collections),
                n / every,
                "allocation {n}, every {every}"
            );
        }
    }
}

/// A heap resolves words of its own cells only.
#[test]
fn several_heaps_know_their_own_cells_only() {
    let (mut one, mut two) = (Toy::small(), Toy::small());
    let (kind_one, kind_two) = (leaf(&one), leaf(&two));
    let (a, b) = (one.alloc(kind_one, 32), two.alloc(kind_two, 32));
    assert!(one.space.resolve(a).is_some() && two.space.resolve(b).is_some());
    assert!(one.space.resolve(b).is_none() && two.space.resolve(a).is_none());
    one.collect(&[a, b]);
    assert!(two.space.resolve(b).is_some());
}

/// The walk over the cells of one kind gives each cell with its mark.
#[test]
fn cells_of_one_kind_are_found_with_their_marks() {
    let mut toy = Toy::small();
    let (a, b) = (leaf(&toy), leaf(&toy));
    let wanted = [toy.alloc(a, 16), toy.alloc(a, 500), toy.alloc(a, 90_000)];
    toy.alloc(b, 16);
    toy.runs.retire(&toy.space);
    toy.mark(&wanted[..1]);
    let mut found = BTreeMap::new();
    toy.space.for_each_cell_of(a, &mut |cell, marked| {
        found.insert(cell.base, marked);
    });
    assert_eq!(
        found,
        BTreeMap::from([(wanted[0], true), (wanted[1], false), (wanted[2], false)])
    );
    toy.finish();
}

/// A reserve that the system refuses is halved until it fits.
#[test]
fn a_refused_reserve_is_halved() {
    // The test runs in a child, because the limit would fail other tests.
    const CHILD: &str = "URGE_TEST_HALVES";
    if std::env::var_os(CHILD).is_some() {
        let limit = libc::rlimit {
            rlim_cur: 4 << 30,
            rlim_max: 4 << 30,
        };
        // SAFETY: a system call that reads `limit`.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        let heap = crate::Heap::builder().build().unwrap();
        let reserved = heap.reserved();
        assert!(
            (256 << 20..4 << 30).contains(&(reserved.end - reserved.start)),
            "{reserved:x?}"
        );
        let kind = heap.kind(Kind::leaf("leaf")).unwrap();
        let mutator = heap.attach().unwrap();
        // SAFETY: no collection runs.
        let cell = unsafe { mutator.alloc_raw(kind, 1 << 20) }.unwrap();
        let space = &heap.shared().space;
        assert!(space.resolve(cell.as_ptr() as usize).is_some());
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "heap::tests::a_refused_reserve_is_halved",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Mutators that allocate in parallel never share a cell, and the walk finds all their cells.
#[test]
fn mutators_in_parallel_never_share_a_cell() {
    let space = Space::new(SpaceConfig {
        reserve: 256 << 20,
        ..SpaceConfig::default()
    })
    .unwrap();
    let kind = space.add_kind(Kind::leaf("leaf")).unwrap();
    let mut all: Vec<(usize, usize)> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..4u8)
            .map(|thread| {
                let space = &space;
                s.spawn(move || {
                    let runs = LocalAllocator::new().unwrap();
                    let mut cells = Vec::new();
                    for n in 0..20_000usize {
                        let site = space.site(kind, 16 + n % 300).unwrap();
                        let cell = loop {
                            // SAFETY: this thread's runs.
                            let cell = unsafe { bump(runs.as_mut_ptr(), site) };
                            if !cell.is_null() {
                                break cell;
                            }
                            runs.refill(space, site).unwrap();
                        };
                        // SAFETY: a new cell of this size.
                        unsafe { cell.write_bytes(thread + 1, site.size()) };
                        cells.push((cell as usize, site.size()));
                    }
                    for (cell, size) in &cells {
                        // SAFETY: cells of this thread.
                        let contents =
                            unsafe { std::slice::from_raw_parts(*cell as *const u8, *size) };
                        assert!(contents.iter().all(|b| *b == thread + 1));
                    }
                    runs.retire(space);
                    cells
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    });
    all.sort_unstable();
    assert!(all.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
    let mut walked = Vec::new();
    space.for_each_cell(&mut |cell| walked.push((cell.base, cell.size)));
    assert_eq!(walked, all);
}

/// The first page of the range has no cell, so the range's own address keeps nothing alive.
#[test]
fn the_address_of_the_range_names_no_cell() {
    // An allocator has the address in registers and on stacks, where a conservative scan finds it.
    let mut toy = Toy::small();
    let kind = toy.space.add_kind(Kind::conservative("any")).unwrap();
    let first = toy.alloc(kind, 16);
    let base = toy.space.base();
    assert!(first >= base + PAGE);
    assert!((base..base + PAGE).all(|word| toy.space.resolve(word).is_none()));
}

/// A walk over all cells and the collector's sweep exclude each other by one lock.
#[test]
fn a_walk_over_all_cells_and_the_collector_s_sweeping_exclude_each_other() {
    use std::sync::atomic::AtomicU32;
    let toy = Toy::small();
    let space = &toy.space;
    let ended = AtomicU32::new(0);
    let end = |n| ended.fetch_add(n, Ordering::Relaxed);
    std::thread::scope(|threads| {
        // This thread holds the lock, as a thread that sweeps does, so both others wait.
        let held = space.rearranging.lock();
        threads.spawn(|| {
            space.for_each_cell(&mut |_| ());
            end(1);
        });
        threads.spawn(|| {
            space.sweep_piece_aside();
            end(1);
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        drop(held);
    });
    assert_eq!(ended.load(Ordering::Relaxed), 2);
}
