//! Tests of marking with helpers: each cell is marked once for any graph and any length of the
//! queue, and a small heap makes no helper.

use super::*;
use crate::encoding::Encoding;
use crate::heap::tests::Toy;
use crate::heap::{MAX_SMALL, SpaceConfig};
use crate::kind::{Kind, KindId};

fn toy(queue: usize) -> (Toy, KindId) {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 256 << 20,
        ..SpaceConfig::default()
    });
    toy.queue = MarkQueue::new(&toy.space, queue).unwrap();
    let kind = Kind::array("array", 0, Encoding::RAW);
    let kind = toy.space.add_kind(kind).unwrap();
    (toy, kind)
}

fn set(cell: usize, word: usize, to: usize) {
    // SAFETY: a word of a cell of this test.
    unsafe { (cell as *mut usize).add(word).write(to) };
}

fn tree(toy: &mut Toy, kind: KindId, depth: u32) -> usize {
    let cell = toy.alloc(kind, 16);
    if depth > 0 {
        for word in 0..2 {
            set(cell, word, tree(toy, kind, depth - 1));
        }
    }
    cell
}

/// A table of `cells` cells, each with two edges to random cells. Every thousandth cell is large.
fn graph(toy: &mut Toy, kind: KindId, cells: usize) -> usize {
    let table = toy.alloc(kind, cells * 8);
    let all: Vec<usize> = (0..cells)
        .map(|n| {
            let bytes = if n % 1000 == 0 { MAX_SMALL + 1 } else { 32 };
            toy.alloc(kind, bytes)
        })
        .collect();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for (n, &cell) in all.iter().enumerate() {
        set(table, n, cell);
        for word in 0..2 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            set(cell, word, all[(random >> 33) as usize % cells]);
        }
    }
    table
}

/// Marks with `helpers` helpers. Returns the marked cells, how often helpers joined, and the number
/// of threads.
fn mark(toy: &mut Toy, root: usize, helpers: u32) -> (Marked, u64, usize) {
    toy.space.begin_marking();
    // SAFETY: this test's own runs.
    unsafe { toy.runs.blacken_tails(&toy.space) };
    // SAFETY: the only `Workers` of this queue, dropped below.
    let mut workers = unsafe { Workers::new(&toy.space, &toy.queue, &toy.weak) };
    let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
    workers.set_helpers(helpers, 1000);
    marker.edge(root, Encoding::RAW);
    while !(workers.step(&mut marker, 1000) && workers.close(&mut marker)) {}
    assert!(toy.queue.is_empty() && toy.queue.workers.termination.at_work() == 0);
    let marked = marker.marked();
    let threads = workers.threads.len();
    drop((marker, workers));
    toy.finish();
    let joined = toy.queue.workers.joined.swap(0, Ordering::Relaxed);
    (marked, joined, threads)
}

/// Marks the graph of `make` with three helpers until they have joined more than three times.
/// Checks that exactly all cells are marked each time, and whether the queue overflowed.
fn check(queue: usize, make: impl Fn(&mut Toy, KindId) -> usize, overflows: bool) {
    let (mut toy, kind) = toy(queue);
    let root = make(&mut toy, kind);
    let before = toy.cells();
    let expected = Marked {
        cells: before.len() as u64,
        bytes: before.values().sum::<usize>() as u64,
    };
    let mut joined = 0;
    // On a busy machine, the helpers may come too late in most rounds.
    for round in 0..1000 {
        let (marked, joins, threads) = mark(&mut toy, root, 3);
        assert_eq!(marked, expected, "round {round}");
        assert_eq!(threads, 3);
        joined += joins;
        if joined > 3 && round >= 10 {
            break;
        }
    }
    assert!(joined > 3, "no helper joined: the test has no effect");
    assert_eq!(toy.cells(), before);
    assert_eq!(toy.queue.overflows() > 0, overflows);
}

/// A tree is shared between workers although its cells never fill a packet.
#[test]
fn a_tree_is_shared_though_it_never_fills_a_packet() {
    check(1 << 20, |toy, kind| tree(toy, kind, 16), false);
}

/// A graph is marked by several workers, each cell once.
#[test]
fn a_graph_is_marked_by_several() {
    check(1 << 20, |toy, kind| graph(toy, kind, 50_000), false);
}

/// A full queue of several workers loses no cell.
#[test]
fn a_full_queue_of_several_markers_loses_nothing() {
    check(6 * 510, |toy, kind| graph(toy, kind, 50_000), true);
}

/// A heap of few cells makes no helper threads, a larger one does, and a limit of none makes none.
#[test]
fn h33_a_small_heap_makes_no_threads_and_a_large_one_does() {
    for (cells, threads) in [(5_000, 0), (100_000, 3)] {
        let (mut toy, kind) = toy(1 << 20);
        let root = graph(&mut toy, kind, cells);
        assert_eq!(mark(&mut toy, root, 3).2, threads);
        assert_eq!(mark(&mut toy, root, 0).2, 0);
    }
}

/// A helper that is no longer wanted puts its local queue back, and no cell is lost.
#[test]
fn a_helper_that_is_not_wanted_any_more_puts_its_work_back() {
    let (mut toy, kind) = toy(1 << 20);
    let root = graph(&mut toy, kind, 50_000);
    let expected = mark(&mut toy, root, 0).0;
    for _ in 0..20 {
        toy.space.begin_marking();
        // SAFETY: as in `mark`.
        let (_, mut workers) = unsafe {
            (
                toy.runs.blacken_tails(&toy.space),
                Workers::new(&toy.space, &toy.queue, &toy.weak),
            )
        };
        let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
        marker.edge(root, Encoding::RAW);
        let mut helpers = 2;
        loop {
            workers.set_helpers(helpers, 1000);
            helpers = (helpers + 1) % 3;
            if workers.step(&mut marker, 500) && workers.close(&mut marker) {
                break;
            }
        }
        assert_eq!(marker.marked(), expected);
        drop((marker, workers));
        toy.finish();
    }
}
