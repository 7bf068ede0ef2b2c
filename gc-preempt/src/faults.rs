//! Switches a hazard's cure off, so that its test can be seen to fail without it.
//!
//! Only with the cargo feature `faults`, which the workspace's tests turn on and nobody else
//! should: `URGE_FAULT` names the cures that are off, separated by commas. Without the feature
//! [`planted`] is a constant `false` and the compiler drops the branch.

/// Is the cure of that name switched off? Async-signal-safe.
#[cfg(feature = "faults")]
pub fn planted(name: &str) -> bool {
    real::names().split(',').any(|n| n == name)
}

/// Is the cure of that name switched off? Never, without the cargo feature `faults`.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}

/// How many steps the searches of the process's code map have taken so far. Tests compare them
/// instead of times.
#[cfg(feature = "faults")]
pub fn steps() -> u64 {
    // Relaxed: a count.
    real::STEPS.load(core::sync::atomic::Ordering::Relaxed)
}

/// One more of [`steps`]. Async-signal-safe.
#[inline(always)]
pub(crate) fn count_step() {
    #[cfg(feature = "faults")]
    real::STEPS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
}

/// Reads `URGE_FAULT`, once, outside of any handler.
pub(crate) fn read_environment() {
    #[cfg(feature = "faults")]
    real::read_environment();
}

#[cfg(feature = "faults")]
mod real {
    use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

    pub(super) static STEPS: AtomicU64 = AtomicU64::new(0);
    static NAMES: AtomicPtr<String> = AtomicPtr::new(core::ptr::null_mut());

    pub(super) fn names() -> &'static str {
        // Acquire pairs with the Release below: the string is whole before it is found.
        // SAFETY: null, or a leaked string.
        unsafe { NAMES.load(Ordering::Acquire).as_ref() }.map_or("", String::as_str)
    }

    pub(super) fn read_environment() {
        if NAMES.load(Ordering::Relaxed).is_null() {
            let names = Box::leak(Box::new(std::env::var("URGE_FAULT").unwrap_or_default()));
            NAMES.store(names, Ordering::Release);
        }
    }
}

/// The system's allocator, which aborts where malloc may wait for ever: on a thread that has
/// stopped a world, and inside `no_preempt`.
///
/// In both cases the lock of malloc may be held by a thread that is stopped, or about to be, and
/// that nobody resumes until the caller is done. Make it the `#[global_allocator]` of tests.
///
/// ```
/// use gc_preempt::faults::StrictAllocator;
/// #[global_allocator]
/// static STRICT: StrictAllocator = StrictAllocator;
/// ```
#[cfg(feature = "faults")]
pub struct StrictAllocator;

#[cfg(feature = "faults")]
mod strict {
    use super::StrictAllocator;
    use std::alloc::{GlobalAlloc, Layout, System};

    fn check() {
        let why: &[u8] = if crate::holds_a_stop() {
            b"urge: malloc or free by the thread that has stopped the world\n"
        } else if crate::in_no_preempt_here() && !std::thread::panicking() {
            b"urge: malloc or free inside no_preempt\n"
        } else {
            return;
        };
        // SAFETY: writes a constant and ends.
        unsafe {
            libc::write(2, why.as_ptr().cast(), why.len());
            libc::abort();
        }
    }

    // SAFETY: forwards to the system's allocator.
    unsafe impl GlobalAlloc for StrictAllocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            check();
            // SAFETY: forwarded.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            check();
            // SAFETY: forwarded.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
            check();
            // SAFETY: forwarded.
            unsafe { System.dealloc(ptr, layout) }
        }

        unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            check();
            // SAFETY: forwarded.
            unsafe { System.realloc(ptr, layout, size) }
        }
    }
}
