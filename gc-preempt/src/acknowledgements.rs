//! What the stopper waits for: the threads that have yet to stop, and those that are stopped and
//! still look at their own stacks.

use crate::park;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// Acknowledgements that the stop under way still waits for, and two flags of the stopper's sleep.
/// Its futex word.
static OUTSTANDING: AtomicU32 = AtomicU32::new(0);
/// The stopper sleeps: who brings the count to zero wakes it.
const ASLEEP: u32 = 1 << 31;
/// A thread could not stop where it stood: the stopper is to send its signal again.
const RETRY: u32 = 1 << 30;
const COUNT: u32 = RETRY - 1;

pub(crate) fn begin() {
    // One more than asked, so that it cannot reach zero while threads are still being asked.
    // Relaxed: published by the asking swap.
    OUTSTANDING.store(1, Ordering::Relaxed);
}

pub(crate) fn add() {
    OUTSTANDING.fetch_add(1, Ordering::Relaxed);
}

/// One thread is stopped. AcqRel: the last one's caller, who sees zero with Acquire, sees every
/// thread's snapshot.
pub(crate) fn done() {
    let old = OUTSTANDING.fetch_sub(1, Ordering::AcqRel);
    if old & COUNT == 1 && old & ASLEEP != 0 {
        park::wake(&OUTSTANDING, 1);
    }
}

pub(crate) fn retry() {
    let old = OUTSTANDING.fetch_or(RETRY, Ordering::AcqRel);
    if old & ASLEEP != 0 {
        park::wake(&OUTSTANDING, 1);
    }
}

pub(crate) fn none_left() -> bool {
    OUTSTANDING.load(Ordering::Acquire) & COUNT == 0
}

pub(crate) fn take_retry() -> bool {
    OUTSTANDING.load(Ordering::Relaxed) & RETRY != 0
        && OUTSTANDING.fetch_and(!RETRY, Ordering::Relaxed) & RETRY != 0
}

pub(crate) fn sleep(at_most: Duration) {
    let now = OUTSTANDING.fetch_or(ASLEEP, Ordering::AcqRel) | ASLEEP;
    if now & COUNT != 0 && now & RETRY == 0 {
        park::wait(&OUTSTANDING, now, Some(at_most));
    }
    OUTSTANDING.fetch_and(!ASLEEP, Ordering::Relaxed);
}

/// Stopped threads that still walk their own stacks, which read the code map and so need the
/// registry lock to stay held. A futex word.
static WALKING: AtomicU32 = AtomicU32::new(0);

/// The calling thread, which is about to acknowledge, walks its stack after that.
pub(crate) fn begin_walk() {
    // Relaxed: published by the acknowledging swap.
    WALKING.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn end_walk() {
    // Release pairs with the Acquire of `wait_for_walks`: the tables are read before they may
    // change.
    if WALKING.fetch_sub(1, Ordering::Release) == 1 {
        park::wake(&WALKING, i32::MAX);
    }
}

/// The stopper's, before it gives the registry lock back. It waits for loops that are bounded by a
/// stack's depth.
pub(crate) fn wait_for_walks() {
    loop {
        let now = WALKING.load(Ordering::Acquire);
        if now == 0 {
            return;
        }
        park::wait(&WALKING, now, None);
    }
}
