//! A mutator's allocator: its run of each site, the spans that it takes runs from, and its span
//! reserve.

use std::sync::atomic::{AtomicU32, AtomicU64};

use super::run::Run;
use crate::heap::SpanReserve;
use crate::limits::MAX_SITES;
use crate::memory::MapError;
use crate::memory::os::Table;

/// The span that a mutator takes a site's runs from, how far the span has been searched, and holes
/// that belong to the mutator already.
///
/// Where live and dead cells are mixed, a hole is a cell or two. A refill for each hole would cost
/// more than the allocations: locked instructions, and a look at the pace. So `refill` takes all
/// holes of a bitmap word (1 KiB of the heap) together: it clears and counts their cells and sets
/// their bits at once. The first hole becomes the run, and the others wait here.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct OwnedSpan {
    /// The first page of the span + 1; 0: none.
    pub(super) span: u32,
    /// The first cell that was not searched yet.
    pub(super) position: u32,
    /// The first cell whose memory was not prefetched yet.
    pub(super) prefetched: u32,
    /// The number, within the span, of the bitmap word that `holes` belongs to.
    pub(super) word: u32,
    /// The bits of cells that belong to the mutator beyond its run. They are allocated and zero.
    pub(super) holes: u64,
    /// The mutator's list of sites: the next site + 1, or [`OwnedSpan::LAST`]. 0: the list does not
    /// have this site.
    pub(super) next: u32,
    /// The low half of the last swap's number at the last refill.
    pub(super) refilled: u32,
}
impl OwnedSpan {
    pub(super) const LAST: u32 = u32::MAX;
}
/// The list of the sites that a mutator has spans of. Relaxed: the owner changes it under
/// `no_preempt`, and the collector in a stop that found the owner inside `blocking`; the stop
/// orders the two.
pub(super) struct SiteList {
    /// The first site + 1, or [`OwnedSpan::LAST`]; the others follow by `OwnedSpan::next`.
    pub(super) first: AtomicU32,
    pub(super) len: AtomicU32,
    /// The low half of the number of the last swap for which the whole list was reviewed.
    pub(super) reviewed: AtomicU32,
    /// The site + 1 after which the review goes on; 0: at the first.
    pub(super) position: AtomicU32,
}
impl Default for SiteList {
    fn default() -> SiteList {
        SiteList {
            first: AtomicU32::new(OwnedSpan::LAST),
            len: AtomicU32::new(0),
            reviewed: AtomicU32::new(0),
            position: AtomicU32::new(0),
        }
    }
}
/// One mutator's part of the heap. Its runs, one for each site, lie in mapped memory that the
/// stopped collector reads.
///
/// The owner calls [`LocalAllocator::retire`] before it drops this value. Otherwise its spans are
/// in no list, and the heap never uses them again.
pub struct LocalAllocator {
    pub(super) runs: Table<Run>,
    pub(super) owned: Table<OwnedSpan>,
    /// The sites that the mutator has spans of. A stop looks at these sites alone, however many the
    /// heap has.
    pub(super) listed: SiteList,
    /// Cells that the mutator took since the last collection that `collect_every` asked for.
    pub(super) taken: AtomicU64,
    /// The pages that the mutator's next spans are cut from.
    pub(crate) span_reserve: SpanReserve,
}
impl LocalAllocator {
    /// Maps the arrays. Their memory is touched as sites are used.
    pub fn new() -> Result<LocalAllocator, MapError> {
        Ok(LocalAllocator {
            runs: Table::new(MAX_SITES)?,
            owned: Table::new(MAX_SITES)?,
            listed: SiteList::default(),
            taken: AtomicU64::new(0),
            span_reserve: SpanReserve::default(),
        })
    }

    /// The first page + 1 of the span that the mutator takes `site`'s runs from; 0: none. By the
    /// owner.
    pub(crate) fn owned_span(&self, site: usize) -> u32 {
        // SAFETY: the caller owns the array, which is mapped zeroed, and zero is a value of its
        // elements.
        unsafe { (*self.owned.at(site)).span }
    }

    /// The array that machine code indexes with [`Site::index`](crate::raw::Site::index).
    pub fn as_mut_ptr(&self) -> *mut Run {
        self.runs.at(0)
    }
}
