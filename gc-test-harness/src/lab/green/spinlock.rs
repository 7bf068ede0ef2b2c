//! Green threads that spin for a lock, while its holder sleeps and needs a worker to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gc_core::Heap;

use super::stage::Stage;
use crate::lab::talk::SpinlockScene;
use crate::sched::{Mode, Options, sleep};

/// For how long the holder sleeps with the lock.
const HELD: Duration = Duration::from_millis(20);
/// How often each spinning thread takes the lock, and for how many turns of a loop.
const TIMES: u64 = 100;
const HOLD: u64 = 100;

/// Plays the scene with a spinning green thread for each worker.
///
/// If the monitor finds all workers stalled, the lock is taken from its holder, so that the scene
/// ends.
///
/// # Errors
/// The system's refusal, or a wrong count.
pub fn play(mode: Mode, workers: usize) -> Result<SpinlockScene, String> {
    let stage = Stage::new(Heap::builder())?;
    let scheduler = stage.scheduler(Options {
        workers,
        mode,
        ..Options::default()
    })?;
    let begun = Instant::now();
    let lock = Arc::new([const { AtomicU64::new(0) }; 2]);
    let (held, ended) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    scheduler.spawn({
        let (lock, held) = (lock.clone(), held.clone());
        move || {
            lock[0].store(1, Ordering::SeqCst);
            held.store(true, Ordering::SeqCst);
            sleep(HELD);
            lock[0].store(0, Ordering::SeqCst);
        }
    })?;
    while !held.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    for _ in 0..workers {
        let (lock, ended, spin) = (lock.clone(), ended.clone(), stage.loops.spinlock);
        scheduler.spawn(move || {
            let [lock, counter] = &*lock;
            // SAFETY: both words live until the end of this function.
            unsafe { spin(lock.as_ptr(), counter.as_ptr(), TIMES, HOLD) };
            ended.fetch_add(1, Ordering::SeqCst);
        })?;
    }
    let wanted = workers as u64;
    while ended.load(Ordering::SeqCst) < wanted && !scheduler.counts().stalled {
        std::thread::sleep(Duration::from_millis(1));
    }
    let scene = SpinlockScene {
        deadlocked: scheduler.counts().stalled,
        after_ms: begun.elapsed().as_secs_f64() * 1e3,
        preemptions: scheduler.counts().preemptions,
    };
    while ended.load(Ordering::SeqCst) < wanted {
        lock[0].store(0, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
    }
    scheduler.wait()?;
    let count = lock[1].load(Ordering::SeqCst);
    if !scene.deadlocked && count != wanted * TIMES {
        return Err(format!("{count} of {} times counted", wanted * TIMES));
    }
    Ok(scene)
}
