//! Blocking the running thread's signals while it parks.
//!
//! What stays open: the synchronous faults, which would end the process if they were blocked, and
//! the signal by which glibc's `setuid` and its like reach every thread (number 33): its handler
//! changes the thread's credentials and nothing else, and the caller waits for all threads, stopped
//! ones too.
//!
//! What is blocked though glibc leaves it out of every set that it makes: the signal of
//! `pthread_cancel` (number 32). Where a thread is interrupted in a cancellation point, glibc's
//! handler unwinds the thread there and then. It must find the thread in the cancellation point,
//! not in our handler, which would be unwound as well and never answer for the thread again. The
//! signal stays pending until the thread is back where it was interrupted.

use core::mem::MaybeUninit;

/// The signal of glibc's `pthread_cancel`.
const SIGCANCEL: u32 = 32;

/// All signals but those that stay open.
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

/// All signals but those that stay open blocked on this thread, until dropped.
pub(crate) struct SignalMask(u64);

/// Sets the thread's mask and gives the one before. Past glibc, which takes its own signals out.
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
