//! Limits: of addresses and memory that the system sets, and of the memory that a heap is built
//! with. Also free memory that goes back to the system.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::{backed, hazard, hazard_given, in_a_child, kinds};
use gc_core::raw::{Encoding, Kind, KindError};
use gc_core::{AllocError, Heap, Leaf};

fn limit(resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: a system call that reads `limit`.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
}

/// Checks that a heap works: it allocates, collects, and keeps a live list.
fn is_of_use(heap: &Heap) {
    let k = kinds(heap);
    let m = heap.attach().expect("a mutator has its tables");
    let list = common::list(&m, k, 1000);
    common::garbage(&m, k, 20_000);
    m.collect();
    common::check_list(list, 1000);
}

/// Under `RLIMIT_DATA`, a heap reserves more addresses than the limit has bytes. With
/// `all-writable` planted, the whole reserve counts, and the heap is halved.
#[test]
fn h64_memory_that_is_not_used_is_not_promised() {
    hazard(
        "h64_memory_that_is_not_used_is_not_promised",
        "all-writable",
        || {
            // `RLIMIT_DATA` counts writable memory in full, as the system does where overcommit is
            // strict.
            limit(libc::RLIMIT_DATA, 1 << 30);
            let heap = Heap::builder().reserve(16 << 30).build().unwrap();
            assert_eq!(heap.reserved().len(), 16 << 30, "it was halved");
            is_of_use(&heap);
        },
    );
}

/// Memory that the system refuses is an `AllocError` that names the limit, and the heap works again
/// once cells have died.
#[test]
fn h64_memory_that_is_refused_later_is_an_error_value_and_may_come_back() {
    in_a_child(
        "h64_memory_that_is_refused_later_is_an_error_value_and_may_come_back",
        || {
            limit(libc::RLIMIT_DATA, 1 << 30);
            let heap = Heap::builder().reserve(16 << 30).build().unwrap();
            let k = kinds(&heap);
            let m = heap.attach().unwrap();
            // The heap takes all memory under the limit. The test reserves what it needs, and some
            // for messages, beforehand.
            let mut roots = Vec::with_capacity(2000);
            let spare = vec![1u8; 16 << 20];
            let error = loop {
                // SAFETY: the cell gets a root at once.
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
                // SAFETY: the cell is not used.
                unsafe { m.alloc_raw(k.leaf, 1 << 20) }.unwrap();
            }
        },
    );
}

/// Under `RLIMIT_AS`, a heap halves its reserve until it fits, and leaves half a reserve of
/// addresses to the program. With `no-addresses-left` planted, the program's own mapping fails.
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
            // Half of the reserve, less what the tables may take.
            // SAFETY: a new mapping, which is not used.
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

/// Where no heap fits under `RLIMIT_AS`, the error names the limit, and a heap can be built once
/// the limit is raised.
#[test]
fn h65_where_nothing_fits_the_error_names_the_limit_and_raising_it_helps() {
    in_a_child(
        "h65_where_nothing_fits_the_error_names_the_limit_and_raising_it_helps",
        || {
            let mut now = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: a system call that writes `now`.
            unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut now) };
            let set = |bytes| {
                let limit = libc::rlimit {
                    rlim_cur: bytes,
                    rlim_max: now.rlim_max,
                };
                // SAFETY: a system call that reads `limit`.
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

/// The process's mapped bytes, open files and threads.
fn mapped() -> (usize, usize, usize) {
    let read = |file: &str| std::fs::read_to_string(file).unwrap();
    let addresses = read("/proc/self/statm");
    let addresses = addresses.split_whitespace().next().unwrap();
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    (addresses.parse::<usize>().unwrap() * 4096, files, threads)
}

/// A thousand heaps that are built and dropped leave no addresses, files or threads behind.
#[test]
fn a_thousand_heaps_come_and_go() {
    in_a_child("a_thousand_heaps_come_and_go", || {
        let use_one = || {
            let heap = Heap::builder().build().unwrap();
            is_of_use(&heap);
            heap
        };
        // Memory that the process keeps once: malloc's arenas, and stacks that are used again.
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

/// Three hundred heaps of the default reserve live at once, and work.
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

/// A request above the hard limit is refused without a collection. With `too-large-collects`
/// planted, collections run.
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
                // SAFETY: the result is an error.
                let error = unsafe { m.alloc_raw(k.leaf, bytes) }.unwrap_err();
                assert!(matches!(error, AllocError::HeapLimit { .. }), "{error}");
            }
            assert_eq!(heap.stats().collections, 0);
            // SAFETY: the cell is not used.
            unsafe { m.alloc_raw(k.leaf, LIMIT as usize / 2) }.unwrap();
        },
    );
}

/// A program that goes on allocating when its heap is full does not have a collection for each
/// request: collections in vain are rationed. With `tries-for-ever` planted, each request collects.
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
            // SAFETY: the cell gets a root at once.
            while let Ok(cell) = unsafe { m.alloc_raw(k.leaf, 16 << 10) } {
                // SAFETY: a live cell of this heap.
                roots.push(unsafe { m.root_raw(cell) }.unwrap());
            }
            let before = heap.stats().collections;
            for _ in 0..1000 {
                // SAFETY: the result is an error.
                assert!(unsafe { m.alloc_raw(k.leaf, 16 << 10) }.is_err());
            }
            let vain = heap.stats().collections - before;
            assert!(vain < 500, "{vain} collections for 1000 requests");
            // Cells that died are found by a later collection.
            roots.truncate(roots.len() / 2);
            common::wipe_stack();
            // SAFETY: the cell is not used.
            while unsafe { m.alloc_raw(k.leaf, 16 << 10) }.is_err() {
                m.blocking(|| std::thread::sleep(Duration::from_millis(10)));
            }
        },
    );
}

/// A family of types of one size.
#[derive(Leaf)]
struct Of<const N: usize>(#[allow(dead_code)] u64);

/// Allocates one value of each of thirty types.
fn touch(m: &gc_core::Mutator) -> Result<(), AllocError> {
    macro_rules! some {
        ($($n:literal)*) => { $( m.with_scope(|s| s.alloc(Of::<$n>(1)).map(drop))?; )* }
    }
    some!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29);
    Ok(())
}

/// Where memory is short, a stop takes back the spans of mutators inside `blocking`, so a large
/// request succeeds. With `idle-spans-kept` planted, it fails.
#[test]
fn h68_what_idle_threads_have_ready_is_not_missed_at_the_limit() {
    // These types have one layout. Here each has a kind of its own, as types of many layouts have.
    hazard_given(
        "h68_what_idle_threads_have_ready_is_not_missed_at_the_limit",
        "kind-a-type",
        "idle-spans-kept",
        &[],
        || {
            // The spans of all threads and types, of 64 KiB each, would take 15 MiB.
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

/// A heap in which 64 MiB of cells were allocated and one cell in 512 still has a root; and these
/// roots.
fn a_few_left(builder: gc_core::HeapBuilder) -> (Heap, Vec<gc_core::raw::RawRoot>) {
    let heap = builder.reserve(256 << 20).build().unwrap();
    let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
    let m = heap.attach().unwrap();
    let mut roots: Vec<_> = (0..(64 << 20) / 4096)
        .map(|_| {
            // SAFETY: the cell gets a root at once, and has the 4096 bytes that are written.
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

/// Free pieces of spans go back to the system, not only whole spans. With `parts-kept` planted, the
/// test hangs.
#[test]
fn h69_what_is_free_between_cells_goes_back_too() {
    hazard(
        "h69_what_is_free_between_cells_goes_back_too",
        "parts-kept",
        || {
            let (heap, roots) = a_few_left(Heap::builder());
            heap.collect();
            // Nothing else is requested. A heap that gives nothing back makes the test hang.
            while backed(&heap) > 16 << 20 {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(roots.len(), 32);
        },
    );
}

/// `trim` gives free memory back before it returns, and the heap works afterwards.
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
    // The heap works as a new one does.
    is_of_use(&heap);
}

/// A heap that no program uses is collected after its idle time. With `never-idle` planted, the
/// test hangs.
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

/// With an idle time of zero, an idle heap is not collected.
#[test]
fn an_idle_heap_whose_idle_collection_is_off_is_left_alone() {
    let builder = Heap::builder().idle_collection(Duration::ZERO);
    let (heap, _roots) = a_few_left(builder);
    let before = heap.stats().collections;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(heap.stats().collections, before);
}

/// A heap of large blocks stays near its goal: a request that would exceed the goal waits for the
/// collection. With `blocks-overshoot` planted, the used bytes pass 2.5 times the bytes alive.
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
                            // SAFETY: the cell gets a root at once.
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

/// A stop that takes spans back may find a thread that is still attaching and has none.
#[test]
fn h68_a_thread_that_is_attaching_has_nothing_to_be_taken_back() {
    in_a_child(
        "h68_a_thread_that_is_attaching_has_nothing_to_be_taken_back",
        || {
            // More than half of the limit is in use, so each stop takes spans back.
            let heap = Heap::builder().hard_limit(8 << 20).build().unwrap();
            let k = kinds(&heap);
            let m = heap.attach().unwrap();
            // SAFETY: the cell gets a root at once.
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

/// The number of collections while a program with 16 MiB alive allocates `mib` MiB, with pauses
/// that leave time to the collector. Also the roots of the live cells.
fn collections_under(heap: &Heap, mib: u64) -> (u64, Vec<gc_core::raw::RawRoot>) {
    const CELL: usize = 64 << 10;
    let leaf = heap.kind(Kind::leaf("leaf")).unwrap();
    let m = heap.attach().unwrap();
    // SAFETY: the cell gets a root at once, or is not used.
    let alloc = || unsafe { m.alloc_raw(leaf, CELL).unwrap() };
    // SAFETY: the cell was just allocated.
    let rooted = |_| unsafe { m.root_raw(alloc()).unwrap() };
    let roots = (0..256).map(rooted).collect();
    let is_due = || {
        let stats = heap.stats();
        stats.last.bytes_live + stats.allocated_since >= stats.trigger_bytes
    };
    let allocate = |mib: u64| {
        for _ in 0..mib << 20 >> 16 {
            // The allocation asks for a collection that is due.
            let (due, before) = (is_due(), heap.stats().collections);
            alloc();
            m.blocking(|| {
                std::thread::sleep(Duration::from_micros(500));
                // On a busy machine, a collection comes later.
                let waits = (0..100).take_while(|_| due && heap.stats().collections == before);
                waits.for_each(|_| std::thread::sleep(Duration::from_micros(500)));
            });
        }
    };
    // The pacer has reached a steady state under the limit.
    allocate(16);
    let before = heap.stats().collections;
    allocate(mib);
    (heap.stats().collections - before, roots)
}

/// With a soft limit below the bytes alive, the distance between collections doubles up to a tenth
/// of these bytes. With `vain-cycles` planted, the heap collects much more often.
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
            // The distance is a tenth of 16 MiB, or at least half of that: 64 MiB take 40 to 80
            // cycles.
            assert!((20..=100).contains(&collections), "{collections}");
            // The limit is kept again once the live bytes are below it.
            drop(roots);
            heap.collect();
            let stats = heap.stats();
            assert!(!stats.last.over_memory_limit && stats.goal_bytes <= 8 << 20);
        },
    );
}

/// Under `RLIMIT_AS`, three hundred heaps share 24 GiB of addresses, because each takes a smaller
/// part of the rest. With `halves-alone` planted, later heaps have none.
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
            // This thread is attached to all heaps, and their collectors run one after another.
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

/// Threads that used forty sizes once go on with one size. After some collections each holds a span
/// of that size only. With `stale-runs-kept` planted, the test hangs.
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
                // Some sizes share a size class.
                assert!(
                    before as usize >= THREADS * SIZES / 2 * (64 << 10),
                    "{before}"
                );
                // Each refill reviews some sites. A heap that gives nothing back makes the test
                // hang.
                while heap.stats().used_bytes > before / 4 {
                    heap.collect();
                    std::thread::sleep(Duration::from_millis(20));
                }
                done.store(true, Relaxed);
            });
        },
    );
}

/// The process's writable private bytes: what `RLIMIT_DATA` counts, and what the system promises
/// where overcommit is strict.
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

/// Building a heap of the default reserve promises at most 40 MiB. With `all-writable` planted, the
/// whole reserve is promised.
#[test]
fn h64_a_heap_of_the_default_reserve_promises_little() {
    hazard(
        "h64_a_heap_of_the_default_reserve_promises_little",
        "all-writable",
        || {
            let before = promised();
            let heap = Heap::builder().build().unwrap();
            let after = promised() - before;
            // Most of it is the table of types, which has a place for each possible type.
            assert!(after <= 40 << 20, "{after}");
            is_of_use(&heap);
        },
    );
}

/// A full table of encodings is an error of its own, and kinds of encodings that the heap has
/// already can still be made.
#[test]
fn a_full_table_of_encodings_says_so() {
    let heap = Heap::builder().build().unwrap();
    let kind = |tag: usize| Kind::array("tagged", 0, Encoding::nan_box(!0 << 48, tag << 48, !7));
    let made = (1..).find_map(|tag| heap.kind(kind(tag)).err().map(|error| (tag, error)));
    let Some((tag, error)) = made else {
        unreachable!()
    };
    assert_eq!((tag, error), (1024, KindError::TooManyEncodings));
    assert!(heap.kind(kind(1)).is_ok());
}
