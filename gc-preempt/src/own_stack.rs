//! The bounds of a thread's own stack: a walk reads only words between them, and a thread is
//! stopped only while its SP lies there.
//!
//! There are two kinds of stack:
//!
//! * A stack that `pthread_create` has mapped, or was given, is mapped as a whole. glibc knows both
//!   ends.
//! * The main thread's stack grows down to a limit, which the host may change at any time, and
//!   which may be infinite. The limit does not say where the stack lies now: other mappings
//!   (alternate stacks, coroutines' stacks) may lie anywhere below. So the lower end is the lowest
//!   page that is known to belong to the stack. If SP lies below that page, the kernel is asked
//!   whether all pages in between are mapped ([`is_mapped`]). The kernel leaves a gap of 1 MiB
//!   below a stack that grows, so a mapping that touches the stack is part of it.
//!
//! glibc reads /proc for the main thread's upper end. Without /proc (in a chroot) that end is known
//! from SP at the program's start, right below its arguments.

use crate::arch::RED_ZONE;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::io;

const PAGE: usize = 4096;
/// The main thread's stack counts as having room for injected calls down to this, whatever its
/// limit is. The kernel places no mapping into so much, unless the program asks for the address.
const GROWS_MOST: usize = 128 << 20;

unsafe extern "C" {
    /// SP when the program began, which glibc's loader keeps.
    static __libc_stack_end: usize;
}

/// A thread's own stack. The thread itself writes it, also in its handler, and the stopper reads it
/// while the thread is stopped. All accesses are Relaxed: the state word's swaps publish it.
pub(crate) struct OwnStack {
    low: AtomicUsize,
    high: AtomicUsize,
    /// The lowest address that it may grow to. Below `low` only for a stack that grows.
    floor: AtomicUsize,
}

/// The result of [`find`].
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

    /// The known part of the stack, in use or not.
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

/// A thread's own stack, as a walk needs it.
pub(crate) struct StackBounds<'a> {
    pub(crate) stack: Range<usize>,
    /// The end of the outermost frame: the highest end that any walk has come to. 0: no walk yet.
    pub(crate) outermost: &'a AtomicUsize,
}

/// A frame that ends within so many bytes of the outermost frame's end belongs to the system code
/// that starts a thread. Walks may end at any of these frames.
const NEAR: usize = 128;

impl StackBounds<'_> {
    /// Is a frame without caller that ends at `cfa` the outermost of this stack? Otherwise it is
    /// the outermost frame of another stack that lies inside of this one, a coroutine's say, in a
    /// local array.
    pub(crate) fn is_outermost(&self, cfa: usize) -> bool {
        // Relaxed: walks write it under the registry lock, or on the thread itself.
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
        // The kernel does not answer: pages within the limit count as the stack's.
        None => (sp >= floor).then_some(page),
    }
}

/// Is every page of the range mapped? `None`: the kernel does not say. Async-signal-safe.
///
/// Asks by `msync` with MS_ASYNC, which on Linux only checks that the addresses are mapped.
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
        // glibc fails only for the main thread's stack, for which it reads /proc.
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

/// glibc's answer for the main thread's stack, kept since glibc reads the whole list of the
/// process's mappings for it. Asked again when the limit has changed, which is part of the answer.
struct Main {
    /// `pthread_self` of the main thread, which no other thread ever has. 0: nothing is known.
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

    /// Only the main thread calls this, and only the main thread gets the answer: hence Relaxed. In
    /// the child of a fork another thread is the main thread, unless the main thread has forked.
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
