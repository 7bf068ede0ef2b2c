//! Hazards of `gc-test-harness/HAZARDS.md` that need one heap only. Each test runs with its cure,
//! and with the cure switched off.

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

/// Words of a root range that name dead cells, holes, interior bytes or places outside the heap
/// mark nothing. With `trust-roots` planted, they do.
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
            // Lists that die, with live cells between them. Each stale word names one of: a dead
            // cell, the middle of one, a hole, a place beyond all spans, a place outside the heap.
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
            // SAFETY: the range and the limit outlive the guard.
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

/// A conservative word is tried as a plain address whatever encodings the heap has. With
/// `raw-if-asked` planted, the list is freed.
#[test]
fn h59_plain_addresses_are_tried_whatever_encodings_a_heap_is_given() {
    hazard(
        "h59_plain_addresses_are_tried_whatever_encodings_a_heap_is_given",
        "raw-if-asked",
        || {
            drop(gc_preempt::World::new(gc_preempt::Config::default())); // reads the planted faults
            let boxed = Encoding::nan_box(0xfffc << 48, 0xfffc << 48, 0xffff_ffff_ffff);
            for encodings in [&[boxed][..], &[], &[Encoding::low_bits(3), boxed]] {
                let builder = Heap::builder().reserve(1 << 30).conservative(encodings);
                let heap = builder.build().unwrap();
                let k = common::kinds(&heap);
                let m = heap.attach().unwrap();
                // The list's head is on this stack only, as a plain address.
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

/// Runs `most` collections. After four seconds it ends once a twentieth has run, for machines with
/// few processors. The pause lets the mutators run: a thread that is still parked would be stopped
/// where it was.
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

/// Runs threads that build and check lists while another thread collects.
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
                        // SAFETY: a live node; where it is not, the test has found a fault.
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

/// A stop marks the tail of each mutator's run, so cells that the mutator takes from it later live.
/// With `white-tails` planted, they are freed.
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

/// Cells that a mutator allocates from holes which it took before a collection live, because the
/// stop marks them. With `white-holes` planted, they are freed.
#[test]
fn h23_cells_allocated_from_holes_that_were_taken_before_a_collection_live() {
    let name = "h23_cells_allocated_from_holes_that_were_taken_before_a_collection_live";
    hazard(name, "white-holes", || {
        const KEPT: usize = 20_000;
        let (heap, k) = heap();
        let m = heap.attach().unwrap();
        // Every other cell lives, so each word of the bitmap has many holes.
        let kept = (0..KEPT).fold(0, |next, i| {
            cons(&m, k, 0, i);
            cons(&m, k, next, i)
        });
        m.collect();
        // Each collection finds holes of which the mutator has used some cells.
        let new = (0..KEPT / 4).fold(0, |next, i| {
            if i % 5 == 0 {
                m.collect();
            }
            cons(&m, k, next, i)
        });
        // The span is used up and swept, and its free cells are used again.
        for _ in 0..3 {
            garbage(&m, k, KEPT);
            m.collect();
        }
        garbage(&m, k, KEPT);
        check_list(kept, KEPT);
        check_list(new, KEPT / 4);
    });
}

/// Threads that are attached to two heaps collect both at the same time: a thread that waits for a
/// collection waits inside `blocking`. With `wait-running` planted, the test hangs.
#[test]
fn h29_collections_of_two_heaps_with_common_threads_do_not_wait_for_each_other() {
    // The test runs without signals: with them, a thread that waits outside `blocking` can still be
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

/// Allocates a cell, fills it and drops it, so that the next cell of this size gets its memory.
/// Sets `place` to 0 while the cell is written. Returns the complement of the cell's address, which
/// no scan takes for a reference.
#[inline(never)]
fn dirty(m: &gc_core::Mutator, k: common::Kinds, bytes: usize, place: &AtomicUsize) -> usize {
    // SAFETY: the cell stays on the stack until it is filled, and has `bytes` bytes.
    unsafe {
        let cell = m.alloc_raw(k.leaf, bytes).unwrap().as_ptr();
        assert_eq!(cell.add(bytes - 1).read(), 0);
        place.store(0, Relaxed);
        cell.write_bytes(1, bytes);
        !(cell as usize)
    }
}

/// A heap that collects on request only.
fn without_collections() -> Heap {
    Heap::builder()
        .gc_percent(u32::MAX)
        .reserve(1 << 30)
        .build()
        .unwrap()
}

/// Memory that was never touched is backed inside `blocking`, so a stop does not wait for it. With
/// `cold-touched` planted, no stop finds the thread in `blocking` while it allocates.
#[test]
fn h30_memory_that_was_never_touched_does_not_hold_up_stops() {
    hazard(
        "h30_memory_that_was_never_touched_does_not_hold_up_stops",
        "cold-touched",
        || {
            // Without collections, all memory that is allocated is new.
            let heap = without_collections();
            // Only waits while the thread allocates are counted: attaching, detaching and adding a
            // kind may wait for a stop inside `blocking` too.
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
                // The system needs longer to back the memory than the thread needs for everything
                // else, so the first stops find the thread waiting.
                for _ in 0..(384 << 20) / 4096 {
                    if found.load(Relaxed) {
                        break;
                    }
                    // SAFETY: a leaf, which is not used later.
                    unsafe { m.alloc_raw(leaf, 4096).unwrap().write(1) };
                }
                allocates.store(false, SeqCst);
                done.store(true, Relaxed);
            });
            assert!(
                found.load(Relaxed),
                "no stop found the thread waiting for memory"
            );
        },
    );
}

/// A large cell is cleared in pieces outside `no_preempt`, so a stop can fall between two pieces.
/// With `clear-inside` planted, no stop sees a cell that is half cleared.
#[test]
fn h30_a_large_clear_does_not_hold_up_stops() {
    hazard(
        "h30_a_large_clear_does_not_hold_up_stops",
        "clear-inside",
        || {
            // A collection would let stops happen too, so only the requested ones run.
            let heap = without_collections();
            let k = common::kinds(&heap);
            let bytes: usize = 192 << 20;
            // The complement of the address of the cell that is being cleared, so that it is no
            // root. And whether a stop has seen the cell half cleared: its first word 0, its last
            // word not.
            let (place, half) = (AtomicUsize::new(0), AtomicBool::new(false));
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    while !done.load(Relaxed) {
                        let look = |_: &gc_preempt::Stopped<'_>| {
                            let place = !place.load(Relaxed);
                            if place != !0 {
                                // SAFETY: memory of the heap's range, which is mapped also where no
                                // cell lies.
                                let [first, last] = [place, place + bytes - 8]
                                    .map(|at| unsafe { (at as *const usize).read_volatile() });
                                half.fetch_or(first == 0 && last != 0, Relaxed);
                            }
                        };
                        heap.with_stopped(look).unwrap();
                        // Lets the thread run. A thread that is still parked would be stopped again
                        // at once.
                        std::thread::sleep(Duration::from_micros(300));
                    }
                });
                let m = heap.attach().unwrap();
                // Many stops fall into one clear as a rule. A thread that had no processor for that
                // long tries again.
                for _ in 0..20 {
                    place.store(dirty(&m, k, bytes, &place), Relaxed);
                    if half.load(Relaxed) {
                        break;
                    }
                    wipe_stack();
                    m.collect();
                    m.collect(); // begins after the memory of the first has been swept
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

/// A root range is scanned up to the limit that is stored at the time of the scan. With
/// `cached-limit` planted, the scan uses the limit of the registration, and lists are freed.
#[test]
fn h34_a_root_range_is_scanned_to_its_limit_of_now() {
    hazard(
        "h34_a_root_range_is_scanned_to_its_limit_of_now",
        "cached-limit",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            // An interpreter's stack. Its limit is stored at calls and returns only; the stack's
            // top within a frame is not published.
            let stack: Box<[AtomicUsize]> = (0..4096).map(|_| AtomicUsize::new(0)).collect();
            let limit = AtomicUsize::new(stack.as_ptr() as usize);
            // SAFETY: the range and the limit outlive the guard.
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

/// Roots, ranges and callbacks may be added and removed at any time beside collections: tables
/// change under `no_preempt`. With `tables-unprotected` planted, a stop reads a table in the middle
/// of a change.
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
                            // SAFETY: the list is on the stack, and the range outlives the guard.
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

/// A vector that its owner changes and that a root callback reads.
struct Shared(UnsafeCell<Vec<usize>>);
// SAFETY: the callback reads the vector in stops only, and its owner changes it under `no_preempt`.
// The test is about this rule.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// A root callback may read a structure that its owner changes under `no_preempt` only. With
/// `vector-unprotected` planted, the owner changes it outside, and nodes are lost.
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
                        // SAFETY: the callback reads a vector that is changed under `no_preempt`,
                        // except with the fault planted.
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
                                // SAFETY: the vector of this thread; the callback reads it in stops
                                // only.
                                let vector = unsafe { &mut *vector.0.get() };
                                if planted("vector-unprotected") {
                                    // The steps of a vector that grows, with time for a stop
                                    // between them.
                                    let mut old = std::mem::take(vector);
                                    std::hint::black_box(&mut *vector);
                                    std::thread::yield_now();
                                    old.push(kept);
                                    *vector = old;
                                } else {
                                    // Malloc is called outside the section: code in `no_preempt`
                                    // must not wait for a lock.
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
                            // SAFETY: the vector of this thread.
                            let all = unsafe { &*vector.0.get() };
                            for (i, node) in all.iter().enumerate() {
                                // SAFETY: a live node; where it is not, the test has found a fault.
                                let number = unsafe { (*node as *const usize).add(1).read() };
                                assert_eq!(number, 1000 + i);
                            }
                            // SAFETY: the vector of this thread, which is changed under
                            // `no_preempt`.
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
