//! The memory of the system that a heap keeps after its cells have died.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::{backed, hazard, kinds, resident, sit_idle};
use gc_core::raw::{Encoding, Kind};
use gc_core::{AllocError, Heap};

/// A heap that became small gives memory back without a request. With `hoards-memory` planted, the
/// test hangs.
#[test]
fn a_heap_that_became_small_gives_its_memory_back_without_being_asked() {
    hazard(
        "a_heap_that_became_small_gives_its_memory_back_without_being_asked",
        "hoards-memory",
        || drop(becomes_small(0, 12 << 20)),
    );
}

/// Memory that was touched beforehand (`pre_touch`) stays. With `touched-given-back` planted, it
/// goes back.
#[test]
fn a_heap_that_became_small_keeps_what_was_touched_beforehand() {
    hazard(
        "a_heap_that_became_small_keeps_what_was_touched_beforehand",
        "touched-given-back",
        || {
            const TOUCHED: usize = 24 << 20;
            let heap = becomes_small(TOUCHED as u64, TOUCHED + (4 << 20));
            // Long enough for the scavenger to give back more, at one chunk every ten milliseconds
            // or so.
            std::thread::sleep(Duration::from_secs(1));
            let backed = backed(&heap);
            assert!(backed >= TOUCHED, "{backed} bytes of {TOUCHED}");
        },
    );
}

/// A heap of 40 MiB whose cells have died, after all but `most` bytes of its memory went back to
/// the system.
fn becomes_small(pre_touch: u64, most: usize) -> Heap {
    const CELLS: usize = 40_000;
    let heap = Heap::builder().reserve(256 << 20).pre_touch(pre_touch);
    let heap = heap.build().unwrap();
    let table = heap.kind(Kind::array("table", 0, Encoding::RAW)).unwrap();
    let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
    let mutator = heap.attach().unwrap();
    // SAFETY: a root keeps the table, and the table keeps the cells. Both have the words that are
    // written.
    unsafe {
        let table = mutator.alloc_raw(table, CELLS * 8).unwrap();
        let root = mutator.root_raw(table).unwrap();
        for n in 0..CELLS {
            let cell = mutator.alloc_raw(leaf, 1024).unwrap();
            cell.cast::<usize>().write(n);
            mutator.write(
                table.cast::<usize>().add(n).as_ptr(),
                cell.as_ptr() as usize,
            );
        }
        let before = backed(&heap);
        assert!(before >= CELLS * 1024, "{before} bytes hold {CELLS} KiB");
        for n in 0..CELLS {
            mutator.write(table.cast::<usize>().add(n).as_ptr(), 0);
        }
        drop(root);
    }
    heap.collect();
    // No collection is requested: the scavenger gives memory back in its own time. A heap that
    // gives none back makes the test hang.
    while backed(&heap) > most {
        mutator.blocking(|| std::thread::sleep(Duration::from_millis(20)));
    }
    drop(mutator);
    heap
}

/// At the hard limit, the span reserve of a mutator that waits goes back to the heap. With
/// `reserve-kept` planted, an allocation fails too early.
#[test]
fn the_span_reserve_of_an_idle_mutator_is_not_missed_at_the_limit() {
    hazard(
        "the_span_reserve_of_an_idle_mutator_is_not_missed_at_the_limit",
        "reserve-kept",
        || {
            const LIMIT: usize = 128 << 20;
            let heap = Heap::builder().hard_limit(LIMIT as u64).build().unwrap();
            let k = kinds(&heap);
            let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    ready.wait();
                    let m = heap.attach().unwrap();
                    for _ in 0..(2200 << 10) / 1024 {
                        // SAFETY: the cell is not used.
                        unsafe { m.alloc_raw(k.leaf, 1024).unwrap() };
                    }
                    sit_idle(&m, &ready, &done);
                });
                let m = heap.attach().unwrap();
                let (mut list, mut cells) = (0usize, 0usize);
                let error = loop {
                    // In a heap of this size, a mutator takes a reserve of more spans than it
                    // needs.
                    if cells == LIMIT / 2 / 1024 {
                        m.blocking(|| (ready.wait(), ready.wait()));
                    }
                    // SAFETY: the list's head is on the stack.
                    match unsafe { m.alloc_raw(k.node, 1024) } {
                        // SAFETY: a new cell, whose first two words are an edge and a number.
                        Ok(cell) => unsafe {
                            cell.cast::<usize>().write(list);
                            list = cell.as_ptr() as usize;
                            cells += 1;
                        },
                        Err(error) => break error,
                    }
                };
                done.store(true, Relaxed);
                assert!(matches!(error, AllocError::HeapLimit { .. }), "{error}");
                let missed = LIMIT - cells * 1024;
                assert!(missed <= 256 << 10, "{missed} bytes are in no cell");
                std::hint::black_box(list);
            });
        },
    );
}

/// Leaves of `size` bytes, `bytes` bytes in all, which are written and have a root each.
fn rooted_leaves(
    m: &gc_core::Mutator,
    leaf: gc_core::raw::KindId,
    size: usize,
    bytes: usize,
) -> Vec<gc_core::raw::RawRoot> {
    let cell = |_| {
        // SAFETY: the cell gets a root at once, and has the `size` bytes that are written.
        unsafe {
            let cell = m.alloc_raw(leaf, size).unwrap();
            cell.as_ptr().write_bytes(1, size);
            m.root_raw(cell).unwrap()
        }
    };
    (0..bytes / size).map(cell).collect()
}

/// A heap in which `mib` MiB were allocated and one cell of 512 has a root: one in each 2 MiB. Also
/// these roots, and the process's resident bytes before.
fn one_of_each_page(mib: usize) -> (Heap, Vec<gc_core::raw::RawRoot>, usize) {
    const CELL: usize = 4096;
    let before = resident();
    let heap = Heap::builder().reserve(1 << 30).build().unwrap();
    let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
    let m = heap.attach().unwrap();
    let mut roots = Vec::new();
    // The first cell lies in a span that the mutator owns.
    let all: Vec<_> = rooted_leaves(&m, leaf, CELL, mib << 20);
    for (n, root) in all.into_iter().enumerate() {
        if n % 512 == 0 {
            roots.push(root);
        }
    }
    drop(m);
    (heap, roots, before)
}

/// The system pages of the tables that describe free memory go back with that memory. With
/// `tables-kept` planted, they stay.
#[test]
fn h94_what_the_tables_say_of_free_memory_goes_back_with_it() {
    hazard(
        "h94_what_the_tables_say_of_free_memory_goes_back_with_it",
        "tables-kept",
        || {
            let (heap, roots, before) = one_of_each_page(384);
            heap.trim();
            let (used, now) = (heap.stats().used_bytes as usize, resident() - before);
            assert!(now <= used + used / 2, "{now} bytes for {used}");
            // The next collections touch none of these pages.
            heap.collect();
            heap.collect();
            let now = resident() - before;
            assert!(now <= used + used / 2, "{now} bytes for {used}, collected");
            drop(roots);
        },
    );
}

/// System pages of the heap that are part of a huge page. `None` where the system does not show
/// this to the user.
fn parts_of_huge_pages(heap: &Heap) -> Option<usize> {
    use std::os::unix::fs::FileExt;
    /// `KPF_COMPOUND_HEAD` and `KPF_COMPOUND_TAIL`, see `Documentation/admin-guide/mm/pagemap.rst`.
    const COMPOUND: u64 = 3 << 15;
    let map = std::fs::File::open("/proc/self/pagemap").ok()?;
    let flags = std::fs::File::open("/proc/kpageflags").ok()?;
    let (range, mut word, mut found) = (heap.reserved(), [0; 8], 0);
    for page in range.start / 4096..range.end / 4096 {
        map.read_exact_at(&mut word, page as u64 * 8).ok()?;
        let entry = u64::from_ne_bytes(word);
        let (is_backed, number) = (entry >> 63 != 0, entry & ((1 << 55) - 1));
        if is_backed {
            flags.read_exact_at(&mut word, number * 8).ok()?;
            found += usize::from(u64::from_ne_bytes(word) & COMPOUND != 0);
        }
    }
    Some(found)
}

/// A huge page is split before a part of it goes back. With `huge-pages-unsplit` planted, the
/// system keeps it whole. The test needs a system that has huge pages and shows them.
#[test]
fn h94_a_huge_page_of_which_a_part_goes_back_is_split() {
    let parts = || {
        let (heap, roots, _) = one_of_each_page(16);
        let before = parts_of_huge_pages(&heap);
        heap.trim();
        let after = parts_of_huge_pages(&heap);
        drop(roots);
        (before, after)
    };
    // A system without huge pages, or one that does not show them, cannot be tested.
    if !matches!(parts(), (Some(1..), _)) {
        return;
    }
    hazard(
        "h94_a_huge_page_of_which_a_part_goes_back_is_split",
        "huge-pages-unsplit",
        || {
            let (before, after) = parts();
            assert_eq!(after, Some(0), "{before:?} before");
        },
    );
}

/// A heap that allocates nothing keeps little more than its live cells, and not what it would need
/// up to its goal. With `goal-kept` planted, the test hangs.
#[test]
fn h94_a_heap_that_allocates_nothing_keeps_no_more_than_it_uses() {
    hazard(
        "h94_a_heap_that_allocates_nothing_keeps_no_more_than_it_uses",
        "goal-kept",
        || {
            const CELL: usize = 64 << 10;
            let heap = Heap::builder().reserve(1 << 30).build().unwrap();
            let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
            let m = heap.attach().unwrap();
            let mut roots: Vec<_> = rooted_leaves(&m, leaf, CELL, 96 << 20);
            drop(m);
            // A third of the cells is alive, so the goal is as large as the heap was.
            roots.truncate(roots.len() / 3);
            heap.collect();
            // A heap that keeps more makes the test hang.
            while backed(&heap) > (32 << 20) + (4 << 20) {
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(roots);
        },
    );
}
