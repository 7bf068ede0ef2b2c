//! Measures the allocation of objects of two pointers that are dead at once, collections included,
//! beside bdwgc and the limit program's heap.
//!
//! `cargo bench -p benches --bench alloc`. By default bdwgc treats interior pointers as Urge does,
//! which is faster. `URGE_BENCH_INTERIOR=1` leaves bdwgc as it is installed, with 32 bytes for an
//! object of 16.

use benches::bdwgc::{self, Bdwgc};
use benches::contenders::workshop::EXACT_BDWGC;
use benches::paired::{Block, Measured, Paired};
use benches::results::claim::{Beside, Claim, Wanted};
use benches::results::render::record;
use benches::{Mode, consume, run_groups, wanted};
use criterion::{Criterion, Throughput};
use gc_core::raw::{Encoding, Kind, Site};
use gc_core::{Field, Heap, Mutator, Trace, keep_alive};
use gc_test_harness::lab::baselines::heap::LimitHeap;

/// The object that is measured.
#[derive(Trace)]
struct Pair(Field<Pair>, Field<Pair>);

impl Pair {
    #[inline(always)]
    fn empty() -> Pair {
        Pair(Field::null(), Field::null())
    }
}

/// The most bytes that an object may take.
const BYTES: usize = 16;

/// Bytes that a heap without live cells allocates between two collections. The limit program's heap
/// is set to the same.
const ROUND: usize = 4 << 20;

fn main() {
    let mode = Mode::from_args();
    let heap = Heap::builder().build().expect("a heap");
    let mutator = heap.attach().expect("attaches");
    let kind = Kind::words_at("pair", &[0, 1], Encoding::RAW);
    let kind = heap.kind(kind).expect("a kind");
    let site = heap.site(kind, BYTES).expect("a site");
    let bdwgc = Bdwgc::load(std::env::var_os("URGE_BENCH_INTERIOR").is_some());
    if mode != Mode::List && wanted("alloc") {
        objects_are_small(&mutator, mode);
        table(&mutator, site, bdwgc, mode);
    }
    run_groups(|criterion| groups(criterion, &mutator, site, bdwgc));
}

/// Each loop that is measured is out of line, so that a disassembler shows it.
#[inline(never)]
fn alloc_raw(mutator: &Mutator, count: u64) {
    for _ in 0..count {
        // SAFETY: the object is dead at once.
        let pair = unsafe { mutator.alloc_gc(Pair::empty()) }.expect("room");
        keep_alive(pair);
    }
}

#[inline(never)]
fn alloc_at(mutator: &Mutator, site: Site, count: u64) {
    for _ in 0..count {
        // SAFETY: the cell is dead at once, and zero.
        let cell = unsafe { mutator.alloc_at(site) }.expect("room");
        consume(cell.as_ptr() as usize);
    }
}

#[inline(never)]
fn safe(mutator: &Mutator, count: u64) {
    for _ in 0..count {
        mutator
            .scope(|s| {
                let pair = s.alloc(Pair::empty())?;
                consume(&raw const *pair as usize);
                Ok(())
            })
            .expect("room");
    }
}

/// 64 handles in each scope.
#[inline(never)]
fn safe_in_batches(mutator: &Mutator, count: u64) {
    for _ in 0..count / 64 {
        mutator
            .scope(|s| {
                for _ in 0..64 {
                    let pair = s.alloc(Pair::empty())?;
                    consume(&raw const *pair as usize);
                }
                Ok(())
            })
            .expect("room");
    }
}

#[inline(never)]
fn limit(heap: &LimitHeap<BYTES>, count: u64) {
    for _ in 0..count {
        consume(heap.alloc().expect("room").as_ptr() as usize);
    }
}

#[inline(never)]
fn boehm(bdwgc: Bdwgc, count: u64) {
    for _ in 0..count {
        consume(bdwgc.malloc(BYTES));
    }
}

fn table(mutator: &Mutator, site: Site, bdwgc: Option<Bdwgc>, mode: Mode) {
    let count = mode.pick(8 << 20, 1 << 14);
    let block = |work: &mut dyn FnMut()| {
        Block::timed(|| {
            work();
            count
        })
    };
    let bump = LimitHeap::<BYTES>::without_roots(ROUND).expect("address space");
    let before = mutator.heap().stats();
    let mut paired = Paired::new("alloc", "object of two pointers")
        .contender("alloc_raw", || block(&mut || alloc_raw(mutator, count)))
        .contender("alloc_at", || block(&mut || alloc_at(mutator, site, count)))
        .contender("safe tier, a scope each", || {
            block(&mut || safe(mutator, count))
        })
        .contender("safe tier, a scope for 64", || {
            block(&mut || safe_in_batches(mutator, count))
        })
        .contender("limit program", || block(&mut || limit(&bump, count)));
    match bdwgc {
        Some(bdwgc) => {
            println!("bdwgc: {}", bdwgc.setup());
            paired = paired.contender("GC_malloc(16)", move || block(&mut || boehm(bdwgc, count)));
        }
        None => println!("{}", bdwgc::MISSING),
    }
    let measured = paired.measure(mode.pick(21, 2));
    if mode == Mode::Full {
        let claims = claims(&measured);
        record(&claims).unwrap_or_else(|why| panic!("{why}"));
    }
    let after = mutator.heap().stats();
    println!(
        "{}",
        measured
            .with_ratio("GC_malloc(16)", "alloc_raw")
            .with_ratio("GC_malloc(16)", "alloc_at")
            .with_ratio("GC_malloc(16)", "safe tier, a scope each")
            .with_ratio("GC_malloc(16)", "safe tier, a scope for 64")
            .with_ratio("alloc_raw", "limit program")
            .with_ratio("alloc_at", "limit program")
    );
    println!(
        "collections meanwhile: {} of ours{}\n",
        after.collections - before.collections,
        bdwgc.map_or(String::new(), |peer| format!(
            ", {} of bdwgc's",
            peer.collections()
        ))
    );
}

/// The claims for `RESULTS.md`.
fn claims(measured: &Measured) -> Vec<Claim> {
    let exact = std::env::var_os("URGE_BENCH_INTERIOR").is_none();
    let name = if exact { EXACT_BDWGC } else { "bdwgc" };
    let peer = || Beside::Peer(name.to_owned());
    let limit = || Beside::Limit("limit program".to_owned());
    let fast = "allocation of 16 bytes, garbage at once";
    let safe = "the same in the safe tier, a scope for 64 cells";
    [
        (
            fast,
            ("alloc_raw", "GC_malloc(16)"),
            peer(),
            Wanted::AtLeast(2.0),
        ),
        (
            fast,
            ("alloc_raw", "limit program"),
            limit(),
            Wanted::Nothing,
        ),
        (
            safe,
            ("safe tier, a scope for 64", "GC_malloc(16)"),
            peer(),
            Wanted::Nothing,
        ),
    ]
    .into_iter()
    .filter_map(|(work, names, beside, wanted)| {
        Claim::of_times(measured, work, names, beside, wanted)
    })
    .collect()
}

/// Checks the memory of a list of pairs: the bytes of its runs, the bytes of the cells that the
/// collector finds, and the bytes of its spans.
fn objects_are_small(mutator: &Mutator, mode: Mode) {
    /// The most bytes that a mutator may have been given and not used yet.
    const RUN: u64 = 8 << 10;
    let count = mode.pick(1_000_000, 50_000);
    let heap = mutator.heap();
    heap.collect();
    let before = heap.stats();
    // SAFETY: each pair is in a field of the next pair, and the last pair is on this stack, which
    // is scanned.
    let list = unsafe {
        let mut list = mutator.alloc_gc(Pair::empty()).expect("room");
        for _ in 1..count {
            let next = mutator.alloc_gc(Pair::empty()).expect("room");
            next.0.set_gc(mutator, Some(list));
            list = next;
        }
        list
    };
    let filled = heap.stats();
    heap.collect();
    let live = heap.stats().last;
    let allocated = filled.allocated_total - before.allocated_total;
    let used = filled.used_bytes.saturating_sub(before.used_bytes);
    assert!(
        allocated <= count * BYTES as u64 + RUN,
        "{allocated} bytes were handed out for {count} objects"
    );
    assert!(
        live.cells_live >= count && live.bytes_live <= live.cells_live * BYTES as u64,
        "{} cells of {} bytes are alive",
        live.cells_live,
        live.bytes_live
    );
    println!(
        "bytes an object: {:.3} handed out, {:.3} as cells, {:.3} in spans (besides, in side bitmaps: 2 bits)\n",
        allocated as f64 / count as f64,
        live.bytes_live as f64 / live.cells_live as f64,
        used as f64 / count as f64
    );
    keep_alive(list);
}

fn groups(criterion: &mut Criterion, mutator: &Mutator, site: Site, bdwgc: Option<Bdwgc>) {
    let mut group = criterion.benchmark_group("alloc");
    group.throughput(Throughput::Elements(1));
    group.bench_function("alloc_raw", |b| {
        b.iter(|| {
            // SAFETY: the object is dead at once.
            let pair = unsafe { mutator.alloc_gc(Pair::empty()) };
            keep_alive(pair.expect("room"));
        });
    });
    group.bench_function("alloc_at", |b| {
        b.iter(|| {
            // SAFETY: the cell is dead at once, and zero.
            let cell = unsafe { mutator.alloc_at(site) };
            consume(cell.expect("room").as_ptr() as usize);
        });
    });
    group.bench_function("safe", |b| {
        b.iter(|| safe(mutator, 1));
    });
    let bump = LimitHeap::<BYTES>::without_roots(ROUND).expect("address space");
    group.bench_function("limit", |b| {
        b.iter(|| consume(bump.alloc().expect("room").as_ptr() as usize));
    });
    if let Some(bdwgc) = bdwgc {
        group.bench_function("bdwgc", |b| b.iter(|| consume(bdwgc.malloc(BYTES))));
    }
    group.finish();
}
