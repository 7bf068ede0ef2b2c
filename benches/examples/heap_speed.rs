//! Measures allocation and marking of a heap without threads, beside the limit programs.
//!
//! `cargo run --release -p benches --example heap_speed [ROUNDS]`

use std::time::Instant;

use gc_core::internals::{LocalAllocator, Refill, bump};
use gc_core::internals::{MarkQueue, Marker, WeakWork};
use gc_core::internals::{Space, SpaceConfig};
use gc_core::raw::{Encoding, Kind, Site};
use gc_test_harness::lab::baselines::heap::LimitHeap;
use gc_test_harness::lab::baselines::mark::LimitMarker;

/// The parts that the markers of a space share.
type Marking<'a> = (&'a MarkQueue, &'a WeakWork);

fn main() {
    // SAFETY: only this thread uses the space, with runs, sites and a queue of this space.
    let space = unsafe { Space::bare(SpaceConfig::default()) }.expect("a heap");
    let queue = MarkQueue::new(&space, 1 << 26).expect("a queue");
    let weak = WeakWork::new(&space).expect("lists");
    let marking = (&queue, &weak);
    let runs = LocalAllocator::new().expect("runs");
    let leaf = space.add_kind(Kind::leaf("leaf")).expect("a kind");
    let pair = space
        .add_kind(Kind::words_at("pair", &[0, 1], Encoding::RAW))
        .expect("a kind");
    for round in 0..std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(3)
    {
        for (bytes, set) in [
            (16, 1),
            (16, 16),
            (16, 64),
            (32, 1),
            (32, 64),
            (64, 1),
            (256, 1),
        ] {
            let site = space.site(leaf, bytes).expect("a site");
            let count = (set << 20) / bytes;
            let rounds = 256 / set;
            let mut best = f64::MAX;
            for _ in 0..rounds {
                let start = Instant::now();
                for n in 0..count {
                    let cell = alloc(&space, &runs, site);
                    // SAFETY: a new cell.
                    unsafe { (cell as *mut usize).write(n) };
                }
                best = best.min(start.elapsed().as_secs_f64());
                collect(&space, &runs, marking, &[]);
            }
            let bare = (0..4)
                .map(|_| limit(bytes, set << 20))
                .fold(f64::MAX, f64::min);
            let ns = |t: f64| t * 1e9 / count as f64;
            println!(
                "round {round}: {bytes:4} bytes, {set} MiB: {:5.2} ns, limit program {:5.2} ns",
                ns(best),
                ns(bare)
            );
        }
        comb(&space, &runs, marking, leaf);
        for cells in [1, 2, 3, 4, 8, 16] {
            let site = space.site(pair, 16).expect("a site");
            groups(&space, &runs, marking, site, cells);
        }
        mark(
            &space,
            &runs,
            marking,
            space.site(pair, 32).expect("a site"),
            64 << 20,
        );
        mark(
            &space,
            &runs,
            marking,
            space.site(pair, 32).expect("a site"),
            256 << 20,
        );
    }
}

#[inline(always)]
fn alloc(space: &Space, runs: &LocalAllocator, site: Site) -> usize {
    loop {
        // SAFETY: these are this thread's runs.
        let cell = unsafe { bump(runs.as_mut_ptr(), site) };
        if !cell.is_null() {
            return cell as usize;
        }
        refill(space, runs, site);
    }
}

#[inline(never)]
fn refill(space: &Space, runs: &LocalAllocator, site: Site) {
    assert!(matches!(
        runs.refill(space, site),
        Ok(Refill::Ready | Refill::Again | Refill::Cold(_))
    ));
}

fn collect(space: &Space, runs: &LocalAllocator, marking: Marking<'_>, roots: &[usize]) -> f64 {
    space.begin_marking();
    // SAFETY: these are this thread's runs.
    unsafe { runs.blacken_tails(space) };
    let start = Instant::now();
    let mut marker = Marker::new(space, marking.0, marking.1).alone();
    for &root in roots {
        marker.edge(root, Encoding::RAW);
    }
    marker.drain();
    let seconds = start.elapsed().as_secs_f64();
    drop(marker);
    space.end_marking();
    while space.sweep_piece() {}
    while space.clear_spare_piece() {}
    seconds
}

/// The limit program's time in seconds to allocate `set` bytes of cells of `bytes` bytes, and to
/// write each once.
fn limit(bytes: usize, set: usize) -> f64 {
    match bytes {
        16 => limit_of::<16>(set),
        32 => limit_of::<32>(set),
        64 => limit_of::<64>(set),
        256 => limit_of::<256>(set),
        _ => f64::NAN,
    }
}

fn limit_of<const BYTES: usize>(set: usize) -> f64 {
    let heap = LimitHeap::<BYTES>::without_roots(set).expect("address space");
    // The first turn touches the memory; the second is measured.
    let turn = || {
        let start = Instant::now();
        for n in 0..set / BYTES {
            let cell = heap.alloc().expect("room").cast::<usize>();
            // SAFETY: a new cell.
            unsafe { cell.write(n) };
        }
        start.elapsed().as_secs_f64()
    };
    turn();
    turn()
}

fn mark(space: &Space, runs: &LocalAllocator, marking: Marking<'_>, site: Site, bytes: usize) {
    let count = bytes / 32;
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut cells = vec![0usize; count];
    for n in 0..count {
        let cell = alloc(space, runs, site);
        if n > 0 {
            for word in 0..2 {
                let target = cells[(next() % n as u64) as usize];
                // SAFETY: a new cell of four words.
                unsafe { (cell as *mut usize).add(word).write(target) };
            }
        }
        cells[n] = cell;
    }
    let mut times: Vec<f64> = (0..5)
        .map(|_| collect(space, runs, marking, &cells))
        .collect();
    times.sort_by(f64::total_cmp);
    let mut limit = LimitMarker::of(&cells, 1);
    let bare = (0..5)
        // SAFETY: the cells' first two words are null or cells, and only this thread has them.
        .map(|_| unsafe { limit.mark(&cells, 1) }.time.as_secs_f64())
        .fold(f64::MAX, f64::min);
    println!(
        "mark {} MiB: {:.1} M objects/s ({:.1} ns each); limit program {:.1} M objects/s",
        bytes >> 20,
        count as f64 / times[0] / 1e6,
        times[0] * 1e9 / count as f64,
        count as f64 / bare / 1e6
    );
    collect(space, runs, marking, &[]);
}

/// Measures the marking of lists in random order. The `cells` cells of each list are adjacent.
fn groups(space: &Space, runs: &LocalAllocator, marking: Marking<'_>, site: Site, cells: usize) {
    let count = (64 << 20) / site.size() / cells;
    let list = |_| {
        (0..cells).fold(0, |next, _| {
            let cell = alloc(space, runs, site);
            // SAFETY: a new cell of two words.
            unsafe { (cell as *mut usize).write(next) };
            cell
        })
    };
    let mut heads: Vec<usize> = (0..count).map(list).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for n in (1..count).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        heads.swap(n, (random % (n as u64 + 1)) as usize);
    }
    let mut times: Vec<f64> = (0..5)
        .map(|_| collect(space, runs, marking, &heads))
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "mark 64 MiB in groups of {cells}: {:.1} ns a cell",
        times[0] * 1e9 / (count * cells) as f64
    );
    collect(space, runs, marking, &[]);
}

/// Measures refills: every other cell survives, so that each run is one cell long.
fn comb(space: &Space, runs: &LocalAllocator, marking: Marking<'_>, leaf: gc_core::raw::KindId) {
    let site = space.site(leaf, 32).expect("a site");
    let cells: Vec<usize> = (0..1 << 20).map(|_| alloc(space, runs, site)).collect();
    let kept: Vec<usize> = cells.into_iter().step_by(2).collect();
    collect(space, runs, marking, &kept);
    let start = Instant::now();
    for n in 0..1 << 19 {
        // SAFETY: a new cell.
        unsafe { (alloc(space, runs, site) as *mut usize).write(n) };
    }
    println!(
        "a comb's gaps, 32 bytes each: {:.1} ns a cell",
        start.elapsed().as_secs_f64() * 1e9 / (1 << 19) as f64
    );
    collect(space, runs, marking, &[]);
}
