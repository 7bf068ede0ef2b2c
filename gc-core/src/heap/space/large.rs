//! The methods of [`Space`] on large objects: a large object is reserved, cleared, published and
//! swept.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::super::large::{Freeing, LargeReservation, Lists};
use super::super::page_runs::CHUNK_PAGES;
use super::super::page_table::Page;
use super::super::prefault::ColdPages;
use super::super::size_classes::{GRANULE, PAGE};
use super::super::span_lists::check;
use super::{Cell, NEVER_TAKEN, Space};
use crate::error::AllocError;
use crate::kind::KindId;
use crate::marked::BYTES_A_CELL;

/// Pages that one call of [`Space::clear_large`] clears: about 20 us, so that an embedder can do
/// other things between two calls.
const CLEAR_PAGES: usize = (256 << 10) / PAGE;

/// Pages whose page-table words one piece of the sweep clears: about 10 us.
const FREE_PAGES: usize = 16 << 10;

impl Space {
    /// The number of pages of a large object, if the heap could ever hold it.
    ///
    /// # Errors
    /// Reasons that no collection changes.
    pub(crate) fn large_pages(&self, kind: KindId, bytes: usize) -> Result<usize, AllocError> {
        let pages = self.sites.room(bytes).div_ceil(PAGE).max(1);
        if let Some(limit) = self.hard_limit()
            && pages > limit as usize / PAGE
            && seam::refuses_at_once()
        {
            return Err(AllocError::HeapLimit { limit, bytes });
        }
        if pages > self.len() / PAGE - NEVER_TAKEN {
            return Err(AllocError::TooLarge { bytes });
        }
        check(&self.kinds, kind, bytes, pages * PAGE).map_err(AllocError::Site)?;
        Ok(pages)
    }

    /// The pages of a reservation, if their first touch would be a page fault and they are to be
    /// backed beforehand. Larger objects than a chunk may be meant to stay untouched, so their
    /// pages are not.
    pub(crate) fn cold_pages(&self, large: &LargeReservation) -> Option<ColdPages> {
        (large.pages <= CHUNK_PAGES)
            .then(|| self.cold(large.first, large.pages))
            .flatten()
    }

    /// Second step, outside `no_preempt`: clears one bounded piece, except pages that are known to
    /// be zero. `true`: all is cleared.
    pub fn clear_large(&self, large: &mut LargeReservation) -> bool {
        let end = (large.cleared + CLEAR_PAGES).min(large.pages);
        let clears = !self.kinds.get(large.kind).uninit;
        for distance in large.cleared..end {
            let page = large.first + distance;
            if clears && self.range.dirty.count(page, 1) != 0 {
                // SAFETY: the page belongs to this reservation, and no address names a cell in it
                // yet.
                unsafe { std::ptr::write_bytes((self.base() + page * PAGE) as *mut u8, 0, PAGE) };
            }
            // The words of the other pages lead to the first page, whose word is missing until the
            // end. So they name nothing yet.
            if distance != 0 {
                self.page_table().set(page, Page::Large { distance });
            }
        }
        large.cleared = end;
        end == large.pages
    }

    /// Third step, under `no_preempt`: the cell becomes visible. Its address is in a register or on
    /// the stack of the caller when `no_preempt` ends. Clears first what [`Space::clear_large`] has
    /// not cleared.
    pub fn publish_large(&self, mut large: LargeReservation) -> NonNull<u8> {
        while !self.clear_large(&mut large) {}
        let LargeReservation {
            first, pages, kind, ..
        } = large;
        seam::before_the_record(self, first);
        // SAFETY: the pages were taken for this reservation, which owns their records.
        unsafe { (*self.records().at(first)).kind = kind.0 };
        if self.kinds.get(kind).tag.is_followed() {
            self.large.followed.fetch_add(pages, Ordering::Relaxed);
        }
        self.note_bits(first);
        self.allocated_bits().set(first * PAGE);
        if self.is_marking() && seam::marks() {
            self.marked_bits().set(first * PAGE);
            self.allocated_black.note_range(first * PAGE / GRANULE, 1);
        }
        self.large.lists.lock().swept.push(self.records(), first);
        self.count_allocated(1, pages * PAGE);
        self.page_table().set(first, Page::Large { distance: 0 });
        // SAFETY: the address range does not begin at zero.
        unsafe { NonNull::new_unchecked((self.base() + first * PAGE) as *mut u8) }
    }

    /// Gives back a reservation that will not be published. Under `no_preempt`.
    #[cfg(any(test, feature = "internals"))]
    pub fn cancel_large(&self, large: LargeReservation) {
        for distance in 1..large.cleared {
            self.page_table().set(large.first + distance, Page::Free);
        }
        self.range.dirty.set(large.first, large.pages);
        self.page_runs
            .lock()
            .give(self.records(), &self.range.dirty, large.first, large.pages);
    }

    /// The large object whose first page this is, if it is published and allocated.
    #[inline]
    pub(crate) fn large_cell(&self, first: usize) -> Option<Cell> {
        if self.page_table().get(first) != (Page::Large { distance: 0 })
            || !self.allocated_bits().test(first * PAGE)
        {
            return None;
        }
        let (pages, kind) = self.large_record(first);
        Some(Cell {
            base: self.base() + first * PAGE,
            size: pages * PAGE,
            kind,
        })
    }

    /// The length in pages and the kind of a published large object.
    #[inline]
    pub(crate) fn large_record(&self, first: usize) -> (usize, KindId) {
        // SAFETY: the record was written before the page's word was published, and these fields do
        // not change until the word is zero again. They are read field by field, since the links
        // beside them belong to lists' locks.
        unsafe {
            let record = self.records().at(first);
            ((*record).pages as usize, KindId((*record).kind))
        }
    }

    /// Stop 2: every large object becomes unswept. Returns how many there are.
    pub(crate) fn unsweep_large(&self) -> usize {
        let mut lists = self.large.lists.lock();
        let Lists { unswept, swept } = &mut *lists;
        unswept.append(self.records(), swept);
        unswept.len()
    }

    /// The work of following the edges of all large objects, as a number of cells.
    pub(crate) fn large_work(&self) -> u64 {
        let pages = self.large.followed.load(Ordering::Relaxed);
        (pages * PAGE / BYTES_A_CELL) as u64
    }

    pub(crate) fn lock_large(&self) -> impl Sized + '_ {
        (self.large.freeing.lock(), self.large.lists.lock())
    }

    /// The number of large objects that are not swept. For the child of a fork, which counts anew.
    pub(crate) fn unswept_large(&self) -> usize {
        usize::from(self.large.freeing.lock().pages != 0) + self.large.lists.lock().unswept.len()
    }

    /// World stopped: calls `f` for every large object.
    pub(crate) fn for_each_large(&self, f: &mut dyn FnMut(Cell)) {
        let lists = self.large.lists.lock();
        for list in [&lists.unswept, &lists.swept] {
            list.each(self.records(), &mut |first| {
                if let Some(cell) = self.large_cell(first) {
                    f(cell);
                }
            });
        }
    }

    /// Sweeps a bounded piece of the large objects. `true`: there was something to do.
    pub(crate) fn sweep_large_piece(&self) -> bool {
        let mut freeing = self.large.freeing.lock();
        if freeing.pages == 0 {
            let mut lists = self.large.lists.lock();
            let Some(first) = lists.unswept.pop(self.records()) else {
                return false;
            };
            let is_allocated = self.allocated_bits().test(first * PAGE);
            self.keep_large(first, is_allocated);
            if is_allocated {
                lists.swept.push(self.records(), first);
                drop(lists);
                self.count_swept();
                return true;
            }
            let (pages, kind) = self.large_record(first);
            if self.kinds.get(kind).tag.is_followed() {
                self.large.followed.fetch_sub(pages, Ordering::Relaxed);
            }
            *freeing = Freeing {
                first,
                pages,
                cleared: 0,
            };
        }
        // The word of the first page is cleared first. The others lead to it, and name nothing from
        // then on.
        let end = (freeing.cleared + FREE_PAGES).min(freeing.pages);
        for distance in freeing.cleared..end {
            self.page_table().set(freeing.first + distance, Page::Free);
        }
        self.range
            .dirty
            .set(freeing.first + freeing.cleared, end - freeing.cleared);
        freeing.cleared = end;
        if end == freeing.pages {
            self.page_runs.lock().give(
                self.records(),
                &self.range.dirty,
                freeing.first,
                freeing.pages,
            );
            *freeing = Freeing::default();
            self.count_swept();
        }
        true
    }
}

mod seam {
    use super::{PAGE, Page, Space};
    use crate::fault::Fault;

    pub(super) fn refuses_at_once() -> bool {
        !Fault::TooLargeCollects.planted()
    }

    /// Nothing is published before the record of the first page is written.
    pub(super) fn before_the_record(space: &Space, first: usize) {
        if Fault::PublishFirst.planted() {
            space.allocated_bits().set(first * PAGE);
            space.page_table().set(first, Page::Large { distance: 0 });
            (0..1000).for_each(|_| std::hint::spin_loop());
        }
    }

    pub(super) fn marks() -> bool {
        !Fault::WhiteRuns.planted()
    }
}
