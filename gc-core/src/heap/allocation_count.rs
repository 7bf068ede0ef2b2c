//! How much was handed out to mutators since the bitmaps swapped last: what pacing goes by.
//!
//! One count for all would be written at each refill, every 8 KiB, by every mutator, and read at
//! each one, too: a cache line that travels from processor to processor twice a refill. In `gclab
//! trees 20` with two mutators that was 1 to 4 samples of 100, as the host had placed the two
//! processors. So each mutator keeps its own ([`Unreported`]) and reports it when it has come to
//! something; no time is saved that could be told from the noise where there are two of them (1.305
//! s without and 1.29 s with, medians of six pairs), but it would grow with each one more. What is
//! not reported yet is at most a 1,024th of what may be allocated until the next goal, all mutators
//! together ([`Space::foresee`](crate::heap::Space::foresee)); in small heaps, nothing. Both stops
//! of a cycle have all of it reported.

use std::sync::atomic::{AtomicI64, AtomicU64};

/// What was handed out in runs and large objects and was reported, less what was given back. Hints
/// for pacing and reports: Relaxed.
///
/// Signed: a tail that was handed out before the last swap may come back after it.
#[derive(Debug, Default)]
pub(super) struct AllocationCount {
    pub(super) cells: AtomicI64,
    pub(super) bytes: AtomicI64,
}

/// What one mutator was handed and has not reported. Written by it under `no_preempt`, and by the
/// collector while it is stopped: Relaxed.
#[derive(Debug, Default)]
pub(crate) struct Unreported {
    pub(super) cells: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// Of what may be allocated until the next goal, the part that may be unreported.
pub(super) const PART: u64 = 1024;

/// The most that one mutator does not report.
pub(super) const MOST: u64 = 256 << 10;
