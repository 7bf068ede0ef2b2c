//! What a heap keeps of the system's memory when nobody uses it any more.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::{hazard, kinds, sit_idle};
use gc_core::{AllocError, Encoding, Heap, Kind};

/// Bytes of the heap's address range that the system backs.
fn backed(heap: &Heap) -> usize {
    let range = heap.reserved();
    let mut pages = vec![0u8; range.len().div_ceil(4096)];
    // SAFETY: the range is mapped, and the vector has a byte a page.
    let result = unsafe { libc::mincore(range.start as *mut _, range.len(), pages.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 != 0).count() * 4096
}

#[test]
fn a_heap_that_became_small_gives_its_memory_back_without_being_asked() {
    hazard(
        "a_heap_that_became_small_gives_its_memory_back_without_being_asked",
        "hoards-memory",
        || drop(becomes_small(0, 12 << 20)),
    );
}

#[test]
fn a_heap_that_became_small_keeps_what_was_touched_beforehand() {
    hazard(
        "a_heap_that_became_small_keeps_what_was_touched_beforehand",
        "touched-given-back",
        || {
            const TOUCHED: usize = 24 << 20;
            let heap = becomes_small(TOUCHED as u64, TOUCHED + (4 << 20));
            // A while longer, at a chunk each some ten milliseconds.
            std::thread::sleep(Duration::from_secs(1));
            let backed = backed(&heap);
            assert!(backed >= TOUCHED, "{backed} bytes of {TOUCHED}");
        },
    );
}

/// A heap of 40 MiB whose cells have died, once the system has so much of its memory back that `most` bytes are left.
fn becomes_small(pre_touch: u64, most: usize) -> Heap {
    const CELLS: usize = 40_000;
    let heap = Heap::builder().reserve(256 << 20).pre_touch(pre_touch);
    let heap = heap.build().unwrap();
    let table = heap.kind(Kind::array("table", 0, Encoding::RAW)).unwrap();
    let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
    let mutator = heap.attach().unwrap();
    // SAFETY: the table is held by its handle, and the cells by the table; both are as large as what is written.
    unsafe {
        let table = mutator.alloc(table, CELLS * 8).unwrap();
        let root = mutator.raw_root(table).unwrap();
        for n in 0..CELLS {
            let cell = mutator.alloc(leaf, 1024).unwrap();
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
    // No collection is asked for: the collector gives back in its own time. One that does not is found to hang.
    while backed(&heap) > most {
        mutator.blocking(|| std::thread::sleep(Duration::from_millis(20)));
    }
    drop(mutator);
    heap
}

#[test]
fn what_an_idle_mutator_had_claimed_is_not_missed_at_the_limit() {
    hazard(
        "what_an_idle_mutator_had_claimed_is_not_missed_at_the_limit",
        "claims-kept",
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
                        // SAFETY: dies at once.
                        unsafe { m.alloc(k.leaf, 1024).unwrap() };
                    }
                    sit_idle(&m, &ready, &done);
                });
                let m = heap.attach().unwrap();
                let (mut list, mut cells) = (0usize, 0usize);
                let error = loop {
                    // In a heap of some size one claims more than it needs.
                    if cells == LIMIT / 2 / 1024 {
                        m.blocking(|| (ready.wait(), ready.wait()));
                    }
                    // SAFETY: the list's head is on the stack.
                    match unsafe { m.alloc(k.node, 1024) } {
                        // SAFETY: fresh; a cell's first words are an edge and a number.
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
                assert!(missed <= 256 << 10, "{missed} bytes are nobody's");
                std::hint::black_box(list);
            });
        },
    );
}
