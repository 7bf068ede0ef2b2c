//! Roots and handles in large numbers. They are scanned beside the program, and logged if they end
//! before the scan. Their tables shrink again after a peak.

mod common;

use common::{hazard, hazard_given, in_a_child, resident};
use gc_core::raw::Encoding;
use gc_core::{Field, Heap, Root, Stress, Trace};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

#[derive(Trace, Default)]
struct Node {
    next: Field<Node>,
    number: usize,
}

/// A heap that collects all the time and stays in each phase for a while. Each cycle compares its
/// marks with the roots of its first stop.
fn stressed() -> Heap {
    let heap = Heap::builder().reserve(1 << 30);
    heap.stress(Stress::CONTINUOUS)
        .verify(true)
        .build()
        .unwrap()
}

/// Repeats `f` until `collections` collections have ended, or for four seconds on a busy machine.
fn while_collecting(heap: &Heap, collections: u64, mut f: impl FnMut()) {
    let until = Instant::now() + Duration::from_secs(4);
    while heap.stats().collections < collections && Instant::now() < until {
        f();
    }
}

fn make_roots(heap: &Heap, count: usize) -> Vec<Root<Node>> {
    let mutator = heap.attach().unwrap();
    let root = |number| {
        mutator.with_scope(|s| {
            let behind = s
                .alloc(Node {
                    number,
                    ..Node::default()
                })
                .unwrap();
            let node = s
                .alloc(Node {
                    number,
                    ..Node::default()
                })
                .unwrap();
            node.next.set(s, &behind);
            heap.root(&node)
        })
    };
    (0..count).map(root).collect()
}

fn check_roots(heap: &Heap, roots: &[Root<Node>]) {
    let mutator = heap.attach().unwrap();
    for (number, root) in roots.iter().enumerate() {
        mutator.with_scope(|s| {
            let behind = root.next.get(s).unwrap();
            assert_eq!((root.number, behind.number), (number, number));
        });
    }
}

/// Moves a root between the moment at which a stop has noted the roots and the moment at which they
/// are scanned. For the condition `held-roots`. This thread must be no mutator, so that no stop
/// stops it.
fn move_a_root_before_its_scan(heap: &Heap, roots: &mut [Root<Node>]) {
    // The roots fill a page of places, so that the last one moves beyond the places that the stop
    // has noted.
    assert_eq!(roots.len(), 512);
    let begin = || _ = heap.request_collection();
    gc_preempt::faults::while_held(begin, || roots[511] = roots[511].clone());
    heap.collect();
    check_roots(heap, roots);
}

/// A thread that is no mutator moves roots while a cycle scans them: each root that is dropped
/// before its scan is logged. With `roots-unlogged` planted, cells are freed. `held-roots` holds
/// the first stop between the roots that it notes and those that are scanned.
#[test]
fn h70_a_root_that_is_moved_by_an_unattached_thread_before_it_is_scanned_lives() {
    let name = "h70_a_root_that_is_moved_by_an_unattached_thread_before_it_is_scanned_lives";
    hazard_given(name, "held-roots", "roots-unlogged", &[], || {
        let heap = Heap::builder().reserve(1 << 30).verify(true);
        let heap = heap.poison(true).build().unwrap();
        let mut roots = make_roots(&heap, 512);
        move_a_root_before_its_scan(&heap, &mut roots);
        // And in any order, beside scans that are not held. Each clone takes a free place of the
        // table, in front of the scan or behind it.
        let heap = stressed();
        let mut roots = make_roots(&heap, 20_000);
        let mut random = 7usize;
        while_collecting(&heap, 60, || {
            for _ in 0..1000 {
                random = random
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let at = (random >> 33) % roots.len();
                roots[at] = roots[at].clone();
            }
        });
        check_roots(&heap, &roots);
    });
}

/// In a heap that marks in a stop, a thread that is no mutator may move roots during the stop: the
/// stop takes the words that the thread logs. With `roots-logged-in-vain` planted, it does not.
#[test]
fn h70_a_root_that_is_moved_in_a_stop_lives_where_mutators_do_not_run_beside_cycles() {
    let name = "h70_a_root_that_is_moved_in_a_stop_lives_where_mutators_do_not_run_beside_cycles";
    hazard_given(name, "held-roots", "roots-logged-in-vain", &[], || {
        let heap = Heap::builder().reserve(1 << 30).stop_the_world(true);
        let heap = heap.verify(true).poison(true).build().unwrap();
        let mut roots = make_roots(&heap, 512);
        move_a_root_before_its_scan(&heap, &mut roots);
    });
}

/// The handles of a scope that ends before its scan are logged. With `handles-unlogged` planted, a
/// node that moved from a handle into a field is freed.
#[test]
fn h71_what_only_a_scope_held_that_ended_before_it_was_scanned_lives_on_in_a_field() {
    let name = "h71_what_only_a_scope_held_that_ended_before_it_was_scanned_lives_on_in_a_field";
    hazard(name, "handles-unlogged", || {
        let heap = stressed();
        let mutator = heap.attach().unwrap();
        mutator.with_scope(|outer| {
            let table = outer.alloc_array::<Node>(200).unwrap();
            let mut round = 0;
            while_collecting(&heap, 60, || {
                round += 1;
                mutator.with_scope(|s| {
                    let node = |number| {
                        let node = Node {
                            number,
                            ..Node::default()
                        };
                        s.alloc(node).unwrap()
                    };
                    let nodes: Vec<_> = (0..table.len()).map(node).collect();
                    // Time for a stop, while the nodes are in handles only.
                    std::thread::sleep(Duration::from_micros(50));
                    // In every other round, the nodes stay in handles only to the end, and the
                    // handles of the next scope overwrite them.
                    for (number, node) in nodes.iter().enumerate() {
                        if round % 2 == 0 {
                            table.set(number, s, node);
                        }
                    }
                });
                mutator.with_scope(|s| {
                    for number in 0..table.len() {
                        let node = table.get(number, s);
                        assert!(node.is_none_or(|node| node.number == number));
                    }
                });
            });
        });
    });
}

/// A change of a slot logs what the slot held. With `slots-unlogged` planted, a node that moved
/// from a slot into a field is freed.
#[test]
fn h127_what_only_a_slot_held_that_changed_before_its_scan_lives_on_in_a_field() {
    let name = "h127_what_only_a_slot_held_that_changed_before_its_scan_lives_on_in_a_field";
    hazard(name, "slots-unlogged", || {
        let heap = stressed();
        let mutator = heap.attach().unwrap();
        mutator.with_scope(|outer| {
            let table = outer.alloc_array::<Node>(200).unwrap();
            let mut slots: Vec<_> = (0..table.len()).map(|_| outer.slot::<Node>()).collect();
            let mut round = 0;
            while_collecting(&heap, 60, || {
                round += 1;
                outer.with_scope(|s| {
                    for (number, slot) in slots.iter_mut().enumerate() {
                        let next = Field::null();
                        slot.set(&s.alloc(Node { next, number }).unwrap());
                    }
                });
                // Time for a stop, while the nodes are in slots only.
                std::thread::sleep(Duration::from_micros(50));
                outer.with_scope(|s| {
                    for (number, slot) in slots.iter_mut().enumerate() {
                        if round % 2 == 0 {
                            table.set(number, s, &slot.get().unwrap());
                        }
                        slot.clear();
                    }
                });
                outer.with_scope(|s| {
                    for number in 0..table.len() {
                        let node = table.get(number, s);
                        assert!(node.is_none_or(|node| node.number == number));
                    }
                });
            });
        });
    });
}

/// An exchange logs what it takes out of a field. With `exchanges-unlogged` planted, a node that
/// leaves its field before the marker comes there, and returns after that, is freed.
#[test]
fn h128_what_an_exchange_takes_out_of_a_field_is_logged() {
    let name = "h128_what_an_exchange_takes_out_of_a_field_is_logged";
    hazard(name, "exchanges-unlogged", || {
        let heap = stressed();
        let mutator = heap.attach().unwrap();
        mutator.with_scope(|outer| {
            let holders: Vec<_> = (0..200)
                .map(|number| {
                    let next = Field::null();
                    let holder = outer.alloc(Node { next, number }).unwrap();
                    let next = Field::null();
                    let node = outer.with_scope(|s| {
                        s.alloc(Node { next, number }).map(|node| {
                            holder.next.set(s, &node);
                        })
                    });
                    node.unwrap();
                    holder
                })
                .collect();
            while_collecting(&heap, 60, || {
                outer.with_scope(|s| {
                    let taken: Vec<_> = (holders.iter().enumerate())
                        .map(|(number, holder)| {
                            let node = holder.next.get(s).unwrap();
                            assert_eq!(node.number, number);
                            let taken = holder.next.compare_exchange(s, Some(node), None);
                            assert!(taken.is_ok());
                            node
                        })
                        .collect();
                    // Time for the marker, while the nodes are in handles only.
                    std::thread::sleep(Duration::from_micros(50));
                    for (holder, node) in holders.iter().zip(taken) {
                        assert!(holder.next.compare_exchange(s, None, Some(node)).is_ok());
                    }
                });
                std::thread::sleep(Duration::from_micros(50));
            });
        });
    });
}

/// Scopes and roots of threads that attach and detach lose no cell.
#[test]
fn scopes_and_roots_of_threads_that_come_and_go_lose_nothing() {
    let heap = &stressed();
    let roots = &make_roots(heap, 500);
    let done = &AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(move || {
                while !done.load(Relaxed) {
                    let mutator = heap.attach().unwrap();
                    mutator.with_scope(|s| {
                        let held: Vec<_> = roots.iter().map(|root| root.get(s)).collect();
                        let mine: Vec<Root<Node>> =
                            held.iter().map(|node| heap.root(node)).collect();
                        for (number, root) in mine.iter().enumerate() {
                            assert_eq!(root.next.get(s).unwrap().number, number);
                        }
                    });
                }
            });
        }
        while_collecting(heap, 60, || std::thread::sleep(Duration::from_millis(1)));
        done.store(true, Relaxed);
    });
    check_roots(heap, roots);
}

/// Checks that after a peak of `bytes` bytes of tables and a collection, no words of the peak are
/// scanned, and the memory has gone back.
fn is_over(bytes: usize, peak: impl FnOnce(&Heap, &gc_core::Mutator)) {
    let heap = Heap::builder().reserve(1 << 30).build().unwrap();
    let mutator = heap.attach().unwrap();
    mutator.collect();
    let words = heap.stats().last.exact_words;
    let before = resident();
    peak(&heap, &mutator);
    mutator.collect();
    // This collection begins after the tables of the one before have been trimmed.
    mutator.collect();
    assert!(
        heap.stats().last.exact_words <= words + 100,
        "{:?}",
        heap.stats().last
    );
    let kept = resident().saturating_sub(before);
    assert!(kept < bytes / 4, "{kept} of {bytes} bytes are still there");
}

/// After peaks of handles, roots and root ranges, the tables' memory goes back.
#[test]
fn nothing_is_left_of_a_peak_of_handles_of_roots_and_of_ranges() {
    let name = "nothing_is_left_of_a_peak_of_handles_of_roots_and_of_ranges";
    in_a_child(name, peaks);
}

fn peaks() {
    // SAFETY: a call without memory. Dropped vectors must not count as resident memory: malloc
    // gives large blocks back at once.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) };
    const MANY: usize = 2_000_000;
    is_over(8 * MANY, |heap, mutator| {
        mutator.with_scope(|s| {
            let node = s.alloc(Node::default()).unwrap();
            let before = resident();
            (0..MANY).for_each(|_| assert!(s.hold(&node).same(node)));
            assert!(
                resident() - before > 8 * MANY * 9 / 10,
                "the handles take less memory than expected"
            );
            mutator.collect();
            assert!(
                heap.stats().last.exact_words >= MANY as u64,
                "fewer words were scanned than there are roots"
            );
        });
    });
    is_over(8 * MANY, |heap, mutator| {
        let roots: Vec<_> = mutator.with_scope(|s| {
            let node = s.alloc(Node::default()).unwrap();
            (0..MANY / 2).map(|_| heap.root(&node)).collect()
        });
        mutator.collect();
        assert!(
            heap.stats().last.exact_words >= MANY as u64 / 2,
            "fewer words were scanned than there are roots"
        );
        drop(roots);
    });
    is_over(48 * MANY / 4, |_, mutator| {
        let limit = AtomicUsize::new(0);
        // SAFETY: the range is empty, and the limit outlives it.
        let range = |_| unsafe {
            mutator
                .root_range(core::ptr::null(), &raw const limit, Encoding::RAW)
                .expect("room for a range")
        };
        drop((0..MANY / 4).map(range).collect::<Vec<_>>());
    });
}

/// 600,000 scopes may be open inside each other.
#[test]
fn scopes_nest_as_deep_as_the_stack() {
    fn nest(mutator: &gc_core::Mutator, depth: usize) -> Result<(), gc_core::AllocError> {
        mutator.scope(|s| {
            let node = s.alloc(Node {
                number: depth,
                ..Node::default()
            })?;
            if depth > 0 {
                nest(mutator, depth - 1)?;
            }
            assert_eq!(node.number, depth);
            Ok(())
        })
    }
    const DEPTH: usize = 600_000; // more than a table of 512 bytes for each scope would allow
    let thread = std::thread::Builder::new().stack_size(2 << 30);
    let body = || {
        let heap = Heap::builder().reserve(1 << 30).build().unwrap();
        let mutator = heap.attach().unwrap();
        nest(&mutator, DEPTH).unwrap();
        mutator.collect();
        assert!(heap.stats().last.exact_words < 100);
    };
    thread.spawn(body).unwrap().join().unwrap();
}

/// Where the system has no memory for handles, `try_hold` returns an error value, and the heap
/// works afterwards.
#[test]
fn where_the_system_has_no_memory_for_handles_that_is_an_error_value() {
    let name = "where_the_system_has_no_memory_for_handles_that_is_an_error_value";
    in_a_child(name, || {
        let heap = Heap::builder().reserve(64 << 20).build().unwrap();
        let mutator = heap.attach().unwrap();
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
        let bound = libc::rlimit {
            rlim_cur: (pages * 4096) + (64 << 20),
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the call reads `bound`, in a child of the test's own.
        assert_eq!(
            // SAFETY: a limit for this process, which is a child.
            unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const bound) },
            0
        );
        let (held, error) = mutator.with_scope(|s| {
            let node = s.alloc(Node::default()).unwrap();
            let mut held = 0;
            loop {
                match s.try_hold(&node) {
                    Ok(_) => held += 1,
                    Err(error) => return (held, error),
                }
            }
        });
        assert!(held > 1_000_000, "{held}");
        assert!(matches!(error, gc_core::AllocError::System(_)), "{error}");
        // The heap works afterwards.
        mutator.with_scope(|s| assert!(s.alloc(Node::default()).is_ok()));
        mutator.collect();
    });
}
