//! The allocation count: cells and bytes that mutators got since the last swap of the bitmaps. The
//! pacer reads it at each refill.
//!
//! A count for each mutator that is added up now and then lost: docs/experiments.md.

use std::sync::atomic::AtomicI64;

/// Cells and bytes that mutators got in runs and as large objects, less those that they gave back.
/// Relaxed: hints for pacing and reports.
///
/// Signed: a mutator may give back a tail after the swap that it got before it.
#[derive(Debug, Default)]
pub(super) struct AllocationCount {
    pub(super) cells: AtomicI64,
    pub(super) bytes: AtomicI64,
}
