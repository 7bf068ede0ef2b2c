//! Stops in loops that no cooperative runtime can stop: a tight loop, the empty loop, a long base64
//! decode beside a thread that must not wait, and a naive spinlock whose holder is stopped.
//!
//! Each case runs in a child process of its own, one at a time. The child stops the world many
//! times in alternation with the signal floor. No stop may take more than 100 times the longest
//! stop of the floor in the same run. A stop that does not hang keeps this bound on any machine,
//! however slow or busy. Without signals, the same children must hang.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gc_preempt::StrictAllocator;
use gc_preempt::{CodeGuard, Config, Mutator, Stopped, World};
use gc_test_harness::kernels::codegen::Arena;
use gc_test_harness::kernels::loops::{Loops, base64_encode, base64_table, count_oracle};
use gc_test_harness::lab::baselines::signal::{Floor, Member, Wait};

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

/// The variable with the case that a child runs.
const CHILD: &str = "URGE_NASTY_CHILD";
/// The exit code of a cooperative child whose stop did not happen.
const HUNG: i32 = 42;
/// Number of blocks of the floor and of stops, in alternation.
const BLOCKS: usize = 5;
/// Rounds of each block.
const ROUNDS: u32 = 60;
/// The longest stop that is allowed, in multiples of the floor's longest.
const BOUND: u32 = 100;
/// The time after which a child counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);
/// The time that a cooperative child waits for a stop.
const IN_VAIN: Duration = Duration::from_millis(500);

/// The way in which a child stops its threads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Means {
    /// Threads park in the signal handler.
    Parked,
    /// Threads park in an injected call.
    Injected,
    /// No signals are sent: the planted fault.
    Cooperative,
}

/// Runs one case in a child for each way to stop by signals, or the case itself if this process is
/// such a child.
fn stops(case: &str, body: fn(&Lab)) {
    in_child(case, Means::Parked, body);
    in_child(case, Means::Injected, body);
}

/// Runs one case in a child, or the case itself if this process is the child.
fn in_child(case: &str, means: Means, body: fn(&Lab)) {
    if std::env::var_os(CHILD).is_some_and(|name| name == case) {
        body(&Lab::new());
        std::process::exit(0);
    }
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let test = std::thread::current().name().map(str::to_owned);
    let mut command = Command::new(std::env::current_exe().expect("its own path"));
    command.args([
        "--exact",
        "--nocapture",
        &test.expect("a test's thread has its name"),
    ]);
    let async_on = if means == Means::Cooperative {
        "0"
    } else {
        "1"
    };
    let inject = if means == Means::Injected { "1" } else { "0" };
    command.env(CHILD, case).env_remove("URGE_FAULT");
    command
        .env("URGE_ASYNC", async_on)
        .env("URGE_INJECT", inject);
    let mut child = command.spawn().expect("starts itself");
    let begun = Instant::now();
    let status: ExitStatus = loop {
        match child.try_wait().expect("is a child") {
            Some(status) => break status,
            None if begun.elapsed() > PATIENCE => {
                child.kill().expect("is a child");
                panic!("{case} hung for {PATIENCE:?}");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let expected = if means == Means::Cooperative { HUNG } else { 0 };
    let (code, signal) = (status.code(), status.signal());
    assert_eq!(code, Some(expected), "{case}, {means:?}: {signal:?}");
}

/// The state of a child.
struct Lab {
    loops: Loops,
    world: World,
    floor: Floor,
    over: AtomicBool,
    working: AtomicUsize,
    /// Iterations of loops that end.
    turns: AtomicU64,
    cooperative: bool,
    _guards: Vec<CodeGuard>,
}

impl Lab {
    fn new() -> Lab {
        let config = Config::from_env().expect("sane variables");
        let mut arena = Arena::new().expect("an arena");
        let loops = Loops::compile(&mut arena).expect("compiles");
        let world = World::new(config);
        let world = world.expect("a world");
        let guards = loops.code.iter().map(|code| code.register(&world, 0));
        let guards = guards.collect::<Result<_, _>>().expect("registers");
        Lab {
            loops,
            world,
            floor: Floor::new().expect("no other floor"),
            over: AtomicBool::new(false),
            working: AtomicUsize::new(0),
            turns: AtomicU64::new(0),
            cooperative: !config.signals,
            _guards: guards,
        }
    }

    /// Attaches the calling thread, and enrols it with the floor, which stops it as well.
    fn enter(&self) -> (Mutator, Member<'_>) {
        let mutator = self.world.attach(std::ptr::null_mut()).expect("attaches");
        let member = self.floor.enroll();
        self.working.fetch_add(1, Ordering::SeqCst);
        (mutator, member)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits until `threads` threads are about to enter their loops, and then 20 ms more.
    fn wait_for(&self, threads: usize) {
        while self.working.load(Ordering::SeqCst) < threads {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Stops the world many times in alternation with the floor, and calls `look` in each stop.
    /// Returns the longest stop of both. A cooperative child ends here.
    fn stop_over_and_over(&self, threads: usize, mut look: impl FnMut(&Stopped<'_>)) -> Times {
        self.wait_for(threads);
        if self.cooperative {
            let stopped = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    drop(self.world.stop());
                    stopped.store(true, Ordering::SeqCst);
                });
                std::thread::sleep(IN_VAIN);
                let hung = !stopped.load(Ordering::SeqCst);
                std::process::exit(if hung { HUNG } else { 1 });
            });
        }
        let mut times = Times::default();
        for block in 0..BLOCKS {
            let wait = [Wait::Sleep, Wait::Spin][block % 2];
            let gap = || std::thread::sleep(Duration::from_micros(100));
            let floor = self.floor.rounds(ROUNDS, wait, |_| gap()).expect("signals");
            times.floor = times.floor.max(Duration::from_nanos(floor.stop.max()));
            for _ in 0..ROUNDS {
                let stopped = self.world.stop().expect("no mutator");
                assert_eq!(stopped.mutators().count(), threads);
                look(&stopped);
                let report = stopped.resume();
                times.longest = times.longest.max(report.time_to_stop);
                gap();
            }
        }
        assert!(
            times.longest <= BOUND * times.floor,
            "a stop took {:?}, more than {BOUND} x the floor's longest of {:?}",
            times.longest,
            times.floor
        );
        times
    }

    /// The number of stopped threads that are in one of the loops.
    fn in_loops(&self, stopped: &Stopped<'_>) -> usize {
        let pcs = stopped.mutators().map(|m| m.snapshot().registers.pc);
        pcs.filter(|pc| self.loops.code.iter().any(|c| c.range().contains(pc)))
            .count()
    }
}

/// The longest stops of one case.
#[derive(Debug, Default)]
struct Times {
    longest: Duration,
    floor: Duration,
}

fn tight_loop(lab: &Lab) {
    const TURNS: u64 = 3_000_000;
    let (mut in_loops, threads) = (0, 2);
    let expected = count_oracle(1, TURNS);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _in = lab.enter();
                while !lab.is_over() {
                    assert_eq!((lab.loops.count)(1, TURNS), expected);
                    lab.turns.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        lab.stop_over_and_over(threads, |stopped| in_loops += lab.in_loops(stopped));
        let before = lab.turns.load(Ordering::SeqCst);
        while lab.turns.load(Ordering::SeqCst) < before + 4 {
            std::thread::sleep(Duration::from_millis(1));
        }
        lab.over.store(true, Ordering::SeqCst);
    });
    assert!(in_loops > 0, "no stop found a thread in a loop");
}

fn empty_loop(lab: &Lab) {
    let threads = 2;
    let mut in_loops = 0;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _in = lab.enter();
                (lab.loops.empty)();
            });
        }
        lab.stop_over_and_over(threads, |stopped| in_loops += lab.in_loops(stopped));
        assert!(in_loops > 0, "no stop found a thread in a loop");
        std::process::exit(0); // these threads do not end by themselves
    });
}

fn base64(lab: &Lab) {
    let bytes: Vec<u8> = (0..(24_u32 << 20))
        .map(|i| (i >> 7) as u8 ^ i as u8)
        .collect();
    let text = base64_encode(&bytes);
    let table = base64_table();
    let (mut in_loops, mut stall) = (0, Duration::ZERO);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mutator, _member) = lab.enter();
            let mut decoded = vec![0; bytes.len()];
            while !lab.is_over() {
                let (from, to) = (text.as_ptr(), decoded.as_mut_ptr());
                // SAFETY: text, output and table have the lengths that the loop demands.
                let written = unsafe { (lab.loops.base64)(from, text.len(), to, table.as_ptr()) };
                assert_eq!(written, bytes.len());
                assert!(decoded == bytes, "a stop changed what was decoded");
                mutator.poll();
            }
        });
        scope.spawn(|| {
            // The thread that must not wait: it repeats a short piece of work. It polls, so even a
            // cooperative runtime stops it at once; there it would then wait for the other thread.
            let (mutator, _member) = lab.enter();
            while !lab.is_over() {
                assert_eq!((lab.loops.count)(1, 100), count_oracle(1, 100));
                mutator.poll();
            }
        });
        let times = lab.stop_over_and_over(2, |stopped| {
            in_loops += lab.in_loops(stopped);
            let stalls = stopped.mutators().filter_map(|m| m.last_stall());
            stall = stall.max(stalls.max().unwrap_or_default());
        });
        lab.over.store(true, Ordering::SeqCst);
        // A thread waits for the stop, for its wake and, on a busy machine, for the scheduler, but
        // not for the decoding.
        let bound = BOUND * times.floor;
        assert!(stall <= bound, "stalled for {stall:?}, bound {bound:?}");
    });
    assert!(in_loops > 0, "no stop found a thread in a loop");
}

fn spinlock(lab: &Lab) {
    const TIMES: u64 = 200;
    let threads = 3;
    let (lock, counter) = (AtomicU64::new(0), AtomicU64::new(0));
    let (mut holder_stopped, mut in_loops) = (0, 0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _in = lab.enter();
                while !lab.is_over() {
                    // SAFETY: both words outlive the scope, and all other accesses are atomic or
                    // happen between the rounds.
                    unsafe { (lab.loops.spinlock)(lock.as_ptr(), counter.as_ptr(), TIMES, 2000) };
                    lab.turns.fetch_add(TIMES, Ordering::SeqCst);
                }
            });
        }
        lab.stop_over_and_over(threads, |stopped| {
            in_loops += lab.in_loops(stopped);
            holder_stopped += lock.load(Ordering::SeqCst);
        });
        lab.over.store(true, Ordering::SeqCst);
    });
    assert!(
        holder_stopped > 0,
        "no stop met a thread that held the lock"
    );
    assert!(in_loops > 0, "no stop found a thread in a loop");
    // Every holder continued, and no other thread held the lock at the same time.
    assert_eq!(counter.into_inner(), lab.turns.load(Ordering::SeqCst));
}

#[test]
fn a_tight_loop_is_stopped() {
    stops("tight", tight_loop);
}

#[test]
fn the_empty_loop_is_stopped() {
    stops("empty", empty_loop);
}

#[test]
fn a_massive_decode_keeps_nobody_waiting() {
    stops("base64", base64);
}

#[test]
fn a_spinlock_whose_holder_is_stopped_does_not_hang() {
    stops("spinlock", spinlock);
}

#[test]
fn without_signals_a_tight_loop_is_never_stopped() {
    in_child("cooperative tight", Means::Cooperative, tight_loop);
}

#[test]
fn without_signals_the_empty_loop_is_never_stopped() {
    in_child("cooperative empty", Means::Cooperative, empty_loop);
}

#[test]
fn without_signals_a_spinlock_is_never_stopped() {
    in_child("cooperative spinlock", Means::Cooperative, spinlock);
}
