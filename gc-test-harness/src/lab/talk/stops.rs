//! Times to stop of a kernel under a strategy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::bell::{Bell, LONGEST, Silence};
use super::figures::Stops;
use super::stage::{Stage, TalkError};
use crate::kernels::talk::Strategy;
use crate::lab::random::Random;
use crate::report::{add, histogram};

/// The time between a resume and the next attempt, at least, and the random part of it.
const GAP: Duration = Duration::from_micros(100);
const RANDOM_GAP_NANOS: usize = 200_000;
/// The most attempts for a stop that counts.
const MOST: u32 = 3;

/// Stops the kernel `wanted` times, until one attempt is missed. A stop that finds the thread still
/// parked from the stop before, on a busy machine, is no attempt.
///
/// # Errors
/// The refusal of the system or of the heap, or a wrong answer.
pub fn stops(stage: &Stage, wanted: u32) -> Result<Stops, TalkError> {
    let mut stops = Stops {
        times: histogram(),
        missed: 0,
    };
    let bell = Bell::new(LONGEST);
    beside(stage, &bell, || {
        let mut random = Random::default();
        for _ in 0..MOST * wanted {
            if stops.times.len() >= u64::from(wanted) {
                break;
            }
            stage.wait_until_it_plays();
            let gap = GAP + Duration::from_nanos(random.below(RANDOM_GAP_NANOS) as u64);
            std::thread::sleep(gap);
            let (time, report, missed) = bell.attempt(|rung| stage.stop(|_| rung()))?;
            if missed {
                stops.missed += 1;
                break;
            }
            if report.signalled > 0 || stage.strategy == Strategy::Step {
                add(&mut stops.times, time);
            }
        }
        Ok(())
    })?;
    Ok(stops)
}

/// Runs `act` on this thread while another thread runs the kernel again and again, each time until
/// something ends its pass.
fn beside(
    stage: &Stage,
    bell: &Bell,
    act: impl FnOnce() -> Result<(), TalkError>,
) -> Result<(), TalkError> {
    let done = AtomicBool::new(false);
    stage.enter();
    std::thread::scope(|scope| {
        let player = scope.spawn(|| {
            let played = stage.on_this_thread(1, |player| {
                // Acquire: pairs with the Release of the stopper.
                while !done.load(Ordering::Acquire) {
                    let answer = player.until_ended();
                    player.check(answer)?;
                    player.mutator.thread().poll();
                }
                Ok(())
            });
            stage.leave();
            played
        });
        scope.spawn(|| bell.watch(stage));
        let silence = Silence(bell);
        let acted = act();
        drop(silence);
        done.store(true, Ordering::Release);
        // The kernel begins with the condition unset, so that it is set until the thread has seen
        // `done`.
        while !player.is_finished() {
            stage.end_pass();
            std::thread::sleep(GAP);
        }
        let played = player.join();
        played.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        acted
    })
}
