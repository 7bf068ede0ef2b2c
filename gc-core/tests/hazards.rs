//! The hazards of `gc-test-harness/HAZARDS.md` that a heap can meet by itself: each test runs as it
//! is, and again with its cure taken out.

mod common;

use common::{check_list, cons, garbage, hazard, heap, list, wipe_stack};
use gc_core::Heap;
use gc_core::raw::Encoding;
use gc_preempt::faults::planted;
use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

#[test]
fn h22_stale_words_in_a_root_range_mark_nothing() {
    hazard(
        "h22_stale_words_in_a_root_range_mark_nothing",
        "trust-roots",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            let range: Box<[AtomicUsize]> = (0..1024).map(|_| AtomicUsize::new(0)).collect();
            let limit = AtomicUsize::new(range.as_ptr_range().end as usize);
            // Lists that die, some cells alive between them, and every stale word one of: a dead
            // cell, the middle of one, a hole, a place beyond all spans, a place outside of the
            // heap.
            std::thread::scope(|s| {
                let (heap, range) = (&heap, &range);
                s.spawn(move || {
                    let m = heap.attach().unwrap();
                    for (i, slot) in range.iter().enumerate() {
                        let cell = list(&m, k, 5);
                        slot.store(cell + [0, 8, 1 << 22, 1 << 29, 1 << 45][i % 5], Relaxed);
                    }
                });
            });
            let kept = list(&m, k, 100);
            m.collect();
            // SAFETY: outlived by both.
            let _guard = unsafe {
                m.root_range(range.as_ptr().cast(), &limit, Encoding::RAW)
                    .expect("room for a range")
            };
            m.collect();
            let live = heap.stats().last.cells_live;
            assert!((100..110).contains(&live), "{live} cells alive");
            garbage(&m, k, 1000);
            check_list(kept, 100);
        },
    );
}

#[test]
fn h59_plain_addresses_are_tried_whatever_encodings_a_heap_is_given() {
    hazard(
        "h59_plain_addresses_are_tried_whatever_encodings_a_heap_is_given",
        "raw-if-asked",
        || {
            drop(gc_preempt::World::new(gc_preempt::Config::default())); // reads which faults are planted
            let boxed = Encoding::nan_box(0xfffc << 48, 0xfffc << 48, 0xffff_ffff_ffff);
            for encodings in [&[boxed][..], &[], &[Encoding::low_bits(3), boxed]] {
                let builder = Heap::builder().reserve(1 << 30).conservative(encodings);
                let heap = builder.build().unwrap();
                let k = common::kinds(&heap);
                let m = heap.attach().unwrap();
                // On this stack, as it is, and nowhere else.
                let kept = list(&m, k, 100_000);
                for _ in 0..3 {
                    m.collect();
                    garbage(&m, k, 20_000);
                }
                check_list(std::hint::black_box(kept), 100_000);
            }
        },
    );
}

/// So many collections, or fewer where the collector has to share one processor with all the test's
/// threads and others besides. The pause between two lets the threads run: one that is still parked
/// would be found where it was.
fn collect(heap: &Heap, most: u64, pause: Duration) {
    let end = Instant::now() + Duration::from_secs(4);
    for n in 0..most {
        if n > most / 20 && Instant::now() > end {
            return;
        }
        heap.collect();
        std::thread::sleep(pause);
    }
}

/// Threads that build and check lists while another collects.
fn lists_under_collection(heap: &Heap, k: common::Kinds, collections: u64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for thread in 1..=3 {
            let (heap, done) = (&heap, &done);
            s.spawn(move || {
                let m = heap.attach().unwrap();
                let mut n = 1;
                while !done.load(Relaxed) {
                    // Numbers that no other list has.
                    let first = thread << 40 | n << 20;
                    let mut at = (0..n).fold(0, |next, i| cons(&m, k, next, first + i));
                    for i in (0..n).rev() {
                        // SAFETY: a live node, or the test fails.
                        let (next, number) = unsafe { (at as *const (usize, usize)).read() };
                        assert_eq!(number, first + i, "a live cell was handed out again");
                        at = next;
                    }
                    n = n * 7 % 40_000 + 5_000;
                }
            });
        }
        collect(heap, collections, Duration::from_micros(300));
        done.store(true, Relaxed);
    });
}

#[test]
fn h23_h26_cells_allocated_from_a_run_that_a_collection_interrupted_live() {
    hazard(
        "h23_h26_cells_allocated_from_a_run_that_a_collection_interrupted_live",
        "white-tails",
        || {
            let (heap, k) = heap();
            lists_under_collection(&heap, k, 300);
        },
    );
}

#[test]
fn h23_cells_allocated_from_holes_that_were_taken_before_a_collection_live() {
    let name = "h23_cells_allocated_from_holes_that_were_taken_before_a_collection_live";
    hazard(name, "white-holes", || {
        const KEPT: usize = 20_000;
        let (heap, k) = heap();
        let m = heap.attach().unwrap();
        // Every second cell lives, so that each word of the bitmap has many holes.
        let kept = (0..KEPT).fold(0, |next, i| {
            cons(&m, k, 0, i);
            cons(&m, k, next, i)
        });
        m.collect();
        // Each collection meets holes of which some cells have been allocated and others have not.
        let new = (0..KEPT / 4).fold(0, |next, i| {
            if i % 5 == 0 {
                m.collect();
            }
            cons(&m, k, next, i)
        });
        // The span is used up and swept, and what is free in it is used again.
        for _ in 0..3 {
            garbage(&m, k, KEPT);
            m.collect();
        }
        garbage(&m, k, KEPT);
        check_list(kept, KEPT);
        check_list(new, KEPT / 4);
    });
}

#[test]
fn h29_collections_of_two_heaps_with_common_threads_do_not_wait_for_each_other() {
    // Without signals, since with them a thread that waits outside of `blocking` can still be
    // stopped.
    common::is_child().then(|| assert_eq!(std::env::var("URGE_ASYNC").as_deref(), Ok("0")));
    let name = "h29_collections_of_two_heaps_with_common_threads_do_not_wait_for_each_other";
    common::hazard_with(name, "wait-running", &[("URGE_ASYNC", "0")], || {
        let (a, ka) = heap();
        let (b, kb) = heap();
        std::thread::scope(|s| {
            for i in 0..4 {
                let (a, b) = (&a, &b);
                s.spawn(move || {
                    let (ma, mb) = (a.attach().unwrap(), b.attach().unwrap());
                    for _ in 0..50 {
                        let (la, lb) = (list(&ma, ka, 50), list(&mb, kb, 60));
                        if i % 2 == 0 {
                            ma.collect()
                        } else {
                            mb.collect()
                        };
                        check_list(la, 50);
                        check_list(lb, 60);
                    }
                });
            }
        });
    });
}

/// Allocates so many bytes, fills them, and forgets them: their memory is what the next ones get.
/// The complement of their address; `place`, which had that of the last ones, is null while they
/// are written.
#[inline(never)]
fn dirty(m: &gc_core::Mutator, k: common::Kinds, bytes: usize, place: &AtomicUsize) -> usize {
    // SAFETY: on the stack until it is filled.
    unsafe {
        let cell = m.alloc_raw(k.leaf, bytes).unwrap().as_ptr();
        assert_eq!(cell.add(bytes - 1).read(), 0);
        place.store(0, Relaxed);
        cell.write_bytes(1, bytes);
        !(cell as usize)
    }
}

/// A heap that collects when it is asked to and else never.
fn without_collections() -> Heap {
    Heap::builder()
        .gc_percent(u32::MAX)
        .reserve(1 << 30)
        .build()
        .unwrap()
}

#[test]
fn h30_memory_that_was_never_touched_does_not_hold_up_stops() {
    hazard(
        "h30_memory_that_was_never_touched_does_not_hold_up_stops",
        "cold-touched",
        || {
            // Without collections all that is allocated is new.
            let heap = without_collections();
            // Only while it allocates: who attaches, detaches or adds a kind may wait for a stop in
            // `blocking`, too.
            let allocates = AtomicBool::new(false);
            let (found, done) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    while !done.load(Relaxed) && !found.load(Relaxed) {
                        let look = |stopped: &gc_preempt::Stopped<'_>| {
                            let waits = stopped.mutators().any(|m| m.is_blocked());
                            found.fetch_or(waits && allocates.load(SeqCst), Relaxed);
                        };
                        heap.with_stopped(look).unwrap();
                        std::thread::sleep(Duration::from_micros(100));
                    }
                });
                let m = heap.attach().unwrap();
                let leaf = heap.kind(gc_core::raw::Kind::leaf("page")).unwrap();
                allocates.store(true, SeqCst);
                // The system takes longer for the memory than the thread for all else, so that the
                // first stops meet it there.
                for _ in 0..(384 << 20) / 4096 {
                    if found.load(Relaxed) {
                        break;
                    }
                    // SAFETY: a leaf, which is not kept.
                    unsafe { m.alloc_raw(leaf, 4096).unwrap().write(1) };
                }
                allocates.store(false, SeqCst);
                done.store(true, Relaxed);
            });
            assert!(
                found.load(Relaxed),
                "no stop has met the thread where it waits for memory"
            );
        },
    );
}

#[test]
fn h30_a_large_clear_does_not_hold_up_stops() {
    hazard(
        "h30_a_large_clear_does_not_hold_up_stops",
        "clear-inside",
        || {
            // Collections would let stops happen too: none but those asked for.
            let heap = without_collections();
            let k = common::kinds(&heap);
            let bytes: usize = 192 << 20;
            // The complement of the object that is being cleared, lest it be a root; and whether a
            // stop has seen it half cleared: its first word null, its last one not.
            let (place, half) = (AtomicUsize::new(0), AtomicBool::new(false));
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    while !done.load(Relaxed) {
                        let look = |_: &gc_preempt::Stopped<'_>| {
                            let place = !place.load(Relaxed);
                            if place != !0 {
                                // SAFETY: memory of the heap, which is mapped whether it is a
                                // cell's or not.
                                let [first, last] = [place, place + bytes - 8]
                                    .map(|at| unsafe { (at as *const usize).read_volatile() });
                                half.fetch_or(first == 0 && last != 0, Relaxed);
                            }
                        };
                        heap.with_stopped(look).unwrap();
                        // Lets the thread run: one that is still parked would be stopped again at
                        // once.
                        std::thread::sleep(Duration::from_micros(300));
                    }
                });
                let m = heap.attach().unwrap();
                // As a rule the second clear is met a hundred times; one that had no processor for
                // that long is tried again.
                for _ in 0..20 {
                    place.store(dirty(&m, k, bytes, &place), Relaxed);
                    if half.load(Relaxed) {
                        break;
                    }
                    wipe_stack();
                    m.collect();
                    m.collect(); // has swept what the one before has freed
                }
                done.store(true, Relaxed);
                assert!(
                    half.load(Relaxed),
                    "no stop while {bytes} bytes were cleared"
                );
            });
        },
    );
}

#[test]
fn h34_a_root_range_is_scanned_to_its_limit_of_now() {
    hazard(
        "h34_a_root_range_is_scanned_to_its_limit_of_now",
        "cached-limit",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            // An interpreter's stack: the frame's limit is published on call and return; tops
            // within the frame are nobody's business.
            let stack: Box<[AtomicUsize]> = (0..4096).map(|_| AtomicUsize::new(0)).collect();
            let limit = AtomicUsize::new(stack.as_ptr() as usize);
            // SAFETY: outlived by both.
            let _guard = unsafe {
                m.root_range(stack.as_ptr().cast(), &limit, Encoding::RAW)
                    .expect("room for a range")
            };
            fn call(
                m: &gc_core::Mutator,
                k: common::Kinds,
                stack: &[AtomicUsize],
                limit: &AtomicUsize,
                depth: usize,
            ) {
                let (frame, rest) = stack.split_at(16);
                limit.store(rest.as_ptr() as usize, Relaxed);
                for (i, slot) in frame.iter().enumerate().step_by(3) {
                    slot.store(list(m, k, 20 + i), Relaxed);
                }
                wipe_stack();
                if depth > 0 {
                    call(m, k, rest, limit, depth - 1);
                } else {
                    m.collect();
                    garbage(m, k, 5000);
                }
                for (i, slot) in frame.iter().enumerate().step_by(3) {
                    check_list(slot.load(Relaxed), 20 + i);
                }
                limit.store(frame.as_ptr() as usize, Relaxed);
            }
            call(&m, k, &stack, &limit, 100);
        },
    );
}

#[test]
fn h35_root_tables_may_change_at_any_time() {
    hazard(
        "h35_root_tables_may_change_at_any_time",
        "tables-unprotected",
        || {
            let (heap, k) = heap();
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        let m = heap.attach().unwrap();
                        let kept = list(&m, k, 30);
                        let (base, limit) = ([AtomicUsize::new(kept)], AtomicUsize::new(0));
                        limit.store(base.as_ptr_range().end as usize, Relaxed);
                        while !done.load(Relaxed) {
                            // SAFETY: the list is on the stack; the range outlives the guard.
                            unsafe {
                                let root = m.root_raw(common::cell(kept)).unwrap();
                                drop(root.try_clone().unwrap());
                                drop(
                                    m.root_range(base.as_ptr().cast(), &limit, Encoding::RAW)
                                        .expect("room for a range"),
                                );
                            }
                            std::hint::black_box(cons(&m, k, kept, 0));
                        }
                        check_list(kept, 30);
                    });
                }
                collect(&heap, 2000, Duration::ZERO);
                done.store(true, Relaxed);
            });
        },
    );
}

/// A vector that its owner changes and a root callback reads.
struct Shared(UnsafeCell<Vec<usize>>);
// SAFETY: the callback reads it in stops only, and its owner changes it under `no_preempt`: that is
// what the test is about.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

#[test]
fn h35_a_callback_reads_what_is_changed_under_no_preempt() {
    hazard(
        "h35_a_callback_reads_what_is_changed_under_no_preempt",
        "vector-unprotected",
        || {
            let (heap, k) = heap();
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                for _ in 0..2 {
                    s.spawn(|| {
                        let m = heap.attach().unwrap();
                        let vector = Arc::new(Shared(UnsafeCell::new(Vec::new())));
                        let theirs = vector.clone();
                        // SAFETY: reads a vector that is changed under `no_preempt` (or not, if the
                        // fault is planted).
                        let _guard = unsafe {
                            heap.add_root_callback(move |v| {
                                let vector = &*theirs.0.get();
                                v.words(vector, Encoding::RAW);
                            })
                            .expect("room for a callback")
                        };
                        while !done.load(Relaxed) {
                            for i in 0..200 {
                                let kept = cons(&m, k, 0, 1000 + i);
                                garbage(&m, k, 20);
                                // SAFETY: this thread's; the callback reads it in stops only.
                                let vector = unsafe { &mut *vector.0.get() };
                                if planted("vector-unprotected") {
                                    // What a vector does when it grows, drawn out.
                                    let mut old = std::mem::take(vector);
                                    std::hint::black_box(&mut *vector);
                                    std::thread::yield_now();
                                    old.push(kept);
                                    *vector = old;
                                } else {
                                    // Malloc is called outside of the section, which may not wait
                                    // for anything.
                                    let mut next = Vec::with_capacity(i + 1);
                                    let old = m.no_preempt(|| {
                                        next.extend_from_slice(vector);
                                        next.push(kept);
                                        std::mem::replace(vector, next)
                                    });
                                    drop(old);
                                }
                            }
                            wipe_stack();
                            // SAFETY: this thread's.
                            let all = unsafe { &*vector.0.get() };
                            for (i, node) in all.iter().enumerate() {
                                // SAFETY: a live node, or the test fails.
                                let number = unsafe { (*node as *const usize).add(1).read() };
                                assert_eq!(number, 1000 + i);
                            }
                            // SAFETY: this thread's.
                            m.no_preempt(|| unsafe { (*vector.0.get()).clear() });
                        }
                    });
                }
                collect(&heap, 400, Duration::from_micros(300));
                done.store(true, Relaxed);
            });
        },
    );
}
