//! H76, H81: weak words are cleared, and dead cells queued or kept, beside the mutators where there
//! are many of them. Mutators see none of this half done.

mod common;

use common::step::Record;
use common::{Kinds, cell, cons, hazard, hazard_with, heap, kinds, list, wipe_stack};
use gc_core::raw::{Encoding, Kind, KindId};
use gc_core::{Heap, Leaf, Mutator};
use std::sync::atomic::Ordering::Acquire;

const N: usize = 30_000;

#[derive(Leaf)]
struct Text(String);

fn has_concurrent_cycles() -> bool {
    std::env::var_os("URGE_STW").is_none()
}

/// Runs `f` as a mutator of a new thread, so that no stale word of this stack keeps the cells that
/// it leaves behind.
fn apart(heap: &Heap, f: impl FnOnce(&Mutator) + Send) {
    std::thread::scope(|threads| {
        threads.spawn(|| f(&heap.attach().unwrap()));
    });
}

/// A weak cell or an ephemeron cell of `n` words. Each word leads to a cell of its own.
fn table(m: &Mutator, k: Kinds, kind: KindId, n: usize) -> usize {
    // SAFETY: the cell stays on the stack and has `n` words.
    unsafe {
        let table = m.alloc_raw(kind, n * 8).unwrap().as_ptr().cast::<usize>();
        for at in 0..n {
            m.write(table.add(at), cons(m, k, 0, at));
        }
        table as usize
    }
}

/// A stop visits a bounded number of dying values, finalizers, weak words and pairs; the rest is
/// done beside the mutators. With `judged-in-stop` planted, stops visit all of them.
#[test]
fn h76_a_stop_looks_at_no_more_whatever_dies() {
    let name = "h76_a_stop_looks_at_no_more_whatever_dies";
    hazard(name, "judged-in-stop", || {
        if !has_concurrent_cycles() {
            return;
        }
        let (heap, k) = heap();
        let pairs = heap
            .kind(Kind::ephemeron("pairs", 0, Encoding::RAW, 0))
            .unwrap();
        let m = heap.attach().unwrap();
        let looked = || {
            m.collect();
            let last = heap.stats().last;
            // More than two stops may visit.
            assert!(last.examined_in_stops < 512, "{last:?}");
            last
        };
        apart(&heap, |m| {
            for _ in 0..N {
                m.with_scope(|s| assert!(s.alloc(Text(String::new())).is_ok()));
            }
        });
        looked();
        assert_eq!(m.drop_dead_values(), N as u64);
        apart(&heap, |m| {
            for at in 0..N {
                // SAFETY: a live cell.
                assert!(unsafe { m.register_finalizer(cell(cons(m, k, 0, at)), at).is_ok() });
            }
        });
        assert_eq!(looked().finalizable, N as u64);
        let mut next = 0;
        m.drain_finalizers(|_, token| {
            assert_eq!(token, next, "the order of registration");
            next += 1;
        });
        assert_eq!(next, N);
        for kind in [k.weak, pairs] {
            let words = table(&m, k, kind, N);
            wipe_stack();
            let words_a_target = if kind == pairs { 2 } else { 1 };
            let cleared = looked().weak_cleared as usize;
            // A stale word on this stack may keep the last one.
            assert!((N / words_a_target - 3..=N).contains(&cleared), "{cleared}");
            std::hint::black_box(words);
        }
    });
}

/// The process's address space, in system pages.
fn pages() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').next().unwrap().parse().unwrap()
}

/// The tables of finalizers and weak words are as small after a peak as before it. With
/// `tables-kept` planted, they keep their addresses.
#[test]
fn h76_tables_are_as_small_as_before_a_cycle_after_a_peak() {
    let name = "h76_tables_are_as_small_as_before_a_cycle_after_a_peak";
    // An arena of malloc takes 64 MiB of addresses.
    let environment = [("MALLOC_ARENA_MAX", "1")];
    hazard_with(name, "tables-kept", &environment, || {
        // The heap maps all its addresses when it is built, except those of these tables.
        let heap = Heap::builder().reserve(1 << 28).build().unwrap();
        let k = kinds(&heap);
        let m = heap.attach().unwrap();
        #[inline(never)]
        fn peak(m: &Mutator, k: Kinds, n: usize) {
            for at in 0..n {
                // SAFETY: a live cell.
                assert!(unsafe { m.register_finalizer(cell(cons(m, k, 0, at)), at).is_ok() });
            }
            let weak = table(m, k, k.weak, n);
            wipe_stack();
            m.collect();
            std::hint::black_box(weak);
        }
        // Maps what the heap and libc map at their first use.
        peak(&m, k, 10);
        let before = pages();
        peak(&m, k, 400_000);
        let most = pages();
        assert!(most > before + 2200, "{before} {most}");
        assert!(m.drain_finalizers(|_, _| ()) > 399_990);
        for _ in 0..2 {
            wipe_stack();
            m.collect();
        }
        // The collector gives memory back after it has answered the request for the collection.
        let begun = std::time::Instant::now();
        // A marker's thread may have been made, whose stack takes 512 pages.
        while pages() > before + 1500 {
            assert!(begun.elapsed().as_secs() < 5, "{before} {}", pages());
            std::thread::yield_now();
        }
    });
}

/// Forks. The child runs `body` and ends. True if the child ended with status 0.
fn in_child(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child calls functions of this library that are documented to work there.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: a system call. The alarm ends a child that hangs.
        unsafe { libc::alarm(20) };
        let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
        // SAFETY: a system call, which runs no destructors of the parent's values.
        unsafe { libc::_exit(i32::from(!well)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child that was forked above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status == 0
}

/// A child that is forked while weak words are being cleared finds all words to a target or none:
/// it clears the remaining words first. With `unjudged-in-child` planted, it finds one of two.
#[test]
fn h81_a_child_forked_while_words_are_cleared_finds_all_or_none_of_a_target_s() {
    let name = "h81_a_child_forked_while_words_are_cleared_finds_all_or_none_of_a_target_s";
    hazard(name, "unjudged-in-child", || {
        if !has_concurrent_cycles() {
            panic!("this heap has no concurrent cycles");
        }
        let (heap, k) = heap();
        let m = heap.attach().unwrap();
        const WORDS: usize = 400_000;
        #[inline(never)]
        fn fill(m: &Mutator, k: Kinds, one: *mut usize, two: *mut usize) {
            for at in 0..WORDS {
                let cell = cons(m, k, 0, at);
                // SAFETY: words of live cells.
                unsafe {
                    m.write(one.add(at), cell);
                    // In reverse order, so that half of the words are cleared before a target has
                    // lost both of its words.
                    m.write(two.add(WORDS - 1 - at), cell);
                }
            }
        }
        // SAFETY: the cells stay on this stack and have `WORDS` words.
        let [one, two] = [(); 2].map(|()| unsafe {
            let table = m.alloc_raw(k.weak, WORDS * 8).unwrap();
            table.as_ptr().cast::<usize>()
        });
        let ballast = list(&m, k, 50_000);
        let mode = || Record::of(&m).marking().load(Acquire);
        let mut met = 0;
        for _ in 0..200 {
            fill(&m, k, one, two);
            wipe_stack();
            let asked = heap.request_collection();
            while mode() < 2 && heap.stats().collections < asked {
                std::hint::spin_loop();
            }
            if mode() < 2 {
                continue;
            }
            met += 1;
            let well = in_child(|| {
                // SAFETY: words of live weak cells.
                let loads = |at: usize| unsafe {
                    [
                        m.load_weak(one.add(at)),
                        m.load_weak(two.add(WORDS - 1 - at)),
                    ]
                };
                let whole = (0..WORDS).all(|at| {
                    let [first, second] = loads(at);
                    first == second
                });
                m.collect();
                whole
            });
            assert!(well, "one word was cleared and the other one was not");
            if met == 12 {
                break;
            }
        }
        assert!(met > 0, "no fork fell into the clearing");
        common::check_list(ballast, 50_000);
    });
}
