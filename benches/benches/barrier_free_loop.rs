//! Measures the cost of an attached heap between stops: loops without polls, in a process with a
//! heap and in one without.
//!
//! `cargo bench -p benches --bench barrier_free_loop`. The code is the same to the byte, which the
//! bench asserts, so the ratio must be 1.

use benches::paired::{Block, Paired};
use benches::{Mode, consume, run_groups, wanted};
use criterion::Criterion;
use gc_core::raw::Encoding;
use gc_core::{Heap, Mutator};
use gc_test_harness::kernels::alloc::{Allocator, node_site, ring};
use gc_test_harness::kernels::codegen::{Arena, Code};
use gc_test_harness::kernels::loops::{Loops, chase_oracle, count_oracle};

const SEED: u64 = 3;
/// Nodes of the ring that a loop follows. They fit into the first-level cache, so that the loop's
/// instructions are measured.
const RING: usize = 500;

fn main() {
    let mode = Mode::from_args();
    if mode != Mode::List && wanted("barrier_free_loop") {
        bytes_are_identical();
        table(mode);
    }
    run_groups(groups);
}

fn loops() -> Loops {
    Loops::compile(&mut Arena::new().expect("an arena")).expect("compiles")
}

/// Registers the loops with a new heap, attaches this thread, and runs `f`.
fn with_heap<R>(loops: &Loops, f: impl FnOnce(&Mutator, &Allocator<'_>) -> R) -> R {
    let heap = Heap::builder().build().expect("a heap");
    let guards = loops.code.iter();
    let guards = guards.map(|code| code.register_with(&heap, Encoding::RAW));
    let guards: Vec<_> = guards.collect::<Result<_, _>>().expect("registers");
    let mutator = heap.attach().expect("attaches");
    let site = node_site(&heap).expect("a site");
    let result = f(&mutator, &Allocator::new(&mutator, site));
    drop(mutator);
    drop(guards);
    result
}

fn bytes(loops: &Loops) -> Vec<Vec<u8>> {
    loops
        .code
        .iter()
        .map(|code: &Code| code.bytes().to_vec())
        .collect()
}

/// Asserts that these are the same: code in a process without a heap, registered code, code after a
/// collection, and code compiled for a heap.
fn bytes_are_identical() {
    let without = loops();
    let before = bytes(&without);
    with_heap(&without, |mutator, allocator| {
        assert_eq!(before, bytes(&without), "registering changed the code");
        let count = count_oracle(SEED, 1000);
        assert_eq!((without.count)(SEED, 1000), count);
        let live = ring(allocator, &[1; RING]).expect("room");
        mutator.collect();
        assert_eq!(before, bytes(&without), "a collection changed the code");
        consume(live);
        let compiled_for_it = loops();
        assert_eq!(
            before,
            bytes(&compiled_for_it),
            "a heap changed what is compiled"
        );
    });
    let total: usize = before.iter().map(Vec::len).sum();
    println!(
        "{} loops, {total} bytes of code: identical with and without a heap\n",
        before.len()
    );
}

fn table(mode: Mode) {
    let turns = mode.pick(20_000_000, 100_000);
    let loops = loops();
    let values: Vec<u64> = (0..RING as u64).collect();
    let (counted, chased) = (count_oracle(SEED, turns), chase_oracle(&values, turns));
    let count = || {
        Block::timed(|| {
            assert_eq!((loops.count)(SEED, turns), counted);
            turns
        })
    };
    let chase = |first: usize| {
        let mut slot = first;
        Block::timed(|| {
            // SAFETY: the slot names a ring of nodes that outlives the call.
            assert_eq!(unsafe { (loops.chase)(&mut slot, turns) }, chased);
            turns
        })
    };
    // The same ring outside any heap, with its nodes side by side as in the heap.
    let mut nodes: Vec<[usize; 2]> = vec![[0; 2]; RING];
    let base = nodes.as_ptr() as usize;
    for (i, node) in nodes.iter_mut().enumerate() {
        *node = [base + (i + 1) % RING * 16, values[i] as usize];
    }
    let in_heap = || {
        with_heap(&loops, |_, allocator| {
            chase(ring(allocator, &values).expect("room"))
        })
    };
    let measured = Paired::new("barrier_free_loop", "turn")
        .contender("count, no heap", count)
        .contender("count, heap attached", || with_heap(&loops, |_, _| count()))
        .contender("chase, no heap", || chase(base))
        .contender("chase, heap attached", in_heap)
        .measure(mode.pick(31, 2));
    println!(
        "{}",
        measured
            .with_ratio("count, heap attached", "count, no heap")
            .with_ratio("chase, heap attached", "chase, no heap")
    );
}

fn groups(criterion: &mut Criterion) {
    const TURNS: u64 = 10_000;
    let loops = loops();
    let mut group = criterion.benchmark_group("barrier_free_loop");
    group.bench_function("count/no_heap", |b| b.iter(|| (loops.count)(SEED, TURNS)));
    with_heap(&loops, |_, _| {
        group.bench_function("count/heap_attached", |b| {
            b.iter(|| (loops.count)(SEED, TURNS));
        });
    });
    group.finish();
}
