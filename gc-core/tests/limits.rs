//! Limits: of addresses and memory that the system sets, and those that the heap is built with. And
//! memory that goes back.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::{backed, hazard, hazard_given, in_a_child, kinds};
use gc_core::raw::Kind;
use gc_core::{AllocError, Heap, Leaf};

fn limit(resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
}

/// Allocates and drops, and keeps a little.
fn is_of_use(heap: &Heap) {
    let k = kinds(heap);
    let m = heap.attach().expect("a mutator has its tables");
    let list = common::list(&m, k, 1000);
    common::garbage(&m, k, 20_000);
    m.collect();
    common::check_list(list, 1000);
}

#[test]
fn h64_memory_that_is_not_used_is_not_promised() {
    hazard(
        "h64_memory_that_is_not_used_is_not_promised",
        "all-writable",
        || {
            // What can be written counts in full; so it does where overcommit is strict.
            limit(libc::RLIMIT_DATA, 1 << 30);
            let heap = Heap::builder().reserve(16 << 30).build().unwrap();
            assert_eq!(heap.reserved().len(), 16 << 30, "it was halved");
            is_of_use(&heap);
        },
    );
}

#[test]
fn h64_memory_that_is_refused_later_is_an_error_value_and_may_come_back() {
    in_a_child(
        "h64_memory_that_is_refused_later_is_an_error_value_and_may_come_back",
        || {
            limit(libc::RLIMIT_DATA, 1 << 30);
            let heap = Heap::builder().reserve(16 << 30).build().unwrap();
            let k = kinds(&heap);
            let m = heap.attach().unwrap();
            // The heap takes all that there is: the test has its own beforehand, and some for its
            // messages.
            let mut roots = Vec::with_capacity(2000);
            let spare = vec![1u8; 16 << 20];
            let error = loop {
                // SAFETY: rooted at once.
                match unsafe { m.alloc_raw(k.leaf, 1 << 20) } {
                    // SAFETY: a live cell of this heap.
                    Ok(cell) => roots.push(unsafe { m.root_raw(cell) }.unwrap()),
                    Err(error) => break error,
                }
            };
            drop(spare);
            assert!(matches!(error, AllocError::System(_)), "{error}");
            let text = error.to_string();
            assert!(
                text.contains("RLIMIT_DATA") && text.contains("ulimit -d"),
                "{text}"
            );
            assert!(roots.len() > 100, "{} MiB", roots.len());
            roots.clear();
            for _ in 0..1000 {
                // SAFETY: dies at once.
                unsafe { m.alloc_raw(k.leaf, 1 << 20) }.unwrap();
            }
        },
    );
}

#[test]
fn h65_a_heap_that_does_not_fit_is_halved_and_leaves_addresses_to_the_program() {
    hazard(
        "h65_a_heap_that_does_not_fit_is_halved_and_leaves_addresses_to_the_program",
        "no-addresses-left",
        || {
            const LIMIT: u64 = 3 << 30;
            limit(libc::RLIMIT_AS, LIMIT);
            let heap = Heap::builder().build().unwrap();
            let reserve = heap.reserved().len();
            assert!((16 << 20..4 << 30).contains(&reserve), "{reserve}");
            is_of_use(&heap);
            // As much as half of the reserve, at least.
            // SAFETY: a new mapping.
            let map = unsafe {
                libc::mmap(
                    core::ptr::null_mut(),
                    reserve / 2 - (300 << 20),
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(map, libc::MAP_FAILED, "a reserve of {reserve} bytes");
        },
    );
}

#[test]
fn h65_where_nothing_fits_the_error_names_the_limit_and_raising_it_helps() {
    in_a_child(
        "h65_where_nothing_fits_the_error_names_the_limit_and_raising_it_helps",
        || {
            let mut now = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: plain system calls, with places for what they say.
            unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut now) };
            let set = |bytes| {
                let limit = libc::rlimit {
                    rlim_cur: bytes,
                    rlim_max: now.rlim_max,
                };
                // SAFETY: as above.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
            };
            set(32 << 20);
            let error = Heap::builder().reserve(64 << 20).build().unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("RLIMIT_AS") && text.contains("ulimit -v"),
                "{text}"
            );
            set(now.rlim_cur);
            is_of_use(&Heap::builder().reserve(64 << 20).build().unwrap());
        },
    );
}

fn mapped() -> (usize, usize, usize) {
    let read = |file: &str| std::fs::read_to_string(file).unwrap();
    let addresses = read("/proc/self/statm");
    let addresses = addresses.split_whitespace().next().unwrap();
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    (addresses.parse::<usize>().unwrap() * 4096, files, threads)
}

#[test]
fn a_thousand_heaps_come_and_go() {
    in_a_child("a_thousand_heaps_come_and_go", || {
        let use_one = || {
            let heap = Heap::builder().build().unwrap();
            is_of_use(&heap);
            heap
        };
        // What the process keeps once: arenas, stacks that are used again.
        drop([(); 4].map(|()| use_one()));
        let before = mapped();
        for _ in 0..1000 {
            drop(Heap::builder().build().unwrap().attach().unwrap());
        }
        drop([(); 4].map(|()| use_one()));
        let after = mapped();
        assert!(after.0 < before.0 + (1 << 30), "{before:?} to {after:?}");
        assert_eq!((after.1, after.2), (before.1, before.2));
    });
}

#[test]
fn hundreds_of_heaps_live_at_once() {
    in_a_child("hundreds_of_heaps_live_at_once", || {
        let heaps: Vec<Heap> = (0..300)
            .map(|n| match Heap::builder().build() {
                Ok(heap) => heap,
                Err(error) => panic!("heap {n}: {error}"),
            })
            .collect();
        assert!(mapped().0 < 1 << 46, "{:?}", mapped());
        heaps.iter().step_by(50).for_each(is_of_use);
    });
}

#[test]
fn h66_what_can_never_be_is_refused_before_anything_is_collected() {
    hazard(
        "h66_what_can_never_be_is_refused_before_anything_is_collected",
        "too-large-collects",
        || {
            const LIMIT: u64 = 64 << 20;
            let heap = Heap::builder().hard_limit(LIMIT).build().unwrap();
            let k = kinds(&heap);
            let m = heap.attach().unwrap();
            for bytes in [(LIMIT as usize) + 1, 1 << 40] {
                // SAFETY: there is no cell.
                let error = unsafe { m.alloc_raw(k.leaf, bytes) }.unwrap_err();
                assert!(matches!(error, AllocError::HeapLimit { .. }), "{error}");
            }
            assert_eq!(heap.stats().collections, 0);
            // SAFETY: dies at once.
            unsafe { m.alloc_raw(k.leaf, LIMIT as usize / 2) }.unwrap();
        },
    );
}

#[test]
fn h67_a_program_that_goes_on_when_its_heap_is_full_does_not_collect_for_ever() {
    hazard(
        "h67_a_program_that_goes_on_when_its_heap_is_full_does_not_collect_for_ever",
        "tries-for-ever",
        || {
            let heap = Heap::builder().hard_limit(16 << 20).build().unwrap();
            let k = kinds(&heap);
            let m = heap.attach().unwrap();
            let mut roots = Vec::new();
            // SAFETY: rooted at once.
            while let Ok(cell) = unsafe { m.alloc_raw(k.leaf, 16 << 10) } {
                // SAFETY: a live cell of this heap.
                roots.push(unsafe { m.root_raw(cell) }.unwrap());
            }
            let before = heap.stats().collections;
            for _ in 0..1000 {
                // SAFETY: there is no cell.
                assert!(unsafe { m.alloc_raw(k.leaf, 16 << 10) }.is_err());
            }
            let vain = heap.stats().collections - before;
            assert!(vain < 500, "{vain} collections for 1000 requests");
            // What is dropped is found, if not at once.
            roots.truncate(roots.len() / 2);
            common::wipe_stack();
            // SAFETY: dies at once.
            while unsafe { m.alloc_raw(k.leaf, 16 << 10) }.is_err() {
                m.blocking(|| std::thread::sleep(Duration::from_millis(10)));
            }
        },
    );
}

/// Types of one size.
#[derive(Leaf)]
struct Of<const N: usize>(#[allow(dead_code)] u64);

fn touch(m: &gc_core::Mutator) -> Result<(), AllocError> {
    macro_rules! some {
        ($($n:literal)*) => { $( m.with_scope(|s| s.alloc(Of::<$n>(1)).map(drop))?; )* }
    }
    some!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29);
    Ok(())
}

#[test]
fn h68_what_idle_threads_have_ready_is_not_missed_at_the_limit() {
    // The types have one layout; here each has a kind of its own, as types of many layouts would.
    hazard_given(
        "h68_what_idle_threads_have_ready_is_not_missed_at_the_limit",
        "kind-a-type",
        "idle-spans-kept",
        &[],
        || {
            // A span of 64 KiB for each thread and type would be 15 MiB.
            const LIMIT: u64 = 8 << 20;
            const THREADS: usize = 8;
            let heap = Heap::builder().hard_limit(LIMIT).build().unwrap();
            let (ready, done) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
            std::thread::scope(|s| {
                for _ in 0..THREADS {
                    s.spawn(|| {
                        let m = heap.attach().unwrap();
                        let touched = touch(&m);
                        m.blocking(|| (ready.wait(), done.wait()));
                        touched.unwrap();
                    });
                }
                ready.wait();
                let m = heap.attach().unwrap();
                let room = m.with_scope(|s| s.alloc_bytes(&vec![1; 6 << 20]).map(drop));
                m.blocking(|| done.wait());
                room.unwrap();
            });
        },
    );
}

/// A heap of 64 MiB of which one cell in 512 is left, and its roots.
fn a_few_left(builder: gc_core::HeapBuilder) -> (Heap, Vec<gc_core::raw::RawRoot>) {
    let heap = builder.reserve(256 << 20).build().unwrap();
    let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
    let m = heap.attach().unwrap();
    let mut roots: Vec<_> = (0..(64 << 20) / 4096)
        .map(|_| {
            // SAFETY: rooted at once, and as large as what is written.
            unsafe {
                let cell = m.alloc_raw(leaf, 4096).unwrap();
                cell.as_ptr().write_bytes(1, 4096);
                m.root_raw(cell).unwrap()
            }
        })
        .collect();
    assert!(backed(&heap) >= 64 << 20);
    let mut n = 0;
    roots.retain(|_| {
        n += 1;
        n % 512 == 1
    });
    drop(m);
    (heap, roots)
}

#[test]
fn h69_what_is_free_between_cells_goes_back_too() {
    hazard(
        "h69_what_is_free_between_cells_goes_back_too",
        "parts-kept",
        || {
            let (heap, roots) = a_few_left(Heap::builder());
            heap.collect();
            // No more is asked for. One that does not give back is found to hang.
            while backed(&heap) > 16 << 20 {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(roots.len(), 32);
        },
    );
}

#[test]
fn trim_gives_back_what_is_free_at_once() {
    let (heap, roots) = a_few_left(Heap::builder());
    let gone = heap.trim();
    let (left, used) = (backed(&heap), heap.stats().used_bytes);
    assert!(gone >= 50 << 20, "{gone} bytes went back");
    assert!(
        left as u64 <= 2 * used,
        "{left} bytes stay, {used} are used"
    );
    drop(roots);
    heap.trim();
    assert!(backed(&heap) <= 2 << 20, "{}", backed(&heap));
    // And it is as good as new.
    is_of_use(&heap);
}

#[test]
fn h69_a_heap_that_nobody_uses_is_collected_after_a_while() {
    hazard(
        "h69_a_heap_that_nobody_uses_is_collected_after_a_while",
        "never-idle",
        || {
            let builder = Heap::builder().idle_collection(Duration::from_millis(50));
            let (heap, roots) = a_few_left(builder);
            while backed(&heap) > 16 << 20 {
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(roots);
        },
    );
}

#[test]
fn an_idle_heap_whose_idle_collection_is_off_is_left_alone() {
    let builder = Heap::builder().idle_collection(Duration::ZERO);
    let (heap, _roots) = a_few_left(builder);
    let before = heap.stats().collections;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(heap.stats().collections, before);
}

#[test]
fn h66_a_heap_of_large_blocks_keeps_to_its_goal() {
    hazard(
        "h66_a_heap_of_large_blocks_keeps_to_its_goal",
        "blocks-overshoot",
        || {
            const BLOCK: usize = 4 << 20;
            const KEPT: usize = 8;
            const THREADS: usize = 2;
            let heap = Heap::builder().reserve(4 << 30).build().unwrap();
            let k = kinds(&heap);
            std::thread::scope(|s| {
                for _ in 0..THREADS {
                    s.spawn(|| {
                        let m = heap.attach().unwrap();
                        let mut kept = std::collections::VecDeque::new();
                        for _ in 0..300 {
                            // SAFETY: rooted at once.
                            kept.push_back(unsafe {
                                m.root_raw(m.alloc_raw(k.array, BLOCK).unwrap()).unwrap()
                            });
                            if kept.len() > KEPT {
                                kept.pop_front();
                            }
                            let used = heap.stats().used_bytes;
                            let alive = (THREADS * (KEPT + 1) * BLOCK) as u64;
                            assert!(used <= alive * 5 / 2, "{used} bytes for {alive}");
                        }
                    });
                }
            });
        },
    );
}

#[test]
fn h68_a_thread_that_is_attaching_has_nothing_to_be_taken_back() {
    in_a_child(
        "h68_a_thread_that_is_attaching_has_nothing_to_be_taken_back",
        || {
            // More than half of the limit is in use: each stop takes back.
            let heap = Heap::builder().hard_limit(8 << 20).build().unwrap();
            let k = kinds(&heap);
            let m = heap.attach().unwrap();
            // SAFETY: rooted at once.
            let _root = unsafe { m.root_raw(m.alloc_raw(k.leaf, 5 << 20).unwrap()) }.unwrap();
            let done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|s| {
                for _ in 0..4 {
                    s.spawn(|| {
                        while !done.load(std::sync::atomic::Ordering::Relaxed) {
                            common::garbage(&heap.attach().unwrap(), k, 1);
                        }
                    });
                }
                for _ in 0..1000 {
                    m.collect();
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                m.blocking(std::thread::yield_now);
            });
        },
    );
}

/// Collections while a program whose alive bytes are 16 MiB allocates so many more, with time for
/// the collector.
fn collections_under(heap: &Heap, mib: u64) -> (u64, Vec<gc_core::raw::RawRoot>) {
    const CELL: usize = 64 << 10;
    let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
    let m = heap.attach().unwrap();
    // SAFETY: rooted at once, or never used.
    let alloc = || unsafe { m.alloc_raw(leaf, CELL).unwrap() };
    // SAFETY: the cell was just allocated.
    let rooted = |_| unsafe { m.root_raw(alloc()).unwrap() };
    let roots = (0..256).map(rooted).collect();
    let allocate = |mib: u64| {
        for _ in 0..mib << 20 >> 16 {
            alloc();
            m.blocking(|| std::thread::sleep(Duration::from_micros(500)));
        }
    };
    // It has become used to the limit.
    allocate(16);
    let before = heap.stats().collections;
    allocate(mib);
    (heap.stats().collections - before, roots)
}

#[test]
fn h95_a_soft_limit_below_what_is_alive_does_not_make_the_heap_collect_all_the_time() {
    hazard(
        "h95_a_soft_limit_below_what_is_alive_does_not_make_the_heap_collect_all_the_time",
        "vain-cycles",
        || {
            let heap = Heap::builder().memory_limit(8 << 20).build().unwrap();
            let (collections, roots) = collections_under(&heap, 64);
            let last = heap.stats().last;
            assert!(last.over_memory_limit, "{last:?}");
            // A tenth of 16 MiB, or at least half of that: four times ten to twenty.
            assert!((20..=100).contains(&collections), "{collections}");
            // Once there is room, the limit is kept.
            drop(roots);
            heap.collect();
            let stats = heap.stats();
            assert!(!stats.last.over_memory_limit && stats.goal_bytes <= 8 << 20);
        },
    );
}

#[test]
fn h96_hundreds_of_heaps_live_in_few_addresses() {
    hazard(
        "h96_hundreds_of_heaps_live_in_few_addresses",
        "halves-alone",
        || {
            limit(libc::RLIMIT_AS, 24 << 30);
            let heaps: Vec<Heap> = (0..300)
                .map(|_| {
                    let heap = Heap::builder().build().unwrap();
                    let mutator = heap.attach().unwrap();
                    let list = common::list(&mutator, kinds(&heap), 10);
                    mutator.collect();
                    common::check_list(list, 10);
                    drop(mutator);
                    heap
                })
                .collect();
            assert!(heaps[0].reserved().len() >= 6 << 30);
            // One thread in all of them, and the collectors one after another.
            let mutators: Vec<_> = heaps.iter().map(|heap| heap.attach().unwrap()).collect();
            for (n, heap) in heaps.iter().enumerate().step_by(100) {
                let before = heap.stats().collections;
                heap.collect();
                assert!(heap.stats().collections > before, "heap {n}");
            }
            drop(mutators);
        },
    );
}

/// Threads that used forty sizes once and go on with one: after some collections each holds a span
/// of that size, and no others.
#[test]
fn h90_threads_that_run_do_not_keep_a_span_for_each_size_that_they_used_once() {
    hazard(
        "h90_threads_that_run_do_not_keep_a_span_for_each_size_that_they_used_once",
        "stale-runs-kept",
        || {
            const THREADS: usize = 4;
            const SIZES: usize = 40;
            let heap = Heap::builder().build().unwrap();
            let (ready, done) = (Barrier::new(THREADS + 1), AtomicBool::new(false));
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        let m = heap.attach().unwrap();
                        let alloc = |bytes: usize| {
                            m.with_scope(|s| s.alloc_bytes(&vec![1; bytes]).map(|_| ()))
                                .unwrap();
                        };
                        (1..=SIZES).for_each(|n| alloc(n * 100));
                        m.blocking(|| ready.wait());
                        while !done.load(Relaxed) {
                            (0..100).for_each(|_| alloc(100));
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    });
                }
                ready.wait();
                let before = heap.stats().used_bytes;
                // Some share a size class.
                assert!(
                    before as usize >= THREADS * SIZES / 2 * (64 << 10),
                    "{before}"
                );
                // Each refill looks at some sites. One that gives nothing back is found to hang.
                while heap.stats().used_bytes > before / 4 {
                    heap.collect();
                    std::thread::sleep(Duration::from_millis(20));
                }
                done.store(true, Relaxed);
            });
        },
    );
}

/// What counts against `RLIMIT_DATA`, and where overcommit is strict as promised.
fn promised() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmData"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        << 10
}

#[test]
fn h64_a_heap_of_the_default_reserve_promises_little() {
    hazard(
        "h64_a_heap_of_the_default_reserve_promises_little",
        "all-writable",
        || {
            let before = promised();
            let heap = Heap::builder().build().unwrap();
            let after = promised() - before;
            // Most of it is the table of types, which has places for all that there may be.
            assert!(after <= 40 << 20, "{after}");
            is_of_use(&heap);
        },
    );
}
