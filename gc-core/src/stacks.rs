//! Whether stacks and registers are roots.
//!
//! A heap that only the safe tier uses need not scan them. Every cell that such a program can still
//! use is named by a handle of an open scope, by a root, or by an edge of such a cell:
//!
//! * a `Local` names its cell. Its handle stays until its scope ends, and no `Local`, nor a
//!   reference made from one, outlives the scope;
//! * a reference that a `Root` was dereferenced to borrows the root;
//! * between the instruction that takes a cell (from a run, a field, a weak word) and the one that
//!   writes its handle, the cell is in a register. The thread's *window* is open meanwhile
//!   ([`Context::open_window`](crate::mutator::record::Context::open_window)), and a stop in an
//!   open window scans the thread as if stacks were roots. No safe function waits in a window: an
//!   allocation that has to collect opens its window afterwards;
//! * only the thread that runs a value's `Drop` holds the value: a stop scans such a thread
//!   (`Context::holding`).
//!
//! The fast tier breaks the rule: a `Gc` lives in a register or on the stack. Each function of the
//! fast tier that can return a bare cell calls [`Stacks::are_used`] before there is such a cell.
//! The effect of the call is permanent. A stop reads the state with the thread stopped, so either
//! the stop sees the call, or the thread has no bare cell yet. A `Gc` that is made from an address
//! or a handle does not name its heap, so [`gc_was_made`] counts for all heaps of the process.
//!
//! A stop walks stacks even if it scans no word of them: the walk moves a thread that a host's
//! handler has interrupted inside a restart range of the barrier back to the range's first
//! instruction.
//!
//! A mistake in the other direction costs exactness alone: a window that a panic leaves open, a
//! `Gc` in another heap.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::error::SiteError;

/// Stacks become roots when the fast tier is first used.
const UNUSED: u8 = 0;
const ROOTS: u8 = 1;
/// Stacks are never roots: `exact(true)` asked for it.
const NEVER: u8 = 2;

/// The state of one heap.
pub(crate) struct Stacks(AtomicU8);

/// Whether a `Gc` was made from an address or a handle, in some heap.
static GC_MADE: AtomicBool = AtomicBool::new(false);

/// Notes that a `Gc` is made from an address or a handle.
#[inline(always)]
pub(crate) fn gc_was_made() {
    // Relaxed, here and below: a stop reads it while the thread that writes it is stopped. The load
    // comes first, since a store would take the cache line from other threads.
    if !GC_MADE.load(Ordering::Relaxed) {
        GC_MADE.store(true, Ordering::Relaxed);
    }
}

impl Stacks {
    pub(crate) fn new(exact: Option<bool>) -> Self {
        Self(AtomicU8::new(match exact {
            None => UNUSED,
            Some(false) => ROOTS,
            Some(true) => NEVER,
        }))
    }

    /// Notes that the fast tier is about to be used.
    #[inline]
    pub(crate) fn are_used(&self) {
        if self.0.load(Ordering::Relaxed) == UNUSED {
            self.0.store(ROOTS, Ordering::Relaxed);
        }
    }

    /// Notes that the fast tier is about to allocate.
    ///
    /// # Errors
    /// [`SiteError::FastTier`]: the heap never scans stacks.
    #[inline]
    pub(crate) fn use_fast_tier(&self) -> Result<(), SiteError> {
        self.are_used();
        match self.0.load(Ordering::Relaxed) {
            NEVER => Err(SiteError::FastTier),
            _ => Ok(()),
        }
    }

    /// Whether stacks are roots. For the collector, in a stop.
    pub(crate) fn are_roots(&self) -> bool {
        match self.0.load(Ordering::Relaxed) {
            UNUSED => GC_MADE.load(Ordering::Relaxed),
            state => state == ROOTS,
        }
    }
}

/// Keeps the cell at `address` alive up to here: see [`keep_alive`](crate::keep_alive).
#[inline(always)]
pub(crate) fn keep_alive_address(address: *mut u8) {
    // SAFETY: no instruction at all. It takes the pointer in a register and, for all that the
    // compiler knows, reads memory through it.
    unsafe {
        core::arch::asm!("/* {0} is alive */", in(reg) address, options(nostack, preserves_flags))
    };
}
