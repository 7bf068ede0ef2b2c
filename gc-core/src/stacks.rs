//! Whether stacks and registers are roots.
//!
//! A heap that is used by the safe tier alone has no reason to scan them. Every cell that such a
//! program can still use is named by a handle of an open scope, by a root, or by an edge of a cell
//! that is:
//!
//! * a `Local` names its cell, and its handle stays until its scope ends, which no `Local` and no
//!   reference made of one outlives;
//! * a reference that a `Root` was dereferenced to borrows the root;
//! * between the instruction that takes a cell (from a run, a field, a weak word) and the one that
//!   writes its handle, the cell is in a register. For so long the thread's *window* is open
//!   ([`Context::open_window`](crate::mutator::record::Context::open_window)), and a stop that
//!   meets it scans the thread as if stacks were roots. No safe function waits in a window: where
//!   an allocation has to collect, it opens its window afterwards;
//! * a value whose `Drop` runs is held by nothing else: threads that run one are scanned
//!   (`Context::holding`).
//!
//! The fast tier breaks the rule: a `Gc` lives in a register or on the stack. Each of its functions
//! that can hand out a bare cell says so here first, before there is such a cell:
//! [`Stacks::are_used`]. It never takes that back. A stop reads it with the thread stopped, so
//! either the stop sees it, or the thread has no bare cell yet. A `Gc` that is made of an address
//! or a handle knows no heap; it says so for all heaps of the process ([`gc_was_made`]).
//!
//! Stacks are walked all the same, though nothing is looked at: the walk moves a thread that a
//! host's handler has interrupted inside a unit of the barrier back to the unit's start.
//!
//! A mistake on the other side costs exactness alone: a window that a panic leaves open, a `Gc` in
//! another heap.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::error::SiteError;

/// Not until the fast tier is used.
const UNUSED: u8 = 0;
const ROOTS: u8 = 1;
/// Never: so it was asked for.
const NEVER: u8 = 2;

/// One heap's answer.
pub(crate) struct Stacks(AtomicU8);

/// A `Gc` was made of an address or a handle, in some heap.
static GC_MADE: AtomicBool = AtomicBool::new(false);

/// A `Gc` is being made of an address or a handle.
#[inline(always)]
pub(crate) fn gc_was_made() {
    // Relaxed, here and below: read in a stop of the thread that writes it. Looked at first, for a
    // store would take the line from other threads.
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

    /// The fast tier is about to be used.
    #[inline]
    pub(crate) fn are_used(&self) {
        if self.0.load(Ordering::Relaxed) == UNUSED {
            self.0.store(ROOTS, Ordering::Relaxed);
        }
    }

    /// It is about to allocate, which a heap whose stacks are never scanned refuses.
    #[inline]
    pub(crate) fn use_fast_tier(&self) -> Result<(), SiteError> {
        self.are_used();
        match self.0.load(Ordering::Relaxed) {
            NEVER => Err(SiteError::FastTier),
            _ => Ok(()),
        }
    }

    /// For the collector, in a stop.
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
