//! Measures a store of an edge with the barrier while marking is off, beside a plain store.
//!
//! `cargo bench -p benches --bench barrier`. Wanted: at most 1.5 ns more for each store. Both loops
//! store into the 128 words of one cell in turn, so they differ in the barrier only. It is called
//! out of line, as Rust code calls it.

use std::hint::black_box;

use benches::paired::{Block, Paired};
use benches::{Mode, run_groups, wanted};
use criterion::Criterion;
use gc_core::raw::{Encoding, Kind};
use gc_core::{Heap, Mutator};

const WORDS: usize = 128;

fn main() {
    let mode = Mode::from_args();
    if mode != Mode::List && wanted("barrier") {
        table(mode);
    }
    run_groups(groups);
}

/// Runs `f` with a cell of `WORDS` edges, which is rooted meanwhile, and with an edge to store.
fn with_cell<R>(f: impl FnOnce(&Mutator, *mut usize, usize) -> R) -> R {
    let heap = Heap::builder()
        .gc_percent(u32::MAX)
        .build()
        .expect("a heap");
    let kind = heap
        .kind(Kind::array("edges", 0, Encoding::RAW))
        .expect("a kind");
    let mutator = heap.attach().expect("attaches");
    // SAFETY: handles keep the cells alive, and an array has no minimum size.
    unsafe {
        let cell = mutator
            .alloc_raw(kind, WORDS * size_of::<usize>())
            .expect("room");
        let _root = mutator.root_raw(cell).expect("a handle");
        let target = mutator
            .alloc_raw(kind, 2 * size_of::<usize>())
            .expect("room");
        let _target = mutator.root_raw(target).expect("a handle");
        f(&mutator, cell.as_ptr().cast(), target.as_ptr() as usize)
    }
}

/// Stores into all words of the cell, `turns` times, by plain stores. Returns the number of stores.
///
/// # Safety
/// `cell` must be a cell of `WORDS` words that no marker reads meanwhile.
#[inline(never)]
unsafe fn plain(cell: *mut usize, value: usize, turns: u64) -> u64 {
    for _ in 0..turns {
        for word in 0..WORDS {
            // SAFETY: a word of the cell.
            unsafe { cell.add(word).write_volatile(black_box(value)) };
        }
    }
    turns * WORDS as u64
}

/// The same with the barrier.
///
/// # Safety
/// `cell` must be a live cell of the mutator's heap with `WORDS` words.
#[inline(never)]
unsafe fn through(mutator: &Mutator, cell: *mut usize, value: usize, turns: u64) -> u64 {
    for _ in 0..turns {
        for word in 0..WORDS {
            // SAFETY: a word of the cell.
            unsafe { mutator.write(cell.add(word), black_box(value)) };
        }
    }
    turns * WORDS as u64
}

fn table(mode: Mode) {
    let turns = mode.pick(400_000, 100);
    with_cell(|mutator, cell, value| {
        let measured = Paired::new("barrier", "store")
            .contender("plain store", || {
                // SAFETY: no collection is requested, so no cycle marks.
                Block::timed(|| unsafe { plain(cell, value, turns) })
            })
            .contender("barrier, nothing marked", || {
                // SAFETY: the cell is live.
                Block::timed(|| unsafe { through(mutator, cell, value, turns) })
            })
            .measure(mode.pick(21, 2));
        let more = measured
            .nanos("barrier, nothing marked")
            .zip(measured.nanos("plain store"));
        println!(
            "{}",
            measured.with_ratio("barrier, nothing marked", "plain store")
        );
        if let Some((barrier, plain)) = more {
            println!(
                "{:.2} ns a store, {:.2} more than a plain one (wanted: at most 1.5)\n",
                barrier,
                barrier - plain
            );
        }
    });
}

fn groups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("barrier");
    with_cell(|mutator, cell, value| {
        group.bench_function("plain", |b| {
            // SAFETY: as in `table`.
            b.iter(|| unsafe { plain(cell, value, 10) });
        });
        group.bench_function("nothing_marked", |b| {
            // SAFETY: as in `table`.
            b.iter(|| unsafe { through(mutator, cell, value, 10) });
        });
    });
    group.finish();
}
