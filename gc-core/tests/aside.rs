//! Mutators that are aside, because they wait in `blocking` for long. No stop visits them, and no
//! cell that they hold is lost, whenever they return.

mod common;

use common::step::is_marking;
use common::{
    Kinds, bare_exit, check_list, cons, garbage, hazard, hazard_given, kinds, list, sit_idle,
    until, until_its_bare_exit, wipe_stack,
};
use gc_core::raw::{Kind, RawRoot};
use gc_core::{Field, Heap, Mutator, Stress, Trace};
use std::sync::Barrier;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};

#[derive(Trace, Default)]
struct Node {
    next: Field<Node>,
    number: usize,
}

/// A heap that fills freed cells, and whose cycles stay in each phase for a while. A panic of a
/// thread ends the process, because other threads wait for that thread.
fn stress_phases() -> (Heap, Kinds) {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::abort();
    }));
    let heap = Heap::builder()
        .reserve(1 << 30)
        .stress(Stress::PHASES)
        .poison(true)
        .build()
        .unwrap();
    let kinds = kinds(&heap);
    (heap, kinds)
}

/// Collects until `threads` mutators are aside. Only the caller's mutator is not.
fn until_aside(m: &Mutator, threads: u32) {
    while m.heap().stats().last.aside != threads {
        m.collect();
    }
}

/// The work of a thread that waits until it is aside and returns while a cycle marks.
trait Waits {
    /// Makes cells, calls `waits`, uses the heap, calls `until_marked`, and checks the cells.
    /// `until_marked` returns once marking is over and freed cells have been used again.
    fn wait(&self, m: &Mutator, k: Kinds, waits: &dyn Fn(), until_marked: &dyn Fn());
}

/// How often the thread returns while a cycle marks. In turn, it meets each phase that a cycle of
/// the heap stays in.
const ROUNDS: usize = 16;

/// Has a thread wait until it is aside and return while a cycle marks, `ROUNDS` times. The
/// condition `held-aside` holds the collector before it scans the thread, until the thread has
/// returned and called `until_marked`.
fn comes_back(what: &(impl Waits + Sync)) {
    let (heap, k) = stress_phases();
    // How often the thread may have returned, and has returned.
    let (go, back) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let ready = Barrier::new(2);
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = heap.attach().unwrap();
            for round in 1..=ROUNDS {
                let waits = || {
                    m.blocking(|| {
                        ready.wait();
                        until(|| go.load(SeqCst) == round);
                    });
                };
                let until_marked = || {
                    back.store(round, SeqCst);
                    m.blocking(|| ready.wait());
                };
                what.wait(&m, k, &waits, &until_marked);
            }
        });
        let m = heap.attach().unwrap();
        for round in 1..=ROUNDS {
            m.blocking(|| ready.wait());
            until_aside(&m, 1);
            let begin = || _ = heap.request_collection();
            gc_preempt::faults::while_held(begin, || {
                assert!(is_marking(&m));
                go.store(round, SeqCst);
                until(|| back.load(SeqCst) == round);
            });
            // The cycle that was held ends, and perhaps another one.
            let held = heap.stats().collections;
            until(|| heap.stats().collections > held || !is_marking(&m));
            garbage(&m, k, 4000);
            m.blocking(|| ready.wait());
        }
    });
}

/// Holds a list on the stack.
struct OnStack;

impl Waits for OnStack {
    #[inline(never)]
    fn wait(&self, m: &Mutator, k: Kinds, waits: &dyn Fn(), until_marked: &dyn Fn()) {
        let head = list(m, k, 30);
        wipe_stack();
        waits();
        until_marked();
        check_list(head, 30);
    }
}

/// Holds a list by a handle, and moves its rest to another handle while a cycle marks.
struct InScope;

impl Waits for InScope {
    fn wait(&self, m: &Mutator, _: Kinds, waits: &dyn Fn(), until_marked: &dyn Fn()) {
        m.with_scope(|outer| {
            let kept = m.with_scope(|s| {
                let mut head = s.alloc(Node::default()).unwrap();
                for number in 1..30 {
                    let node = s
                        .alloc(Node {
                            number,
                            ..Node::default()
                        })
                        .unwrap();
                    node.next.set(s, &head);
                    head = node;
                }
                waits();
                head.next.get(outer).unwrap()
            });
            until_marked();
            let mut at = Some(kept);
            for number in (0..29).rev() {
                let node = at.unwrap();
                assert_eq!(node.number, number, "a node has been freed");
                at = node.next.get(outer);
            }
        });
    }
}

/// Takes a node out of another one while a cycle marks, and holds it on the stack.
struct Unlinks;

impl Waits for Unlinks {
    #[inline(never)]
    fn wait(&self, m: &Mutator, k: Kinds, waits: &dyn Fn(), until_marked: &dyn Fn()) {
        #[inline(never)]
        fn pair(m: &Mutator, k: Kinds) -> usize {
            let tail = cons(m, k, 0, 1 << 40);
            cons(m, k, tail, 7)
        }
        let head = pair(m, k);
        wipe_stack();
        waits();
        // SAFETY: a live node.
        let tail = unsafe {
            let slot = head as *mut usize;
            let tail = slot.read();
            m.write(slot, 0);
            tail
        };
        until_marked();
        // SAFETY: live nodes; where they are not, the test has found a fault.
        unsafe {
            assert_eq!((head as *const usize).add(1).read(), 7);
            assert_eq!((tail as *const usize).add(1).read(), 1 << 40, "freed");
        }
    }
}

/// Inside `blocking`, makes a root of the cell that a variable of the caller names, and clears the
/// variable.
struct Roots;

impl Waits for Roots {
    #[inline(never)]
    fn wait(&self, m: &Mutator, k: Kinds, waits: &dyn Fn(), until_marked: &dyn Fn()) {
        #[inline(never)]
        fn make(m: &Mutator, k: Kinds, kept: &AtomicUsize) {
            kept.store(list(m, k, 30), SeqCst);
        }
        #[inline(never)]
        fn root(m: &Mutator, kept: &AtomicUsize) -> RawRoot {
            // SAFETY: the cell is alive, since the caller's variable names it until it has a root.
            let root = unsafe { m.heap().root_raw(common::cell(kept.load(SeqCst))) }.unwrap();
            kept.store(0, SeqCst);
            root
        }
        let kept = AtomicUsize::new(0);
        make(m, k, &kept);
        wipe_stack();
        let root = m.blocking(|| {
            waits();
            root(m, &kept)
        });
        until_marked();
        check_list(root.get().unwrap().as_ptr() as usize, 30);
    }
}

/// A cell that a thread roots while it is aside lives. With `roots-end-early` planted, the scan of
/// the roots ends before the new one.
#[test]
fn h98_what_a_thread_roots_where_it_waits_lives() {
    hazard_given(
        "h98_what_a_thread_roots_where_it_waits_lives",
        "held-aside",
        "roots-end-early",
        &[],
        || comes_back(&Roots),
    );
}

/// The cells that a mutator holds while it is aside live: the collector scans its stack and handles
/// beside the program. With `aside-unscanned` planted, they are freed.
#[test]
fn h98_what_a_thread_holds_that_waits_for_long_lives() {
    hazard(
        "h98_what_a_thread_holds_that_waits_for_long_lives",
        "aside-unscanned",
        || {
            let (heap, k) = stress_phases();
            let (ready, done) = (Barrier::new(3), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    let m = heap.attach().unwrap();
                    let head = list(&m, k, 300);
                    wipe_stack();
                    sit_idle(&m, &ready, &done);
                    check_list(head, 300);
                });
                s.spawn(|| {
                    let m = heap.attach().unwrap();
                    m.with_scope(|s| {
                        let node = s
                            .alloc(Node {
                                number: 9,
                                ..Node::default()
                            })
                            .unwrap();
                        sit_idle(&m, &ready, &done);
                        assert_eq!(node.number, 9);
                    });
                });
                let m = heap.attach().unwrap();
                m.blocking(|| ready.wait());
                until_aside(&m, 2);
                for _ in 0..8 {
                    m.collect();
                    garbage(&m, k, 1000);
                }
                assert_eq!(heap.stats().last.mutators, 1);
                done.store(true, Relaxed);
            });
        },
    );
}

/// The end of a thread that is aside is found also where mutators that are aside are scanned in
/// stops. With `aside-dead-kept` planted, the mutator stays aside.
#[test]
fn h97_a_thread_that_ends_where_it_waits_is_forgotten_where_scans_fall_into_stops() {
    let name = "h97_a_thread_that_ends_where_it_waits_is_forgotten_where_scans_fall_into_stops";
    hazard(name, "aside-dead-kept", || {
        let heap = Heap::builder().reserve(1 << 30).stop_the_world(true);
        let heap = heap.build().unwrap();
        let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| {
                until_its_bare_exit(|| {
                    let m = heap.attach().unwrap();
                    m.blocking(|| {
                        sit_idle(&m, &ready, &done);
                        bare_exit();
                    });
                });
            });
            let m = heap.attach().unwrap();
            m.blocking(|| ready.wait());
            until_aside(&m, 1);
            m.blocking(|| done.store(true, Relaxed));
        });
        let m = heap.attach().unwrap();
        for _ in 0..3 {
            m.collect();
        }
        assert_eq!(heap.stats().last.aside, 0);
    });
}

/// A mutator that returns while a cycle marks is scanned first, so the cells on its stack live.
/// With `back-unscanned` planted, they are freed.
#[test]
fn h98_what_a_thread_has_on_its_stack_that_comes_back_while_a_cycle_marks_lives() {
    hazard_given(
        "h98_what_a_thread_has_on_its_stack_that_comes_back_while_a_cycle_marks_lives",
        "held-aside",
        "back-unscanned",
        &[],
        || comes_back(&OnStack),
    );
}

/// A mutator that returns while a cycle marks is scanned first, so the cells in its handles live.
/// With `back-unscanned` planted, they are freed.
#[test]
fn h98_what_a_thread_has_in_a_scope_that_comes_back_while_a_cycle_marks_lives() {
    hazard_given(
        "h98_what_a_thread_has_in_a_scope_that_comes_back_while_a_cycle_marks_lives",
        "held-aside",
        "back-unscanned",
        &[],
        || comes_back(&InScope),
    );
}

/// A mutator that returns while a cycle marks has its marking flag set first, so it logs the cell
/// that it unlinks. With `back-unmarked` planted, that cell is freed.
#[test]
fn h98_what_a_thread_unlinks_that_comes_back_while_a_cycle_marks_lives() {
    hazard_given(
        "h98_what_a_thread_unlinks_that_comes_back_while_a_cycle_marks_lives",
        "held-aside",
        "back-unmarked",
        &[],
        || comes_back(&Unlinks),
    );
}

/// A mutator that is set aside has no span, and allocates again after it returned.
#[test]
fn a_thread_that_is_set_aside_has_no_span_and_allocates_again() {
    const KINDS: usize = 100;
    let heap = Heap::builder().reserve(1 << 30).build().unwrap();
    let kinds: Vec<_> = (0..KINDS)
        .map(|i| heap.kind(Kind::leaf(format!("kind {i}"))).unwrap())
        .collect();
    let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = heap.attach().unwrap();
            let alloc = |i: usize| {
                // SAFETY: cells that are used later stay on the stack, which is scanned.
                unsafe { m.alloc_raw(kinds[i], 16) }
                    .unwrap()
                    .cast::<usize>()
            };
            for i in 0..KINDS {
                std::hint::black_box(alloc(i));
            }
            wipe_stack();
            sit_idle(&m, &ready, &done);
            let cells: [_; KINDS] = std::array::from_fn(|i| {
                let cell = alloc(i);
                // SAFETY: a new cell of two words.
                unsafe { cell.write(i) };
                cell
            });
            m.collect();
            for (i, cell) in cells.into_iter().enumerate() {
                // SAFETY: the cell is alive, since it is on the stack.
                assert_eq!(unsafe { cell.read() }, i);
            }
        });
        let m = heap.attach().unwrap();
        m.blocking(|| ready.wait());
        let before = heap.stats().used_bytes;
        until_aside(&m, 1);
        m.collect();
        m.collect();
        let after = heap.stats().used_bytes;
        assert!(before >= (KINDS * 4096) as u64, "{before}");
        assert!(after < before / 4, "{after} of {before}");
        done.store(true, Relaxed);
    });
}
