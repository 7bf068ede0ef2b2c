//! Threads of a heap: the collector's and the markers'.
//!
//! They are made by `pthread_create`, not by `std::thread`. A thread of the standard library takes
//! a process-wide lock of that library when it starts and when it ends (its list of stack guards).
//! If a thread of the parent is starting or ending during a fork, the child finds that lock taken.
//! A thread that `std::thread` makes never runs in such a child, and a collection there would wait
//! for it without end. glibc's own locks are free in the child.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;

/// Bytes of a thread's stack.
const STACK: usize = 2 << 20;

/// A running thread. If this value is dropped without [`Thread::join`], the thread's memory stays
/// until the process ends.
#[derive(Debug)]
pub(crate) struct Thread(libc::pthread_t);

/// A thread's name and its function.
struct Start<F> {
    name: CString,
    body: F,
}

impl Thread {
    /// Starts a thread. Its name has at most 15 bytes. It inherits the caller's signal mask. A
    /// panic in `body` ends the process.
    ///
    /// # Errors
    /// The system refused a thread.
    ///
    /// # Safety
    /// Everything that `body` borrows lives until the thread is joined.
    pub(crate) unsafe fn start<F: FnOnce() + Send>(name: &str, body: F) -> io::Result<Thread> {
        if !seam::avoids_std() {
            // SAFETY: forwarded.
            return unsafe { seam::start_by_std(body) };
        }
        extern "C" fn run<F: FnOnce()>(start: *mut libc::c_void) -> *mut libc::c_void {
            // SAFETY: `start` leaked this box for this thread alone.
            let start = unsafe { Box::from_raw(start.cast::<Start<F>>()) };
            // SAFETY: names this thread. A kernel that refuses the name leaves the old one.
            unsafe { libc::pthread_setname_np(libc::pthread_self(), start.name.as_ptr()) };
            (start.body)();
            core::ptr::null_mut()
        }
        let name = CString::new(name)?;
        let start = Box::into_raw(Box::new(Start { name, body }));
        let mut attributes = MaybeUninit::uninit();
        let mut thread = MaybeUninit::uninit();
        // SAFETY: the first call initialises the attributes, and the last one destroys them. `run`
        // takes the box, and only if the thread was made.
        let error = unsafe {
            libc::pthread_attr_init(attributes.as_mut_ptr());
            libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
            let error = libc::pthread_create(
                thread.as_mut_ptr(),
                attributes.as_ptr(),
                run::<F>,
                start.cast(),
            );
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            error
        };
        if error != 0 {
            // SAFETY: no thread was made, so this function still owns the box.
            drop(unsafe { Box::from_raw(start) });
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: `pthread_create` succeeded, so it wrote the thread's name.
        Ok(Thread(unsafe { thread.assume_init() }))
    }

    /// Whether this is the calling thread.
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: compares two thread names, neither of which was joined.
        unsafe { libc::pthread_equal(self.0, libc::pthread_self()) != 0 }
    }

    /// Waits for the thread's end. By another thread of the process that started it.
    pub(crate) fn join(self) {
        // SAFETY: `start` made the thread joinable, and `self` is the only name of it.
        let error = unsafe { libc::pthread_join(self.0, core::ptr::null_mut()) };
        debug_assert_eq!(error, 0);
    }

    /// Lets the system free the thread's memory when it ends. No thread waits for that.
    pub(crate) fn detach(self) {
        // SAFETY: as in `join`.
        let error = unsafe { libc::pthread_detach(self.0) };
        debug_assert_eq!(error, 0);
    }
}

/// The processor time that the running thread has had, in nanoseconds.
pub(crate) fn thread_cpu() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes `time`; the clock is there on every Linux, and were it not, `time` would stay
    // zero.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

mod seam {
    use std::io;
    use std::os::unix::thread::JoinHandleExt;

    use super::Thread;
    use crate::fault::Fault;

    pub(super) fn avoids_std() -> bool {
        !Fault::ThreadsOfStd.planted()
    }

    /// # Safety
    /// As [`Thread::start`].
    pub(super) unsafe fn start_by_std<F: FnOnce() + Send>(body: F) -> io::Result<Thread> {
        // SAFETY: the caller's contract.
        let thread = unsafe { std::thread::Builder::new().spawn_unchecked(body) }?;
        Ok(Thread(thread.into_pthread_t()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_thread_has_its_name_runs_what_it_is_given_and_is_joined() {
        let ran = AtomicU32::new(0);
        let body = || {
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(name.trim(), "urge-tested");
            ran.fetch_add(1, Ordering::Relaxed);
        };
        // SAFETY: joined below.
        let thread = unsafe { Thread::start("urge-tested", body) }.unwrap();
        assert!(!thread.is_current());
        thread.join();
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }
}
