//! What a heap keeps of the system's memory when nobody uses it any more.

mod common;

use std::time::Duration;

use common::hazard;
use gc_core::{Encoding, Heap, Kind};

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
        becomes_small,
    );
}

fn becomes_small() {
    const CELLS: usize = 40_000;
    let heap = Heap::builder().reserve(256 << 20).build().unwrap();
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
    while backed(&heap) > 12 << 20 {
        mutator.blocking(|| std::thread::sleep(Duration::from_millis(20)));
    }
}
