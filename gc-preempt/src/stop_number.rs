//! The numbers that stops go by, and the wait of a parked thread for its resume.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::{clock, park, processors, stopper};

/// Number of the last stop that began. Changes under the registry lock.
pub(crate) static BEGUN: AtomicU64 = AtomicU64::new(0);
/// Number of the last stop that was resumed; the futex word of every parked thread.
pub(crate) static RESUMED: AtomicU64 = AtomicU64::new(0);

/// The last stop resumed. Acquire pairs with the Release in `Stopped::resume`: what the stopper did
/// to the heap is seen by whom it frees.
#[inline]
pub(crate) fn resumed() -> u64 {
    RESUMED.load(Ordering::Acquire)
}

/// May a parked thread look for the resume a moment longer before it sleeps? Set by each stop: if
/// there is a core for every stopped thread and the stopper.
pub(crate) static MAY_SPIN: AtomicBool = AtomicBool::new(false);

/// The core that the stopper was on when it asked; a thread that parks on that one must leave it at
/// once. `u32::MAX`: not known.
pub(crate) static STOPPER_CORE: AtomicU32 = AtomicU32::new(u32::MAX);

/// For how long a parked thread looks before it sleeps, in nanoseconds, as the stopper does (`SPIN`
/// in `world/wait.rs`). To be woken costs 30 us on a virtual machine at best (from the resume until the
/// thread goes on, 11 of them the waker's), and some hundred where the core has halted and the host
/// gave it away. What a stop of a collection does for one mutator or two is done by then, and
/// nobody sleeps.
const LOOK: u64 = 100_000;

/// Looks between two looks at the clock: a microsecond or two.
const LOOKS: u32 = 32;

/// Sleeps until stop `number` is resumed (or for a while: callers re-check).
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
        // The low half changes with each resume; a wrap of 2^32 resumes between these two lines
        // would be needed to sleep wrongly.
        let patience = Some(stopper::PATIENCE);
        park::wait(park::low_half(&RESUMED), now as u32, patience);
        if resumed() < number {
            stopper::ask();
        }
    }
}
