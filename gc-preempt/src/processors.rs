//! How many processors this process may use, and whether a thread ran on a given one last.
//!
//! The second answer is a hint. The kernel writes the processor's number for *restartable
//! sequences*: to `cpu_id` of the thread's `rseq` area, which glibc 2.35 and later register for
//! each thread at a fixed distance from the thread pointer. The number is up to date whenever the
//! thread has returned to its own code on another processor. A thread that ended by the bare `exit`
//! call may have unmapped its area. So the kernel reads the word, and fails where nothing is
//! mapped. It does so for a futex compare, which every sandbox around a program with threads
//! permits. A thread that was made without glibc has any word there.

use core::sync::atomic::{AtomicIsize, AtomicU32, AtomicUsize, Ordering};

use crate::park;

/// Distance of a thread's rseq area from its thread pointer. 0: there is none, or [`setup`] has not
/// run yet.
static AREA: AtomicIsize = AtomicIsize::new(0);

/// Bytes from the area's beginning to `cpu_id`.
const CPU_ID: isize = 4;

/// Asks glibc where the areas are. Before the first stop.
pub(crate) fn setup() {
    // SAFETY: `dlsym` with C strings; glibc defines both symbols, as a `ptrdiff_t` and as an
    // `unsigned int`, and writes them before `main`.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr());
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr());
        if !offset.is_null() && !size.is_null() && size.cast::<u32>().read() != 0 {
            // Relaxed: a reader that misses it has no hint.
            AREA.store(offset.cast::<isize>().read(), Ordering::Relaxed);
        }
    }
}

/// Did the thread with this thread pointer run on that processor last? `false` also if that is not
/// known. A system call.
pub(crate) fn was_last_on(thread_pointer: usize, processor: u32) -> bool {
    static NOBODY: AtomicU32 = AtomicU32::new(0);
    let area = AREA.load(Ordering::Relaxed);
    let word = thread_pointer.wrapping_add_signed(area + CPU_ID);
    area != 0 && park::is_word(word, processor, &NOBODY)
}

/// The processor that the caller is on. Async-signal-safe: glibc reads the thread's rseq area,
/// which is not allocated lazily, or calls the vDSO.
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
        assert!(was_last_on(tp, cpu));
        assert!(!was_last_on(tp, cpu + 1));
        drop(end);
        other.join().unwrap();
    }

    #[test]
    fn where_no_thread_is_there_is_no_hint_and_no_fault() {
        setup();
        let anywhere = |pointer| (0..count()).any(|cpu| was_last_on(pointer, cpu));
        assert!(!anywhere(1 << 12) && !anywhere(1 << 63));
    }
}
