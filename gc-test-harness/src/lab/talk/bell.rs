//! Ends a kernel that a stop does not reach in time.
//!
//! A stop waits until its threads have stopped, however long that takes. So a kernel that its
//! strategy does not stop has to end by itself: after a second, the bell sets the condition that
//! ends it, and the attempt counts as missed. The bell's thread looks ten times a second, so that
//! it takes no processor from the stop that is measured.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::stage::Stage;

/// The time after which a stop is missed.
pub const LONGEST: Duration = Duration::from_secs(1);
/// The time between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The attempt that is under way.
#[derive(Debug)]
pub struct Bell {
    start: Instant,
    longest: Duration,
    /// Nanoseconds from the start to the attempt's begin; 0 if none is under way.
    begun: AtomicU64,
    /// Whether the bell has rung in this attempt.
    rung: AtomicBool,
    done: AtomicBool,
}

impl Bell {
    /// A bell that rings after `longest`.
    pub fn new(longest: Duration) -> Bell {
        Bell {
            start: Instant::now(),
            longest,
            begun: AtomicU64::new(0),
            rung: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 + 1
    }

    /// The bell's thread. Returns after [`end`](Bell::end).
    pub fn watch(&self, stage: &Stage) {
        // Acquire, here and below: pairs with the Releases of the attempts and of `end`.
        while !self.done.load(Ordering::Acquire) {
            let begun = self.begun.load(Ordering::Acquire);
            if begun != 0 && self.now() - begun > self.longest.as_nanos() as u64 {
                self.rung.store(true, Ordering::Release);
                stage.end_pass();
            }
            std::thread::sleep(LOOK.min(self.longest));
        }
    }

    /// Runs a stop, and gives its result if it ended in time. `attempt` gets a function that says
    /// whether the bell has rung, and must ask it while the threads are stopped.
    pub fn attempt<R>(&self, attempt: impl FnOnce(&dyn Fn() -> bool) -> R) -> R {
        self.rung.store(false, Ordering::Release);
        self.begun.store(self.now(), Ordering::Release);
        let result = attempt(&|| self.rung.load(Ordering::Acquire));
        self.begun.store(0, Ordering::Release);
        result
    }

    /// Ends the bell's thread.
    pub fn end(&self) {
        self.done.store(true, Ordering::Release);
    }
}

/// Ends a bell when it is dropped.
pub struct Silence<'a>(pub &'a Bell);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
