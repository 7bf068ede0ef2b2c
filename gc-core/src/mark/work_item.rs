//! What the mark queue holds: a cell, or a part of one, in a word.

use crate::heap::{GRANULE, MAX_RESERVE, PAGE};
use crate::kind::KindId;
use crate::tracer::WORD;

/// Words of an array that a marker follows at once. The rest goes back to the queue, below the
/// cells that these words lead to: so a table of a million edges does not put a million cells into
/// the queue at once, and other markers take parts of it.
pub(super) const PART: usize = 2048;
const _: () = assert!(
    PART.is_multiple_of(64),
    "a part begins with a word of the slot bitmap"
);

/// An item of the queue and of the cell ring: a cell to follow, or a part of one.
///
/// ```text
/// small   1 | - | kind (16 bits) | granule of the address range (38)
/// large   0 | part of it (33) | page of the address range (30)
/// ```
/// A small cell's kind stands in the entry, so that the page table is asked once a cell.
#[derive(Clone, Copy)]
pub(super) struct WorkItem(pub(super) usize);

/// Bits of a granule's number, and of a page's, in the largest reserve.
const GRANULE_BITS: u32 = (MAX_RESERVE as usize / GRANULE).ilog2();
const PAGE_BITS: u32 = (MAX_RESERVE as usize / PAGE).ilog2();
const SMALL: usize = 1 << 63;
const _: () = assert!(GRANULE_BITS + 16 < 63);
const _: () = assert!(MAX_RESERVE as usize / (PART * WORD) <= 1 << (63 - PAGE_BITS));

impl WorkItem {
    #[inline(always)]
    pub(super) fn small(offset: usize, kind: KindId) -> WorkItem {
        WorkItem(SMALL | (kind.index() << GRANULE_BITS) | (offset / GRANULE))
    }

    #[inline(always)]
    pub(super) fn large(offset: usize) -> WorkItem {
        WorkItem(offset / PAGE)
    }

    /// A small cell is followed as a whole.
    pub(super) fn has_parts(self) -> bool {
        self.0 & SMALL == 0
    }

    pub(super) fn next_part(self) -> WorkItem {
        WorkItem(self.0 + (1 << PAGE_BITS))
    }

    /// Of a small cell: its kind, and where it begins.
    #[inline(always)]
    pub(super) fn small_cell(self) -> Option<(KindId, usize)> {
        (self.0 & SMALL != 0).then_some((
            KindId((self.0 >> GRANULE_BITS) as u16),
            (self.0 & ((1 << GRANULE_BITS) - 1)) * GRANULE,
        ))
    }

    /// Where the cell begins.
    #[inline(always)]
    pub(super) fn offset(self) -> usize {
        if self.0 & SMALL != 0 {
            (self.0 & ((1 << GRANULE_BITS) - 1)) * GRANULE
        } else {
            (self.0 & ((1 << PAGE_BITS) - 1)) * PAGE
        }
    }

    /// Where the part begins, counted from the cell's beginning.
    #[inline(always)]
    pub(super) fn start(self) -> usize {
        if self.0 & SMALL != 0 {
            0
        } else {
            (self.0 >> PAGE_BITS) * (PART * WORD)
        }
    }
}
