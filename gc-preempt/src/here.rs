//! `no_preempt` and `blocking` for the running thread, without its [`Mutator`](crate::Mutator).
//!
//! A library that is called on attached and on other threads uses these functions.

use core::sync::atomic::Ordering;

use crate::attach::release;
use crate::blocking::{blocked, lock};
use crate::registry::{self, Record};
use crate::stop_point::NoPreempt;

/// Runs `f`. If the running thread is attached to a world, it is not stopped in `f`.
///
/// ```
/// static LOCK: gc_preempt::sys::Mutex<u32> = gc_preempt::sys::Mutex::new(0);
/// // No stop waits for this lock, nor is its holder stopped.
/// gc_preempt::no_preempt_here(|| *LOCK.lock() += 1);
/// ```
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

/// Runs `f`. If the running thread is attached to a world, it runs `f` in
/// [`blocking`](crate::Mutator::blocking).
///
/// ```
/// let bytes = gc_preempt::blocking_here(|| std::fs::read("/proc/self/stat"))?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
/// Inside `no_preempt`, and on a stack that is neither the thread's own nor
/// registered.
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

/// Gives the record back at the end of a section in which the thread's last `Mutator` was dropped.
struct ReleaseUnused(&'static Record);

impl Drop for ReleaseUnused {
    fn drop(&mut self) {
        // Relaxed: only this thread detaches the record.
        if self.0.worlds.load(Ordering::Relaxed) == 0
            && self.0.thread_pointer.load(Ordering::Relaxed) == crate::arch::thread_pointer()
            && let Ok(mut lock) = lock()
        {
            release(self.0, &mut lock);
        }
    }
}
