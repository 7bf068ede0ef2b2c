//! The heap's memory under threads. A cell that a mutator gets is its own, zero and whole, beside
//! the sweep. Each test runs with its cure, and with the cure switched off.

mod common;

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use common::hazard;
use gc_core::AllocError;
use gc_core::internals::bump;
use gc_core::internals::{LargeStep, MIN_RESERVE, Space, SpaceConfig};
use gc_core::internals::{LocalAllocator, Refill};
use gc_core::internals::{MarkQueue, Marker, WeakWork};
use gc_core::raw::MAX_SMALL;
use gc_core::raw::{Encoding, Kind, KindId};

fn space(reserve: u64) -> Space {
    // A world reads which faults are planted. It stops no thread here.
    drop(gc_preempt::World::new(gc_preempt::Config::default()));
    let config = SpaceConfig {
        reserve,
        ..SpaceConfig::default()
    };
    // SAFETY: each test keeps to the collector's protocol, with runs, sites and queues of this
    // space.
    unsafe { Space::bare(config) }.unwrap()
}

fn large(
    space: &Space,
    runs: &LocalAllocator,
    kind: KindId,
    bytes: usize,
) -> Result<usize, AllocError> {
    loop {
        if let LargeStep::Reserved(mut large) = runs.reserve_large(space, kind, bytes)? {
            while !space.clear_large(&mut large) {}
            return Ok(space.publish_large(large).as_ptr() as usize);
        }
    }
}

fn alloc(
    space: &Space,
    runs: &LocalAllocator,
    kind: KindId,
    bytes: usize,
) -> Result<usize, AllocError> {
    if bytes > MAX_SMALL {
        return large(space, runs, kind, bytes);
    }
    let site = space.site(kind, bytes).unwrap();
    loop {
        // SAFETY: the calling thread's runs, of this space.
        let cell = unsafe { bump(runs.as_mut_ptr(), site) };
        if !cell.is_null() {
            return Ok(cell as usize);
        }
        assert_ne!(runs.refill(space, site)?, Refill::Due);
    }
}

/// A cell, its size, and the byte that its owner filled it with.
type Owned = (usize, usize, u8);

fn check((cell, size, stamp): Owned) {
    // SAFETY: the owner keeps the cell alive.
    let contents = unsafe { std::slice::from_raw_parts(cell as *const u8, size) };
    assert!(
        contents.iter().all(|b| *b == stamp),
        "a cell is not as its owner left it"
    );
}

/// Runs mutators that hold `stop` for reading while they use the heap, and a collector that stops
/// them by holding it for writing. Sweeping, clearing and scavenging run beside the mutators, as in
/// the collector's thread.
fn mutators_beside_the_sweep(collections: u32) {
    let space = space(256 << 20);
    let queue = MarkQueue::new(&space, 1 << 16).unwrap();
    let weak = WeakWork::new(&space).unwrap();
    let kind = space.add_kind(Kind::leaf("leaf")).unwrap();
    let (stop, done, rounds) = (RwLock::new(()), AtomicBool::new(false), AtomicU64::new(0));
    let mutators: Vec<(LocalAllocator, RwLock<Vec<Owned>>)> = (0..3)
        .map(|_| (LocalAllocator::new().unwrap(), RwLock::default()))
        .collect();
    std::thread::scope(|s| {
        let threads: Vec<_> = mutators
            .iter()
            .enumerate()
            .map(|(thread, (runs, owned))| {
                let (space, stop, done, rounds) = (&space, &stop, &done, &rounds);
                s.spawn(move || {
                    let mut random = 0x9e37_79b9_7f4a_7c15u64 + thread as u64;
                    while !done.load(Relaxed) {
                        let _running = stop.read().unwrap();
                        let mut owned = owned.write().unwrap();
                        for _ in 0..50 {
                            random ^= random << 13;
                            random ^= random >> 7;
                            random ^= random << 17;
                            let bytes = match random >> 40 & 63 {
                                0 => 40_000 + (random >> 48) as usize % 100_000,
                                1..8 => 1000 + (random >> 48) as usize % 3000,
                                _ => 1 + (random >> 48) as usize % 250,
                            };
                            let cell = alloc(space, runs, kind, bytes).unwrap();
                            let size = space.resolve(cell).expect("allocated").size;
                            check((cell, size, 0));
                            let stamp = (random >> 56) as u8 | 1;
                            // SAFETY: a new cell of this size.
                            unsafe { (cell as *mut u8).write_bytes(stamp, size) };
                            if owned.len() < 400 {
                                owned.push((cell, size, stamp));
                            } else {
                                let place = random as usize % 400;
                                check(std::mem::replace(&mut owned[place], (cell, size, stamp)));
                            }
                        }
                        rounds.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        // Ends the mutators also where an assertion below fails.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let done = Done(&done);
        for collection in 0..collections {
            while rounds.load(Relaxed) < 10 * u64::from(collection)
                && !threads.iter().any(|t| t.is_finished())
            {
                std::thread::yield_now();
            }
            let stopped = stop.write().unwrap();
            assert!(space.ready_to_mark());
            space.begin_marking();
            let mut marker = Marker::new(&space, &queue, &weak);
            let mut live = 0;
            for (runs, owned) in &mutators {
                // SAFETY: the owner waits for `stop`.
                unsafe { runs.blacken_tails(&space) };
                for &(cell, ..) in owned.read().unwrap().iter() {
                    marker.edge(cell, Encoding::RAW);
                    live += 1;
                }
            }
            marker.drain();
            assert_eq!(marker.marked().cells, live);
            drop(marker);
            space.end_marking();
            drop(stopped);
            while space.sweep_piece() {}
            while space.clear_spare_piece() {}
            while space.scavenge_piece(1 << 20, 2 << 20, u64::MAX) > 0 {}
        }
        drop(done);
    });
    for (runs, owned) in &mutators {
        owned.read().unwrap().iter().copied().for_each(check);
        runs.retire(&space);
    }
}

/// A new cell is zero although its memory was used before. With `no-clear` planted, it is not.
#[test]
fn a_new_cell_is_zero_though_its_memory_was_used_before() {
    hazard(
        "a_new_cell_is_zero_though_its_memory_was_used_before",
        "no-clear",
        || mutators_beside_the_sweep(100),
    );
}

/// The allocated bits of a run are set when the run is taken, so the sweep does not give its cells
/// to another mutator. With `no-run-bits` planted, two owners share a cell.
#[test]
fn cells_of_a_run_are_nobody_elses() {
    hazard("cells_of_a_run_are_nobody_elses", "no-run-bits", || {
        mutators_beside_the_sweep(100)
    });
}

/// Words that name no allocated cell mark nothing, for each 16 bytes of the range and around it.
/// With `no-allocated-bit` planted, they mark dead cells.
#[test]
fn h22_words_that_name_no_allocated_cell_mark_nothing() {
    hazard(
        "h22_words_that_name_no_allocated_cell_mark_nothing",
        "no-allocated-bit",
        || {
            let space = space(MIN_RESERVE);
            let (queue, runs) = (
                MarkQueue::new(&space, 100).unwrap(),
                LocalAllocator::new().unwrap(),
            );
            let weak = WeakWork::new(&space).unwrap();
            let kind = space.add_kind(Kind::conservative("words")).unwrap();
            let cells: Vec<usize> = (0..500)
                .map(|_| alloc(&space, &runs, kind, 48).unwrap())
                .collect();
            let big = alloc(&space, &runs, kind, 100_000).unwrap();
            runs.retire(&space);
            space.begin_marking();
            let mut marker = Marker::new(&space, &queue, &weak);
            // Every other cell dies.
            cells
                .iter()
                .step_by(2)
                .chain([&big])
                .for_each(|&cell| marker.edge(cell, Encoding::RAW));
            marker.drain();
            drop(marker);
            space.end_marking();
            while space.sweep_piece() {}
            while space.clear_spare_piece() {}
            // One word for each 16 bytes of the whole range and of the pages around it.
            space.begin_marking();
            let mut marker = Marker::new(&space, &queue, &weak);
            let range = space.reserved();
            for word in (range.start - 4096..range.end + 4096).step_by(16) {
                marker.conservative(word + word % 13);
            }
            marker.drain();
            assert_eq!(marker.marked().cells, 251);
        },
    );
}

/// A large object is found only with its kind and size: the word of the page table is written last.
/// With `publish-first` planted, the looker finds another object's record.
#[test]
fn h24_a_large_object_is_found_only_with_its_record() {
    hazard(
        "h24_a_large_object_is_found_only_with_its_record",
        "publish-first",
        || {
            let space = space(MIN_RESERVE);
            let runs = LocalAllocator::new().unwrap();
            let kinds = [40_000usize, 70_000, 120_000].map(|bytes| {
                (
                    space.add_kind(Kind::leaf("large")).unwrap(),
                    bytes.next_multiple_of(4096),
                )
            });
            // The looker acts as a marker: it runs beside a mutator that publishes, and not beside
            // the sweep.
            let (done, sweeping) = (AtomicBool::new(false), RwLock::new(()));
            let found = AtomicU64::new(0);
            std::thread::scope(|s| {
                let looker = s.spawn(|| {
                    let range = space.reserved();
                    while !done.load(Relaxed) {
                        let _no_sweep = sweeping.read().unwrap();
                        for address in (range.start..range.start + (1 << 19)).step_by(4096) {
                            let Some(cell) = space.resolve(address + 4095) else {
                                continue;
                            };
                            found.fetch_add(1, Relaxed);
                            if !kinds.contains(&(cell.kind, cell.size)) || address < cell.base {
                                return Err(cell);
                            }
                        }
                    }
                    Ok(())
                });
                // The rounds go on until the looker has found enough cells. A looker that failed
                // finds no more.
                let mut round = 0;
                while round < 2000 || (found.load(Relaxed) < 1000 && !looker.is_finished()) {
                    round += 1;
                    for place in 0..3 {
                        let (kind, bytes) = kinds[(round + place) % 3];
                        large(&space, &runs, kind, bytes).unwrap();
                    }
                    let _alone = sweeping.write().unwrap();
                    space.begin_marking();
                    space.end_marking();
                    while space.sweep_piece() {}
                    while space.clear_spare_piece() {}
                }
                done.store(true, Relaxed);
                looker.join().unwrap().unwrap();
            });
        },
    );
}

/// Cells for which the mark queue has no room are found by the flags of their pages. With
/// `no-second-look` planted, they are not followed.
#[test]
fn a_full_queue_loses_nothing() {
    hazard("a_full_queue_loses_nothing", "no-second-look", || {
        let space = space(256 << 20);
        let (queue, runs) = (
            MarkQueue::new(&space, 1).unwrap(),
            LocalAllocator::new().unwrap(),
        );
        let weak = WeakWork::new(&space).unwrap();
        let kind = space
            .add_kind(Kind::array("array", 0, Encoding::RAW))
            .unwrap();
        const FAN: usize = 5000;
        let root = alloc(&space, &runs, kind, FAN * 8).unwrap();
        for n in 0..FAN {
            let (middle, end) = (
                alloc(&space, &runs, kind, 32).unwrap(),
                alloc(&space, &runs, kind, 16).unwrap(),
            );
            // SAFETY: new cells of at least the words that are written.
            unsafe {
                (root as *mut usize).add(n).write(middle);
                (middle as *mut usize).write(end);
            }
        }
        space.begin_marking();
        let mut marker = Marker::new(&space, &queue, &weak);
        marker.edge(root, Encoding::RAW);
        marker.drain();
        assert!(queue.overflows() > 1000);
        assert_eq!(marker.marked().cells, 2 * FAN as u64 + 1);
    });
}

/// A large cell of a words kind is followed in pieces. With `words-whole` planted, one step of the
/// marker follows all its words.
#[test]
fn h66_a_large_cell_of_a_words_kind_is_followed_in_pieces() {
    hazard(
        "h66_a_large_cell_of_a_words_kind_is_followed_in_pieces",
        "words-whole",
        || {
            const SLOTS: usize = 100_000;
            let space = space(256 << 20);
            let (queue, runs) = (
                MarkQueue::new(&space, 1 << 20).unwrap(),
                LocalAllocator::new().unwrap(),
            );
            let weak = WeakWork::new(&space).unwrap();
            // Every word is an edge except the second one and each 64th.
            let is_edge = |word: usize| word != 1 && word % 64 != 63;
            let words: Vec<u32> = (0..SLOTS as u32).filter(|w| is_edge(*w as usize)).collect();
            let kind = Kind::words_at("big", &words, Encoding::RAW);
            let kind = space.add_kind(kind).unwrap();
            let leaf = space.add_kind(Kind::leaf("leaf")).unwrap();
            let big = alloc(&space, &runs, kind, SLOTS * 8).unwrap();
            for word in 0..SLOTS {
                let cell = alloc(&space, &runs, leaf, 16).unwrap();
                // SAFETY: a word of the new cell `big`.
                unsafe { (big as *mut usize).add(word).write(cell) };
            }
            runs.retire(&space);
            space.begin_marking();
            let mut marker = Marker::new(&space, &queue, &weak);
            marker.edge(big, Encoding::RAW);
            let is_done = marker.drain_bounded(64);
            let marked = marker.marked().cells;
            assert!(!is_done && marked < 5000, "{marked} cells at once");
            marker.drain();
            assert_eq!(marker.marked().cells, words.len() as u64 + 1);
        },
    );
}

/// A walk over all cells excludes the sweep. With `walk-beside-sweep` planted, the walk misses
/// `live`.
///
/// The large objects lie one after another: first `before` and `stale`; later, in the same place,
/// `dead` twice and `live`. The record of `stale` stays inside of the second `dead`, and says that
/// the next page run begins after `live`.
#[test]
fn h61_a_walk_beside_the_sweep_misses_nothing() {
    let name = "h61_a_walk_beside_the_sweep_misses_nothing";
    hazard(name, "walk-beside-sweep", || {
        const UNIT: usize = 4096;
        /// Pages whose records share a system page, which goes back as a whole.
        const RECORDS: usize = 128;
        const DEAD: usize = 3 * RECORDS;
        let space = space(256 << 20);
        let (queue, runs) = (
            MarkQueue::new(&space, 1 << 20).unwrap(),
            LocalAllocator::new().unwrap(),
        );
        let weak = WeakWork::new(&space).unwrap();
        let leaf = space.add_kind(Kind::leaf("leaf")).unwrap();
        let first = alloc(&space, &runs, leaf, 16).unwrap();
        let collect = |roots: &[usize]| {
            runs.retire(&space);
            while space.sweep_piece() || space.clear_spare_piece() {}
            space.begin_marking();
            let mut marker = Marker::new(&space, &queue, &weak);
            for root in roots {
                marker.edge(*root, Encoding::RAW);
            }
            marker.drain();
            drop(marker);
            space.end_marking();
        };
        let units = |units: usize| large(&space, &runs, leaf, units * UNIT).unwrap();
        let other = units(1);
        let begin = other + UNIT;
        let number = (begin - space.reserved().start) / UNIT;
        // The boundary lies in the last system page of the two dead objects' records. That page
        // does not go back, because other records use it.
        let end = number + 2 * DEAD;
        let boundary = end / RECORDS * RECORDS + (end % RECORDS) / 2;
        let before = units(boundary - number);
        let stale = units(4 * DEAD);
        assert_eq!((before, stale), (begin, begin + (boundary - number) * UNIT));
        collect(&[first, other]);
        while space.sweep_piece() {}
        let dead = [units(DEAD), units(DEAD)];
        let live = units(1);
        assert_eq!(dead, [begin, begin + DEAD * UNIT]);
        assert_eq!(live, begin + 2 * DEAD * UNIT);
        collect(&[first, other, live]);
        while space.clear_spare_piece() {}

        let walks = std::sync::Barrier::new(2);
        let mut met = Vec::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                walks.wait();
                // With the fault planted, the walk pauses for half a second after the first dead
                // object.
                std::thread::sleep(std::time::Duration::from_millis(100));
                while space.sweep_piece_aside() {}
                while space.scavenge_piece(0, 0, u64::MAX) > 0 {}
            });
            space.for_each_cell(&mut |cell| {
                if met.is_empty() {
                    walks.wait();
                }
                met.push(cell.base);
            });
        });
        assert_eq!(met, [first, other, live]);
    });
}
