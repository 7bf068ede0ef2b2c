//! The methods of [`Space`] on the allocation count.

use std::sync::atomic::Ordering;

use super::Space;

impl Space {
    /// Counts cells that a mutator got.
    #[inline]
    pub(crate) fn count_allocated(&self, cells: usize, bytes: usize) {
        self.allocation_count
            .cells
            .fetch_add(cells as i64, Ordering::Relaxed);
        self.allocation_count
            .bytes
            .fetch_add(bytes as i64, Ordering::Relaxed);
    }

    /// Counts cells that a mutator gave back.
    pub(crate) fn take_back(&self, cells: usize, bytes: usize) {
        self.allocation_count
            .cells
            .fetch_sub(cells as i64, Ordering::Relaxed);
        self.allocation_count
            .bytes
            .fetch_sub(bytes as i64, Ordering::Relaxed);
    }

    /// In a stop: begins a new count.
    pub(crate) fn reset_allocation_count(&self) {
        self.allocation_count.cells.store(0, Ordering::Relaxed);
        self.allocation_count.bytes.store(0, Ordering::Relaxed);
    }

    /// Bytes that mutators got in runs and as large objects since [`Space::swap`].
    pub fn allocated_since(&self) -> u64 {
        self.allocation_count.bytes.load(Ordering::Relaxed).max(0) as u64
    }

    /// Cells that mutators got in runs and as large objects since [`Space::swap`], less those that
    /// they gave back.
    pub fn cells_since(&self) -> i64 {
        self.allocation_count.cells.load(Ordering::Relaxed)
    }
}
