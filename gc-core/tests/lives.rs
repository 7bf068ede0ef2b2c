//! Mutators that end at unusual places: at the end of their thread, late in it, or inside sections;
//! and threads that are attached to a world without a mutator.

mod common;

use common::{check_list, garbage, heap, list};
use gc_core::{Mutator, Stress};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Runs threads that attach, use the heap and check that a stop finds their mutators, while `end`
/// ends mutators on other threads.
fn beside(end: impl Fn(&gc_core::Heap) + Sync) {
    let (heap, k) = heap();
    let done = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !done.load(Relaxed) {
                    let thread = s.spawn(|| {
                        let m = heap.attach().unwrap();
                        for _ in 0..20 {
                            let kept = list(&m, k, 200);
                            m.collect();
                            garbage(&m, k, 20);
                            check_list(kept, 200);
                        }
                        // This thread may have waited for two collections, on a busy machine.
                        let last = heap.stats().last;
                        assert!(
                            last.mutators + last.aside >= 1,
                            "a mutator that lives was neither stopped nor aside"
                        );
                    });
                    thread.join().unwrap();
                    rounds.fetch_add(1, Relaxed);
                }
            });
        }
        while rounds.load(Relaxed) < 30 {
            std::thread::scope(|s| s.spawn(|| end(&heap)).join().unwrap());
        }
        done.store(true, Relaxed);
    });
    heap.collect();
}

/// The end of a thread detaches a mutator that was leaked, and no other mutator.
#[test]
fn a_leaked_mutator_takes_only_its_own_thread_along() {
    beside(|heap| std::mem::forget(heap.attach().unwrap()));
}

/// A mutator in a thread-local variable that is destroyed after the thread has detached takes no
/// other mutator along.
#[test]
fn a_mutator_in_a_thread_local_takes_only_its_own_thread_along() {
    thread_local! {
        static LATE: RefCell<Option<Mutator>> = const { RefCell::new(None) };
    }
    beside(|heap| {
        // The cell's destructor is registered before the one that attaching registers, so it runs
        // after that one.
        LATE.with(|late| *late.borrow_mut() = Some(heap.attach().unwrap()));
    });
}

/// A mutator that is dropped inside `blocking` is detached there. One that is dropped inside
/// `no_preempt` is detached by the next attach, or at the thread's end.
#[test]
fn a_mutator_dropped_inside_a_section_detaches_there_or_at_the_next_attach_or_the_threads_end() {
    beside(|heap| {
        let m = heap.attach().unwrap();
        gc_preempt::blocking_here(move || drop(m));
        drop(heap.attach().unwrap());
    });
    beside(|heap| {
        let m = heap.attach().unwrap();
        gc_preempt::no_preempt_here(move || drop(m));
        drop(heap.attach().unwrap());
    });
    beside(|heap| {
        let m = heap.attach().unwrap();
        gc_preempt::no_preempt_here(move || drop(m));
    });
}

/// A thread that is attached to the heap's world without a mutator is stopped and scanned, and its
/// null data are not taken for a record.
#[test]
fn a_thread_attached_past_the_heap_is_stopped_and_its_data_not_believed() {
    let (heap, k) = heap();
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let _stranger = heap.world().attach(std::ptr::null_mut()).unwrap();
            ready.store(true, Relaxed);
            while !done.load(Relaxed) {
                std::hint::spin_loop();
            }
        });
        let m = heap.attach().unwrap();
        let kept = list(&m, k, 100);
        while !ready.load(Relaxed) {
            std::thread::yield_now();
        }
        m.collect();
        assert_eq!(heap.stats().last.mutators, 2);
        check_list(kept, 100);
        done.store(true, Relaxed);
    });
}

/// Requests that do not wait are allowed at any place: in a mutator, inside `no_preempt`, and in
/// reports of external memory.
#[test]
fn requests_that_do_not_wait_come_from_anywhere_at_any_time() {
    let (heap, k) = heap();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let m = heap.attach().unwrap();
                let kept = list(&m, k, 50);
                for _ in 0..2000 {
                    heap.request_collection();
                    m.no_preempt(|| heap.request_collection());
                    m.report_external(4 << 20);
                    m.report_external(-(4 << 20));
                }
                check_list(kept, 50);
            });
        }
    });
    // On a busy machine the collector may not have run yet. The requested collection comes.
    while heap.stats().collections == 0 {
        std::thread::yield_now();
    }
}

/// A mutator that is dropped inside `blocking` of another heap gives its runs back and is detached.
/// With `blocking-stays-attached` planted, it stays attached.
#[test]
fn h60_a_mutator_that_is_dropped_inside_blocking_of_another_heap_is_detached() {
    common::hazard(
        "h60_a_mutator_that_is_dropped_inside_blocking_of_another_heap_is_detached",
        "blocking-stays-attached",
        || {
            let (a, b) = (common::heap(), common::heap());
            let outer = a.0.attach().unwrap();
            // Cycles of the second heap run at any place of this loop.
            let done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        b.0.collect();
                    }
                });
                for _ in 0..200 {
                    outer.blocking(|| {
                        for _ in 0..2 {
                            let inner = b.0.attach().unwrap();
                            drop(inner);
                        }
                    });
                    let inner = b.0.attach().unwrap();
                    let kept = common::list(&inner, b.1, 1000);
                    outer.blocking(|| ());
                    common::check_list(kept, 1000);
                    // The runs go back while the thread counts as stopped.
                    outer.blocking(|| drop(inner));
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            drop(b);
            outer.collect();
        },
    );
}

/// A mutator that is dropped inside `no_preempt` is detached by the next attach to its heap.
#[test]
fn h60_a_mutator_that_is_dropped_inside_no_preempt_is_detached_by_the_next_attach() {
    let (a, b) = (common::heap(), common::heap());
    let outer = a.0.attach().unwrap();
    let mut inner = Some(b.0.attach().unwrap());
    for _ in 0..3 {
        outer.no_preempt(|| drop(inner.take()));
        b.0.collect();
        inner = Some(b.0.attach().unwrap());
        let kept = common::list(inner.as_ref().unwrap(), b.1, 1000);
        b.0.collect();
        common::check_list(kept, 1000);
        assert_eq!(b.0.stats().last.mutators, 1);
    }
    assert!(b.0.attach().is_err(), "one is attached");
}

/// With `poison(true)`, freed cells are filled, so a read through a lost root shows. Without the
/// filling (`unpoisoned`), the old content is still there.
#[test]
fn h63_a_lost_root_shows_at_the_next_read_where_freed_cells_are_filled() {
    common::hazard(
        "h63_a_lost_root_shows_at_the_next_read_where_freed_cells_are_filled",
        "unpoisoned",
        || {
            let builder = gc_core::Heap::builder().reserve(1 << 30).poison(true);
            let heap = builder.stress(Stress::every(1)).build().unwrap();
            let m = heap.attach().unwrap();
            let k = common::kinds(&heap);
            // The vector is not scanned. Most cells are small, and some are large objects.
            let mut lost = Vec::new();
            for i in 0..100 {
                let bytes = if i % 10 == 9 { 100_000 } else { 64 };
                // SAFETY: the cell is lost on purpose.
                let cell = unsafe { m.alloc_raw(k.leaf, bytes) }.unwrap().as_ptr() as usize;
                // SAFETY: a new cell of at least eight words.
                unsafe { (cell as *mut usize).add(1).write(i) };
                lost.push(cell ^ usize::MAX);
            }
            common::wipe_stack();
            m.collect();
            let found = |cell: &&usize| {
                // SAFETY: memory of the heap's range, which stays mapped.
                let word = unsafe {
                    ((*cell ^ usize::MAX) as *const usize)
                        .add(1)
                        .read_volatile()
                };
                word == gc_core::POISON
            };
            // Stale words on the stack may keep the last cells.
            let filled = lost.iter().filter(found).count();
            assert!(filled > 80, "{filled} of 100");
        },
    );
}
