//! Tests of marking: exactly the reachable cells are marked, for every kind of cell and any length
//! of the queue.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::steps::{CELLS, EDGES};
use super::work_item::{PART, WorkItem};
use super::{MarkQueue, Marker, old};
use crate::encoding::Encoding;
use crate::heap::tests::Toy;
use crate::heap::{MAX_RESERVE, MAX_SMALL, PAGE, SpaceConfig};
use crate::kind::{Kind, KindId};
use crate::marked::Marked;
use crate::tracer::Tracer;
use crate::tracer::WORD;

const BOXED: Encoding = Encoding::nan_box(0xffff << 48, 0xfffc << 48, (1 << 48) - 1);

/// Reports words 1 and 3, as an embedder's trace function would.
unsafe fn trace_odd(cell: *const u8, size: usize, tracer: &mut Tracer<'_>) {
    for word in [1, 3] {
        if word * 8 < size {
            // SAFETY: the word lies in the cell.
            tracer.edge(
                unsafe { *cell.cast::<usize>().add(word) },
                Encoding::low_bits(3),
            );
        }
    }
}

/// A node's kind in the model. It determines the words and the encoding of the node's edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Leaf,
    Words,
    Pair,
    BoxedPair,
    BoxedArray,
    Traced,
    Conservative,
    Weak,
}

const SHAPES: [Shape; 8] = [
    Shape::Leaf,
    Shape::Words,
    Shape::Pair,
    Shape::BoxedPair,
    Shape::BoxedArray,
    Shape::Traced,
    Shape::Conservative,
    Shape::Weak,
];

impl Shape {
    fn kind(self) -> Kind {
        match self {
            Shape::Leaf => Kind::leaf("leaf"),
            Shape::Words => Kind::words_at("words", &[0, 2], Encoding::RAW),
            Shape::Pair => Kind::words_at("pair", &[0, 1], Encoding::RAW),
            Shape::BoxedPair => Kind::words_at("boxed pair", &[0, 1], BOXED),
            Shape::BoxedArray => Kind::array("boxed", 1, BOXED),
            // SAFETY: `trace_odd` reads two words of the cell, and reports the words in which the
            // model has edges.
            Shape::Traced => unsafe {
                Kind::traced_with("traced", trace_odd, &[Encoding::low_bits(3)])
            },
            Shape::Conservative => Kind::conservative("conservative"),
            Shape::Weak => Kind::weak("weak", 0, Encoding::RAW, 0),
        }
    }

    /// Stores edge `n` (0 or 1) of a cell. True if the edge keeps its target alive.
    fn store(self, cell: usize, n: usize, target: usize) -> bool {
        let (word, value, strong) = match self {
            Shape::Leaf => (n, target, false),
            Shape::Words => (2 * n, target, true),
            Shape::Pair => (n, target, true),
            Shape::BoxedPair => (n, target | 0xfffc << 48, true),
            Shape::BoxedArray => (1 + n, target | 0xfffc << 48, true),
            Shape::Traced => (1 + 2 * n, target | 5, true),
            // An interior pointer.
            Shape::Conservative => (n, target + 9, true),
            Shape::Weak => (n, target, false),
        };
        // SAFETY: a live cell of this test, of at least 32 bytes.
        unsafe { (cell as *mut usize).add(word).write(value) };
        strong
    }
}

fn reachable(edges: &BTreeMap<usize, Vec<usize>>, roots: &[usize]) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut stack = roots.to_vec();
    while let Some(cell) = stack.pop() {
        if seen.insert(cell) {
            stack.extend(&edges[&cell]);
        }
    }
    seen
}

/// Builds the graph in a heap with a mark queue of `queue_cells` cells. Checks the edges of each
/// cell, the marks, and the cells that are left after the sweep, against the model.
fn check_graph(
    nodes: &[(usize, usize)],
    links: &[(prop::sample::Index, prop::sample::Index, usize)],
    roots: &[prop::sample::Index],
    queue_cells: usize,
) {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 256 << 20,
        ..SpaceConfig::default()
    });
    toy.queue = MarkQueue::new(&toy.space, queue_cells).unwrap();
    let kinds: Vec<_> = SHAPES
        .iter()
        .map(|s| toy.space.add_kind(s.kind()).unwrap())
        .collect();
    let cells: Vec<(usize, Shape)> = nodes
        .iter()
        .map(|&(shape, bytes)| (toy.alloc(kinds[shape], bytes), SHAPES[shape]))
        .collect();
    let mut edges: BTreeMap<usize, Vec<usize>> =
        cells.iter().map(|(c, _)| (*c, Vec::new())).collect();
    let mut slots: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (from, to, n) in links {
        let ((from, shape), (to, _)) =
            (cells[from.index(cells.len())], cells[to.index(cells.len())]);
        if shape.store(from, *n, to) {
            slots.insert((from, *n), to);
        }
    }
    for ((from, _), to) in slots {
        edges.get_mut(&from).unwrap().push(to);
    }
    for (&cell, targets) in &edges {
        let mut seen = Vec::new();
        toy.space
            .for_each_edge(toy.space.resolve(cell).unwrap(), &mut |target| {
                seen.push(target.base)
            });
        seen.sort_unstable();
        let mut targets = targets.clone();
        targets.sort_unstable();
        assert_eq!(seen, targets, "the edges of a cell differ");
    }
    let roots: Vec<usize> = roots
        .iter()
        .map(|r| cells[r.index(cells.len())].0)
        .collect();
    let expected = reachable(&edges, &roots);
    let marked = toy.mark(&roots);
    assert_eq!(marked.cells as usize, expected.len());
    for &(cell, _) in &cells {
        assert_eq!(toy.space.is_marked(cell), expected.contains(&cell));
    }
    toy.finish();
    assert_eq!(
        toy.cells().keys().copied().collect::<BTreeSet<_>>(),
        expected
    );
    let bytes: usize = toy.cells().values().sum();
    assert_eq!(marked.bytes as usize, bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The marked cells are the reachable ones, for random graphs of all kinds.
    #[test]
    fn exactly_the_reachable_cells_are_marked(
        nodes in prop::collection::vec((0..SHAPES.len(), prop_oneof![9 => 32usize..200, 1 => MAX_SMALL..80_000]), 1..300),
        links in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..2), 0..900),
        roots in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        check_graph(&nodes, &links, &roots, 1 << 16);
    }

    /// The marked cells are the reachable ones where most edges lead to a cell of the same page,
    /// which page-local tracing follows.
    #[test]
    fn neighbours_are_marked_like_others(
        shape in 0..SHAPES.len(),
        nodes in 1usize..200,
        links in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..2), 0..600),
        roots in prop::collection::vec(any::<prop::sample::Index>(), 1..5),
    ) {
        let bytes = match SHAPES[shape] {
            Shape::Pair | Shape::BoxedPair => 16,
            _ => 32,
        };
        check_graph(&vec![(shape, bytes); nodes], &links, &roots, 1 << 16);
    }
}

/// A full queue flags the pages of marked cells, and no cell is missed.
#[test]
fn a_full_queue_loses_nothing() {
    // An array of arrays: the edges of one cell alone overflow the two packets that the smallest
    // queue has.
    let mut toy = Toy::new(SpaceConfig {
        reserve: 256 << 20,
        ..SpaceConfig::default()
    });
    toy.queue = MarkQueue::new(&toy.space, 1).unwrap();
    let kind = toy
        .space
        .add_kind(Kind::array("array", 0, Encoding::RAW))
        .unwrap();
    const FAN: usize = 5000;
    let root = toy.alloc(kind, FAN * 8);
    let mut expected = 1;
    for n in 0..FAN {
        let (middle, end) = (toy.alloc(kind, 32), toy.alloc(kind, 16));
        // SAFETY: cells of this test, of at least the words that are written.
        unsafe {
            (root as *mut usize).add(n).write(middle);
            (middle as *mut usize).write(end);
        }
        expected += 2;
    }
    let marked = toy.mark(&[root]);
    assert!(
        toy.queue.overflows() > 1000,
        "{} overflows: the test has no effect",
        toy.queue.overflows()
    );
    assert_eq!(marked.cells, expected);
    toy.finish();
    assert_eq!(toy.cells().len() as u64, expected);
}

/// A large array takes little room in the queue, because it is followed in parts.
#[test]
fn a_table_of_many_cells_needs_little_queue() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 256 << 20,
        ..SpaceConfig::default()
    });
    toy.queue = MarkQueue::new(&toy.space, 20_000).unwrap();
    let kinds = [
        toy.space
            .add_kind(Kind::array("array", 3, Encoding::RAW))
            .unwrap(),
        toy.space
            .add_kind(Kind::conservative("conservative"))
            .unwrap(),
    ];
    const CELLS: usize = 100_000;
    for kind in kinds {
        let table = toy.alloc(kind, (CELLS + 3) * 8);
        for n in 0..CELLS {
            let cell = toy.alloc(kinds[0], 32);
            // SAFETY: a word of a cell of this test.
            unsafe { (table as *mut usize).add(3 + n).write(cell) };
        }
        assert_eq!(toy.mark(&[table]).cells, CELLS as u64 + 1);
        assert_eq!(toy.queue.overflows(), 0);
        toy.finish();
        toy.collect(&[]);
    }
}

/// A marker that is built for one thread (`alone`) marks the same cells as one of several.
#[test]
fn a_marker_alone_marks_as_one_among_many() {
    let mut toy = Toy::small();
    let kind = toy
        .space
        .add_kind(Kind::array("array", 0, Encoding::RAW))
        .unwrap();
    let cells: Vec<usize> = (0..1000).map(|_| toy.alloc(kind, 32)).collect();
    for pair in cells.windows(2) {
        // SAFETY: a cell of this test.
        unsafe { (pair[0] as *mut [usize; 2]).write([pair[1], cells[0]]) };
    }
    for alone in [false, true] {
        toy.space.begin_marking();
        // SAFETY: this test's own runs.
        unsafe { toy.runs.blacken_tails(&toy.space) };
        let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
        if alone {
            marker = marker.alone();
        }
        marker.edge(cells[0], Encoding::RAW);
        marker.drain();
        assert_eq!(marker.marked().cells, 1000);
        drop(marker);
        toy.finish();
    }
}

/// Marking a long list does not recurse.
#[test]
fn a_long_list_needs_no_stack() {
    let mut toy = Toy::small();
    let kind = toy
        .space
        .add_kind(Kind::words_at("node", &[0], Encoding::RAW))
        .unwrap();
    let mut head = 0;
    for _ in 0..200_000 {
        let node = toy.alloc(kind, 16);
        // SAFETY: a cell of this test.
        unsafe { (node as *mut usize).write(head) };
        head = node;
    }
    assert_eq!(toy.mark(&[head]).cells, 200_000);
    toy.finish();
}

/// A weak word does not mark its target.
#[test]
fn a_weak_cells_words_keep_nothing_alive() {
    let mut toy = Toy::small();
    let weak = toy
        .space
        .add_kind(Kind::weak("weak", 0, Encoding::RAW, 0))
        .unwrap();
    let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
    let (table, target) = (toy.alloc(weak, 16), toy.alloc(leaf, 16));
    // SAFETY: a cell of this test.
    unsafe { (table as *mut usize).write(target) };
    toy.mark(&[table]);
    assert!(toy.space.is_marked(table) && !toy.space.is_marked(target));
}

/// A conservative word is decoded by each configured encoding, and by no other.
#[test]
fn conservative_words_are_tried_in_every_configured_encoding() {
    for encodings in [
        vec![],
        vec![Encoding::RAW],
        vec![BOXED],
        vec![Encoding::low_bits(3), BOXED],
    ] {
        let mut toy = Toy::new(SpaceConfig {
            reserve: 64 << 20,
            conservative: encodings.clone(),
            ..Default::default()
        });
        let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
        let cell = toy.alloc(leaf, 64);
        let plain =
            encodings.is_empty() || encodings.contains(&Encoding::RAW) || encodings.len() == 2;
        for (word, expected) in [
            (cell, plain),
            (cell + 63, plain),
            (cell | 0xfffc << 48, encodings.contains(&BOXED)),
            (cell | 0x7ffc << 48, false),
            (cell + 64, false),
        ] {
            toy.runs.retire(&toy.space);
            toy.space.begin_marking();
            let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
            assert_eq!(
                marker.conservative(word),
                expected,
                "{word:#x} with {encodings:?}"
            );
            assert!(!marker.conservative(word), "only the first finds it");
            drop(marker);
            // Marks the cell, so that the next round finds it.
            Marker::new(&toy.space, &toy.queue, &toy.weak).cell(toy.space.resolve(cell).unwrap());
            toy.finish();
        }
    }
}

/// With `past_the_end`, a word at the end of a cell's bytes marks that cell, and a word at a cell's
/// start marks only that cell.
#[test]
fn a_word_past_the_end_marks_its_cell_and_one_at_a_start_that_cell_alone() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 64 << 20,
        past_the_end: true,
        ..Default::default()
    });
    let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
    let cells: Vec<usize> = (0..3).map(|_| toy.alloc(leaf, 48)).collect();
    toy.space.begin_marking();
    let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
    let marked = |toy: &Toy| {
        cells
            .iter()
            .map(|c| toy.space.is_marked(*c))
            .collect::<Vec<_>>()
    };
    assert!(marker.conservative(cells[1]));
    assert_eq!(marked(&toy), [false, true, false]);
    assert!(marker.conservative(cells[0] + 48));
    assert_eq!(marked(&toy), [true, true, false]);
}

/// Words that name free cells, cells of another heap or addresses outside mark nothing.
#[test]
fn words_of_free_cells_and_other_heaps_mark_nothing() {
    let (mut toy, mut other) = (Toy::small(), Toy::small());
    let (leaf, other_leaf) = (
        toy.space.add_kind(Kind::leaf("leaf")).unwrap(),
        other.space.add_kind(Kind::leaf("leaf")).unwrap(),
    );
    let (dead, foreign) = (toy.alloc(leaf, 64), other.alloc(other_leaf, 64));
    toy.runs.retire(&toy.space);
    toy.collect(&[]);
    toy.space.begin_marking();
    let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
    for word in [
        dead,
        foreign,
        dead + 64,
        0,
        usize::MAX,
        toy.space.reserved().end,
    ] {
        assert!(!marker.conservative(word) && !marker.interior(word));
        // An exact edge out of the heap (to an embedder's static object) is no edge.
        if word == foreign {
            marker.edge(word, Encoding::RAW);
        }
    }
    marker.drain();
    assert_eq!(marker.marked(), Marked::default());
}

/// A marker that is dropped leaves its local queue to the other markers.
#[test]
fn a_dropped_marker_leaves_its_work_to_the_others() {
    let mut toy = Toy::small();
    let kind = toy
        .space
        .add_kind(Kind::words_at("node", &[0], Encoding::RAW))
        .unwrap();
    let (a, b) = (toy.alloc(kind, 16), toy.alloc(kind, 16));
    // SAFETY: a cell of this test.
    unsafe { (a as *mut usize).write(b) };
    toy.space.begin_marking();
    Marker::new(&toy.space, &toy.queue, &toy.weak).edge(a, Encoding::RAW);
    assert!(!toy.queue.is_empty());
    Marker::new(&toy.space, &toy.queue, &toy.weak).drain();
    assert!(toy.space.is_marked(b) && toy.queue.is_empty());
}

/// A chain of `length` arrays, each with edges to `fan` leaves too: `length * (fan + 1)` cells.
fn chain(toy: &mut Toy, length: usize, fan: usize) -> usize {
    let array = toy
        .space
        .add_kind(Kind::array("array", 0, Encoding::RAW))
        .unwrap();
    let mut head = 0;
    for _ in 0..length {
        let link = toy.alloc(array, (fan + 1) * 8);
        for n in 0..fan {
            let end = toy.alloc(array, 16);
            // SAFETY: a cell of this test.
            unsafe { (link as *mut usize).add(1 + n).write(end) };
        }
        // SAFETY: a cell of this test.
        unsafe { (link as *mut usize).write(head) };
        head = link;
    }
    head
}

/// A bounded drain ends near its bound, and the next one goes on where it ended.
#[test]
fn a_bounded_drain_stops_early_and_goes_on_later() {
    let mut toy = Toy::small();
    let head = chain(&mut toy, 1000, 3);
    toy.space.begin_marking();
    let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
    marker.edge(head, Encoding::RAW);
    let mut pieces = 0;
    while !marker.drain_bounded(10) {
        pieces += 1;
        // Ten followed cells each time, and the contents of the prefetch rings.
        assert!(marker.marked().cells <= 4 * 10 * pieces + (EDGES + CELLS) as u64);
    }
    assert!(pieces >= 300, "{pieces} pieces");
    assert_eq!(marker.marked().cells, 4000);
    assert!(
        marker.drain_bounded(1),
        "nothing is left, so nothing is spent"
    );
    drop(marker);
    toy.finish();
}

/// A bounded drain counts a large cell by its words.
#[test]
fn a_bounded_drain_counts_a_large_cell_as_many() {
    let mut toy = Toy::small();
    let head = chain(&mut toy, 4, 1024);
    toy.space.begin_marking();
    let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
    marker.edge(head, Encoding::RAW);
    assert!(!marker.drain_bounded(8));
    assert!(marker.marked().cells <= 1025 + 1);
    marker.drain();
    assert_eq!(marker.marked().cells, 4 * 1025);
    drop(marker);
    toy.finish();
}

/// A bounded drain does not follow flagged pages; an unbounded one does.
#[test]
fn a_bounded_drain_leaves_an_overflowed_queue_to_an_unbounded_one() {
    let mut toy = Toy::small();
    toy.queue = MarkQueue::new(&toy.space, 1).unwrap();
    let head = chain(&mut toy, 2, 5000);
    toy.space.begin_marking();
    let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
    marker.edge(head, Encoding::RAW);
    assert!(!marker.drain_bounded(1 << 30) && toy.queue.overflows() > 0);
    marker.drain();
    assert!(marker.drain_bounded(1));
    assert_eq!(marker.marked().cells, 2 * 5001);
    drop(marker);
    toy.finish();
}

/// A work item gives back the cell, kind and part that it was made of.
#[test]
fn an_entry_says_what_was_put_into_it() {
    let last = MAX_RESERVE as usize - PAGE;
    for offset in [0, PAGE, last] {
        for kind in [0, 1, u16::MAX] {
            let entry = WorkItem::small(offset + 48, KindId(kind));
            assert_eq!(
                (entry.small_cell(), entry.offset(), entry.start()),
                (Some((KindId(kind), offset + 48)), offset + 48, 0)
            );
        }
        let entry = WorkItem::large(offset);
        assert_eq!(
            (entry.small_cell(), entry.offset(), entry.start()),
            (None, offset, 0)
        );
        let next = entry.next_part().next_part();
        assert_eq!(
            (next.small_cell(), next.offset(), next.start()),
            (None, offset, 2 * PART * WORD)
        );
    }
    // The last part of the largest object.
    let parts = MAX_RESERVE as usize / (PART * WORD);
    let last = (1..parts).fold(WorkItem::large(last), |entry, _| entry.next_part());
    assert_eq!(last.start(), (parts - 1) * PART * WORD);
    assert_eq!(last.small_cell(), None);
}

/// A young collection follows old cells that may change in pieces, and does not follow old
/// immutable cells.
#[test]
fn old_cells_that_may_change_are_followed_in_pieces_and_counted() {
    let mut toy = Toy::small();
    let array = toy
        .space
        .add_kind(Kind::array("array", 0, Encoding::RAW))
        .unwrap();
    let pair = Kind::words_at("pair", &[0], Encoding::RAW).immutable();
    let pair = toy.space.add_kind(pair).unwrap();
    let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
    let mut cells: Vec<usize> = (0..3000).map(|_| toy.alloc(array, 64)).collect();
    cells.extend((0..3000).map(|_| toy.alloc(pair, 64)));
    let young = toy.alloc(leaf, 64);
    // SAFETY: a word of a cell of this test.
    unsafe { (cells[2999] as *mut usize).write(young) };
    // All cells but the leaf are old.
    toy.space.begin_marking();
    for cell in &cells {
        toy.space.marked_bits().set(cell - toy.space.base());
    }
    let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
    let mut old = old::Old::before(toy.space.top());
    let mut pieces = 0;
    while old.is_left() {
        marker.follow_old(&mut old, 100);
        pieces += 1;
    }
    marker.drain();
    assert_eq!(old.followed(), 3000, "arrays, and no pairs");
    // A page has 64 of these cells.
    assert!((3000 / 164..=31).contains(&pieces), "{pieces} pieces");
    assert!(toy.space.is_marked(young));
    assert_eq!(marker.marked().cells, 1);
}
