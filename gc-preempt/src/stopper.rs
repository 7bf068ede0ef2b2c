//! The thread that holds a stop.
//!
//! There is at most one in the process, since a stop holds the registry lock.

use core::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::{arch, clock, signal};

/// The running thread holds a stop, and with it the registry lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldsAStop;

/// The message of every error that a thread gets which holds a stop.
pub(crate) const HOLDS_A_STOP: &str =
    "this thread has stopped a world: resume it first (drop its `Stopped`)";

/// Thread pointer of the thread that holds a stop, or 0: its panics abort (see `panics.rs`).
static STOPPER: AtomicUsize = AtomicUsize::new(0);

/// A thread that is parked for so long signals the stopper, which then looks whether it panics. And
/// again after as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// The stopper's number in the kernel. Valid while `STOPPER` is not 0.
static STOPPER_TID: AtomicI32 = AtomicI32::new(0);
/// When the stopper was last signalled by [`ask`], in nanoseconds.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Whether the running thread holds a stop: it has stopped a world, and has not resumed it yet.
///
/// A test's allocator calls it, to abort on a malloc in a stopped world. It takes no lock and
/// allocates nothing.
#[inline]
pub fn holds_a_stop() -> bool {
    // Relaxed: a thread finds its own pointer only if it has stored that itself.
    STOPPER.load(Ordering::Relaxed) == arch::thread_pointer()
}

/// The calling thread is about to stop a world.
pub(crate) fn begin() {
    // Relaxed, here and below: the stopper itself reads STOPPER; the others are hints.
    // SAFETY: a system call without arguments.
    STOPPER_TID.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    ASKED.store(clock::now(), Ordering::Relaxed);
    STOPPER.store(arch::thread_pointer(), Ordering::Relaxed);
}

/// The calling thread resumes the world that it has stopped.
pub(crate) fn end() {
    STOPPER.store(0, Ordering::Relaxed);
}

/// Signals the stopper, whose handler then looks whether it is stuck in a panic. For a thread that
/// has been parked for [`PATIENCE`]. Async-signal-safe.
pub(crate) fn ask() {
    let (now, asked) = (clock::now(), ASKED.load(Ordering::Relaxed));
    let is_due = now.saturating_sub(asked) >= PATIENCE.as_nanos() as u64;
    if is_due
        && STOPPER.load(Ordering::Relaxed) != 0
        && seam::asks()
        && ASKED
            .compare_exchange(asked, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    {
        signal::send(STOPPER_TID.load(Ordering::Relaxed));
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn asks() -> bool {
        !Fault::StopperUnasked.planted()
    }
}
