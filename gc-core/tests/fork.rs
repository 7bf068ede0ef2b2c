//! H8: the child of a process with several threads allocates and collects, whatever the other
//! threads were doing at the fork.

mod common;

use common::{Kinds, check_list, garbage, hazard, heap, in_child, kinds, list, sit_idle};
use gc_core::{Heap, Leaf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

fn use_it(heap: &Heap, m: &gc_core::Mutator, k: Kinds) {
    for _ in 0..3 {
        let mine = list(m, k, 500);
        garbage(m, k, 500);
        m.collect();
        check_list(mine, 500);
    }
    drop(root(heap, m, k));
}

fn root(heap: &Heap, m: &gc_core::Mutator, k: Kinds) -> Option<gc_core::raw::RawRoot> {
    // SAFETY: the list is on the stack.
    unsafe { heap.root_raw(common::cell(list(m, k, 5))) }.ok()
}

/// A forked child allocates and collects, whether the forking thread is a mutator or not. Without
/// the fork handlers, the child hangs or crashes.
#[test]
fn h8_a_forked_child_allocates_and_collects() {
    hazard(
        "h8_a_forked_child_allocates_and_collects",
        "no-fork-handlers",
        || {
            let (heap, k) = heap();
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                for i in 0..3 {
                    let (heap, done) = (&heap, &done);
                    s.spawn(move || {
                        let m = heap.attach().unwrap();
                        while !done.load(Relaxed) {
                            // Roots, refills and collections: all that takes locks.
                            let roots: Vec<_> = (0..20).map(|_| root(heap, &m, k)).collect();
                            garbage(&m, k, 100);
                            if i == 0 {
                                m.collect();
                            }
                            drop(roots);
                        }
                    });
                }
                for round in 0..40 {
                    if round % 2 == 0 {
                        // The forking thread is a mutator, also in the child.
                        let m = heap.attach().unwrap();
                        let before = list(&m, k, 100);
                        in_child(|| {
                            use_it(&heap, &m, k);
                            check_list(before, 100);
                        });
                        check_list(before, 100);
                    } else {
                        in_child(|| {
                            let m = heap.attach().unwrap();
                            use_it(&heap, &m, k);
                            let (other, k) = self::heap();
                            use_it(&other, &other.attach().unwrap(), k);
                            drop(m);
                            drop(other);
                            heap.collect();
                        });
                    }
                }
                done.store(true, Relaxed);
            });
            heap.collect();
            assert_eq!(heap.stats().last.cells_live, 0);
        },
    );
}

/// A fork takes all locks of a heap in the order of all other threads. A thread that has memory
/// backed takes the lock of the free pages while it holds the lock of what is being backed. With
/// `pages-before-backing` planted, the fork takes them in the opposite order, and the check of the
/// lock order ends the process.
#[test]
fn h100_a_fork_takes_locks_in_the_order_of_all_others() {
    hazard(
        "h100_a_fork_takes_locks_in_the_order_of_all_others",
        "pages-before-backing",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            let mine = list(&m, k, 100);
            in_child(|| use_it(&heap, &m, k));
            check_list(mine, 100);
        },
    );
}

/// A thread of the standard library takes a lock of that library when it starts and when it ends,
/// and a fork may leave that lock taken. The child's collector must not need it, so Urge's threads
/// are made by `pthread_create`. With `threads-of-std` planted, a child hangs.
#[test]
fn h99_a_child_collects_though_threads_start_and_end_over_the_fork() {
    hazard(
        "h99_a_child_collects_though_threads_start_and_end_over_the_fork",
        "threads-of-std",
        || {
            let (heap, k) = heap();
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                for _ in 0..8 {
                    s.spawn(|| {
                        while !done.load(Relaxed) {
                            let short: Vec<_> =
                                (0..64).map(|_| std::thread::spawn(|| ())).collect();
                            short.into_iter().for_each(|thread| thread.join().unwrap());
                        }
                    });
                }
                // About one fork in some hundred finds the lock taken.
                let until = Instant::now() + Duration::from_secs(7);
                while Instant::now() < until {
                    in_child(|| {
                        let m = heap.attach().unwrap();
                        let mine = list(&m, k, 50);
                        m.collect();
                        check_list(mine, 50);
                    });
                }
                done.store(true, Relaxed);
            });
        },
    );
}

/// A child gets back the spans from which threads that do not exist in it were allocating. With
/// `spans-lost-in-child` planted, they stay in use.
#[test]
fn a_child_gets_back_what_gone_threads_were_allocating_from() {
    hazard(
        "a_child_gets_back_what_gone_threads_were_allocating_from",
        "spans-lost-in-child",
        || {
            let (heap, k) = heap();
            let (ready, done) = (std::sync::Barrier::new(5), AtomicBool::new(false));
            std::thread::scope(|s| {
                for _ in 0..4 {
                    s.spawn(|| {
                        let m = heap.attach().unwrap();
                        for size in (16..2000).step_by(64) {
                            // SAFETY: the cell is not used.
                            unsafe { m.alloc_raw(k.leaf, size).unwrap() };
                        }
                        sit_idle(&m, &ready, &done);
                    });
                }
                ready.wait();
                let m = heap.attach().unwrap();
                let kept = list(&m, k, 1000);
                let before = heap.stats().used_bytes;
                in_child(|| {
                    (0..3).for_each(|_| assert!(m.collect() > 0));
                    let after = heap.stats().used_bytes;
                    assert!(
                        after < before / 4,
                        "{after} of {before} bytes are still in use"
                    );
                    check_list(kept, 1000);
                    use_it(&heap, &m, k);
                });
                done.store(true, Relaxed);
            });
        },
    );
}

/// A value that checks in its `Drop` that it was written.
#[derive(Leaf)]
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        assert_eq!(self.0, "a name", "what is dropped was never written");
    }
}

/// A value is registered for its `Drop` after it was written, so a child does not drop a cell that
/// a missing thread was about to write. With `registered-unwritten` planted, it does.
#[test]
fn a_child_does_not_drop_what_gone_threads_were_about_to_write() {
    hazard(
        "a_child_does_not_drop_what_gone_threads_were_about_to_write",
        "registered-unwritten",
        || {
            let (heap, _) = heap();
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        let m = heap.attach().unwrap();
                        while !done.load(Relaxed) {
                            m.with_scope(|s| {
                                assert_eq!(s.alloc(Named("a name".into())).err(), None)
                            });
                            m.drop_dead_values();
                        }
                    });
                }
                let forks = std::panic::AssertUnwindSafe(|| {
                    // Fewer forks on a busy machine: each child copies the pages of a heap.
                    let end = Instant::now() + Duration::from_secs(4);
                    for _ in (0..20).take_while(|n| *n < 6 || Instant::now() < end) {
                        std::thread::sleep(Duration::from_millis(1));
                        in_child(|| {
                            let m = heap.attach().unwrap();
                            (0..2).for_each(|_| assert!(m.collect() > 0));
                            m.drop_dead_values();
                        });
                    }
                });
                let result = std::panic::catch_unwind(forks);
                done.store(true, Relaxed);
                result.unwrap();
            });
        },
    );
}

/// A child that passes its goal inside `no_preempt`, where its collector cannot be started, starts
/// a collection at a later allocation. With `asks-the-dead` planted, a request is noted that no
/// collector answers.
#[test]
fn a_child_that_first_needs_a_collection_inside_no_preempt_gets_one_later() {
    hazard(
        "a_child_that_first_needs_a_collection_inside_no_preempt_gets_one_later",
        "asks-the-dead",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            in_child(|| {
                // The heap passes its goal where no thread may be started.
                m.no_preempt(|| garbage(&m, k, 40_000));
                let before = heap.stats().collections;
                // A later allocation starts the collection. Nothing else requests one.
                for _ in 0..2_000 {
                    garbage(&m, k, 100);
                    if heap.stats().collections > before {
                        return;
                    }
                }
                panic!("no collection after {:?}", heap.stats());
            });
        },
    );
}

/// A child gets back the span reserves of threads that do not exist in it. With
/// `reserve-lost-in-child` planted, they stay in use.
#[test]
fn a_child_gets_back_the_span_reserves_of_gone_threads() {
    hazard(
        "a_child_gets_back_the_span_reserves_of_gone_threads",
        "reserve-lost-in-child",
        || {
            // No collection falls due, so mutators have span reserves at the fork.
            let heap = Heap::builder().gc_percent(100_000).build().unwrap();
            let k = kinds(&heap);
            let (ready, done) = (std::sync::Barrier::new(5), AtomicBool::new(false));
            let m = heap.attach().unwrap();
            let kept = list(&m, k, 20_000);
            m.collect();
            let before = heap.stats().used_bytes;
            std::thread::scope(|s| {
                for _ in 0..4 {
                    s.spawn(|| {
                        let m = heap.attach().unwrap();
                        for _ in 0..(20 << 20) / 1024 {
                            // SAFETY: the cell is not used.
                            unsafe { m.alloc_raw(k.leaf, 1024).unwrap() };
                        }
                        sit_idle(&m, &ready, &done);
                    });
                }
                m.blocking(|| ready.wait());
                in_child(|| {
                    (0..3).for_each(|_| assert!(m.collect() > 0));
                    check_list(kept, 20_000);
                    while heap.stats().sweeping {
                        std::thread::yield_now();
                    }
                    let after = heap.stats().used_bytes;
                    assert!(
                        after <= before,
                        "{after} bytes are in use, and {before} would do"
                    );
                });
                done.store(true, Relaxed);
            });
        },
    );
}

/// A lock of the host's that its fork handlers hold over a fork, as allocators and loggers do.
static mut HOSTS: libc::pthread_mutex_t = libc::PTHREAD_MUTEX_INITIALIZER;

extern "C" fn lock_hosts() {
    // SAFETY: a mutex that only pthread functions use.
    unsafe { libc::pthread_mutex_lock(&raw mut HOSTS) };
}

extern "C" fn unlock_hosts() {
    // SAFETY: as above.
    unsafe { libc::pthread_mutex_unlock(&raw mut HOSTS) };
}

/// A fork handler of the host's may wait for a lock whose holder waits for a collection: Urge's
/// handlers run after it before the fork. With `fork-handlers-late` planted, the fork hangs.
#[test]
fn h42_a_fork_handler_of_the_hosts_may_wait_for_a_thread_that_allocates() {
    hazard(
        "h42_a_fork_handler_of_the_hosts_may_wait_for_a_thread_that_allocates",
        "fork-handlers-late",
        || {
            // The handlers are registered before a heap exists.
            // SAFETY: the handlers lock and unlock a mutex only.
            unsafe {
                libc::pthread_atfork(Some(lock_hosts), Some(unlock_hosts), Some(unlock_hosts));
            }
            let (heap, k) = common::heap_with(|builder| builder.hard_limit(8 << 20));
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    let m = heap.attach().unwrap();
                    while !done.load(Relaxed) {
                        lock_hosts();
                        // So many cells that the thread waits for collections now and then.
                        for _ in 0..200 {
                            // SAFETY: the cell is not used.
                            unsafe { m.alloc_raw(k.leaf, 4096).unwrap() };
                        }
                        unlock_hosts();
                        std::thread::yield_now();
                    }
                });
                for _ in 0..60 {
                    in_child(|| {
                        let m = heap.attach().unwrap();
                        garbage(&m, k, 10);
                        assert!(m.collect() > 0);
                    });
                }
                done.store(true, Relaxed);
            });
            assert!(heap.stats().collections > 0);
        },
    );
}
