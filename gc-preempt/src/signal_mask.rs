//! Blocks the running thread's signals while it parks.
//!
//! Two kinds of signal stay open. The synchronous faults end the process if they are blocked. By
//! signal 33 glibc's `setuid` and its like reach every thread; its handler changes the thread's
//! credentials and nothing else, and the caller waits for all threads, stopped threads too.
//!
//! Signal 32, of `pthread_cancel`, is blocked, although glibc leaves it out of every set that it
//! makes. If it interrupts a thread in a cancellation point, glibc's handler unwinds the thread at
//! once. If it interrupted our handler, the handler would be unwound as well, and the thread would
//! never leave the stop. So the signal stays pending until the thread is back where it was
//! interrupted.

use core::mem::MaybeUninit;

/// The signal of glibc's `pthread_cancel`.
const SIGCANCEL: u32 = 32;

/// All signals except the open ones.
pub(crate) fn full_mask() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set; the signals are valid. A sigset_t begins with a bit
    // for each of the 64 signals that there are.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            libc::sigdelset(&raw mut set, fault);
        }
        *(&raw mut set).cast::<u64>() |= seam::cancellation();
        set
    }
}

/// Blocks all signals except the open ones on this thread until it is dropped.
pub(crate) struct SignalMask(u64);

/// Sets the thread's mask, and returns the mask before. By the system call: glibc's function takes
/// its own signals out of the mask.
fn swap_mask(new: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: both masks are as long as the call is told, and it fills `old`.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const new,
            &raw mut old,
            size_of::<u64>(),
        );
    }
    old
}

impl SignalMask {
    pub(crate) fn all_but_faults() -> Self {
        let full = full_mask();
        // SAFETY: as in `full_mask`.
        Self(swap_mask(unsafe { (&raw const full).cast::<u64>().read() }))
    }

    /// The signals that were blocked before, a bit for each.
    pub(crate) fn before(&self) -> u64 {
        self.0
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        swap_mask(self.0);
    }
}

/// What tests may break here.
mod seam {
    use super::SIGCANCEL;
    use crate::faults::Fault;

    /// The mask's bit of the signal of `pthread_cancel`.
    pub(super) fn cancellation() -> u64 {
        if Fault::CancelOpen.planted() {
            0
        } else {
            1 << (SIGCANCEL - 1)
        }
    }
}
