//! The state that the threads of a round share.

use std::sync::atomic::{AtomicU64, Ordering};

use gc_core::Heap;

use crate::lab::crew::{Crew, Kernels};

/// The state that the threads of a round share.
pub(super) struct Round<'a> {
    pub(super) crew: Crew<'a>,
    pub(super) kernels: &'a Kernels,
    pub(super) heap: &'a Heap,
    pub(super) tally: Tally,
}

/// The counters of a round's threads; see [`Counts`](super::counts::Counts).
#[derive(Default)]
pub(super) struct Tally {
    pub(super) stops: AtomicU64,
    pub(super) idle_stops: AtomicU64,
    pub(super) signalled: AtomicU64,
    pub(super) held: AtomicU64,
    pub(super) threads: AtomicU64,
    pub(super) forks: AtomicU64,
    pub(super) programs: AtomicU64,
    pub(super) cases: AtomicU64,
    pub(super) turns: AtomicU64,
    pub(super) collections: AtomicU64,
}

/// Adds to a counter of the [`Tally`]. Relaxed: the counters are read after the threads were
/// joined.
pub(super) fn count(what: &AtomicU64, more: u64) {
    what.fetch_add(more, Ordering::Relaxed);
}
