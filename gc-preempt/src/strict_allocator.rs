//! An allocator for tests, which aborts where malloc may wait for a stopped thread.
//!
//! Only with the cargo feature `faults`.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::registry::in_no_preempt_here;
use crate::stopper::holds_a_stop;

/// The system's allocator, which aborts where malloc may wait for ever: on a thread that has
/// stopped a world, and inside `no_preempt`.
///
/// In both cases a stopped thread may hold the lock of malloc, and is not resumed before the caller
/// is done. Make it the `#[global_allocator]` of tests.
///
/// ```
/// use gc_preempt::StrictAllocator;
/// #[global_allocator]
/// static STRICT: StrictAllocator = StrictAllocator;
/// ```
pub struct StrictAllocator;

fn check() {
    let why: &[u8] = if holds_a_stop() {
        b"urge: malloc or free by the thread that has stopped the world\n"
    } else if in_no_preempt_here() && !std::thread::panicking() {
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
