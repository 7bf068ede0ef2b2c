//! The ways in which a host and its system treat signals: hazards H1 to H13, each with and without
//! its cure.

mod common;

use common::{
    beside, hazard, hazard_with, is_child, spin, stop_running, stop_running_for_a_while, wait_for,
    watchdog_says, watchdog_says_without, world,
};
use gc_preempt::World;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn urg() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGURG);
        set.assume_init()
    }
}

fn block_urg(how: i32) {
    let set = urg();
    // SAFETY: the set is valid.
    unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
}

fn install(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    // SAFETY: zero is a valid sigaction, and the handlers of these tests are async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(
            libc::sigaction(signal, &raw const action, std::ptr::null_mut()),
            0
        );
    }
}

#[test]
fn h1_a_lost_signal_is_sent_again() {
    hazard("h1_a_lost_signal_is_sent_again", "no-resend", || {
        let world = world();
        let eaten = AtomicBool::new(false);
        beside(
            &world,
            |done| {
                block_urg(libc::SIG_BLOCK);
                let set = urg();
                // The call takes the stop's first signal.
                // SAFETY: the set is valid, and null says that the siginfo is not wanted.
                unsafe { libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) };
                eaten.store(true, SeqCst);
                block_urg(libc::SIG_UNBLOCK);
                spin(done);
            },
            || {
                std::thread::sleep(Duration::from_millis(20));
                drop(world.stop().unwrap());
                assert!(eaten.load(SeqCst));
            },
        );
    });
}

#[test]
fn h2_an_inherited_mask_that_blocks_sigurg_is_undone() {
    hazard(
        "h2_an_inherited_mask_that_blocks_sigurg_is_undone",
        "no-unblock",
        || {
            block_urg(libc::SIG_BLOCK);
            let world = world();
            beside(&world, spin, || drop(world.stop().unwrap()));
            let m = world.attach(std::ptr::null_mut()).unwrap();
            drop(m);
            let mut now = MaybeUninit::uninit();
            // SAFETY: a null set only reads the mask, and the call fills `now`.
            let blocked = unsafe {
                libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), now.as_mut_ptr());
                libc::sigismember(now.as_ptr(), libc::SIGURG)
            };
            assert_eq!(blocked, 1, "detaching gives the host its mask back");
        },
    );
}

#[test]
fn h2_a_later_block_is_named_by_the_watchdog() {
    let name = "h2_a_later_block_is_named_by_the_watchdog";
    if !is_child() {
        return watchdog_says(
            name,
            "no-watchdog",
            &["(forgetful)", "SIGURG is among them"],
        );
    }
    let world = world();
    let blocked = AtomicBool::new(false);
    std::thread::scope(|s| {
        std::thread::Builder::new()
            .name("forgetful".into())
            .spawn_scoped(s, || {
                let _m = world.attach(std::ptr::null_mut()).unwrap();
                block_urg(libc::SIG_BLOCK);
                blocked.store(true, SeqCst);
                std::thread::sleep(Duration::from_millis(1400));
                block_urg(libc::SIG_UNBLOCK);
            })
            .unwrap();
        wait_for(&blocked);
        drop(world.stop().unwrap());
    });
}

static HOST_SAW: AtomicU64 = AtomicU64::new(0);

extern "C" fn host_handler(_: i32) {
    HOST_SAW.fetch_add(1, SeqCst);
}

#[test]
fn h3_a_handler_installed_before_ours_still_runs() {
    hazard(
        "h3_a_handler_installed_before_ours_still_runs",
        "no-pass-on",
        || {
            install(libc::SIGURG, host_handler, libc::SA_RESTART);
            let world = world();
            // SAFETY: a signal to this thread, which has a handler.
            unsafe { libc::raise(libc::SIGURG) };
            assert_eq!(HOST_SAW.load(SeqCst), 1, "on a thread that never attached");
            beside(&world, spin, || {
                assert_eq!(
                    world.stop().unwrap().mutators().count(),
                    1,
                    "and ours stops"
                );
            });
            let _m = world.attach(std::ptr::null_mut()).unwrap();
            let before = HOST_SAW.load(SeqCst);
            // SAFETY: a signal to this thread, which has a handler.
            unsafe { libc::raise(libc::SIGURG) };
            assert_eq!(HOST_SAW.load(SeqCst), before + 1, "on an attached one");
        },
    );
}

#[test]
fn h3_a_handler_installed_over_ours_is_named_by_the_watchdog() {
    let name = "h3_a_handler_installed_over_ours_is_named_by_the_watchdog";
    if !is_child() {
        return watchdog_says_without(
            name,
            "no-reinstall",
            "no-watchdog",
            &["Another handler was installed over Urge's"],
        );
    }
    let world = world();
    beside(
        &world,
        |done| {
            let mut ours = MaybeUninit::uninit();
            // SAFETY: the call reads the installed action and fills `ours`, which is restored
            // later.
            unsafe {
                libc::sigaction(libc::SIGURG, std::ptr::null(), ours.as_mut_ptr());
                install(libc::SIGURG, host_handler, libc::SA_RESTART);
                std::thread::sleep(Duration::from_millis(1400));
                libc::sigaction(libc::SIGURG, ours.as_ptr(), std::ptr::null_mut());
            }
            spin(done);
        },
        || {
            std::thread::sleep(Duration::from_millis(50));
            drop(world.stop().unwrap());
        },
    );
}

/// Stops a spinning thread repeatedly, with the handlers that `install_over` leaves.
fn stops_with(install_over: impl FnOnce()) {
    let world = world();
    beside(&world, spin, || {
        stop_running(&world, 3, |_| ());
        install_over();
        stop_running(&world, 3, |_| ());
    });
}

#[test]
fn h3_a_handler_installed_over_ours_takes_no_stop_away() {
    hazard(
        "h3_a_handler_installed_over_ours_takes_no_stop_away",
        "no-reinstall",
        || {
            // Go's runtime does this: it does not pass SIGURG on to the handler before it.
            stops_with(|| install(libc::SIGURG, host_handler, libc::SA_RESTART));
            assert!(HOST_SAW.load(SeqCst) > 0, "and the host's goes on running");
        },
    );
}

#[test]
fn h3_sigurg_that_is_set_to_be_ignored_stops_all_the_same() {
    hazard(
        "h3_sigurg_that_is_set_to_be_ignored_stops_all_the_same",
        "no-reinstall",
        || {
            stops_with(|| {
                // SAFETY: no handler is installed.
                unsafe { libc::signal(libc::SIGURG, libc::SIG_IGN) };
            });
        },
    );
}

static CHAINED: AtomicU64 = AtomicU64::new(0);
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// A host's handler that calls the handler that it replaced.
extern "C" fn chaining(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    CHAINED.fetch_add(1, SeqCst);
    let before = BEFORE.load(SeqCst);
    if before != 0 {
        // SAFETY: `install_chaining` stores only the address of a handler with three arguments.
        let before: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(before) };
        before(signal, info, context);
    }
}

fn install_chaining() {
    // SAFETY: zero is a valid sigaction, and the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = chaining as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGURG, &raw const action, &raw mut old),
            0
        );
        assert_ne!(old.sa_flags & libc::SA_SIGINFO, 0, "ours was there");
        BEFORE.store(old.sa_sigaction as u64, SeqCst);
    }
}

#[test]
fn h3_handlers_that_chain_run_once_each_and_never_in_a_circle() {
    hazard(
        "h3_handlers_that_chain_run_once_each_and_never_in_a_circle",
        "chain-loops",
        || {
            install(libc::SIGURG, host_handler, libc::SA_RESTART);
            let counts = || (HOST_SAW.load(SeqCst), CHAINED.load(SeqCst));
            let raised = || {
                let before = counts();
                // SAFETY: a signal to this thread, which has a handler.
                unsafe { libc::raise(libc::SIGURG) };
                let after = counts();
                (after.0 - before.0, after.1 - before.1)
            };
            stops_with(|| {
                install_chaining();
                assert_eq!(raised(), (1, 1), "the host's newer one on top");
            });
            assert_eq!(raised(), (1, 1), "ours on top again");
            // The host's handler is installed over ours once more, so the handler that it calls
            // leads back to itself.
            stops_with(install_chaining);
            assert_eq!(raised(), (1, 1));
        },
    );
}

#[test]
fn h4_a_flood_of_strays_stops_nobody_and_starves_nobody() {
    hazard(
        "h4_a_flood_of_strays_stops_nobody_and_starves_nobody",
        "stray-stops",
        || {
            let world = world();
            let (count, tid) = (AtomicU64::new(0), AtomicU64::new(0));
            beside(
                &world,
                |done| {
                    // SAFETY: a system call without arguments.
                    tid.store(unsafe { libc::gettid() } as u64, SeqCst);
                    while !done.load(Relaxed) {
                        count.store(count.load(Relaxed) + 1, Relaxed);
                    }
                },
                || {
                    while tid.load(SeqCst) == 0 {
                        std::thread::yield_now();
                    }
                    let strays = World::stray_signals();
                    let before = count.load(SeqCst);
                    for i in 0..20_000 {
                        // SAFETY: a signal to a live thread of this process.
                        unsafe {
                            libc::syscall(
                                libc::SYS_tgkill,
                                libc::getpid(),
                                tid.load(SeqCst),
                                libc::SIGURG,
                            )
                        };
                        if i % 1000 == 0 {
                            let stopped = world.stop().unwrap();
                            let seen = count.load(SeqCst);
                            assert_eq!(count.load(SeqCst), seen);
                            drop(stopped);
                        }
                    }
                    while count.load(SeqCst) <= before {
                        std::thread::yield_now();
                    }
                    assert!(World::stray_signals() > strays);
                },
            );
        },
    );
}

#[test]
fn h5_a_blocked_thread_gets_no_signal() {
    hazard(
        "h5_a_blocked_thread_gets_no_signal",
        "signal-blocked",
        || {
            let world = world();
            let interrupted = AtomicU64::new(0);
            let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    let m = world.attach(std::ptr::null_mut()).unwrap();
                    ready.store(true, SeqCst);
                    while !done.load(Relaxed) {
                        let t = libc::timespec {
                            tv_sec: 0,
                            tv_nsec: 300_000,
                        };
                        // SAFETY: the timespec is valid.
                        let r = m.blocking(|| unsafe {
                            libc::nanosleep(&raw const t, std::ptr::null_mut())
                        });
                        interrupted.fetch_add(u64::from(r != 0), SeqCst);
                    }
                });
                wait_for(&ready);
                for _ in 0..2000 {
                    std::thread::sleep(Duration::from_micros(20));
                    drop(world.stop().unwrap());
                }
                done.store(true, SeqCst);
            });
            assert_eq!(interrupted.load(SeqCst), 0);
        },
    );
}

#[test]
fn h7_a_thread_that_ends_without_detaching_does_not_hang_the_next_stop() {
    let name = "h7_a_thread_that_ends_without_detaching_does_not_hang_the_next_stop";
    hazard(name, "no-exit-detach,no-dead-check,no-lifeline", || {
        let world = world();
        for _ in 0..50 {
            let world2 = world.clone();
            // Not a scoped thread, because a scope ends before its threads' thread-local
            // destructors run.
            std::thread::spawn(move || {
                std::mem::forget(world2.attach(std::ptr::null_mut()).unwrap());
            })
            .join()
            .unwrap();
            assert_eq!(world.stop().unwrap().mutators().count(), 0);
        }
    });
}

#[test]
fn h8_the_child_of_a_fork_can_stop_its_own_threads() {
    hazard(
        "h8_the_child_of_a_fork_can_stop_its_own_threads",
        "no-fork-handler",
        || {
            let world = world();
            let m = world.attach(std::ptr::null_mut()).unwrap();
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        let _m = world.attach(std::ptr::null_mut()).unwrap();
                        spin(&done);
                    });
                }
                s.spawn(|| {
                    while !done.load(Relaxed) {
                        drop(world.stop().unwrap());
                    }
                });
                for _ in 0..20 {
                    // SAFETY: the child calls only functions that are allowed in a child: glibc
                    // keeps malloc usable, and Urge keeps its registry usable.
                    let pid = unsafe { libc::fork() };
                    if pid == 0 {
                        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                            let stops = std::thread::scope(|s| {
                                let stopper = s.spawn(|| {
                                    (0..10)
                                        .map(|_| world.stop().unwrap().mutators().count())
                                        .max()
                                        .unwrap()
                                });
                                m.blocking(|| stopper.join().unwrap())
                            });
                            stops == 1
                        }));
                        // SAFETY: ends the child without the parent's destructors.
                        unsafe { libc::_exit(i32::from(!matches!(ok, Ok(true)))) };
                    }
                    let mut status = 0;
                    // SAFETY: waits for the child that was forked above.
                    m.blocking(|| unsafe { libc::waitpid(pid, &raw mut status, 0) });
                    assert_eq!(status, 0, "the child failed");
                }
                done.store(true, SeqCst);
            });
        },
    );
}

fn set_alternate_stack(stack: &mut [u8]) {
    let flags = if stack.is_empty() {
        libc::SS_DISABLE
    } else {
        0
    };
    let stack = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: flags,
        ss_size: stack.len(),
    };
    // SAFETY: the callers keep the memory for longer than the thread uses it.
    let result = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

#[test]
fn h9_a_hosts_small_alternate_stack_is_replaced_and_given_back() {
    hazard(
        "h9_a_hosts_small_alternate_stack_is_replaced_and_given_back",
        "no-alternate-stack",
        || {
            // The smallest stack that the kernel accepts. It is smaller than a frame with AVX-512
            // state, or than such a frame and a handler.
            let size = libc::MINSIGSTKSZ;
            let mut memory = vec![0xAA_u8; 64 * 1024];
            let world = world();
            let base = memory.as_mut_ptr() as usize;
            let flags = [AtomicBool::new(false), AtomicBool::new(false)];
            let [ready, done] = &flags;
            std::thread::scope(|s| {
                let (world, memory) = (&world, &mut memory);
                s.spawn(move || {
                    let (below, small) = memory.split_at_mut(32 * 1024);
                    set_alternate_stack(&mut small[..size]);
                    let m = world.attach(std::ptr::null_mut()).unwrap();
                    ready.store(true, SeqCst);
                    spin(done);
                    drop(m);
                    let mut now = MaybeUninit::<libc::stack_t>::uninit();
                    // SAFETY: a null stack only reads the setting, and the call fills `now`.
                    let now = unsafe {
                        libc::sigaltstack(std::ptr::null(), now.as_mut_ptr());
                        now.assume_init()
                    };
                    assert_eq!((now.ss_sp as usize, now.ss_size), (base + 32 * 1024, size));
                    assert!(
                        below.iter().all(|&b| b == 0xAA),
                        "a handler ran below the host's stack"
                    );
                    set_alternate_stack(&mut []);
                });
                wait_for(ready);
                for _ in 0..100 {
                    drop(world.stop().unwrap());
                }
                done.store(true, SeqCst);
            });
        },
    );
}

static ON_ALTERNATE: AtomicBool = AtomicBool::new(false);

extern "C" fn long_handler(_: i32) {
    ON_ALTERNATE.store(true, SeqCst);
    for _ in 0..2_000 {
        std::hint::spin_loop();
    }
    ON_ALTERNATE.store(false, SeqCst);
}

#[test]
fn h9_a_thread_on_its_alternate_stack_is_not_stopped_there() {
    hazard(
        "h9_a_thread_on_its_alternate_stack_is_not_stopped_there",
        "no-stack-check",
        || {
            install(libc::SIGUSR2, long_handler, libc::SA_ONSTACK);
            let world = world();
            beside(
                &world,
                |done| {
                    while !done.load(Relaxed) {
                        // SAFETY: a signal to this thread, which has a handler.
                        unsafe { libc::raise(libc::SIGUSR2) };
                        for _ in 0..2_000 {
                            // time in which the stop's retries find the thread off that stack
                            std::hint::spin_loop();
                        }
                    }
                },
                || {
                    let begun = Instant::now();
                    for stop in 0..300 {
                        if stop >= 30 && begun.elapsed() > Duration::from_secs(2) {
                            break;
                        }
                        wait_for(&ON_ALTERNATE);
                        let stopped = world.stop().unwrap();
                        let m = stopped.mutators().next().unwrap();
                        assert!(m.stack().contains(&m.snapshot().registers.sp()));
                    }
                },
            );
        },
    );
}

#[inline(never)]
fn use_up_stack(low: usize, left: usize, done: &AtomicBool) -> u64 {
    let here = [1u8; 512];
    let at = std::hint::black_box(&here).as_ptr() as usize;
    if at - low > left {
        use_up_stack(low, left, done) + u64::from(std::hint::black_box(&here)[7])
    } else {
        spin(done);
        0
    }
}

#[test]
fn h10_a_thread_whose_stack_is_nearly_full_stops() {
    hazard(
        "h10_a_thread_whose_stack_is_nearly_full_stops",
        "no-alternate-stack",
        || {
            let world = world();
            let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    set_alternate_stack(&mut []); // Rust's own alternate stack is removed, too
                    let _m = world.attach(std::ptr::null_mut()).unwrap();
                    let low = {
                        let (world, ready) = (&world, &ready);
                        std::thread::scope(|s| {
                            let find = s.spawn(move || {
                                let low = world
                                    .stop()
                                    .unwrap()
                                    .mutators()
                                    .next()
                                    .unwrap()
                                    .stack()
                                    .start;
                                ready.store(true, SeqCst);
                                low
                            });
                            spin(ready);
                            find.join().unwrap()
                        })
                    };
                    use_up_stack(low, 2048, &done);
                });
                wait_for(&ready);
                std::thread::sleep(Duration::from_millis(100));
                for _ in 0..50 {
                    let stopped = world.stop().unwrap();
                    let m = stopped.mutators().next().unwrap();
                    assert!(m.snapshot().registers.sp() - m.stack().start < 8192);
                }
                done.store(true, SeqCst);
            });
        },
    );
}

#[test]
fn h11_a_stop_completes_whatever_lock_a_stopped_thread_holds() {
    let name = "h11_a_stop_completes_whatever_lock_a_stopped_thread_holds";
    // With one arena, a stopper's malloc would need the lock that a stopped thread holds.
    hazard_with(name, "malloc-in-stop", &[("MALLOC_ARENA_MAX", "1")], || {
        let world = world();
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            for kind in 0..4 {
                let (world, done) = (&world, &done);
                s.spawn(move || {
                    let _m = world.attach(std::ptr::null_mut()).unwrap();
                    while !done.load(Relaxed) {
                        match kind {
                            0 | 1 => drop(std::hint::black_box(Vec::<u8>::with_capacity(200_000))),
                            2 => drop(std::hint::black_box(std::io::stdout().lock())),
                            // SAFETY: a library of the system is opened and closed.
                            _ => unsafe {
                                let lib = libc::dlopen(c"libresolv.so.2".as_ptr(), libc::RTLD_NOW);
                                if !lib.is_null() {
                                    libc::dlclose(lib);
                                }
                            },
                        }
                    }
                });
            }
            let mut sink = Count(0);
            stop_running_for_a_while(&world, 200, 3_000, |stopped| {
                for m in stopped.mutators() {
                    m.walk(&mut sink);
                }
            });
            done.store(true, SeqCst);
            assert!(sink.0 > 0);
        });
    });
}

#[test]
fn h14_stops_back_to_back_leave_every_thread_its_time() {
    const THREADS: usize = 4;
    hazard(
        "h14_stops_back_to_back_leave_every_thread_its_time",
        "no-gate",
        || {
            let world = world();
            let done = AtomicBool::new(false);
            let counts = [const { AtomicU64::new(0) }; THREADS];
            let read = || counts.each_ref().map(|c| c.load(SeqCst));
            std::thread::scope(|s| {
                for count in &counts {
                    let (world, done) = (&world, &done);
                    s.spawn(move || {
                        let _m = world.attach(std::ptr::null_mut()).unwrap();
                        while !done.load(Relaxed) {
                            count.store(count.load(Relaxed) + 1, Relaxed);
                        }
                    });
                }
                while read().contains(&0) {
                    std::thread::yield_now();
                }
                // For each thread, the number of stops that found its count larger than the stop
                // before.
                let mut moved = [0u64; THREADS];
                let mut last = read();
                let begun = Instant::now();
                let mut stops = 0;
                // A stop takes a time slice of each thread where the processors are busy.
                while stops < 50 || stops < 1_000 && begun.elapsed() < Duration::from_secs(3) {
                    stops += 1;
                    let stopped = world.stop().unwrap();
                    let now = read();
                    drop(stopped);
                    for i in 0..THREADS {
                        moved[i] += u64::from(now[i] != last[i]);
                    }
                    last = now;
                }
                done.store(true, SeqCst);

                assert!(
                    moved.iter().all(|n| *n > stops / 10),
                    "{moved:?} of {stops}"
                );
            });
        },
    );
}

struct Count(u64);

impl gc_preempt::RootSink for Count {
    fn conservative(&mut self, words: std::ops::Range<usize>) {
        for at in words.step_by(8) {
            // SAFETY: the walker reports readable, aligned ranges of a stopped thread.
            self.0 += u64::from(unsafe { std::ptr::read_volatile(at as *const usize) } != 0);
        }
    }
    fn exact(&mut self, _: usize, _: u32) {
        self.0 += 1;
    }
    fn derived(&mut self, _: usize, _: usize, _: u32) {
        self.0 += 1;
    }
}
