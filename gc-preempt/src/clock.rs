//! The clock that signal handlers may read.

use core::mem::MaybeUninit;

/// Monotonic time in nanoseconds. Async-signal-safe: POSIX lists `clock_gettime`, which is a vDSO
/// call here.
pub(crate) fn now() -> u64 {
    let mut t = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is to a timespec, which the call fills; CLOCK_MONOTONIC always exists.
    let t = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, t.as_mut_ptr());
        t.assume_init()
    };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
