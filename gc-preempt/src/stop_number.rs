//! The numbers of stops, and a parked thread's wait for its resume.
//!
//! Stops are numbered from 1 in the process. A thread that acknowledged stop `n` is parked until
//! [`RESUMED`] is at least `n`.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::{clock, park, processors, stopper};

/// Number of the last stop that began. Changes under the registry lock.
pub(crate) static BEGUN: AtomicU64 = AtomicU64::new(0);
/// Number of the last stop that was resumed; the futex word of every parked thread.
pub(crate) static RESUMED: AtomicU64 = AtomicU64::new(0);

/// The last stop resumed.
#[inline]
pub(crate) fn resumed() -> u64 {
    // Acquire pairs with the Release in `Stopped::resume`: the resumed thread sees what the stopper
    // did to the heap.
    RESUMED.load(Ordering::Acquire)
}

/// May a parked thread spin for a moment before it sleeps? Each stop sets it: true if there is a
/// core for every stopped thread and the stopper.
pub(crate) static MAY_SPIN: AtomicBool = AtomicBool::new(false);

/// The core that the stopper was on when it asked. A thread that parks on that core sleeps at once.
/// `u32::MAX`: not known.
pub(crate) static STOPPER_CORE: AtomicU32 = AtomicU32::new(u32::MAX);

/// For how long a parked thread spins before it sleeps, in nanoseconds: as long as the stopper does
/// (`SPIN` in `world/wait.rs`), about what it costs to be woken on a virtual machine. A stop that
/// ends earlier puts no thread to sleep.
const LOOK: u64 = 100_000;

/// Reads of [`RESUMED`] between two reads of the clock.
const LOOKS: u32 = 32;

/// Waits until stop `number` is resumed, or for a while: callers check again in a loop.
pub(crate) fn wait_for_resume(number: u64) {
    // Relaxed: hints.
    let is_beside = || processors::own() != Some(STOPPER_CORE.load(Ordering::Relaxed));
    if MAY_SPIN.load(Ordering::Relaxed) && is_beside() {
        let until = clock::now() + LOOK;
        while clock::now() < until {
            for _ in 0..LOOKS {
                if resumed() >= number {
                    return;
                }
                park::spin_hint();
            }
        }
    }
    let now = resumed();
    if now < number {
        // The low half changes with each resume. It would take 2^32 resumes between these two lines
        // to sleep wrongly.
        let patience = Some(stopper::PATIENCE);
        park::wait(park::low_half(&RESUMED), now as u32, patience);
        if resumed() < number {
            stopper::ask();
        }
    }
}
