//! LocalAllocator: what a mutator allocates from by a bump, and what a refill of one finds.

use crate::heap::{ColdPages, Site};

/// A stretch of free cells that one mutator owns, zeroed unless their kind is
/// [`leaf_uninit`](crate::raw::Kind::leaf_uninit). Machine code bumps `cursor` inline.
///
/// `cursor..limit` are whole cells of one site. A run that was never filled is zero and has room
/// for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// The next cell to hand out.
    pub cursor: usize,
    /// One past the last cell.
    pub limit: usize,
}
/// What a refill found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    /// The site's run has room for at least one cell.
    Ready,
    /// `collect_every`: collect, then refill again.
    Due,
    /// The bounded piece ended without a find: leave `no_preempt`, come again.
    Again,
    /// The next run will lie in memory that the system has not backed yet: leave `no_preempt`, have
    /// it backed where no stop waits for it ([`Space::back_taken`](crate::heap::Space::back_taken);
    /// or do not: then it is when it is first touched, and a stop waits until the kernel has
    /// cleared it), come again.
    Cold(ColdPages),
}
/// A run's length at most, in bytes. It is cleared under `no_preempt`, half a microsecond or so,
/// and should still be in the first-level cache when its cells are written; the shorter it is, the
/// more often a mutator comes to refill.
pub(crate) const RUN_BYTES: usize = 8 << 10;
/// The fast path: the next cell of `site`'s run, zeroed, or null if the run is used up.
///
/// # Safety
/// `runs` is the calling mutator's array, of the heap that made `site`.
#[inline(always)]
pub unsafe fn bump(runs: *mut Run, site: Site) -> *mut u8 {
    // SAFETY: the caller owns the array, and a site's index is below MAX_SITES.
    unsafe {
        let mut address = runs.add(site.index as usize).expose_provenance();
        // Emits nothing. It makes the compiler take the run's address once and use it for load,
        // compare and store alike: processors that forward a store to the next load of the same
        // address expression without a delay then do so from cell to cell, which halves the time of
        // a cell (1.3 ns instead of 2.5 where it was measured).
        std::arch::asm!("/* {0} */", inout(reg) address, options(pure, nomem, nostack, preserves_flags));
        let run = std::ptr::with_exposed_provenance_mut::<Run>(address);
        let cell = (*run).cursor;
        let next = cell + site.size as usize;
        if next > (*run).limit {
            return std::ptr::null_mut();
        }
        // An empty run is zero and has room for nothing, so this is no null: callers need not test
        // again.
        std::hint::assert_unchecked(cell != 0);
        (*run).cursor = next;
        // Rule 4 of the fast path: the advanced cursor is in memory before the first word of the
        // cell is written. A Release store would not do: two allocations in a row may merge their
        // cursor stores behind the first cell's initialisation, and a stop in between would see the
        // first cell as free.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        cell as *mut u8
    }
}
