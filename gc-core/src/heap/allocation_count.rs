//! The allocation count: cells and bytes that mutators got since the last swap of the bitmaps. The
//! pacer reads it.
//!
//! A single count would be written and read by every mutator at each refill, and its cache line
//! would travel between processors each time. So each mutator has a count of its own
//! ([`Unreported`]) and reports it when it has grown to some size. All mutators together leave at
//! most a 1,024th of the bytes that may be allocated until the next goal unreported
//! ([`Space::foresee`](super::Space::foresee)), and in a small heap none. Both stops of a cycle
//! report everything.

use std::sync::atomic::{AtomicI64, AtomicU64};

/// Cells and bytes that mutators got in runs and as large objects and that are reported, less those
/// that they gave back. Relaxed: hints for pacing and reports.
///
/// Signed: a mutator may give back a tail after the swap that it got before it.
#[derive(Debug, Default)]
pub(super) struct AllocationCount {
    pub(super) cells: AtomicI64,
    pub(super) bytes: AtomicI64,
}

/// What one mutator got and has not reported. Relaxed: the mutator writes it under `no_preempt`,
/// and the collector while the mutator is stopped.
#[derive(Debug, Default)]
pub(crate) struct Unreported {
    pub(super) cells: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// The part of the bytes that may be allocated until the next goal that may be unreported.
pub(super) const PART: u64 = 1024;

/// The most bytes that one mutator leaves unreported.
pub(super) const MOST: u64 = 256 << 10;
