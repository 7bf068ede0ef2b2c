//! Runs: what a mutator allocates from by a bump, and what a refill of one returns.

use crate::heap::{ColdPages, Site};

/// Free cells side by side that one mutator owns. They are zero unless their kind is
/// [`leaf_uninit`](crate::raw::Kind::leaf_uninit). Machine code bumps `cursor` inline.
///
/// `cursor..limit` are whole cells of one site. A run that was never filled is zero and has no
/// cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// The next cell to allocate.
    pub cursor: usize,
    /// One past the last cell.
    pub limit: usize,
}
/// The result of a refill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    /// The site's run has room for at least one cell.
    Ready,
    /// `collect_every` asks for a collection: collect, then refill again.
    Due,
    /// The bounded piece of work has ended without a run: leave `no_preempt`, then refill again.
    Again,
    /// The next run will lie in memory that the system has not backed yet: leave `no_preempt`, call
    /// [`Space::back_taken`](crate::heap::Space::back_taken) in a blocking region, then refill
    /// again. Without that call the memory is backed when it is first touched, and a stop waits
    /// until the kernel has cleared it.
    Cold(ColdPages),
}
/// The most bytes of a run. A run is cleared under `no_preempt`, in about half a microsecond, and
/// should still be in the first-level cache when its cells are written. A shorter run would need
/// more refills.
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
        // Emits no instruction. It makes the compiler compute the run's address once and use it for
        // load, compare and store alike. A processor that forwards a store to the next load of the
        // same address expression then does so from cell to cell (docs/experiments.md).
        std::arch::asm!("/* {0} */", inout(reg) address, options(pure, nomem, nostack, preserves_flags));
        let run = std::ptr::with_exposed_provenance_mut::<Run>(address);
        let cell = (*run).cursor;
        let next = cell + site.size as usize;
        if next > (*run).limit {
            return std::ptr::null_mut();
        }
        // An empty run is zero and has no cell, so `cell` is not null here, and callers need not
        // test it again.
        std::hint::assert_unchecked(cell != 0);
        (*run).cursor = next;
        // Rule 4 of the fast path: the advanced cursor is in memory before the first word of the
        // cell is written. A Release store would be too weak: the compiler may merge the cursor
        // stores of two allocations behind the first cell's initialisation, and a stop in between
        // would take the first cell for free.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        cell as *mut u8
    }
}
