//! What the stopper waits for: threads that have not stopped yet, and stopped threads that still
//! walk their own stacks.
//!
//! Both counts are futex words. [`done`] and [`retry`] wake a stopper that sleeps.

use crate::park;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// Acknowledgements that the stop under way still waits for, with two flags in the upper bits. The
/// stopper's futex word.
static OUTSTANDING: AtomicU32 = AtomicU32::new(0);
/// The stopper sleeps: the thread that brings the count to zero wakes it.
const ASLEEP: u32 = 1 << 31;
/// A thread could not stop where it stood: the stopper is to send its signal again.
const RETRY: u32 = 1 << 30;
const COUNT: u32 = RETRY - 1;

/// A stop begins. Its own [`done`], after the last request, completes the count.
pub(crate) fn begin() {
    // One more than the requests, so that the count does not reach zero before the last request.
    // Relaxed: the request's swap publishes it.
    OUTSTANDING.store(1, Ordering::Relaxed);
}

/// One more thread is about to be asked.
pub(crate) fn add() {
    // Relaxed: the request's swap publishes it.
    OUTSTANDING.fetch_add(1, Ordering::Relaxed);
}

/// One thread is stopped.
pub(crate) fn done() {
    // Release publishes the thread's snapshot to the Acquire in `none_left`; Acquire takes over the
    // snapshots of the threads before, so that the last decrement publishes all.
    let old = OUTSTANDING.fetch_sub(1, Ordering::AcqRel);
    if old & COUNT == 1 && old & ASLEEP != 0 {
        park::wake(&OUTSTANDING, 1);
    }
}

/// A thread could not stop where it stood: its signal is to be sent again.
pub(crate) fn retry() {
    // AcqRel pairs with the one in `sleep`: either this sees ASLEEP, or `sleep` sees RETRY.
    let old = OUTSTANDING.fetch_or(RETRY, Ordering::AcqRel);
    if old & ASLEEP != 0 {
        park::wake(&OUTSTANDING, 1);
    }
}

/// Have all threads stopped that were asked?
pub(crate) fn none_left() -> bool {
    // Acquire pairs with the Release in `done`.
    OUTSTANDING.load(Ordering::Acquire) & COUNT == 0
}

/// Takes back what [`retry`] has set: true once.
pub(crate) fn take_retry() -> bool {
    // Relaxed: the state words say which threads are to be signalled.
    OUTSTANDING.load(Ordering::Relaxed) & RETRY != 0
        && OUTSTANDING.fetch_and(!RETRY, Ordering::Relaxed) & RETRY != 0
}

/// Sleeps until a thread has something to say, at most for so long.
pub(crate) fn sleep(at_most: Duration) {
    // AcqRel pairs with the read-modify-writes in `done` and `retry`: a thread that does not see
    // ASLEEP has changed the word before this, and the test below sees that.
    let now = OUTSTANDING.fetch_or(ASLEEP, Ordering::AcqRel) | ASLEEP;
    if now & COUNT != 0 && now & RETRY == 0 {
        park::wait(&OUTSTANDING, now, Some(at_most));
    }
    // Relaxed: a wake-up too many is harmless.
    OUTSTANDING.fetch_and(!ASLEEP, Ordering::Relaxed);
}

/// Stopped threads that still walk their own stacks. A walk reads the code map, so the stopper
/// keeps the registry lock until this is zero. A futex word.
static WALKING: AtomicU32 = AtomicU32::new(0);

/// The calling thread is about to acknowledge, and then walks its stack.
pub(crate) fn begin_walk() {
    // Relaxed: the acknowledging swap publishes it.
    WALKING.fetch_add(1, Ordering::Relaxed);
}

/// The calling thread has walked its stack.
pub(crate) fn end_walk() {
    // Release pairs with the Acquire in `wait_for_walks`: this thread's reads of the code map come
    // before its changes.
    if WALKING.fetch_sub(1, Ordering::Release) == 1 {
        park::wake(&WALKING, i32::MAX);
    }
}

/// Waits until no thread walks its stack any more. The stopper calls it before it gives the
/// registry lock back; a walk's length is bounded by the stack's depth.
pub(crate) fn wait_for_walks() {
    loop {
        // Acquire pairs with the Release in `end_walk`.
        let now = WALKING.load(Ordering::Acquire);
        if now == 0 {
            return;
        }
        park::wait(&WALKING, now, None);
    }
}
