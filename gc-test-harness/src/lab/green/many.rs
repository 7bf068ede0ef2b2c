//! Thousands of green threads that compute with cells of a heap, while the heap is collected and a
//! storm of stops blows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use gc_core::Heap;

use super::stage::Stage;
use crate::kernels::loops::{chase_oracle, count_oracle};
use crate::kernels::reverse::reverse_oracle;
use crate::lab::talk::ManyRun;
use crate::sched::{Mode, Options, preemptions_here, yield_now};

/// The sizes of the scene.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Green threads.
    pub threads: u64,
    /// Rounds of each: a ring is made, followed and compared in each.
    pub rounds: u64,
    /// Workers.
    pub workers: usize,
    /// The slice.
    pub slice: Duration,
}

impl Default for Crowd {
    fn default() -> Crowd {
        Crowd {
            threads: 10_000,
            rounds: 3,
            workers: 2,
            slice: Duration::from_millis(1),
        }
    }
}

/// Every so many green threads one has a long loop, which does not end within a slice.
const LONG: u64 = 100;
/// Steps of a short and a long loop.
const STEPS: [u64; 2] = [2_000, 2_000_000];
/// Passes of a loop that stores references, and the turns of its pauses. A long one goes on until
/// it was preempted.
const PASSES: [u64; 2] = [3, 100];
const PAUSE: u64 = 100;
/// Nodes of a ring.
const RING: usize = 12;

/// Plays the scene with a collector: `concurrent` or `stop the world`.
///
/// # Errors
/// The system's refusal, or a green thread that has found its cells gone.
pub fn play(mode: Mode, collector: &'static str, crowd: &Crowd) -> Result<ManyRun, String> {
    let heap = Heap::builder().stop_the_world(collector == "stop the world");
    let stage = Stage::new(heap)?;
    let scheduler = stage.scheduler(Options {
        workers: crowd.workers,
        slice: crowd.slice,
        mode,
        ..Options::default()
    })?;
    let begun = Instant::now();
    let (right, answers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stores = Arc::new(AtomicU64::new(0));
    let (chase, count) = (stage.loops.chase, stage.loops.count);
    let reverse = stage.reversing.reverse;
    let rings = stage.rings();
    let over = AtomicBool::new(false);
    let (spawned, storm_stops, preemptions) = std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut stops = 0;
            while !over.load(Relaxed) {
                std::thread::sleep(Duration::from_micros(300));
                if let Ok(stopped) = stage.heap.world().stop() {
                    stopped.resume();
                    stops += 1;
                }
            }
            stops
        });
        let collections = scope.spawn(|| {
            while !over.load(Relaxed) {
                stage.heap.collect();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let spawn = |number: u64| {
            let (right, answers) = (right.clone(), answers.clone());
            let stores = stores.clone();
            let rounds = crowd.rounds;
            let is_long = number.is_multiple_of(LONG);
            let (steps, passes) = (STEPS[usize::from(is_long)], PASSES[usize::from(is_long)]);
            scheduler.spawn(move || {
                for round in 0..rounds {
                    let mut values: Vec<u64> = (0..RING as u64).map(|i| number * 31 + i).collect();
                    let mut slot = rings(&values).expect("the heap has room");
                    yield_now();
                    // SAFETY: the slot names a ring of live nodes, which this stack keeps.
                    let sum = unsafe { chase(&raw mut slot, steps) };
                    let other = count(number, steps);
                    let mut is_right = sum == chase_oracle(&values, steps)
                        && other == count_oracle(number, steps)
                        && slot != 0
                        && round < rounds;
                    // `chase` has moved the slot on.
                    values.rotate_left((steps % RING as u64) as usize);
                    let begun = preemptions_here();
                    loop {
                        // SAFETY: as above.
                        let (sum, ring) = unsafe {
                            let sum = reverse(&raw mut slot, passes, PAUSE);
                            (sum, Stage::values(&slot))
                        };
                        is_right &= sum == reverse_oracle(&mut values, passes, PAUSE);
                        is_right &= ring == values;
                        if mode == Mode::Cooperative || !is_long || preemptions_here() > begun {
                            break;
                        }
                    }
                    stores.fetch_add(preemptions_here() - begun, Relaxed);
                    answers.fetch_add(1, Relaxed);
                    right.fetch_add(u64::from(is_right), Relaxed);
                }
            })
        };
        let spawned = (0..crowd.threads).try_for_each(|number| spawn(number).map(drop));
        let waited = scheduler.wait();
        over.store(true, Relaxed);
        let stops: u64 = storm.join().unwrap_or_default();
        let _ = collections.join();
        (spawned.and(waited), stops, scheduler.counts().preemptions)
    });
    spawned?;
    Ok(ManyRun {
        collector,
        threads: crowd.threads,
        right: right.load(Relaxed),
        answers: answers.load(Relaxed),
        collections: stage.heap.stats().collections,
        storm_stops,
        preemptions,
        preempted_stores: stores.load(Relaxed),
        seconds: begun.elapsed().as_secs_f64(),
    })
}
