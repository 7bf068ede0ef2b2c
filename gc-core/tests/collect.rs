//! A collection keeps reachable cells, frees all others, and answers each request for it.

mod common;

use common::{cell, check_list, cons, garbage, hazard, heap, kinds, list, wipe_stack};
use gc_core::raw::{Encoding, Kind};
use gc_core::{AllocError, AttachError, BuildError, Heap, Stress, Young};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

/// A list that the stack holds lives through a collection; at most a hundred other cells do.
#[test]
fn what_the_stack_holds_stays_and_the_rest_goes() {
    let (heap, k) = heap();
    let m = heap.attach().unwrap();
    let kept = list(&m, k, 1000);
    garbage(&m, k, 1000);
    wipe_stack();
    assert_eq!(m.collect(), 1);
    let last = heap.stats().last;
    assert_eq!((last.number, last.mutators), (1, 1));
    assert!((1000..1100).contains(&last.cells_live), "{last:?}");
    garbage(&m, k, 2000);
    check_list(kept, 1000);
}

/// Cells that collections freed are allocated again: memory in use stays below 4 MiB.
#[test]
fn freed_cells_are_handed_out_again() {
    let (heap, k) = heap();
    let m = heap.attach().unwrap();
    for _ in 0..50 {
        garbage(&m, k, 5000);
        m.collect();
    }
    let stats = heap.stats();
    assert!(stats.used_bytes < 4 << 20, "{stats:?}");
    assert!(stats.allocated_total >= 50 * 5000 * 10 * 16, "{stats:?}");
    assert!(stats.cells_freed >= 49 * 5000 * 10, "{stats:?}");
    assert_eq!(stats.collections, 50);
}

/// Once sweeping is over, the bytes of dead cells no longer count as used.
#[test]
fn when_sweeping_is_over_what_was_freed_is_free() {
    // Mark bits that are cleared after a cycle, and sticky mark bits.
    for when in [Young::Never, Young::Always] {
        let heap = Heap::builder().gc_percent(u32::MAX).young_collections(when);
        let heap = heap.build().unwrap();
        let (k, m) = (kinds(&heap), heap.attach().unwrap());
        for _ in 0..5 {
            garbage(&m, k, 100_000);
            assert!(heap.stats().used_bytes >= 15 << 20);
            wipe_stack();
            m.collect();
            while heap.stats().sweeping {
                std::thread::yield_now();
            }
            let used = heap.stats().used_bytes;
            assert!(used < 1 << 20, "{used} bytes");
        }
    }
}

/// The counts of freed cells and allocated bytes are exact to a few cells, also where much may be
/// allocated before the next collection.
#[test]
fn a_collection_counts_every_cell_of_a_heap_that_may_grow_large() {
    let heap = Heap::builder().gc_percent(100_000).build().unwrap();
    let (k, m) = (kinds(&heap), heap.attach().unwrap());
    let kept = list(&m, k, 20_000);
    m.collect();
    let before = heap.stats();
    garbage(&m, k, 1000);
    wipe_stack();
    m.collect();
    check_list(kept, 20_000);
    let stats = heap.stats();
    let freed = stats.last.cells_freed;
    assert!((9_900..10_100).contains(&freed), "{freed} of 10,000");
    let total = stats.allocated_total - before.allocated_total;
    assert!((150_000..170_000).contains(&total), "{total} of 160,000");
}

/// A heap collects without a request once it has grown to its goal.
#[test]
fn a_heap_collects_by_itself_when_it_has_grown() {
    let (heap, k) = heap();
    let m = heap.attach().unwrap();
    let kept = list(&m, k, 10_000);
    garbage(&m, k, 200_000);
    let stats = heap.stats();
    assert!(stats.collections >= 3, "{stats:?}");
    assert!(stats.used_bytes < 16 << 20, "{stats:?}");
    check_list(kept, 10_000);
}

/// Raw roots keep their cells without an attached thread, also after they were cloned, set to
/// nothing or dropped.
#[test]
fn handles_keep_cells_from_anywhere() {
    let (heap, k) = heap();
    let roots: Vec<_> = std::thread::scope(|s| {
        s.spawn(|| {
            let m = heap.attach().unwrap();
            // SAFETY: each list's head is on the stack when it gets its root.
            (1..=20)
                .map(|n| unsafe { m.root_raw(cell(list(&m, k, n))).unwrap() })
                .collect()
        })
        .join()
        .unwrap()
    });
    // This thread is not attached. Roots do not need that.
    heap.collect();
    assert_eq!(heap.stats().last.cells_live, (1..=20).sum::<u64>());
    let copies: Vec<_> = roots.iter().map(|r| r.try_clone().unwrap()).collect();
    drop(roots);
    heap.collect();
    for (i, root) in copies.iter().enumerate() {
        check_list(root.get().unwrap().as_ptr() as usize, i + 1);
    }
    // SAFETY: no cell is stored.
    unsafe { copies[19].set(None) };
    assert_eq!(copies[19].get(), None);
    heap.collect();
    assert_eq!(heap.stats().last.cells_live, (1..=19).sum::<u64>());
    drop(copies);
    heap.collect();
    assert_eq!(heap.stats().last.cells_live, 0);
}

/// Words of a root range below its limit, and words that a root callback reports, keep cells until
/// the guard is dropped.
#[test]
fn root_ranges_and_callbacks_are_scanned_while_they_are_declared() {
    let (heap, k) = heap();
    let tag = Encoding::low_bits(3);
    let range: Box<[AtomicUsize]> = (0..64).map(|_| AtomicUsize::new(0)).collect();
    let limit = AtomicUsize::new(range.as_ptr_range().start as usize);
    let table = Arc::new(AtomicUsize::new(0));
    let filler = |slot: &AtomicUsize, tag: usize, n: usize| {
        std::thread::scope(|s| {
            s.spawn(|| {
                let m = heap.attach().unwrap();
                slot.store(list(&m, k, n) | tag, Relaxed);
            });
        });
    };
    let m = heap.attach().unwrap();
    // SAFETY: the range and the limit outlive the guard.
    let guard = unsafe {
        m.root_range(range.as_ptr().cast(), &limit, tag)
            .expect("room for a range")
    };
    let theirs = table.clone();
    // SAFETY: the callback reads one atomic word.
    let callback = unsafe {
        heap.add_root_callback(move |v| v.word(theirs.load(Relaxed), Encoding::RAW))
            .expect("room for a callback")
    };
    m.blocking(|| {
        filler(&range[3], 5, 30);
        filler(&range[4], 7, 100);
        filler(&table, 0, 50);
    });
    limit.store(range[4].as_ptr() as usize, Relaxed); // word 4 is beyond the limit
    wipe_stack();
    m.collect();
    assert_eq!(heap.stats().last.cells_live, 80);
    check_list(range[3].load(Relaxed) & !7, 30);
    check_list(table.load(Relaxed), 50);
    drop(callback);
    drop(m); // the stack of a thread without a mutator is not scanned
    heap.collect();
    assert_eq!(heap.stats().last.cells_live, 30);
    drop(guard);
    heap.collect();
    assert_eq!(heap.stats().last.cells_live, 0);
}

/// Collections of one heap leave the cells of another alone, where one thread is attached to both.
#[test]
fn two_heaps_on_one_thread_are_collected_apart() {
    let (a, ka) = heap();
    let (b, kb) = heap();
    let (ma, mb) = (a.attach().unwrap(), b.attach().unwrap());
    let la = list(&ma, ka, 500);
    let lb = list(&mb, kb, 700);
    for _ in 0..10 {
        garbage(&ma, ka, 1000);
        garbage(&mb, kb, 1000);
        ma.collect();
        mb.collect();
    }
    check_list(la, 500);
    check_list(lb, 700);
    assert_eq!((a.stats().collections, b.stats().collections), (10, 10));
    drop(ma);
    check_list(lb, 700);
    mb.collect();
    check_list(lb, 700);
}

/// Large cells keep their content while they live, and their memory is used again after they died.
#[test]
fn large_cells_live_and_die_too() {
    let (heap, k) = heap();
    let m = heap.attach().unwrap();
    let words = 100_000;
    // SAFETY: the array is on the stack, and has `words` words.
    let array = unsafe {
        m.alloc_raw(k.array, words * 8)
            .unwrap()
            .as_ptr()
            .cast::<usize>()
    };
    for i in 0..words {
        // SAFETY: a word of the array, which is zero at first and alive.
        unsafe {
            assert_eq!(array.add(i).read(), 0);
            m.write(array.add(i), cons(&m, k, 0, i));
        }
    }
    for _ in 0..20 {
        // SAFETY: the cell is used here only, and has 3 MiB.
        unsafe {
            m.alloc_raw(k.leaf, 3 << 20)
                .unwrap()
                .as_ptr()
                .write_bytes(0xee, 3 << 20)
        };
        m.collect();
    }
    for i in 0..words {
        // SAFETY: a word of the array, which is alive, and the node that it names.
        unsafe { assert_eq!((array.add(i).read() as *const usize).add(1).read(), i) };
    }
    assert!(heap.stats().used_bytes < 32 << 20, "{:?}", heap.stats());
}

/// A heap at its hard limit returns an error value, after collections that found no room. Once the
/// cells are dead, allocation succeeds again.
#[test]
fn a_full_heap_is_an_error_after_collections_and_good_again_afterwards() {
    let heap = Heap::builder()
        .hard_limit(8 << 20)
        .reserve(1 << 30)
        .build()
        .unwrap();
    let k = common::kinds(&heap);
    let m = heap.attach().unwrap();
    // Dead cells alone never make an allocation fail.
    garbage(&m, k, 700_000);
    let mut head = 0;
    let error = loop {
        // SAFETY: the list is on the stack.
        match unsafe { m.alloc_raw(k.node, 16) } {
            // SAFETY: a new node of two words.
            Ok(new) => unsafe {
                new.cast::<usize>().write(head);
                head = new.as_ptr() as usize;
            },
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AllocError::HeapLimit { .. }), "{error}");
    assert!(heap.stats().used_bytes <= 8 << 20);
    // SAFETY: the result is an error, or a cell that is not used.
    assert!(unsafe { m.alloc_raw(k.leaf, 9 << 20) }.is_err());
    std::hint::black_box(&mut head);
    head = 0;
    std::hint::black_box(&mut head);
    wipe_stack();
    garbage(&m, k, 700_000);
    let kept = list(&m, k, 100);
    check_list(kept, 100);
}

/// Inside `no_preempt`, an allocation beyond the goal neither runs a collection nor waits for one;
/// `try_collect` returns an error.
#[test]
fn inside_no_preempt_allocation_neither_collects_nor_waits() {
    let (heap, k) = heap();
    let m = heap.attach().unwrap();
    m.no_preempt(|| {
        garbage(&m, k, 50_000); // 8 MB: beyond the goal
        // The mutator may request a collection, which starts after `no_preempt`.
        assert_eq!(heap.stats().collections, 0);
    });
    assert!(m.no_preempt(|| m.try_collect()).is_err());
    garbage(&m, k, 50_000);
    assert!(heap.stats().collections > 0);
}

/// Under `Stress::every(n)`, a list lives through a collection at each nth allocation.
#[test]
fn a_collection_at_every_allocation_loses_nothing() {
    for every in [1, 2, 7] {
        let heap = Heap::builder()
            .stress(Stress::every(every))
            .reserve(1 << 30)
            .build()
            .unwrap();
        let k = common::kinds(&heap);
        let m = heap.attach().unwrap();
        let kept = list(&m, k, 300);
        check_list(kept, 300);
        let n = heap.stats().collections;
        assert!(
            n >= 300 / every - 1 && n <= 301 / every + 2,
            "{n} collections at every {every}"
        );
    }
}

/// One collection answers the requests of several threads, attached or not.
#[test]
fn requests_of_many_threads_share_collections() {
    let (heap, k) = heap();
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                let m = heap.attach().unwrap();
                for _ in 0..20 {
                    let kept = list(&m, k, 50);
                    let number = heap.collect();
                    assert!(heap.stats().collections >= number);
                    check_list(kept, 50);
                }
            });
        }
        for _ in 0..2 {
            s.spawn(|| (0..20).for_each(|_| assert!(heap.collect() > 0)));
        }
    });
    let n = heap.stats().collections;
    assert!((20..=200).contains(&n), "{n}");
}

/// Threads that attach, block, detach or end without detaching leave no cell and no mutator behind.
#[test]
fn threads_that_come_block_and_go_do_not_disturb_collections() {
    let (heap, k) = heap();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for seed in 0..3 {
            let (heap, done) = (&heap, &done);
            s.spawn(move || {
                let mut n = seed;
                while !done.load(Relaxed) {
                    std::thread::scope(|s| {
                        let thread = s.spawn(|| {
                            let m = heap.attach().unwrap();
                            let kept = list(&m, k, 100 + n % 50);
                            m.blocking(std::thread::yield_now);
                            check_list(kept, 100 + n % 50);
                            if n % 3 == 0 {
                                std::mem::forget(m); // the end of the thread detaches it
                            }
                        });
                        // A scope's end does not wait for the thread's destructors; `join` does.
                        thread.join().unwrap();
                    });
                    n += 1;
                }
            });
        }
        let m = heap.attach().unwrap();
        let kept = list(&m, k, 200);
        for _ in 0..200 {
            m.collect();
        }
        check_list(kept, 200);
        done.store(true, SeqCst);
    });
    heap.collect();
    // The leaked mutators have given their runs back, so no cell is left.
    assert_eq!(heap.stats().last.cells_live, 0);
    assert_eq!(heap.stats().last.mutators, 0);
}

/// Wrong uses return errors whose text names the fault and the bound.
#[test]
fn mistakes_are_error_values_that_say_what_is_wrong() {
    let (heap, _) = heap();
    let m = heap.attach().unwrap();
    let error = heap.attach().unwrap_err();
    assert!(
        matches!(
            error,
            AttachError::Thread(gc_preempt::AttachError::AlreadyAttached)
        ),
        "{error}"
    );
    drop(m);
    drop(heap.attach().unwrap());

    let error = Heap::builder().hard_limit(1000).build().unwrap_err();
    assert!(matches!(error, BuildError::Config(_)));
    let text = error.to_string();
    assert!(
        text.contains("1000 bytes") && text.contains("at least 4194304"),
        "{text}"
    );

    let (other, _) = self::heap();
    let m = other.attach().unwrap();
    assert!(
        other.with_stopped(|_| ()).is_err(),
        "a mutator cannot stop its own world"
    );
    drop(m);
    assert_eq!(other.with_stopped(|s| s.mutators().count()).unwrap(), 0);
    let attached = other.with_stopped(|_| heap.attach().err()).unwrap();
    assert!(
        matches!(
            attached,
            Some(AttachError::Thread(gc_preempt::AttachError::HoldsAStop))
        ),
        "a thread that holds a stop cannot attach"
    );
    let wide = heap
        .kind(Kind::words_at("wide", &[9], Encoding::RAW))
        .unwrap();
    assert!(heap.site(wide, 80).is_ok());
    let error = heap.site(wide, 64).unwrap_err().to_string();
    assert!(error.contains("64") && error.contains("80"), "{error}");
}

/// Reported external memory counts towards the goal, so that reports alone bring a collection.
#[test]
fn external_memory_counts_towards_the_next_collection() {
    let (heap, k) = heap();
    let m = heap.attach().unwrap();
    for _ in 0..100 {
        m.report_external(1 << 20);
        garbage(&m, k, 100);
        m.blocking(|| std::thread::sleep(std::time::Duration::from_micros(200)));
    }
    assert!(heap.stats().collections > 0);
    assert_eq!(heap.stats().external_bytes, 100 << 20);
    m.report_external(-(100 << 20));
    assert_eq!(heap.stats().external_bytes, 0);
}

/// The collector's thread ends with the last handle to its heap: a heap, a mutator or a root.
#[test]
fn the_last_handle_ends_the_collectors_thread() {
    // A child counts its threads: other tests of this process start and end threads meanwhile.
    if !common::is_child() {
        let out = common::run_child("the_last_handle_ends_the_collectors_thread", "", &[])
            .expect("the child hung");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let (heap, k) = heap();
    assert_eq!(threads(), before + 1);
    let m = heap.attach().unwrap();
    // SAFETY: the list's head is on the stack.
    let root = unsafe { m.root_raw(cell(list(&m, k, 3))).unwrap() };
    drop(heap);
    m.collect();
    drop(m);
    assert_eq!(threads(), before + 1, "a root keeps the heap");
    check_list(root.get().unwrap().as_ptr() as usize, 3);
    drop(root);
    assert_eq!(threads(), before);
}

/// `URGE_TRACE=1` prints one line for each collection, with all its fields. A child prints, because
/// the trace does not go through the standard library's stderr, which the test runner captures.
#[test]
fn a_traced_heap_prints_a_line_a_collection() {
    const CHILD: &str = "URGE_TEST_TRACED";
    if std::env::var_os(CHILD).is_some() {
        let heap = Heap::builder().build().unwrap();
        for _ in 0..3 {
            heap.collect();
        }
        return;
    }
    let out = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_traced_heap_prints_a_line_a_collection",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .env("URGE_TRACE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    let lines: Vec<_> = text
        .lines()
        .filter(|l| l.starts_with("urge: gc="))
        .collect();
    assert!(out.status.success() && lines.len() == 3, "{text}");
    for (line, number) in lines.iter().zip(1..) {
        assert!(
            line.starts_with(&format!("urge: gc={number} kind=whole at=")),
            "{line}"
        );
        for field in [
            "trigger=", "goal=", "live=", "pauses=", "mark=", "assist=", "cpu=",
        ] {
            assert!(line.contains(&format!(" {field}")), "no {field} in {line}");
        }
    }
}

/// Each stop is counted in both histograms, and the figures of a collection agree with each other.
#[test]
fn every_stop_is_in_the_histograms() {
    let heap = Heap::builder().build().unwrap();
    for _ in 0..5 {
        heap.collect();
    }
    let stats = heap.stats();
    assert_eq!(stats.stops.pause.len(), stats.stops.time_to_stop.len());
    assert!(stats.stops.pause.len() >= 5);
    assert!(stats.stops.pause.max() > 0 && stats.last.pause_sum >= stats.last.pause);
    assert!(stats.last.interval <= stats.last.ended_at);
    assert!((0.0..=1.0).contains(&stats.last.cpu_share()));
}

/// A soft limit lowers the goal below what `gc_percent` allows. Where the live bytes exceed the
/// limit, no allocation fails.
#[test]
fn a_memory_limit_brings_collections_forward_and_never_fails() {
    const LIMIT: u64 = 16 << 20;
    let goal = |limit: Option<u64>, live: usize| {
        let mut builder = Heap::builder();
        if let Some(limit) = limit {
            builder = builder.memory_limit(limit);
        }
        let heap = builder.build().unwrap();
        let k = common::kinds(&heap);
        let mutator = heap.attach().unwrap();
        let list = list(&mutator, k, live);
        heap.collect();
        for _ in 0..4 {
            garbage(&mutator, k, 200_000);
        }
        check_list(list, live);
        heap.collect();
        let stats = heap.stats();
        assert!(stats.last.begin_bytes <= stats.last.end_bytes);
        (stats.goal_bytes, stats.last.bytes_live)
    };
    let (free, live) = goal(None, 700_000);
    assert!(free > LIMIT && live < LIMIT - (2 << 20), "{free} {live}");
    let (limited, _) = goal(Some(LIMIT), 700_000);
    assert!(limited <= LIMIT, "{limited}");
    // The live bytes alone exceed the limit.
    let (passed, live) = goal(Some(4 << 20), 700_000);
    assert!(live > 4 << 20 && passed > live, "{passed} {live}");
}

/// Under stress, each refill of a heap that marks assists. Cells that mutators mark are counted and
/// kept like all others.
#[test]
fn what_mutators_mark_is_alive_and_counted() {
    let heap = Heap::builder().stress(Stress::CONTINUOUS).build().unwrap();
    let k = common::kinds(&heap);
    let mutator = heap.attach().unwrap();
    let list = list(&mutator, k, 50_000);
    while heap.stats().assist_total.is_zero() || heap.stats().collections < 50 {
        garbage(&mutator, k, 10_000);
    }
    check_list(list, 50_000);
    heap.collect();
    let last = heap.stats().last;
    assert!(last.cells_live >= 50_000, "{last:?}");
    assert!(last.assist_cells <= last.cells_live && last.bytes_allocated_black <= last.bytes_live);
}

/// Panics if `f` changes errno.
fn keeps_errno<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: the address of errno is always valid.
    let errno = || unsafe { &mut *libc::__errno_location() };
    *errno() = libc::EBADF;
    let result = f();
    assert_eq!(*errno(), libc::EBADF, "errno is another");
    result
}

/// Allocating and collecting leave errno unchanged. With `errno-lost` planted, a wait of the
/// library's own changes it.
#[test]
fn h39_allocating_and_collecting_keep_errno() {
    hazard(
        "h39_allocating_and_collecting_keep_errno",
        "errno-lost",
        || {
            let heap = Heap::builder().hard_limit(8 << 20).build().unwrap();
            let k = kinds(&heap);
            std::thread::scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        let m = heap.attach().unwrap();
                        for _ in 0..300 {
                            // SAFETY: the cells are not used.
                            keeps_errno(|| unsafe {
                                for _ in 0..50 {
                                    m.alloc_raw(k.leaf, 4096).unwrap();
                                }
                                m.alloc_raw(k.leaf, 200_000).unwrap();
                            });
                        }
                        keeps_errno(|| m.collect());
                    });
                }
            });
        },
    );
}
