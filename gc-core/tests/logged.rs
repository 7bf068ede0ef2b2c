//! Words that are overwritten while a cycle marks keep their cells, in each encoding: boxed words,
//! words past the end, and words that a trace function reports.
//!
//! A mutator moves objects from a table into handles and back while one collection follows another.
//! A handle that was scanned does not lead the marker to an object that is put into it later. Only
//! the barrier's log has that object.

mod common;

use common::{cell, hazard, hazard_given, until, wipe_stack};
use gc_core::raw::Tracer;
use gc_core::raw::{Encoding, Kind, KindId, RawRoot};
use gc_core::{Heap, HeapBuilder, Mutator, Stress};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

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

/// Whether [`trace_late`] waits, and whether a marker is there.
static CLOSED: AtomicBool = AtomicBool::new(false);
static REACHED: AtomicBool = AtomicBool::new(false);

/// Reports the first word of a cell, once the test lets it: marking does not end before, and does
/// not reach what the cell leads to.
///
/// # Safety
/// By the contract of `Kind::traced`.
unsafe fn trace_late(cell: *const u8, _size: usize, tracer: &mut Tracer<'_>) {
    REACHED.store(true, SeqCst);
    until(|| !CLOSED.load(SeqCst));
    // SAFETY: the first word of the cell.
    unsafe { tracer.edges(cell as usize..cell as usize + 8, Encoding::RAW) }
}

/// A mutator that attaches inside `blocking` of another heap has its marking flag set, so it logs
/// its stores. With `attach-once` planted, it does not, and its object is freed. `held-attach`
/// holds it between the load of the heap's flag and the store of its own, while marking begins.
#[test]
fn h25_a_thread_that_attaches_inside_blocking_of_another_heap_logs_its_stores() {
    let name = "h25_a_thread_that_attaches_inside_blocking_of_another_heap_logs_its_stores";
    hazard_given(name, "held-attach", "attach-once", &[], || {
        let other = Heap::builder().reserve(1 << 30).build().unwrap();
        let elsewhere = other.attach().unwrap();
        let heap = Heap::builder().reserve(1 << 30).poison(true);
        // Mutators run beside the marker, though the heap is small.
        let heap = heap.stress(Stress::PHASES).build().unwrap();
        // SAFETY: the function reports every word that is an edge.
        let late = heap.kind(unsafe { Kind::traced("late", trace_late) });
        let array = heap.kind(Kind::array("array", 0, Encoding::RAW)).unwrap();
        let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
        let (holder, _late) = {
            let m = heap.attach().unwrap();
            // SAFETY: this stack leads to the cell.
            let new = |kind| unsafe { m.alloc_raw(kind, BYTES) }.unwrap().cast::<usize>();
            // SAFETY: words of live cells.
            unsafe {
                let (late, holder, object) = (new(late.unwrap()), new(array), new(leaf));
                object.write(7);
                m.write(holder.as_ptr(), object.as_ptr() as usize);
                m.write(late.as_ptr(), holder.as_ptr() as usize);
                (holder.as_ptr() as usize, m.root_raw(late.cast()).unwrap())
            }
        };
        let holder = holder as *mut usize;
        wipe_stack();
        let attaches = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let begin = || attaches.store(true, SeqCst);
                gc_preempt::faults::while_held(begin, || {
                    CLOSED.store(true, SeqCst);
                    heap.request_collection();
                    until(|| REACHED.load(SeqCst));
                });
            });
            until(|| attaches.load(SeqCst));
            let m = elsewhere.blocking(|| heap.attach().unwrap());
            // SAFETY: a word of a live cell, which names a live object.
            let object = unsafe {
                let object = m.root_raw(cell(holder.read())).unwrap();
                m.write(holder, 0);
                object
            };
            wipe_stack();
            CLOSED.store(false, SeqCst);
            // The stack of a mutator is scanned in a cycle's first stop, which the attaching thread
            // did not take part in.
            m.collect();
            let word = object.get().unwrap().cast::<usize>();
            // SAFETY: a live object; where it is not, the test has found a fault.
            assert_eq!(unsafe { word.read() }, 7, "the object was lost");
        });
    });
}
