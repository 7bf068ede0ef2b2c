//! Large objects, as a mutator takes them.

use std::sync::atomic::Ordering;

use super::local::LocalAllocator;
use crate::error::AllocError;
use crate::heap::{LargeReservation, LargeStep, PAGE, Space};
use crate::kind::KindId;

/// Pages of a large object before which dead ones are swept, piece by piece.
const FIRST_SWEPT: usize = (1 << 20) / PAGE;

impl LocalAllocator {
    /// First step of a large allocation, under `no_preempt`, by the owner of this allocator.
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
        // What has died is found first: whoever allocates blocks would take fresh memory meanwhile,
        // block for block.
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
