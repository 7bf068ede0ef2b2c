//! What the threads of a round share.

use std::sync::atomic::{AtomicU64, Ordering};

use gc_core::Heap;

use crate::lab::crew::{Crew, Kernels};

/// What the threads of a round share.
pub(super) struct Round<'a> {
    pub(super) crew: Crew<'a>,
    pub(super) kernels: &'a Kernels,
    pub(super) heap: &'a Heap,
    pub(super) tally: Tally,
}

/// What the threads count; see [`Counts`](super::counts::Counts).
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

/// Adds to one of the [`Tally`]'s counts. Relaxed: joining the threads hands them over.
pub(super) fn count(what: &AtomicU64, more: u64) {
    what.fetch_add(more, Ordering::Relaxed);
}
