//! The thread that holds a stop: who it is, and what it is told that it cannot do.

use core::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::{arch, clock, signal};

/// The running thread holds a stop, and with it the registry lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldsAStop;

/// What a thread is told that would wait for itself.
pub(crate) const HOLDS_A_STOP: &str =
    "this thread has stopped a world: resume it first (drop its `Stopped`)";

/// Thread pointer of the thread that holds a stop, or 0: its panics abort (see `panics.rs`).
static STOPPER: AtomicUsize = AtomicUsize::new(0);

/// How long a thread is parked before it has the stopper look at itself, and again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// The thread that holds a stop, by the kernel's number. Valid while `STOPPER` is not 0.
static STOPPER_TID: AtomicI32 = AtomicI32::new(0);
/// When the stopper was last asked to look at itself, in nanoseconds.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Does the running thread hold a stop: has it stopped a world and not resumed it yet? For
/// allocators that abort on a malloc in a stopped world. Takes no lock and allocates nothing.
pub fn holds_a_stop() -> bool {
    STOPPER.load(Ordering::Relaxed) == arch::thread_pointer()
}

/// The calling thread is about to stop a world.
pub(crate) fn begin() {
    // Relaxed, here and below: what matters is read by the stopper itself.
    // SAFETY: a system call without arguments.
    STOPPER_TID.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    ASKED.store(clock::now(), Ordering::Relaxed);
    STOPPER.store(arch::thread_pointer(), Ordering::Relaxed);
}

/// The calling thread resumes the world that it has stopped.
pub(crate) fn end() {
    STOPPER.store(0, Ordering::Relaxed);
}

/// Has the stopper look whether it is stuck in a panic. By a thread that has been parked for
/// [`PATIENCE`]. Async-signal-safe.
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
