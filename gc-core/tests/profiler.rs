//! H14, H15: a thousand threads, a profiler's timers at 1 kHz, and a debugger that single-steps a
//! mutator, each beside stops and collections.

mod common;

use common::step::Over;
use common::{check_list, garbage, hazard, heap, is_child, list};
use std::cell::Cell;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// True while the world is stopped.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// Runs of the profiler's handler on a running mutator.
static TICKS: AtomicU64 = AtomicU64::new(0);
/// Runs of the handler that began while the world was stopped.
static IN_STOPS: AtomicU64 = AtomicU64::new(0);
/// Runs of the handler that began before a stop and ended after it.
static ACROSS: AtomicU64 = AtomicU64::new(0);
/// Stops so far.
static STOPS: AtomicU64 = AtomicU64::new(0);
thread_local! {
    // A constant without a destructor: in an executable it is a plain word, which a handler may
    // read.
    static THREAD: Cell<*const gc_preempt::Mutator> = const { Cell::new(std::ptr::null()) };
}

/// The profiler's handler. It reads and counts, allocates nothing, and takes a tenth of its period.
extern "C" fn sample(_: libc::c_int) {
    let thread = THREAD.get();
    if thread.is_null() {
        return; // the process's timer also signals other threads
    }
    // SAFETY: null, or the running thread's own attachment, which is removed before it ends.
    let held = unsafe { (*thread).is_blocking() };
    if held {
        return; // the thread waits for a collection, where the host's code may run
    }
    IN_STOPS.fetch_add(u64::from(STOPPED.load(SeqCst)), Relaxed);
    let stops = STOPS.load(SeqCst);
    for _ in 0..20_000 {
        std::hint::spin_loop();
    }
    ACROSS.fetch_add(u64::from(stops != STOPS.load(SeqCst)), Relaxed);
    TICKS.fetch_add(1, Relaxed);
}

const MILLISECOND: libc::timespec = libc::timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// Starts a timer of this thread's own, as profilers do. It ends with the process.
fn profile_this_thread() {
    let every = libc::itimerspec {
        it_interval: MILLISECOND,
        it_value: MILLISECOND,
    };
    // SAFETY: zero is a valid sigevent, and the calls use the given structures only.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer = std::mem::zeroed();
        let made = libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        libc::timer_settime(timer, 0, &raw const every, std::ptr::null_mut());
    }
}

/// Starts the process's profiling timer (`ITIMER_PROF`) and installs the handler.
fn profile_the_process() {
    let millisecond = libc::timeval {
        tv_sec: 0,
        tv_usec: 1_000,
    };
    let every = libc::itimerval {
        it_interval: millisecond,
        it_value: millisecond,
    };
    // SAFETY: the handler is async-signal-safe, and the calls read the given structures only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = sample as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_PROF, &raw const every, std::ptr::null_mut());
    }
}

/// A profiler's signals at 1 kHz do not disturb stops, and its handler does not run on a parked
/// mutator, which has all signals blocked. With `parked-open` planted, it does.
#[test]
fn h15_a_profiler_at_1_khz_neither_disturbs_stops_nor_runs_in_them() {
    let name = "h15_a_profiler_at_1_khz_neither_disturbs_stops_nor_runs_in_them";
    hazard(name, "parked-open", || {
        let (heap, k) = heap();
        profile_the_process();
        let done = AtomicBool::new(false);
        let rounds = [const { AtomicU64::new(0) }; 2];
        std::thread::scope(|s| {
            for rounds in &rounds {
                let (heap, done) = (&heap, &done);
                s.spawn(move || {
                    let m = heap.attach().unwrap();
                    THREAD.set(m.thread());
                    profile_this_thread();
                    while !done.load(Relaxed) {
                        let head = list(&m, k, 100);
                        garbage(&m, k, 20);
                        check_list(head, 100);
                        rounds.fetch_add(1, Relaxed);
                    }
                    THREAD.set(std::ptr::null());
                });
            }
            let _over = Over(&done);
            let begun = Instant::now();
            // Every other stop that finds a mutator running lasts longer than a timer's period, so
            // a tick falls into it.
            let long = AtomicU64::new(0);
            let enough = || {
                STOPS.load(Relaxed) >= 40
                    && long.load(Relaxed) >= 10
                    && TICKS.load(Relaxed) >= 50
                    && ACROSS.load(Relaxed) >= 2
                    && rounds.iter().all(|r| r.load(Relaxed) > 5)
            };
            while !enough() && begun.elapsed() < Duration::from_secs(8) {
                let number = STOPS.load(Relaxed);
                heap.with_stopped(|all| {
                    STOPPED.store(true, SeqCst);
                    STOPS.fetch_add(1, SeqCst);
                    if number.is_multiple_of(2) && all.mutators().any(|m| !m.is_blocked()) {
                        long.fetch_add(1, Relaxed);
                        // SAFETY: a system call without memory.
                        unsafe { libc::usleep(3_000) };
                    }
                    STOPPED.store(false, SeqCst);
                })
                .unwrap();
                heap.collect();
                // SAFETY: a system call without memory. (The standard library's sleep starts again
                // after a signal.)
                unsafe { libc::usleep(500) };
            }
            assert!(
                enough(),
                "starved: {STOPS:?} {TICKS:?} {ACROSS:?} {rounds:?}"
            );
        });
        assert_eq!(
            IN_STOPS.load(Relaxed),
            0,
            "the host's handler ran on a stopped mutator"
        );
    });
}

// ---- many threads -------------------------------------------------------------------------------

/// A thousand threads attach, are collected and leave, and no cell stays.
#[test]
fn h14_a_thousand_threads_attach_are_collected_and_leave() {
    const THREADS: u64 = 1_000;
    let (heap, k) = heap();
    let attached = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                let m = heap.attach().unwrap();
                let head = list(&m, k, 20);
                attached.fetch_add(1, SeqCst);
                // Some threads are held in `blocking`, some run, some change from one to the other.
                while !done.load(Relaxed) {
                    garbage(&m, k, 2);
                    m.blocking(|| std::thread::sleep(Duration::from_millis(20)));
                    check_list(head, 20);
                }
            });
        }
        let _over = Over(&done);
        while attached.load(SeqCst) < THREADS {
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..20 {
            heap.collect();
            let last = heap.stats().last;
            assert_eq!(u64::from(last.mutators + last.aside), THREADS);
            assert!(last.cells_live >= 20 * THREADS, "{last:?}");
        }
    });
    heap.collect();
    let last = heap.stats().last;
    assert_eq!(last.mutators, 0);
    assert_eq!(last.cells_live, 0, "{last:?}");
}

// ---- a debugger ---------------------------------------------------------------------------------

/// The collections that have to signal the single-stepped mutator.
const COLLECTIONS: u64 = 20;

/// The child's work: a mutator allocates while another thread collects.
fn debugged() {
    let (heap, k) = heap();
    let done = AtomicBool::new(false);
    let collected = AtomicU64::new(0);
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = heap.attach().unwrap();
            // SAFETY: a system call without arguments.
            println!("tid {}", unsafe { libc::gettid() });
            while !done.load(Relaxed) {
                let head = list(&m, k, 20);
                garbage(&m, k, 1);
                check_list(head, 20);
            }
        });
        let _over = Over(&done);
        while collected.load(Relaxed) < COLLECTIONS {
            std::thread::sleep(Duration::from_millis(2));
            heap.collect();
            // A thread that is stepped may be parked still, and is then stopped without a signal.
            collected.fetch_add(u64::from(heap.stats().last.signalled), Relaxed);
        }
    });
}

/// Calls `ptrace` with a request that uses no address.
fn ptrace(request: libc::c_uint, tid: libc::pid_t, data: libc::c_int) -> std::io::Result<()> {
    // SAFETY: these requests read and write no memory of this process.
    let result = unsafe { libc::ptrace(request, tid, 0usize, data as usize) };
    match result {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A thread that a debugger single-steps is stopped and keeps its state. The test is skipped where
/// the system forbids tracing.
#[test]
fn h15_a_thread_that_a_debugger_single_steps_is_stopped_and_keeps_its_state() {
    if is_child() {
        return debugged();
    }
    let name = "h15_a_thread_that_a_debugger_single_steps_is_stopped_and_keeps_its_state";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("URGE_TEST_CHILD", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let tid = loop {
        let line = lines.next().expect("the child says its thread").unwrap();
        if let Some((_, tid)) = line.rsplit_once("tid ") {
            break tid.trim().parse::<libc::pid_t>().unwrap();
        }
    };
    if let Err(refused) = ptrace(libc::PTRACE_SEIZE, tid, 0) {
        eprintln!("skipped: this system lets no process trace another ({refused})");
        child.kill().unwrap();
        child.wait().unwrap();
        return;
    }
    ptrace(libc::PTRACE_INTERRUPT, tid, 0).unwrap();
    let (mut steps, mut signals) = (0u32, 0u32);
    let begun = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: the call writes `status`.
        let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        if waited != tid || !libc::WIFSTOPPED(status) {
            break; // the thread has ended
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "it hangs");
        // As a debugger does: the trap of a step is the debugger's own, every other signal the
        // thread's.
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP => 0,
            signal => signal,
        };
        steps += u32::from(signal == 0);
        signals += u32::from(signal == libc::SIGURG);
        if ptrace(libc::PTRACE_SINGLESTEP, tid, signal).is_err() {
            break;
        }
    }
    assert!(child.wait().unwrap().success());
    assert!(
        steps > 1_000 && signals > 5,
        "{steps} steps, {signals} signals"
    );
}
