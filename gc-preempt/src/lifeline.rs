//! Tells without a system call whether a thread still exists.
//!
//! A thread can end by the bare `exit` system call, which runs no destructor. If it does so in
//! `blocking`, its record still says BLOCKED, its stack may be unmapped, and no signal is sent that
//! could fail. A system call for each blocked thread would make each stop longer.
//!
//! So each attached thread holds a *robust* mutex of its own from attaching to detaching. However a
//! thread ends, the kernel sets `FUTEX_OWNER_DIED` in the words of the robust mutexes that it holds
//! (get_robust_list(2)). It does that before it clears the thread's number, for which
//! `pthread_join` waits: a stack that is freed after a join is freed after the word was set. A
//! stopper reads the word.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};

/// The robust mutex of a record.
pub(crate) struct Lifeline(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: `hold` and `let_go` are called by the record's own thread, under the registry lock; what
// others read is an atomic word.
unsafe impl Sync for Lifeline {}

impl Lifeline {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER))
    }

    /// Ties the calling thread to it. On a system without robust mutexes the thread counts as alive
    /// for ever.
    ///
    /// # Safety
    /// No living thread is tied to it, and it stays where it is for ever. In the child of a fork
    /// the thread ties itself again.
    pub(crate) unsafe fn hold(&self) {
        let mutex = self.0.get();
        let mut kind = MaybeUninit::uninit();
        // SAFETY: the calls fill the attributes, which are destroyed once, and then the mutex,
        // whose memory no living thread uses, by the contract.
        unsafe {
            libc::pthread_mutexattr_init(kind.as_mut_ptr());
            libc::pthread_mutexattr_setrobust(kind.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
            libc::pthread_mutex_init(mutex, kind.as_ptr());
            libc::pthread_mutexattr_destroy(kind.as_mut_ptr());
            libc::pthread_mutex_lock(mutex);
        }
    }

    /// Unties the calling thread.
    ///
    /// # Safety
    /// The calling thread is tied to it.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the mutex was made and taken by `hold`, on this thread.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }

    /// Has the thread that was tied to it ended?
    pub(crate) fn is_cut(&self) -> bool {
        if seam::lives_for_ever() {
            return false;
        }
        // SAFETY: the first member of glibc's `pthread_mutex_t` is the futex word that the kernel
        // knows, 4 bytes aligned to 4. It is written by atomic operations of glibc and the kernel.
        let word = unsafe { AtomicU32::from_ptr(self.0.get().cast()) };
        // Relaxed: nothing that the thread wrote is read because of it.
        word.load(Ordering::Relaxed) & libc::FUTEX_OWNER_DIED != 0
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn lives_for_ever() -> bool {
        Fault::NoLifeline.planted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_ends_by_the_bare_system_call_cuts_its_lifeline() {
        extern "C" fn body(lifeline: *mut libc::c_void) -> *mut libc::c_void {
            // SAFETY: the test's own, made for ever; the thread has nothing on its stack that would
            // have to be dropped.
            unsafe {
                (*lifeline.cast::<Lifeline>()).hold();
                libc::syscall(libc::SYS_exit, 0);
            }
            core::ptr::null_mut()
        }
        let lifeline: &'static Lifeline = Box::leak(Box::new(Lifeline::new()));
        assert!(!lifeline.is_cut());
        for _ in 0..2 {
            let mut thread = MaybeUninit::uninit();
            let data = core::ptr::from_ref(lifeline).cast_mut().cast();
            // SAFETY: the thread touches what lives for ever, and is joined once.
            unsafe {
                let made = libc::pthread_create(thread.as_mut_ptr(), core::ptr::null(), body, data);
                assert_eq!(made, 0);
                libc::pthread_join(thread.assume_init(), core::ptr::null_mut());
            }
            assert!(lifeline.is_cut());
        }
        // SAFETY: the threads before are gone.
        unsafe { lifeline.hold() };
        assert!(!lifeline.is_cut());
        // SAFETY: held above.
        unsafe { lifeline.let_go() };
        assert!(!lifeline.is_cut());
    }
}
