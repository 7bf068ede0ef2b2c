//! Words that are overwritten while a cycle marks keep their cells, in each encoding: boxed words,
//! words past the end, and words that a trace function reports.
//!
//! A mutator moves objects from a table into handles and back while one collection follows another.
//! A handle that was scanned does not lead the marker to an object that is put into it later. Only
//! the barrier's log has that object.

mod common;

use common::{hazard, wipe_stack};
use gc_core::raw::Tracer;
use gc_core::raw::{Encoding, Kind, KindId, RawRoot};
use gc_core::{Heap, HeapBuilder, Mutator, Stress};
use std::ptr::NonNull;

const BOXED: Encoding = Encoding::nan_box(0xfffc << 48, 0xfffc << 48, (1 << 48) - 1);
const OBJECTS: usize = 256;
const BYTES: usize = 32;

/// How a word of the table encodes an object's address.
#[derive(Clone, Copy)]
struct Form {
    encode: fn(usize) -> usize,
    decode: fn(usize) -> usize,
}

const IN_A_BOX: Form = Form {
    encode: |address| address | 0xfffc << 48,
    decode: |word| word & ((1 << 48) - 1),
};
const ITS_END: Form = Form {
    encode: |address| address + BYTES,
    decode: |word| word - BYTES,
};

#[inline(never)]
fn fill(m: &Mutator, leaf: KindId, table: *mut usize, form: Form) {
    for i in 0..OBJECTS {
        // SAFETY: cells of the requested sizes; the table has a root. A cell lies between each two
        // objects: without a spare byte, a word past the end would keep that cell.
        unsafe {
            m.alloc_raw(leaf, BYTES).unwrap();
            let object = m.alloc_raw(leaf, BYTES).unwrap().as_ptr().cast::<usize>();
            object.write(i + 1);
            m.write(table.add(i), (form.encode)(object as usize));
        }
    }
}

/// Moves each object from the table into its handle, and clears the table's word.
#[inline(never)]
fn take(m: &Mutator, table: *mut usize, handles: &[RawRoot], form: Form) {
    for (i, handle) in handles.iter().enumerate() {
        // SAFETY: a word of the table, which names a live object.
        unsafe {
            let object = (form.decode)(table.add(i).read());
            handle.set(NonNull::new(object as *mut u8));
            m.write(table.add(i), 0);
        }
    }
}

/// Moves each object back into the table, and checks it.
#[inline(never)]
fn put_back(m: &Mutator, table: *mut usize, handles: &[RawRoot], form: Form) {
    for (i, handle) in handles.iter().enumerate() {
        let object = handle.get().unwrap().as_ptr().cast::<usize>();
        // SAFETY: a live object; where it is not, the test has found a fault.
        unsafe {
            assert_eq!(object.read(), i + 1, "object {i} was lost");
            m.write(table.add(i), (form.encode)(object as usize));
            handle.set(None);
        }
    }
}

/// Moves objects between the table and the handles until `collections` collections have ended.
fn moved(heap: HeapBuilder, table: Kind, form: Form, collections: u64) {
    let heap: Heap = heap
        .stress(Stress::CONTINUOUS)
        .reserve(1 << 30)
        .build()
        .unwrap();
    let table = heap.kind(table).unwrap();
    let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
    let m = heap.attach().unwrap();
    // SAFETY: a live cell, which gets a root at once.
    let table = unsafe { m.root_raw(m.alloc_raw(table, OBJECTS * 8).unwrap()) }.unwrap();
    let handles: Vec<RawRoot> = (0..OBJECTS).map(|_| table.try_clone().unwrap()).collect();
    for handle in &handles {
        // SAFETY: no cell is stored.
        unsafe { handle.set(None) };
    }
    let words = table.get().unwrap().as_ptr().cast::<usize>();
    fill(&m, leaf, words, form);
    wipe_stack();
    while heap.stats().collections < collections {
        take(&m, words, &handles, form);
        wipe_stack();
        for _ in 0..5_000 {
            // SAFETY: the cell is used here only. Its word shows where it was taken for an object.
            unsafe {
                m.alloc_raw(leaf, BYTES)
                    .unwrap()
                    .cast::<usize>()
                    .write(0xdddd)
            };
        }
        put_back(&m, words, &handles, form);
        wipe_stack();
    }
}

/// A boxed word of a conservative cell is logged by all encodings of the heap. With
/// `log-exact-only` planted, its object is freed.
#[test]
fn h25_boxed_words_of_a_conservative_cell_are_kept() {
    let name = "h25_boxed_words_of_a_conservative_cell_are_kept";
    hazard(name, "log-exact-only", || {
        let heap = Heap::builder().conservative(&[Encoding::RAW, BOXED]);
        moved(heap, Kind::conservative("any"), IN_A_BOX, 400);
    });
}

/// A word past the end of an object keeps the object, because of the spare byte. With
/// `no-spare-byte` planted, it keeps the next cell.
#[test]
fn h25_words_past_the_end_are_kept() {
    let name = "h25_words_past_the_end_are_kept";
    hazard(name, "no-spare-byte", || {
        let heap = Heap::builder().past_the_end(true);
        moved(heap, Kind::conservative("any"), ITS_END, 400);
    });
}

/// Reports each word of a cell as boxed.
///
/// # Safety
/// By the contract of `Kind::traced`.
unsafe fn trace(cell: *const u8, size: usize, tracer: &mut Tracer<'_>) {
    // SAFETY: the words of the whole cell.
    unsafe { tracer.edges(cell as usize..cell as usize + size, BOXED) }
}

/// A boxed word of a traced kind is logged in the encoding that the kind names.
#[test]
fn h25_boxed_words_of_a_traced_cell_are_kept() {
    // SAFETY: the function reports every word, in the encoding that the kind names.
    let kind = unsafe { Kind::traced_with("traced", trace, &[BOXED]) };
    moved(Heap::builder(), kind, IN_A_BOX, 100);
}

/// A mutator that attaches inside `blocking` of another heap has its marking flag set, so it logs
/// its stores. With `attach-once` planted, it does not, and objects are freed.
#[test]
fn h25_a_thread_that_attaches_inside_blocking_of_another_heap_logs_its_stores() {
    let name = "h25_a_thread_that_attaches_inside_blocking_of_another_heap_logs_its_stores";
    hazard(name, "attach-once", || {
        let other = Heap::builder().reserve(1 << 30).build().unwrap();
        let elsewhere = other.attach().unwrap();
        let heap = Heap::builder()
            .stress(Stress::CONTINUOUS)
            .reserve(1 << 30)
            .build()
            .unwrap();
        let table = heap.kind(Kind::array("table", 0, Encoding::RAW)).unwrap();
        let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
        let table = {
            let m = heap.attach().unwrap();
            // SAFETY: a live cell, which gets a root at once.
            unsafe { m.root_raw(m.alloc_raw(table, OBJECTS * 8).unwrap()) }.unwrap()
        };
        let words = table.get().unwrap().as_ptr().cast::<usize>();
        let handles: Vec<RawRoot> = (0..OBJECTS).map(|_| table.try_clone().unwrap()).collect();
        let plain = Form {
            encode: |address| address,
            decode: |word| word,
        };
        for _ in 0..200 {
            for handle in &handles {
                // SAFETY: no cell is stored.
                unsafe { handle.set(None) };
            }
            fill(&heap.attach().unwrap(), leaf, words, plain);
            wipe_stack();
            let m = elsewhere.blocking(|| heap.attach().unwrap());
            wipe_stack();
            take(&m, words, &handles, plain);
            wipe_stack();
            for _ in 0..20_000 {
                // SAFETY: the cell is used here only. Its word shows where it was taken for an
                // object.
                unsafe {
                    m.alloc_raw(leaf, BYTES)
                        .unwrap()
                        .cast::<usize>()
                        .write(0xdddd)
                };
            }
            put_back(&m, words, &handles, plain);
        }
    });
}
