//! What a thread may do by itself that has no [`Mutator`](crate::Mutator) at hand, attached or not.

use core::sync::atomic::Ordering;

use crate::attach::release;
use crate::blocking::{blocked, lock};
use crate::registry::{self, Record};
use crate::stop_point::NoPreempt;

/// Runs `f` without being stopped in it, if the running thread is attached to any world; otherwise
/// just runs it.
pub fn no_preempt_here<R>(f: impl FnOnce() -> R) -> R {
    match registry::current() {
        Some(record) => {
            let _release = ReleaseUnused(record);
            let _section = NoPreempt::on(record);
            f()
        }
        None => f(),
    }
}

/// Runs `f` in `blocking`, if the running thread is attached to any world; otherwise just runs it.
///
/// # Panics
/// Inside `no_preempt`, and on a stack that is not the thread's own.
#[track_caller]
pub fn blocking_here<R>(f: impl FnOnce() -> R) -> R {
    match registry::current() {
        Some(record) => {
            let _release = ReleaseUnused(record);
            blocked(record, f)
        }
        None => f(),
    }
}

/// Ends a `no_preempt_here` or `blocking_here` in which the thread's last mutator may have been
/// dropped.
struct ReleaseUnused(&'static Record);

impl Drop for ReleaseUnused {
    fn drop(&mut self) {
        // Relaxed: only its own thread detaches it.
        if self.0.worlds.load(Ordering::Relaxed) == 0
            && self.0.thread_pointer.load(Ordering::Relaxed) == crate::arch::thread_pointer()
            && let Ok(mut lock) = lock()
        {
            release(self.0, &mut lock);
        }
    }
}
