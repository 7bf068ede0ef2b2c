//! Mutators that are set aside: stops pass over them, yet they stay where they are. A mutator is
//! taken back before it leaves its wait, however the wait ends.

mod common;

use common::{bare_thread, hazard, wait_for, world};
use gc_preempt::{CodeSpec, CodeWhat, Mutator, MutatorHooks, MutatorId, StoppedMutator, World};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// The counts of the hooks of a test's mutators. The mutators' `data` points to one.
#[derive(Default)]
struct Counts {
    back: AtomicUsize,
    gone: AtomicUsize,
}

impl Counts {
    fn back(&self) -> usize {
        self.back.load(SeqCst)
    }
}

unsafe fn back(data: *mut (), mutator: &StoppedMutator<'_>) {
    assert_eq!(mutator.data(), data);
    // SAFETY: the data of each mutator in these tests is a `Counts`.
    unsafe { (*data.cast::<Counts>()).back.fetch_add(1, SeqCst) };
}

unsafe fn gone(data: *mut ()) {
    // SAFETY: the data of each mutator in these tests is a `Counts`.
    unsafe { (*data.cast::<Counts>()).gone.fetch_add(1, SeqCst) };
}

const HOOKS: MutatorHooks = MutatorHooks {
    at_exit: |_| unreachable!("every mutator here is dropped"),
    gone,
    back: Some(back),
};

fn attach(world: &World, counts: &Counts) -> Mutator {
    // SAFETY: the hooks only count, and the counts outlive the threads.
    unsafe { world.attach_with(std::ptr::from_ref(counts).cast_mut().cast(), HOOKS) }.unwrap()
}

/// Sets mutators aside that have been in `blocking` since the last call, if `may` is true.
fn look(world: &World, may: bool) -> usize {
    // SAFETY: no stop in these tests depends on the mutators that are aside.
    unsafe { world.set_aside(|_| may) }
}

/// Sets all waiting mutators aside.
fn set_aside(world: &World) -> usize {
    look(world, true) + look(world, true)
}

/// The number of mutators that a stop meets, and the number of mutators aside.
fn seen(world: &World) -> [usize; 2] {
    let stopped = world.stop().unwrap();
    let seen = [stopped.mutators().count(), stopped.aside().len()];
    assert_eq!(stopped.resume().mutators as usize, seen[0]);
    seen
}

fn aside(world: &World) -> Vec<MutatorId> {
    let mut ids = Vec::new();
    assert_eq!(
        world.for_each_aside(usize::MAX, usize::MAX, |m| ids.push(m.id())),
        None
    );
    ids
}

/// Runs `body` on an attached thread, and `f` on this thread meanwhile. `body` gets a function for
/// `blocking`, which waits until `f` sends.
fn with_waiting<R>(
    world: &World,
    counts: &Counts,
    body: impl FnOnce(Mutator, &dyn Fn()) + Send,
    f: impl FnOnce(&Sender<()>, &Receiver<()>) -> R,
) -> R {
    let (ready, is_ready) = channel();
    let (go, wait) = channel();
    std::thread::scope(|s| {
        let thread = s.spawn(move || {
            let waits = || {
                ready.send(()).unwrap();
                wait.recv().unwrap();
            };
            body(attach(world, counts), &waits);
        });
        is_ready.recv().unwrap();
        let result = f(&go, &is_ready);
        thread.join().unwrap();
        result
    })
}

#[test]
fn one_that_waits_for_long_is_passed_over_until_it_comes_back() {
    let (world, counts) = (world(), Counts::default());
    let body = |m: Mutator, waits: &dyn Fn()| {
        m.blocking(waits);
        assert_eq!(counts.back(), 1, "before it goes on");
        m.blocking(waits);
    };
    with_waiting(&world, &counts, body, |go, _| {
        assert_eq!(look(&world, true), 0, "it has been seen once");
        assert_eq!(look(&world, false), 0, "its world keeps it");
        assert_eq!(seen(&world), [1, 0]);
        assert_eq!(look(&world, true), 1);
        assert_eq!(look(&world, true), 0, "it is aside already");
        assert_eq!(seen(&world), [0, 1]);
        go.send(()).unwrap();
        while counts.back() == 0 {
            std::thread::yield_now();
        }
        while seen(&world) != [1, 0] {}
        go.send(()).unwrap();
    });
    assert_eq!((counts.back(), seen(&world)), (1, [0, 0]));
}

#[test]
fn one_that_was_back_in_between_has_not_waited_for_long() {
    let (world, counts) = (world(), Counts::default());
    let body = |m: Mutator, waits: &dyn Fn()| {
        for _ in 0..2 {
            m.blocking(waits);
        }
    };
    with_waiting(&world, &counts, body, |go, ready| {
        assert_eq!(look(&world, true), 0);
        go.send(()).unwrap();
        ready.recv().unwrap();
        assert_eq!(look(&world, true), 0, "this is another wait");
        assert_eq!(look(&world, true), 1);
        go.send(()).unwrap();
    });
}

#[test]
fn h97_one_that_is_aside_does_not_go_on_in_a_stop() {
    hazard(
        "h97_one_that_is_aside_does_not_go_on_in_a_stop",
        "back-unlocked",
        || {
            let (world, counts) = (world(), Counts::default());
            let (ends, runs) = (AtomicBool::new(false), AtomicBool::new(false));
            let body = |m: Mutator, waits: &dyn Fn()| {
                m.blocking(|| {
                    waits();
                    wait_for(&ends);
                });
                runs.store(true, SeqCst);
            };
            with_waiting(&world, &counts, body, |go, _| {
                go.send(()).unwrap();
                assert_eq!(set_aside(&world), 1);
                let stopped = world.stop().unwrap();
                assert_eq!(stopped.mutators().count(), 0);
                ends.store(true, SeqCst);
                std::thread::sleep(Duration::from_millis(100));
                assert_eq!((runs.load(SeqCst), counts.back()), (false, 0));
                drop(stopped);
            });
            assert!(runs.load(SeqCst));
        },
    );
}

#[test]
fn h97_one_that_waits_for_the_registry_is_not_set_aside() {
    hazard(
        "h97_one_that_waits_for_the_registry_is_not_set_aside",
        "waiter-aside",
        || {
            let (a, b, counts) = (world(), world(), Counts::default());
            let (done, asks) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    let m = attach(&a, &counts);
                    while !done.load(SeqCst) {
                        m.blocking(|| {
                            while !asks.swap(false, SeqCst) && !done.load(SeqCst) {
                                std::thread::yield_now();
                            }
                        });
                        // The thread waits for the registry lock, which the stop holds.
                        drop(attach(&b, &counts));
                    }
                });
                for _ in 0..40 {
                    let others = b.stop().unwrap();
                    asks.store(true, SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                    drop(others);
                    // The thread was not woken yet.
                    look(&a, true);
                    look(&a, true);
                    while asks.load(SeqCst) {
                        std::thread::yield_now();
                    }
                }
                done.store(true, SeqCst);
            });
        },
    );
}

#[test]
fn a_handshake_takes_it_back() {
    let (world, counts) = (world(), Counts::default());
    let body = |m: Mutator, waits: &dyn Fn()| m.blocking(waits);
    with_waiting(&world, &counts, body, |go, _| {
        let id = world.stop().unwrap().mutators().next().unwrap().id();
        assert_eq!(set_aside(&world), 1);
        assert_eq!(
            world.handshake(id, |m| (m.id(), m.is_blocked())),
            Ok((id, true))
        );
        assert_eq!((counts.back(), seen(&world)), (1, [1, 0]));
        assert_eq!(set_aside(&world), 1);
        go.send(()).unwrap();
    });
    assert_eq!(counts.back(), 2);
}

#[test]
fn one_that_detaches_where_it_waits_is_taken_back_first() {
    let (world, counts) = (world(), Counts::default());
    let body = |m: Mutator, waits: &dyn Fn()| {
        gc_preempt::blocking_here(|| {
            waits();
            drop(m);
            assert_eq!(counts.back(), 1);
            waits();
        });
    };
    with_waiting(&world, &counts, body, |go, ready| {
        assert_eq!(set_aside(&world), 1);
        go.send(()).unwrap();
        ready.recv().unwrap();
        assert_eq!(seen(&world), [0, 0]);
        go.send(()).unwrap();
    });
}

#[test]
fn one_may_come_back_inside_no_preempt_whoever_has_the_registry() {
    let (world, other, counts) = (world(), common::world(), Counts::default());
    let ends = AtomicBool::new(false);
    let body = |m: Mutator, waits: &dyn Fn()| {
        let section = m.blocking(|| {
            waits();
            wait_for(&ends);
            m.no_preempt_guard()
        });
        assert!(m.in_no_preempt());
        drop(section);
    };
    with_waiting(&world, &counts, body, |go, _| {
        assert_eq!(set_aside(&world), 1);
        go.send(()).unwrap();
        let stopped = other.stop().unwrap();
        ends.store(true, SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        drop(stopped);
    });
    assert_eq!(counts.back(), 1);
}

#[test]
fn a_thread_that_holds_a_stop_of_another_world_comes_back() {
    let (a, b, counts) = (world(), world(), Counts::default());
    let body = |m: Mutator, waits: &dyn Fn()| {
        let stopped = m.blocking(|| {
            waits();
            b.stop().unwrap()
        });
        assert_eq!(counts.back(), 1);
        drop(stopped);
        let stopped = m.blocking(|| {
            waits();
            b.stop().unwrap()
        });
        drop(m);
        drop(stopped);
    };
    with_waiting(&a, &counts, body, |go, ready| {
        for round in 0..2 {
            assert_eq!(set_aside(&a), 1);
            go.send(()).unwrap();
            if round == 0 {
                ready.recv().unwrap();
            }
        }
    });
    assert_eq!((counts.back(), seen(&a)), (2, [0, 0]));
}

#[test]
fn one_of_two_worlds_stays_in_both() {
    let (a, b, counts) = (world(), world(), Counts::default());
    let body = |m: Mutator, waits: &dyn Fn()| {
        m.blocking(|| {
            waits();
            let other = attach(&b, &counts);
            waits();
            drop(other);
        });
        let other = attach(&b, &counts);
        m.blocking(waits);
        drop(other);
    };
    with_waiting(&a, &counts, body, |go, ready| {
        assert_eq!(set_aside(&a), 1);
        go.send(()).unwrap();
        ready.recv().unwrap();
        assert_eq!(
            (seen(&a), seen(&b)),
            ([0, 1], [1, 0]),
            "aside, then attached to another"
        );
        assert_eq!(set_aside(&b), 0);
        go.send(()).unwrap();
        ready.recv().unwrap();
        assert_eq!((set_aside(&a), set_aside(&b)), (0, 0));
        go.send(()).unwrap();
    });
}

#[test]
fn h97_one_that_ends_by_the_bare_system_call_is_forgotten() {
    hazard(
        "h97_one_that_ends_by_the_bare_system_call_is_forgotten",
        "no-lifeline",
        || {
            let (world, counts) = (world(), Counts::default());
            let (ready, is_ready) = channel();
            let (go, wait) = channel::<()>();
            let (there, counted) = (&world, &counts);
            let thread = bare_thread(move || {
                let m = attach(there, counted);
                m.blocking(|| {
                    ready.send(()).unwrap();
                    wait.recv().unwrap();
                    // SAFETY: ends the thread without destructors.
                    unsafe { libc::syscall(libc::SYS_exit, 0) };
                });
            });
            is_ready.recv().unwrap();
            assert_eq!(set_aside(&world), 1);
            assert_eq!(world.for_each_aside(usize::MAX, 8, |_| ()), None);
            assert_eq!(counts.gone.load(SeqCst), 0);
            go.send(()).unwrap();
            thread.join();
            let mut met = 0;
            assert_eq!(world.for_each_aside(usize::MAX, 8, |_| met += 1), None);
            assert_eq!((met, counts.gone.load(SeqCst)), (0, 1));
            assert_eq!(seen(&world), [0, 0]);
        },
    );
}

#[test]
fn a_pass_meets_all_that_stay_aside_while_others_come_back() {
    const THREADS: usize = 40;
    let (world, counts) = (world(), Counts::default());
    let ready = &AtomicUsize::new(0);
    std::thread::scope(|s| {
        let mut ends: Vec<_> = (0..THREADS)
            .map(|_| {
                let (go, wait) = channel::<()>();
                let (world, counts) = (&world, &counts);
                let thread = s.spawn(move || {
                    attach(world, counts).blocking(|| {
                        ready.fetch_add(1, SeqCst);
                        wait.recv().unwrap();
                    });
                });
                Some((go, thread))
            })
            .collect();
        while ready.load(SeqCst) < THREADS {
            std::thread::yield_now();
        }
        assert_eq!(set_aside(&world), THREADS);
        let (mut met, mut from, mut back) = (Vec::new(), Some(usize::MAX), Vec::new());
        let ids = aside(&world);
        while let Some(at) = from {
            from = world.for_each_aside(at, 7, |m| met.push(m.id()));
            // Two threads end here: one that the pass may have met, and one that it may not have
            // met.
            for _ in 0..2 {
                let place = (back.len() * 17 + 5) % THREADS;
                if let Some((go, thread)) = ends[place].take() {
                    let before = aside(&world);
                    go.send(()).unwrap();
                    thread.join().unwrap();
                    let after = aside(&world);
                    back.extend(before.into_iter().filter(|id| !after.contains(id)));
                }
            }
        }
        assert!(back.len() >= 10, "{}", back.len());
        let missed = ids
            .iter()
            .filter(|id| !met.contains(id) && !back.contains(id));
        assert_eq!(missed.count(), 0);
        for (go, _) in ends.iter().flatten() {
            go.send(()).unwrap();
        }
    });
    assert_eq!((counts.back(), seen(&world)), (THREADS, [0, 0]));
}

#[test]
fn code_that_a_stack_aside_names_stays_registered() {
    let (world, counts) = (world(), Counts::default());
    let code = Box::new([0u8; 4096]);
    let address = code.as_ptr() as usize;
    let owner = Arc::new(());
    let spec = CodeSpec {
        range: address..address + 4096,
        what: CodeWhat::Unsafe,
        owner: Some(Box::new(owner.clone())),
    };
    // SAFETY: no code runs at these addresses.
    let guard = unsafe { world.register_code(spec) }.unwrap();
    let body = |m: Mutator, waits: &dyn Fn()| {
        let named = std::hint::black_box([address + 100; 4]);
        m.blocking(waits);
        std::hint::black_box(&named);
    };
    with_waiting(&world, &counts, body, |go, _| {
        assert_eq!(set_aside(&world), 1);
        drop(guard);
        drop(world.stop().unwrap());
        drop(world.stop().unwrap());
        assert_eq!(Arc::strong_count(&owner), 2);
        go.send(()).unwrap();
    });
    drop(world.stop().unwrap());
    assert_eq!(Arc::strong_count(&owner), 1);
}

#[test]
fn a_child_that_was_forked_by_one_aside_has_it_as_its_only_mutator() {
    let (world, counts) = (world(), Counts::default());
    let body = |m: Mutator, waits: &dyn Fn()| {
        let pid = m.blocking(|| {
            waits();
            // SAFETY: the child ends by `_exit`.
            unsafe { libc::fork() }
        });
        if pid == 0 {
            let is_right = counts.back() == 1
                && m.blocking(|| {
                    std::thread::spawn({
                        let world = world.clone();
                        move || seen(&world) == [1, 0]
                    })
                    .join()
                    .is_ok_and(|right| right)
                });
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!is_right)) };
        }
        let mut status = 1;
        // SAFETY: waits once, for a child of this process.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
    };
    with_waiting(&world, &counts, body, |go, _| {
        assert_eq!(set_aside(&world), 1);
        go.send(()).unwrap();
    });
}
