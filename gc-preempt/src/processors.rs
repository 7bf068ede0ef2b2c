//! How many processors this process may use, and on which of them a thread ran last.
//!
//! The latter is a hint, from where the kernel writes it for *restartable sequences*: `cpu_id` of the thread's `rseq` area, which glibc has
//! registered for each thread since 2.35 at a fixed distance from the thread pointer. It is brought up to date whenever the thread returns
//! to its own code on another processor. A thread that has ended without a word may have taken its area along, so it is read by a system
//! call that fails where nothing is mapped; and what is read may be anything where a thread was made without glibc.

use core::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

/// The rseq area of a thread, from its thread pointer. 0: there is none, or nobody has asked yet.
static AREA: AtomicIsize = AtomicIsize::new(0);

/// Bytes from the area's beginning to `cpu_id`.
const CPU_ID: isize = 4;

/// Asks glibc where the areas are. Before the first stop.
pub(crate) fn setup() {
    // SAFETY: `dlsym` with C strings; glibc defines both symbols, as a `ptrdiff_t` and as an `unsigned int`, and writes them before `main`.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr());
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr());
        if !offset.is_null() && !size.is_null() && size.cast::<u32>().read() != 0 {
            // Relaxed: whoever reads it goes without a hint at worst.
            AREA.store(offset.cast::<isize>().read(), Ordering::Relaxed);
        }
    }
}

/// The processor that the thread with this thread pointer ran on last, if that can be known. A system call.
pub(crate) fn last_of(thread_pointer: usize) -> Option<u32> {
    let area = AREA.load(Ordering::Relaxed);
    if area == 0 {
        return None;
    }
    let mut id = -1_i32;
    let local = libc::iovec {
        iov_base: (&raw mut id).cast(),
        iov_len: size_of::<i32>(),
    };
    let remote = libc::iovec {
        iov_base: thread_pointer.wrapping_add_signed(area + CPU_ID) as *mut libc::c_void,
        iov_len: size_of::<i32>(),
    };
    // SAFETY: the kernel writes at most four bytes, to `id`, and looks itself whether those at the other address may be read.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    (read == size_of::<i32>() as isize)
        .then_some(id)
        .and_then(|id| id.try_into().ok())
}

/// The processor that the caller is on.
pub(crate) fn own() -> Option<u32> {
    // SAFETY: no arguments.
    unsafe { libc::sched_getcpu() }.try_into().ok()
}

/// Processors that this process may use, asked once.
pub(crate) fn count() -> u32 {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let known = COUNT.load(Ordering::Relaxed);
    if known != 0 {
        return known as u32;
    }
    // SAFETY: zero is a valid cpu_set_t; the call fills it.
    let n = unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) == 0 {
            libc::CPU_COUNT(&set).max(1)
        } else {
            1
        }
    };
    COUNT.store(n as usize, Ordering::Relaxed);
    n as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::thread_pointer;

    /// Has the calling thread run on one processor only.
    fn stay_on(cpu: usize) {
        // SAFETY: zero is a valid cpu_set_t.
        let set = unsafe {
            let mut set: libc::cpu_set_t = core::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
        };
        assert_eq!(set, 0);
    }

    #[test]
    fn a_thread_is_where_it_was_put() {
        setup();
        if AREA.load(Ordering::Relaxed) == 0 {
            return; // a libc that has no such areas
        }
        let put = || {
            let cpu = own().unwrap();
            stay_on(cpu as usize);
            (thread_pointer(), cpu)
        };
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            tell.send(put()).unwrap();
            let _ = ended.recv();
        });
        let (tp, cpu) = told.recv().unwrap();
        assert_eq!(last_of(tp), Some(cpu));
        drop(end);
        other.join().unwrap();
    }

    #[test]
    fn where_no_thread_is_there_is_no_hint_and_no_fault() {
        setup();
        assert_eq!(last_of(0), None);
        assert_eq!(last_of(usize::MAX / 2), None);
    }
}
