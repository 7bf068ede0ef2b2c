//! The places where a thread may be stopped, and the ways to stop it there: each obstacle is named,
//! and no obstacle is reported where there is none.

mod common;

use common::{
    beside, hazard, is_child, on_stack, register, run_child, wait_for, watchdog_says, world,
};
use gc_preempt::{CodeWhat, World};
use std::arch::global_asm;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

global_asm!(
    // rdi: *const AtomicBool over. Spins until it is set. The whole loop is registered.
    ".globl w_loop",
    ".globl w_loop_end",
    "w_loop:",
    "cmp byte ptr [rdi], 0",
    "je w_loop",
    "w_loop_end:",
    "ret",
    // rdi: *const AtomicBool over, rsi: *mut u64 ready. A restart range of two stores.
    ".globl w_range",
    ".globl w_range_end",
    "w_range:",
    "mov qword ptr [rsi], 1",
    "pause",
    "cmp byte ptr [rdi], 0",
    "je w_range",
    "w_range_end:",
    "ret",
);

unsafe extern "C" {
    fn w_loop(over: *const AtomicBool);
    fn w_loop_end();
    fn w_range(over: *const AtomicBool, ready: *mut usize);
    fn w_range_end();
}

/// The time that a thread stays where it cannot be stopped: long enough that the watchdog reports
/// it.
const LONG: Duration = Duration::from_millis(1400);

fn spin_for(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Registers the loop as unsafe, including its first instruction.
fn unsafe_loop(world: &World) -> gc_preempt::CodeGuard {
    let range = w_loop as *const () as usize..w_loop_end as *const () as usize;
    // SAFETY: the range is this program's text.
    unsafe { register(world, range, CodeWhat::Unsafe) }
}

/// Stops the thread after it has reached a place where it cannot be stopped and where it stays for
/// [`LONG`].
fn stop_late(world: &World, place: impl FnOnce(&AtomicBool) + Send) {
    let there = AtomicBool::new(false);
    beside(
        world,
        |_| place(&there),
        || {
            wait_for(&there);
            std::thread::sleep(Duration::from_millis(20));
            drop(world.stop().unwrap());
        },
    );
}

#[test]
fn h44_a_thread_that_stays_in_no_preempt_is_named_with_that() {
    let name = "h44_a_thread_that_stays_in_no_preempt_is_named_with_that";
    if !is_child() {
        return watchdog_says(name, "no-watchdog", &["inside no_preempt (depth 1)"]);
    }
    let world = world();
    stop_late(&world, |there| {
        gc_preempt::no_preempt_here(|| {
            there.store(true, SeqCst);
            spin_for(LONG);
        });
    });
}

#[test]
fn h44_a_thread_that_stays_in_unsafe_code_is_named_with_that() {
    let name = "h44_a_thread_that_stays_in_unsafe_code_is_named_with_that";
    if !is_child() {
        return watchdog_says(name, "no-reason", &["in an unsafe code range"]);
    }
    let world = world();
    let _code = unsafe_loop(&world);
    stop_late(&world, |there| {
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(LONG);
                over.store(true, SeqCst);
            });
            there.store(true, SeqCst);
            // SAFETY: the loop only reads its argument.
            unsafe { w_loop(&raw const over) };
        });
    });
}

static THERE: AtomicBool = AtomicBool::new(false);

extern "C" fn stay() {
    THERE.store(true, SeqCst);
    spin_for(LONG);
}

#[test]
fn h44_a_thread_that_stays_on_a_foreign_stack_is_named_with_that() {
    let name = "h44_a_thread_that_stays_on_a_foreign_stack_is_named_with_that";
    if !is_child() {
        return watchdog_says(name, "no-reason", &["on a stack that is not its own"]);
    }
    let world = world();
    let mut stack = vec![0u64; 32 << 10];
    beside(
        &world,
        |_| on_stack(&mut stack, stay),
        || {
            wait_for(&THERE);
            drop(world.stop().unwrap());
        },
    );
}

extern "C" fn stays(_: i32) {
    stay();
}

#[test]
fn h44_a_thread_that_stays_in_a_handler_over_unsafe_code_is_named_with_that() {
    let name = "h44_a_thread_that_stays_in_a_handler_over_unsafe_code_is_named_with_that";
    if !is_child() {
        return watchdog_says(
            name,
            "no-reason",
            &["in a signal handler that has interrupted an unsafe code range"],
        );
    }
    handle(libc::SIGUSR1, stays);
    let world = world();
    let _code = unsafe_loop(&world);
    let (thread, over) = (AtomicU32::new(0), AtomicBool::new(false));
    beside(
        &world,
        |_| {
            // SAFETY: a system call without arguments. The loop only reads its argument.
            unsafe {
                thread.store(libc::gettid() as u32, SeqCst);
                w_loop(&raw const over);
            }
        },
        || {
            while thread.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            send(thread.load(SeqCst), libc::SIGUSR1);
            wait_for(&THERE);
            over.store(true, SeqCst);
            drop(world.stop().unwrap());
        },
    );
}

fn handle(signal: i32, handler: extern "C" fn(i32)) {
    // SAFETY: zero is a valid sigaction. The handlers of these tests interrupt only the tests' own
    // code.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        let result = libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        assert_eq!(result, 0);
    }
}

fn send(thread: u32, signal: i32) {
    // SAFETY: a system call without memory arguments.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
}

// ---- a thread that has a signal blocked ---------------------------------------------------------

/// Calls `f` at the end of `frames` frames.
#[inline(never)]
fn deep(frames: u32, f: &mut dyn FnMut()) -> u32 {
    let here = std::hint::black_box([frames; 8]);
    if frames == 0 {
        f();
        return here[1];
    }
    deep(frames - 1, f) + std::hint::black_box(here)[3]
}

static RESUMED: AtomicBool = AtomicBool::new(false);

/// A handler that waits in a deep frame.
extern "C" fn deep_handler(_: i32) {
    deep(500, &mut || {
        THERE.store(true, SeqCst);
        while !RESUMED.load(SeqCst) {
            std::hint::spin_loop();
        }
    });
}

/// A handler in a deep frame has interrupted a restart range. No collector walks the stack, and
/// still the range restarts: its first word is written again.
#[test]
fn h45_what_a_deep_handler_interrupted_in_a_restart_range_begins_anew() {
    hazard(
        "h45_what_a_deep_handler_interrupted_in_a_restart_range_begins_anew",
        "deep-handlers-unmoved",
        || {
            handle(libc::SIGUSR1, deep_handler);
            let world = world();
            let range = w_range as *const () as usize..w_range_end as *const () as usize;
            // SAFETY: the restart range does not change its inputs.
            let _code = unsafe { register(&world, range.clone(), CodeWhat::Restart) };
            let mut range_at_its_start = 0;
            for _ in 0..20 {
                THERE.store(false, SeqCst);
                RESUMED.store(false, SeqCst);
                let (over, first, thread) = (
                    AtomicBool::new(false),
                    AtomicUsize::new(0),
                    AtomicU32::new(0),
                );
                beside(
                    &world,
                    |_| {
                        // SAFETY: a system call without arguments. The restart range reads its
                        // first argument and writes its second.
                        unsafe {
                            thread.store(libc::gettid() as u32, SeqCst);
                            w_range(&raw const over, first.as_ptr());
                        }
                    },
                    || {
                        while first.load(SeqCst) == 0 {
                            std::thread::yield_now();
                        }
                        send(thread.load(SeqCst), libc::SIGUSR1);
                        wait_for(&THERE);
                        let stopped = world.stop().unwrap();
                        assert!(
                            !range.contains(
                                &stopped.mutators().next().unwrap().snapshot().registers.pc
                            )
                        );
                        // If the restart range does not restart, its next instruction sees that
                        // `over` is set, and the loop ends.
                        over.store(true, SeqCst);
                        first.store(0, SeqCst);
                        drop(stopped);
                        RESUMED.store(true, SeqCst);
                    },
                );
                range_at_its_start += first.load(SeqCst);
            }
            // A signal at the range's first instruction needs no restart: the range begins anew by
            // itself.
            assert_eq!(
                range_at_its_start, 20,
                "a restart range went on in its middle"
            );
        },
    );
}

/// The work that a thread with a signal blocked for good does before it answers is independent of
/// its stack's depth. Each walked frame takes 100 us here, so a walk of all frames would take
/// seconds.
#[test]
fn h45_a_thread_with_a_blocked_signal_answers_however_deep_its_stack_is() {
    const FRAMES: u32 = 20_000;
    const WALK: Duration = Duration::from_secs(2);
    let name = "h45_a_thread_with_a_blocked_signal_answers_however_deep_its_stack_is";
    if !is_child() {
        for (faults, sound) in [
            ("slow-frames", true),
            ("slow-frames,whole-walk-first", false),
        ] {
            let output = run_child(name, faults, &[]).expect("the child hung");
            assert_eq!(output.status.success(), sound, "{faults}: {output:?}");
        }
        return;
    }
    let world = world();
    let (there, over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        std::thread::Builder::new()
            .stack_size(64 << 20)
            .spawn_scoped(s, || {
                let _m = world.attach(std::ptr::null_mut()).unwrap();
                // SAFETY: the first call fills the set.
                unsafe {
                    let mut set = std::mem::zeroed();
                    libc::sigemptyset(&raw mut set);
                    libc::sigaddset(&raw mut set, libc::SIGUSR2);
                    libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                }
                deep(FRAMES, &mut || {
                    there.store(true, SeqCst);
                    while !over.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            })
            .unwrap();
        wait_for(&there);
        let begun = Instant::now();
        let report = world.stop().unwrap().resume();
        over.store(true, SeqCst);
        assert!(begun.elapsed() >= WALK, "it was walked");
        assert!(report.time_to_stop < WALK / 2, "{report:?}");
    });
}
