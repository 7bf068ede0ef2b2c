//! How a mutator reserves a large object.

use std::sync::atomic::Ordering;

use super::local::LocalAllocator;
use crate::error::AllocError;
use crate::heap::{LargeReservation, LargeStep, PAGE, Space};
use crate::kind::KindId;

/// A request of at least this many pages sweeps dead large objects first, piece by piece.
const FIRST_SWEPT: usize = (1 << 20) / PAGE;

impl LocalAllocator {
    /// First step of a large allocation: takes the pages. Under `no_preempt`, by the owner of this
    /// allocator.
    ///
    /// # Errors
    /// [`AllocError::TooLarge`] and [`AllocError::Site`] for ever; [`AllocError::HeapLimit`] or
    /// [`AllocError::Exhausted`]: a collection may help.
    pub fn reserve_large(
        &self,
        space: &Space,
        kind: KindId,
        bytes: usize,
    ) -> Result<LargeStep, AllocError> {
        let pages = space.large_pages(kind, bytes)?;
        if let Some(every) = space.collect_every
            && self.left_until_due(space, every) == 0
        {
            return Ok(LargeStep::Due);
        }
        // Dead objects are swept first. Otherwise a mutator that allocates blocks would take fresh
        // memory for each block while dead ones wait for the sweep.
        if pages >= FIRST_SWEPT
            && space.unswept.load(Ordering::Acquire) != 0
            && space.sweep_large_piece()
        {
            return Ok(LargeStep::Again);
        }
        match space.take_pages(pages) {
            Ok((first, _)) => {
                self.count_large();
                Ok(LargeStep::Reserved(LargeReservation::new(
                    first, pages, kind,
                )))
            }
            Err(no) => space.after_sweep(no, bytes).map(|()| LargeStep::Again),
        }
    }
}
