//! Where a thread's own stack lies: the addresses that a walk may read, and at which a thread may
//! be stopped.
//!
//! Two kinds of stack differ in what is known of them:
//!
//! * A stack that `pthread_create` has mapped, or was given, is there from the beginning. glibc
//!   knows both ends.
//! * The main thread's stack grows, down to a limit that the host may change at any time, and that
//!   may be none. How far it will grow says nothing of where it lies now: other mappings, among
//!   them alternate stacks and coroutines' stacks, may lie anywhere below. So the lower end is the
//!   lowest page that is known to belong to it. Where SP lies below, the kernel is asked whether
//!   everything from there up to the known part is mapped ([`is_mapped`]); the kernel leaves a gap
//!   of 1 MiB below a stack that grows, so what touches it is part of it.
//!
//! No file is read for it but by glibc for the main thread's upper end, and that end is also known
//! without /proc (in a chroot): the kernel has started the program with SP right below its
//! arguments.

use crate::arch::RED_ZONE;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::io;

const PAGE: usize = 4096;
/// The main thread's stack is not taken to have room for injected calls further down than this,
/// whatever its limit is: the kernel keeps other mappings (but those at addresses that the program
/// asks for) out of so much.
const GROWS_MOST: usize = 128 << 20;

unsafe extern "C" {
    /// SP when the program began, which glibc's loader keeps.
    static __libc_stack_end: usize;
}

/// A thread's own stack. Written by the thread itself, also in its handler, and read by the stopper
/// while the thread is stopped. Relaxed: the state word's swaps publish it.
pub(crate) struct OwnStack {
    low: AtomicUsize,
    high: AtomicUsize,
    /// Down to where it has room: below `low` for one that grows, and only for that.
    floor: AtomicUsize,
}

/// What [`find`] has found.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    low: usize,
    high: usize,
    floor: usize,
}

impl Found {
    /// Bytes that the thread may use.
    pub(crate) fn room(&self) -> usize {
        self.high - self.floor
    }
}

impl OwnStack {
    pub(crate) const fn new() -> Self {
        Self {
            low: AtomicUsize::new(0),
            high: AtomicUsize::new(0),
            floor: AtomicUsize::new(0),
        }
    }

    pub(crate) fn set(&self, found: &Found) {
        self.low.store(found.low, Ordering::Relaxed);
        self.high.store(found.high, Ordering::Relaxed);
        self.floor.store(found.floor, Ordering::Relaxed);
    }

    /// What is known to be the thread's, in use or not.
    pub(crate) fn range(&self) -> Range<usize> {
        self.low.load(Ordering::Relaxed)..self.high.load(Ordering::Relaxed)
    }

    /// Does SP lie on it? On the thread itself. Async-signal-safe.
    pub(crate) fn holds(&self, sp: usize) -> bool {
        let Range { start, end } = self.range();
        if (start..end).contains(&sp) {
            return true;
        }
        let floor = self.floor.load(Ordering::Relaxed);
        if sp >= start || floor == start {
            return false;
        }
        let Some(low) = grown(sp, start, floor) else {
            return false;
        };
        self.low.store(low, Ordering::Relaxed);
        true
    }

    /// Bytes below `sp` that the thread may use.
    pub(crate) fn room_below(&self, sp: usize) -> usize {
        sp.saturating_sub(self.floor.load(Ordering::Relaxed))
    }
}

/// A thread's own stack, all of it.
pub(crate) struct StackBounds<'a> {
    pub(crate) stack: Range<usize>,
    /// Where the outermost frame ends, the highest end that a walk has come to. 0: none has.
    pub(crate) outermost: &'a AtomicUsize,
}

/// StackBounds that end within so many bytes of the outermost one's end are the system's that start a
/// thread, and one of them may be the outermost at times.
const NEAR: usize = 128;

impl StackBounds<'_> {
    /// Is a frame that ends there, and has no caller, the outermost of this stack? Otherwise it is
    /// the outermost of a stack that lies inside of this one: a coroutine's, in a local array.
    pub(crate) fn is_outermost(&self, cfa: usize) -> bool {
        // Relaxed: written by walks in stops, and by the thread when it attaches.
        let known = self.outermost.fetch_max(cfa, Ordering::Relaxed);
        cfa + NEAR >= known || seam::ends_anywhere()
    }
}

/// The new lower end of a stack that grows, known down to `low` so far, if it has grown to `sp`.
fn grown(sp: usize, low: usize, floor: usize) -> Option<usize> {
    // The red zone is part of it, if it lies on another page that is mapped.
    let first = sp.saturating_sub(RED_ZONE) & !(PAGE - 1);
    let page = sp & !(PAGE - 1);
    match is_mapped(page..low) {
        Some(true) if is_mapped(first..page) != Some(false) => Some(first),
        Some(true) => Some(page),
        Some(false) => None,
        // Not allowed to ask: what lies within the limit is taken for the stack.
        None => (sp >= floor).then_some(page),
    }
}

/// Is every page of the range mapped? `None`: the system does not say. Async-signal-safe.
///
/// Asked by `msync` with MS_ASYNC, which does nothing on Linux but to look whether the addresses
/// are mapped, from mapping to mapping.
fn is_mapped(range: Range<usize>) -> Option<bool> {
    if range.is_empty() {
        return Some(true);
    }
    // SAFETY: errno's address is always valid. The thread may be about to read it.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: neither reads nor changes memory. Not libc's function, which is a cancellation point.
    let result = unsafe {
        libc::syscall(
            libc::SYS_msync,
            range.start,
            range.len(),
            libc::MS_ASYNC as usize,
        )
    };
    // SAFETY: as above.
    let why = unsafe { errno.replace(before) };
    match result {
        0 => Some(true),
        _ => (why == libc::ENOMEM).then_some(false),
    }
}

/// Where the running thread's own stack lies.
pub(crate) fn find() -> io::Result<Found> {
    // SAFETY: glibc's loader has written it before the program began.
    let program = unsafe { __libc_stack_end };
    // SAFETY: no arguments, no memory.
    let thread = unsafe { libc::pthread_self() } as usize;
    let remembered = MAIN.range(thread, limit());
    let glibc = remembered.map_or_else(by_glibc, Ok);
    let grows = match &glibc {
        Ok(range) => range.contains(&program) && !seam::goes_by_limit(),
        Err(_) => program != 0 && !seam::asks_proc(),
    };
    if let (true, Ok(range)) = (grows, &glibc) {
        MAIN.remember(range, thread, limit());
    }
    let mut found = match glibc {
        // Only of the main thread's stack glibc needs the system's word.
        Err(_) if grows => {
            let high = (program + 1).next_multiple_of(PAGE);
            Found {
                low: program & !(PAGE - 1),
                high,
                floor: high.saturating_sub(limit().min(GROWS_MOST)),
            }
        }
        Err(error) => return Err(error),
        Ok(range) if grows => Found {
            low: program & !(PAGE - 1),
            high: range.end,
            floor: range.start.max(range.end.saturating_sub(GROWS_MOST)),
        },
        Ok(range) => Found {
            low: range.start,
            high: range.end,
            floor: range.start,
        },
    };
    if grows {
        let here = 0u8;
        let here = &raw const here as usize;
        if here < found.low {
            found.low = grown(here, found.low, found.floor).unwrap_or(found.low);
        }
        found.floor = found.floor.min(found.low - PAGE);
    }
    Ok(found)
}

/// What glibc has said of the main thread's stack. It reads all of the process's mappings for that,
/// up to the stack, which are the last: where a process has a thousand heaps, that took 40 ms for
/// each attaching. It is asked again when the limit, which is part of its answer, has changed.
struct Main {
    /// `pthread_self` of the main thread: no other thread ever has it. 0: nothing is known.
    thread: AtomicUsize,
    low: AtomicUsize,
    high: AtomicUsize,
    limit: AtomicUsize,
}

static MAIN: Main = Main::new();

impl Main {
    const fn new() -> Self {
        Self {
            thread: AtomicUsize::new(0),
            low: AtomicUsize::new(0),
            high: AtomicUsize::new(0),
            limit: AtomicUsize::new(0),
        }
    }

    /// By the main thread alone, which is also the only one that is told. Hence Relaxed. The child
    /// of a fork has another one, unless the main thread has forked.
    fn remember(&self, range: &Range<usize>, thread: usize, limit: usize) {
        self.thread.store(thread, Ordering::Relaxed);
        self.low.store(range.start, Ordering::Relaxed);
        self.high.store(range.end, Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The range, if this is the main thread, and it was found under this limit.
    fn range(&self, thread: usize, limit: usize) -> Option<Range<usize>> {
        let is_known = self.thread.load(Ordering::Relaxed) == thread
            && self.limit.load(Ordering::Relaxed) == limit
            && !seam::asks_proc();
        is_known.then(|| self.low.load(Ordering::Relaxed)..self.high.load(Ordering::Relaxed))
    }
}

/// RLIMIT_STACK.
fn limit() -> usize {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the call fills it; it is read only if it did.
    unsafe {
        match libc::getrlimit(libc::RLIMIT_STACK, limit.as_mut_ptr()) {
            0 => limit.assume_init().rlim_cur as usize,
            _ => GROWS_MOST,
        }
    }
}

fn by_glibc() -> io::Result<Range<usize>> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut low, mut size) = (core::ptr::null_mut(), 0);
    // SAFETY: the calls fill what they are given; the attributes are destroyed once, after their
    // last use.
    let error = unsafe {
        let mut error = libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr());
        if error == 0 {
            error = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
        }
        error
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    Ok(low as usize..low as usize + size)
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn ends_anywhere() -> bool {
        Fault::EndsAnywhere.planted()
    }

    pub(super) fn goes_by_limit() -> bool {
        Fault::StackByLimit.planted()
    }

    pub(super) fn asks_proc() -> bool {
        Fault::AsksProc.planted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_the_main_thread_s_stack_is_told_to_it_alone_and_under_the_same_limit() {
        let main = Main::new();
        assert_eq!(main.range(7, 100), None);
        main.remember(&(4096..8192), 7, 100);
        assert_eq!(main.range(7, 100), Some(4096..8192));
        assert_eq!((main.range(8, 100), main.range(7, 200)), (None, None));
        main.remember(&(0..8192), 7, 200);
        assert_eq!(main.range(7, 200), Some(0..8192));
    }
}
