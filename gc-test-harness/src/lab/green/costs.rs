//! Costs of switches between green threads, on one worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gc_core::Heap;

use super::stage::Stage;
use crate::sched::{Mode, Options, yield_now};

/// A request is repeated after this time.
const PATIENCE: Duration = Duration::from_millis(1);

/// Nanoseconds of one switch.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// A green thread yields, and another one goes on.
    pub yield_ns: f64,
    /// A green thread is interrupted in a loop, suspended, queued, and goes on.
    pub preempt_ns: f64,
}

/// Measures so many yields of two green threads, and so many preemptions of one.
///
/// # Errors
/// The system's refusal.
pub fn measure(yields: u64, preemptions: u64) -> Result<Costs, String> {
    Ok(Costs {
        yield_ns: yields_cost(yields)?,
        preempt_ns: preemptions_cost(preemptions)?,
    })
}

fn options() -> Options {
    Options {
        workers: 1,
        // The monitor does not interfere.
        slice: Duration::from_secs(3600),
        mode: Mode::Async,
        ..Options::default()
    }
}

fn yields_cost(times: u64) -> Result<f64, String> {
    let stage = Stage::new(Heap::builder())?;
    let scheduler = stage.scheduler(options())?;
    let (began, took) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    for _ in 0..2 {
        let (began, took) = (began.clone(), took.clone());
        scheduler.spawn(move || {
            // The two begin together.
            began.fetch_add(1, Ordering::Relaxed);
            while began.load(Ordering::Relaxed) < 2 {
                yield_now();
            }
            let from = start.elapsed();
            for _ in 0..times {
                yield_now();
            }
            let nanos = (start.elapsed() - from).as_nanos() as u64;
            took.fetch_max(nanos, Ordering::Relaxed);
        })?;
    }
    scheduler.wait()?;
    Ok(took.load(Ordering::Relaxed) as f64 / (2 * times) as f64)
}

/// Nanoseconds that the running thread has had a processor. Other programs do not count.
fn cpu() -> f64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills `now`.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// The processor time that a loop loses by each preemption. The one worker's thread runs it.
fn preemptions_cost(times: u64) -> Result<f64, String> {
    let stage = Stage::new(Heap::builder())?;
    let scheduler = stage.scheduler(options())?;
    let count = stage.loops.count;
    let turns = 50_000_000;
    count(1, turns / 10);
    let begun = cpu();
    count(1, turns);
    let alone = cpu() - begun;
    let (lost, done) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    scheduler.spawn({
        let (lost, done) = (lost.clone(), done.clone());
        move || {
            let mut nanos = 0.0;
            while !done.load(Ordering::Relaxed) {
                let begun = cpu();
                count(1, turns);
                nanos += cpu() - begun - alone;
            }
            lost.store(nanos.max(0.0) as u64, Ordering::Relaxed);
        }
    })?;
    let preempter = loop {
        match scheduler.preempter(0) {
            Some(preempter) => break preempter,
            None => std::thread::yield_now(),
        }
    };
    let counted = || scheduler.counts().preemptions;
    let before = counted();
    while counted() - before < times {
        let last = counted();
        preempter.preempt();
        // A request that finds the green thread between two loops is lost, so it is repeated.
        let asked = Instant::now();
        while counted() == last && asked.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
    }
    done.store(true, Ordering::Relaxed);
    scheduler.wait()?;
    let preemptions = counted() - before;
    Ok(lost.load(Ordering::Relaxed) as f64 / preemptions as f64)
}
