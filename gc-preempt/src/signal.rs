//! SIGURG: why that signal, and sending it.
//!
//! The signal has to satisfy four conditions, after Go's list (`runtime/signal_unix.go`):
//!
//! 1. Debuggers pass it on by default.
//! 2. libc does not use it for itself, as it does the first real-time signals.
//! 3. It may arrive at any time without harm: a program that handles it for its own purpose
//!    (out-of-band data on a socket) must look for the reason anyway.
//! 4. Its default action is to be ignored, so that a signal without our handler, or in the child of
//!    a fork, ends no process.
//!
//! SIGUSR1 and SIGALRM fail 3 and 4.

use crate::quiet::KeepErrno;

/// The signal that stops threads.
pub(crate) const SIGNAL: i32 = libc::SIGURG;

/// Sends the stop signal to a thread. False if the thread no longer exists.
pub(crate) fn send(tid: i32) -> bool {
    let _kept = KeepErrno::new();
    // SAFETY: a system call without memory arguments.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, SIGNAL) };
    // SAFETY: errno's address is always valid.
    result == 0 || unsafe { *libc::__errno_location() } != libc::ESRCH
}
