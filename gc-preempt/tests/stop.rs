//! The stop protocol on real threads: threads that run, wait in `blocking`, are in `no_preempt`,
//! attach or detach, and two worlds at once.

mod common;

use common::{is_child, run_child, wait_for, world};
use gc_preempt::{
    AttachError, Config, HandshakeError, MutatorHooks, MutatorId, Origin, StopError, World,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

/// Threads that count and never poll.
struct Counters {
    counts: Arc<Vec<AtomicU64>>,
    done: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Counters {
    fn start(world: &World, n: usize) -> Self {
        let counts: Arc<Vec<AtomicU64>> = Arc::new((0..n).map(|_| AtomicU64::new(0)).collect());
        let done = Arc::new(AtomicBool::new(false));
        let threads = (0..n)
            .map(|i| {
                let (world, counts, done) = (world.clone(), counts.clone(), done.clone());
                std::thread::spawn(move || {
                    let _mutator = world.attach(i as *mut ()).unwrap();
                    while !done.load(Relaxed) {
                        // A load and a store instead of fetch_add, so that a stop may come between
                        // them.
                        counts[i].store(counts[i].load(Relaxed) + 1, Relaxed);
                    }
                })
            })
            .collect();
        let all = Self {
            counts,
            done,
            threads,
        };
        all.wait_for_progress();
        all
    }

    /// An array and not a vector: tests read while the world is stopped, where malloc is forbidden.
    fn read(&self) -> [u64; 5] {
        std::array::from_fn(|i| self.counts.get(i).map_or(0, |c| c.load(SeqCst)))
    }

    fn wait_for_progress(&self) {
        let before = self.read();
        while self
            .read()
            .iter()
            .zip(&before)
            .take(self.counts.len())
            .any(|(a, b)| a <= b)
        {
            std::thread::yield_now();
        }
    }

    fn finish(self) {
        self.done.store(true, Relaxed);
        for t in self.threads {
            t.join().unwrap();
        }
    }
}

#[test]
fn stopped_threads_stand_still_and_resumed_ones_go_on() {
    let world = world();
    for n in [1, 2, 5] {
        let counters = Counters::start(&world, n);
        for _ in 0..60 {
            let stopped = world.stop().unwrap();
            assert_eq!(stopped.mutators().count(), n);
            let seen = counters.read();
            for _ in 0..50 {
                assert_eq!(counters.read(), seen, "a stopped thread ran");
            }
            let seen_data = stopped
                .mutators()
                .fold(0, |set, m| set | 1 << m.data() as usize);
            assert_eq!(seen_data, (1 << n) - 1);
            for m in stopped.mutators() {
                let s = m.snapshot();
                assert!(m.stack().contains(&s.registers.sp()));
                if s.origin == Origin::Signal {
                    assert!(s.vectors.len() >= 512);
                }
            }
            let report = stopped.resume();
            assert_eq!(report.mutators as usize, n);
            assert!(report.pause >= report.time_to_stop);
        }
        counters.wait_for_progress();
        counters.finish();
    }
}

#[test]
fn back_to_back_stops_never_lose_a_thread() {
    let world = world();
    let counters = Counters::start(&world, 4);
    for round in 0..200 {
        let stopped = world.stop().unwrap();
        let seen = counters.read();
        std::hint::spin_loop();
        assert_eq!(counters.read(), seen, "round {round}");
        drop(stopped);
    }
    counters.wait_for_progress();
    counters.finish();
}

#[test]
fn a_blocked_thread_is_held_without_a_signal_and_waits_at_its_end() {
    let world = world();
    let (entered, leave, left) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = world.attach(core::ptr::null_mut()).unwrap();
            m.blocking(|| {
                entered.store(true, SeqCst);
                wait_for(&leave);
            });
            left.store(true, SeqCst);
        });
        wait_for(&entered);
        let stopped = world.stop().unwrap();
        assert_eq!(
            stopped.mutators().next().unwrap().snapshot().origin,
            Origin::Call
        );
        leave.store(true, SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!left.load(SeqCst), "it left blocking during the stop");
        let report = stopped.resume();
        assert_eq!((report.signalled, report.held), (0, 1));
    });
    assert!(left.load(SeqCst));
}

#[test]
fn a_signal_never_interrupts_a_blocking_call() {
    // H5: nanosleep never restarts after a handler, even with SA_RESTART.
    let world = world();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let sleeper = s.spawn(|| {
            let m = world.attach(core::ptr::null_mut()).unwrap();
            let mut interrupted = 0;
            while !done.load(Relaxed) {
                let t = libc::timespec {
                    tv_sec: 0,
                    tv_nsec: 200_000,
                };
                // SAFETY: the timespec is valid.
                interrupted += m.blocking(|| unsafe {
                    libc::nanosleep(&raw const t, core::ptr::null_mut()) != 0
                }) as u32;
            }
            interrupted
        });
        for _ in 0..3000 {
            drop(world.stop().unwrap());
        }
        done.store(true, Relaxed);
        assert_eq!(sleeper.join().unwrap(), 0, "EINTR in a blocking region");
    });
}

#[test]
fn no_preempt_is_not_stopped_in_and_stops_at_its_end() {
    let world = world();
    let (inside, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = world.attach(core::ptr::null_mut()).unwrap();
            while !done.load(Relaxed) {
                m.no_preempt(|| {
                    inside.store(true, SeqCst);
                    for _ in 0..2000 {
                        std::hint::spin_loop();
                    }
                    m.no_preempt(|| ());
                    inside.store(false, SeqCst);
                });
            }
        });
        while !inside.load(SeqCst) {
            std::hint::spin_loop();
        }
        for _ in 0..500 {
            let stopped = world.stop().unwrap();
            assert!(!inside.load(SeqCst), "stopped inside no_preempt");
            drop(stopped);
        }
        done.store(true, Relaxed);
    });
}

#[test]
fn blocking_inside_no_preempt_is_an_error() {
    let world = world();
    let m = world.attach(core::ptr::null_mut()).unwrap();
    assert!(m.no_preempt(|| m.try_blocking(|| ())).is_err());
    assert_eq!(m.try_blocking(|| 7).unwrap(), 7);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        m.no_preempt(|| m.blocking(|| ()))
    }));
    assert!(panic.is_err());
    assert!(!m.in_no_preempt(), "the panic unwound the section");
}

#[test]
fn a_panic_in_blocking_comes_through_and_the_thread_still_stops() {
    let world = world();
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = world.attach(core::ptr::null_mut()).unwrap();
            let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                m.blocking(|| std::panic::resume_unwind(Box::new(3)))
            }));
            assert_eq!(*r.unwrap_err().downcast::<i32>().unwrap(), 3);
        });
        for _ in 0..100 {
            drop(world.stop().unwrap());
        }
    });
}

#[test]
fn threads_attach_and_leave_while_stops_go_on() {
    // H6, H7: including threads that panic with a live mutator, and threads that leak it.
    let world = world();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for kind in 0..3 {
            let (world, done) = (&world, &done);
            s.spawn(move || {
                while !done.load(Relaxed) {
                    let world = world.clone();
                    let _ = std::thread::spawn(move || {
                        let m = world.attach(core::ptr::null_mut()).unwrap();
                        match kind {
                            0 => {}
                            1 => std::panic::resume_unwind(Box::new(())),
                            _ => std::mem::forget(m),
                        }
                    })
                    .join();
                }
            });
        }
        for _ in 0..3000 {
            drop(world.stop().unwrap());
        }
        done.store(true, Relaxed);
    });
    let stopped = world.stop().unwrap();
    assert_eq!(
        stopped.mutators().count(),
        0,
        "a thread that ended is still in the registry"
    );
}

#[test]
fn a_leaked_mutator_runs_its_exit_function_once_on_its_thread() {
    static RAN: AtomicU64 = AtomicU64::new(0);
    unsafe fn at_exit(data: *mut ()) {
        RAN.fetch_add(data as u64, SeqCst);
    }
    unsafe fn gone(_: *mut ()) {
        RAN.fetch_add(1000, SeqCst);
    }
    let end = MutatorHooks::at_end(at_exit, gone);
    let world = world();
    let w = world.clone();
    std::thread::spawn(move || {
        // SAFETY: the hooks only count.
        std::mem::forget(unsafe { w.attach_with(5 as *mut (), end) }.unwrap());
    })
    .join()
    .unwrap();
    let w = world.clone();
    std::thread::spawn(move || {
        // SAFETY: the hooks only count.
        drop(unsafe { w.attach_with(100 as *mut (), end) }.unwrap());
    })
    .join()
    .unwrap();
    assert_eq!(RAN.load(SeqCst), 5);
    assert_eq!(world.stop().unwrap().mutators().count(), 0);
}

#[test]
fn two_worlds_do_not_park_each_others_stoppers() {
    // H29: each thread is a mutator of one world and stops the other world.
    let (a, b) = (world(), world());
    std::thread::scope(|s| {
        for (mine, other) in [(&a, &b), (&b, &a)] {
            s.spawn(move || {
                let _m = mine.attach(core::ptr::null_mut()).unwrap();
                for _ in 0..500 {
                    let stopped = other.stop().unwrap();
                    std::hint::spin_loop();
                    drop(stopped);
                }
            });
        }
    });
}

#[test]
fn one_thread_in_two_worlds_stops_for_either() {
    let (a, b) = (world(), world());
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let _ma = a.attach(core::ptr::null_mut()).unwrap();
            let mb = b.attach(core::ptr::null_mut()).unwrap();
            ready.store(true, SeqCst);
            while !done.load(Relaxed) {
                std::hint::spin_loop();
            }
            drop(mb);
        });
        wait_for(&ready);
        for _ in 0..200 {
            assert_eq!(a.stop().unwrap().mutators().count(), 1);
            assert_eq!(b.stop().unwrap().mutators().count(), 1);
        }
        done.store(true, Relaxed);
    });
}

#[test]
fn misuse_is_an_error_value() {
    let world = world();
    let m = world.attach(core::ptr::null_mut()).unwrap();
    assert!(matches!(
        world.attach(core::ptr::null_mut()),
        Err(AttachError::AlreadyAttached)
    ));
    assert_eq!(world.stop().err(), Some(StopError::CallerIsMutator));
    assert_eq!(
        world.handshake(m.id(), |_| ()),
        Err(HandshakeError::IsCaller(m.id()))
    );
    let nobody = MutatorId(u32::MAX);
    assert_eq!(
        world.handshake(nobody, |_| ()),
        Err(HandshakeError::NoSuchMutator(nobody))
    );
    drop(m);
    drop(world.attach(core::ptr::null_mut()).unwrap());
}

#[test]
fn a_handshake_stops_one_thread_only() {
    let world = world();
    let counters = Counters::start(&world, 2);
    let mut ids = [None; 2];
    {
        let stopped = world.stop().unwrap();
        for m in stopped.mutators() {
            ids[m.data() as usize] = Some((m.id(), m.data() as usize));
        }
    }
    for &(id, which) in ids.iter().flatten().cycle().take(200) {
        world
            .handshake(id, |m| {
                assert_eq!(m.id(), id);
                let (mine, other) = (counters.read()[which], counters.read()[1 - which]);
                while counters.read()[1 - which] == other {
                    std::thread::yield_now();
                }
                assert_eq!(counters.read()[which], mine);
            })
            .unwrap();
    }
    counters.finish();
}

#[test]
fn without_signals_threads_stop_where_they_poll() {
    let world = World::new(Config {
        signals: false,
        ..Config::default()
    })
    .unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = world.attach(core::ptr::null_mut()).unwrap();
            while !done.load(Relaxed) {
                m.poll();
            }
        });
        for _ in 0..200 {
            let stopped = world.stop().unwrap();
            assert!(
                stopped
                    .mutators()
                    .all(|m| m.snapshot().origin == Origin::Call)
            );
        }
        done.store(true, Relaxed);
    });
}

#[test]
fn a_mutator_in_a_thread_local_is_dropped_before_its_thread_is_detached() {
    // The mutator's destructor was registered before the one that detaches the thread. No other
    // thread may get the record between the two.
    use std::cell::RefCell;
    use std::sync::mpsc;
    static GOING: AtomicBool = AtomicBool::new(false);
    static ATTACHED: AtomicBool = AtomicBool::new(false);
    struct Slow(Option<gc_preempt::Mutator>);
    impl Drop for Slow {
        fn drop(&mut self) {
            GOING.store(true, SeqCst);
            wait_for(&ATTACHED);
            drop(self.0.take());
        }
    }
    thread_local!(static KEPT: RefCell<Slow> = const { RefCell::new(Slow(None)) });
    let world = world();
    let w = world.clone();
    let first = std::thread::spawn(move || {
        KEPT.with(|m| m.borrow_mut().0 = Some(w.attach(core::ptr::null_mut()).unwrap()));
    });
    let (finish, wait) = mpsc::channel::<()>();
    let w = world.clone();
    let second = std::thread::spawn(move || {
        wait_for(&GOING);
        let _m = w.attach(core::ptr::null_mut()).unwrap();
        ATTACHED.store(true, SeqCst);
        let _ = wait.recv();
    });
    first.join().unwrap();
    assert_eq!(world.stop().unwrap().mutators().count(), 1);
    drop(finish);
    second.join().unwrap();
}

#[test]
fn dropping_the_last_mutator_inside_a_section_leaves_other_threads_alone() {
    let world = world();
    for blocked in [false, true] {
        let flags: Arc<[AtomicBool; 2]> = Arc::default();
        let shared = flags.clone();
        let [dropped, attached] = &*flags;
        let w = world.clone();
        let first = std::thread::spawn(move || {
            let m = w.attach(core::ptr::null_mut()).unwrap();
            let shared = &shared;
            let body = move || {
                drop(m);
                shared[0].store(true, SeqCst);
                wait_for(&shared[1]);
            };
            if blocked {
                gc_preempt::blocking_here(body);
            } else {
                gc_preempt::no_preempt_here(body);
            }
            drop(w.attach(core::ptr::null_mut()).unwrap()); // the thread may attach again
        });
        wait_for(dropped);
        let m = world.attach(core::ptr::null_mut()).unwrap();
        attached.store(true, SeqCst);
        first.join().unwrap();
        assert!(!m.in_no_preempt());
        assert!(!m.is_blocking());
        m.blocking(|| {
            std::thread::scope(|s| s.spawn(|| drop(world.stop().unwrap())).join().unwrap());
        });
    }
}

#[test]
fn a_fault_that_no_crate_lists_ends_the_process_with_its_name() {
    const NAME: &str = "a_fault_that_no_crate_lists_ends_the_process_with_its_name";
    if is_child() {
        return;
    }
    let listed = run_child(NAME, "no-resend,slow-frames", &[]).expect("the child hung");
    assert!(listed.status.success());
    let output = run_child(NAME, "no-resend,no-resent", &[]).expect("the child hung");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("names no fault: no-resent"), "{text}");
}
