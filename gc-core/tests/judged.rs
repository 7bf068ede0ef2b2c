//! H76, H81: what dies is cleared, queued and kept beside the mutators where it is much, and
//! nothing of it is half done where they see it.

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

/// Makes `N` of something that dies at once, in a thread of its own, so that no stale word of this
/// stack keeps it.
fn apart(heap: &Heap, f: impl FnOnce(&Mutator) + Send) {
    std::thread::scope(|threads| {
        threads.spawn(|| f(&heap.attach().unwrap()));
    });
}

/// A weak cell, or one of pairs, of `n` words, each of which leads to a cell of its own.
fn table(m: &Mutator, k: Kinds, kind: KindId, n: usize) -> usize {
    // SAFETY: on the stack, and as large as it is used.
    unsafe {
        let table = m.alloc_raw(kind, n * 8).unwrap().as_ptr().cast::<usize>();
        for at in 0..n {
            m.write(table.add(at), cons(m, k, 0, at));
        }
        table as usize
    }
}

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
            // More than twice what one stop looks at: there may be two.
            assert!(last.looked_in_stops < 512, "{last:?}");
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
            // A stale word of this stack may keep the last one.
            assert!((N / words_a_target - 3..=N).contains(&cleared), "{cleared}");
            std::hint::black_box(words);
        }
    });
}

/// Pages of address space that this process has.
fn pages() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn h76_tables_are_as_small_as_before_a_cycle_after_a_peak() {
    let name = "h76_tables_are_as_small_as_before_a_cycle_after_a_peak";
    // An arena of malloc's takes 64 MiB of addresses.
    let environment = [("MALLOC_ARENA_MAX", "1")];
    hazard_with(name, "tables-kept", &environment, || {
        // All of its addresses are mapped when it is built, but for these tables.
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
        // What the heap and libc map at first use.
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
        // The collector gives memory back after the collection that was waited for.
        let begun = std::time::Instant::now();
        // A marker's thread may have come, whose stack has 512.
        while pages() > before + 1500 {
            assert!(begun.elapsed().as_secs() < 5, "{before} {}", pages());
            std::thread::yield_now();
        }
    });
}

/// Forks; whether the child has ended well.
fn in_child(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child calls what this library promises to work there.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: system calls. A child that hangs is ended by the alarm.
        unsafe { libc::alarm(20) };
        let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
        // SAFETY: as above: no destructors of the parent's are run.
        unsafe { libc::_exit(i32::from(!well)) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status == 0
}

#[test]
fn h81_a_child_forked_while_words_are_cleared_finds_all_or_none_of_a_target_s() {
    let name = "h81_a_child_forked_while_words_are_cleared_finds_all_or_none_of_a_target_s";
    hazard(name, "unjudged-in-child", || {
        if !has_concurrent_cycles() {
            panic!("there is nothing to be met");
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
                    // From the other end: half of the words are cleared before the first target has
                    // lost both.
                    m.write(two.add(WORDS - 1 - at), cell);
                }
            }
        }
        // SAFETY: on this stack, as large as they are used.
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
        assert!(met > 0, "no fork met the clearing");
        common::check_list(ballast, 50_000);
    });
}
