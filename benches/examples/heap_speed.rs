//! How fast the heap's own rooms are, without threads: allocation against a bare bump, marking
//! against a bare mark loop.
//!
//! `cargo run --release -p benches --example heap_speed [ROUNDS]`

use std::time::Instant;

use benches::limits::bare_mark;
use gc_core::alloc::{Refill, Runs, bump};
use gc_core::heap::{Space, SpaceConfig};
use gc_core::mark::{MarkQueue, Marker};
use gc_core::{Encoding, Kind, Site};

fn main() {
    // SAFETY: one thread, with runs, sites and a queue of this space.
    let space = unsafe { Space::bare(SpaceConfig::default()) }.expect("a heap");
    let queue = MarkQueue::new(&space, 1 << 26).expect("a queue");
    let runs = Runs::new().expect("runs");
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
                collect(&space, &runs, &queue, &[]);
            }
            let bare = (0..4)
                .map(|_| bare_bump(bytes, set << 20))
                .fold(f64::MAX, f64::min);
            let ns = |t: f64| t * 1e9 / count as f64;
            println!(
                "round {round}: {bytes:4} bytes, {set} MiB: {:5.2} ns, bare bump and clear {:5.2} ns",
                ns(best),
                ns(bare)
            );
        }
        comb(&space, &runs, &queue, leaf);
        for cells in [1, 2, 3, 4, 8, 16] {
            let site = space.site(pair, 16).expect("a site");
            groups(&space, &runs, &queue, site, cells);
        }
        mark(
            &space,
            &runs,
            &queue,
            space.site(pair, 32).expect("a site"),
            64 << 20,
        );
        mark(
            &space,
            &runs,
            &queue,
            space.site(pair, 32).expect("a site"),
            256 << 20,
        );
    }
}

#[inline(always)]
fn alloc(space: &Space, runs: &Runs, site: Site) -> usize {
    loop {
        // SAFETY: our own runs.
        let cell = unsafe { bump(runs.as_mut_ptr(), site) };
        if !cell.is_null() {
            return cell as usize;
        }
        refill(space, runs, site);
    }
}

#[inline(never)]
fn refill(space: &Space, runs: &Runs, site: Site) {
    assert!(matches!(
        space.refill(runs, site),
        Ok(Refill::Ready | Refill::Again | Refill::Cold(_))
    ));
}

fn collect(space: &Space, runs: &Runs, queue: &MarkQueue, roots: &[usize]) -> f64 {
    space.begin_marking();
    // SAFETY: our own runs.
    unsafe { space.blacken_tails(runs) };
    let start = Instant::now();
    let mut marker = Marker::new(space, queue).alone();
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

/// The limit: 8 KiB at a time are cleared and bumped through, the cursor in memory as any
/// interruptible bump's.
fn bare_bump(bytes: usize, set: usize) -> f64 {
    let mut memory = vec![1u64; set / 8];
    let base = memory.as_mut_ptr() as usize;
    let mut run = std::hint::black_box(Box::new((base, base)));
    let start = Instant::now();
    for n in 0..set / bytes {
        let mut cell = run.0;
        if cell + bytes > run.1 {
            cell = run.1;
            run.1 += 8192;
            // SAFETY: inside the vector.
            unsafe { std::ptr::write_bytes(cell as *mut u8, 0, 8192) };
        }
        run.0 = cell + bytes;
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        // SAFETY: inside the vector.
        unsafe { (cell as *mut usize).write(n) };
    }
    start.elapsed().as_secs_f64()
}

fn mark(space: &Space, runs: &Runs, queue: &MarkQueue, site: Site, bytes: usize) {
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
        .map(|_| collect(space, runs, queue, &cells))
        .collect();
    times.sort_by(f64::total_cmp);
    let bare = (0..5)
        .map(|_| bare_mark(&cells, &cells).as_secs_f64())
        .fold(f64::MAX, f64::min);
    println!(
        "mark {} MiB: {:.1} M objects/s ({:.1} ns each); bare loop {:.1} M objects/s",
        bytes >> 20,
        count as f64 / times[0] / 1e6,
        times[0] * 1e9 / count as f64,
        count as f64 / bare / 1e6
    );
    collect(space, runs, queue, &[]);
}

/// Lists of so many cells, each in one place, which lie at random: what it costs to follow
/// neighbours.
fn groups(space: &Space, runs: &Runs, queue: &MarkQueue, site: Site, cells: usize) {
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
        .map(|_| collect(space, runs, queue, &heads))
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "mark 64 MiB in groups of {cells}: {:.1} ns a cell",
        times[0] * 1e9 / (count * cells) as f64
    );
    collect(space, runs, queue, &[]);
}

/// Every other cell survives, so that each run is one cell long: the refill's own cost.
fn comb(space: &Space, runs: &Runs, queue: &MarkQueue, leaf: gc_core::KindId) {
    let site = space.site(leaf, 32).expect("a site");
    let cells: Vec<usize> = (0..1 << 20).map(|_| alloc(space, runs, site)).collect();
    let kept: Vec<usize> = cells.into_iter().step_by(2).collect();
    collect(space, runs, queue, &kept);
    let start = Instant::now();
    for n in 0..1 << 19 {
        // SAFETY: a new cell.
        unsafe { (alloc(space, runs, site) as *mut usize).write(n) };
    }
    println!(
        "a comb's gaps, 32 bytes each: {:.1} ns a cell",
        start.elapsed().as_secs_f64() * 1e9 / (1 << 19) as f64
    );
    collect(space, runs, queue, &[]);
}
