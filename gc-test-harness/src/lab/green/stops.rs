//! Time to stop, with a loop in every worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gc_core::Heap;

use super::stage::Stage;
use crate::kernels::loops::count_oracle;
use crate::lab::talk::Stops;
use crate::report::histogram;
use crate::sched::{Mode, Options, yield_now};

/// A stop that takes longer counts as missed.
const LIMIT: Duration = Duration::from_secs(1);
/// When the watchdog speaks of a cooperative loop.
const LATE: Duration = Duration::from_secs(60);
/// How long a cooperative loop runs between two calls into the scheduler.
const LOOP: Duration = Duration::from_millis(1_300);
/// The stops of each mode.
const STOPS: [u64; 2] = [2, 1_000];

/// Plays the scene. The heap of cooperative green threads sends no signals: its workers stop when
/// they call the scheduler.
///
/// # Errors
/// The system's refusal, or a wrong answer.
pub fn play(mode: Mode, workers: usize) -> Result<Stops, String> {
    let is_async = mode == Mode::Async;
    let stage = Stage::new(Heap::builder().signals(is_async))?;
    if !is_async {
        stage.heap.world().set_watchdog(LATE);
    }
    let count = stage.loops.count;
    let (begun, probe) = (Instant::now(), 20_000_000);
    count(1, probe);
    let turns = probe as f64 * LOOP.as_secs_f64() / begun.elapsed().as_secs_f64();
    let turns = turns as u64;
    let scheduler = stage.scheduler(Options {
        workers,
        mode,
        ..Options::default()
    })?;
    let over = Arc::new(AtomicBool::new(false));
    for number in 0..workers as u64 {
        let over = over.clone();
        scheduler.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                count(number, turns);
                yield_now();
            }
        })?;
    }
    let mut stops = Stops {
        times: histogram(),
        missed: 0,
    };
    for _ in 0..STOPS[usize::from(is_async)] {
        std::thread::sleep(Duration::from_micros(500));
        let stopped = stage.heap.world().stop().map_err(|e| e.to_string())?;
        let report = stopped.resume();
        match report.time_to_stop {
            time if time > LIMIT => stops.missed += 1,
            time => stops.times.saturating_record(time.as_nanos() as u64),
        }
    }
    over.store(true, Ordering::Relaxed);
    scheduler.wait()?;
    debug_assert_eq!(count(3, 10), count_oracle(3, 10));
    Ok(stops)
}
