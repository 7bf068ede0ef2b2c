//! Blocking the running thread's signals while it parks.

use core::mem::MaybeUninit;

/// All signals but the synchronous faults.
pub(crate) fn full_mask() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set; the signals are valid.
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
        set
    }
}

/// All signals but the synchronous faults blocked on this thread, until dropped.
pub(crate) struct SignalMask(libc::sigset_t);

impl SignalMask {
    pub(crate) fn all_but_faults() -> Self {
        let full = full_mask();
        let mut old = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both sets are valid; the call fills `old`.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const full, old.as_mut_ptr());
            Self(old.assume_init())
        }
    }

    /// The signals that were blocked before, a bit for each.
    pub(crate) fn before(&self) -> u64 {
        // SAFETY: a sigset_t begins with the mask of the 64 signals that there are.
        unsafe { (&raw const self.0).cast::<u64>().read() }
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the kernel gave us.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, core::ptr::null_mut())
        };
    }
}
