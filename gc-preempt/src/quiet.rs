//! Keeps errno and a pending cancellation of an embedder's thread as they are.
//!
//! A thread may be stopped between a C function that fails and the line that reads errno. So every
//! system call of this crate that can fail is made under a [`KeepErrno`].
//!
//! `pthread_cancel` unwinds a thread at the next cancellation point. Rust's standard library calls
//! such functions as if they never unwind, so a thread that is cancelled in one aborts. This crate
//! calls them on an embedder's thread under a [`NoCancel`].

unsafe extern "C" {
    fn pthread_setcancelstate(state: libc::c_int, old: *mut libc::c_int) -> libc::c_int;
}

const PTHREAD_CANCEL_DISABLE: libc::c_int = 1;

/// Restores errno when it is dropped. For code that waits, or asks the system for memory, in a
/// place where its caller does not expect errno to change. Async-signal-safe.
///
/// ```
/// use std::io::Error;
/// let before = Error::last_os_error().raw_os_error();
/// let kept = gc_preempt::sys::KeepErrno::new();
/// assert!(std::fs::File::open("/nowhere/to/be/found").is_err());
/// drop(kept);
/// assert_eq!(Error::last_os_error().raw_os_error(), before);
/// ```
#[must_use = "errno is restored when the guard is dropped"]
pub struct KeepErrno(libc::c_int);

impl KeepErrno {
    /// Remembers errno as it is.
    #[inline]
    #[allow(clippy::new_without_default)] // a guard is not a value to be had by default
    pub fn new() -> Self {
        // SAFETY: errno's address is always valid.
        Self(unsafe { *libc::__errno_location() })
    }
}

impl Drop for KeepErrno {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: errno's address is always valid.
        unsafe { *libc::__errno_location() = seam::kept(self.0) };
    }
}

/// Keeps the calling thread from being cancelled until it is dropped. A cancellation that comes
/// meanwhile stays pending.
pub(crate) struct NoCancel(libc::c_int);

impl NoCancel {
    pub(crate) fn new() -> Self {
        let mut old = 0;
        // SAFETY: the call fills `old`; it is no cancellation point.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut old) };
        Self(old)
    }
}

impl Drop for NoCancel {
    fn drop(&mut self) {
        // SAFETY: the state is one that the thread had; it is no cancellation point.
        unsafe { pthread_setcancelstate(self.0, core::ptr::null_mut()) };
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    #[inline(always)]
    pub(super) fn kept(errno: libc::c_int) -> libc::c_int {
        if Fault::ErrnoLost.planted() {
            libc::EAGAIN // as a wait leaves it that comes too late to sleep
        } else {
            errno
        }
    }
}
