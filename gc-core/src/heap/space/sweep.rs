//! Sweeps: finds the holes in spans that are partly alive, and gives back spans that are empty.
//!
//! Freeing itself is one step: the bitmaps swap their roles at stop 2, and every cell without a
//! mark is free. Sweeping is lazy (Hughes 1982). It runs in bounded pieces outside of stops, and
//! ends before the next stop 1. Each span is swept once, by the collector's thread or by a mutator
//! that needs cells of its site. The bitmap that is now spare is cleared for the next marking.

use std::sync::atomic::Ordering;

use super::super::bitmap::{Occupancy, PAGES_PER_BITMAP_PAGE};
use super::super::page_runs::CHUNK_PAGES;
use super::super::page_table::Page;
use super::super::size_classes::Class;
use super::super::span_lists::SpanLists;
use super::Space;

/// Spans that one piece sweeps: about 20 us.
const SPANS_PER_PIECE: usize = 32;

/// Sites without an unswept span that one piece looks at: some microseconds.
const SITES_PER_PIECE: usize = 256;

impl Space {
    /// Stop 1, world stopped: refills allocate black from now on. [`Space::ready_to_mark`] holds.
    #[cfg(any(test, feature = "internals"))]
    pub fn begin_marking(&self) {
        self.begin_marking_and(true);
    }

    /// The same. `notes_allocated_black` says whether the cells that are allocated black are noted.
    /// Without the notes the next collection is a whole one.
    pub(crate) fn begin_marking_and(&self, notes_allocated_black: bool) {
        debug_assert!(
            self.ready_to_mark(),
            "the spare bitmap still has bits of the last cycle"
        );
        // Ordering: Relaxed. The resume that ends the stop orders it before a mutator's next
        // instruction.
        self.marking.store(true, Ordering::Relaxed);
        self.allocated_black.begin(notes_allocated_black);
    }

    /// Ends marking, if it is on, without a swap. Nothing is freed, and the marks are cleared
    /// before the next marking. In the child of a fork.
    pub(crate) fn abandon_marking(&self) {
        // Marks of old cells do not stay: a thread that the child does not have may have been
        // sweeping.
        let kept = self.keeps_marks() && seam::forgets_marks();
        if self.marking.swap(false, Ordering::Relaxed) || kept {
            self.keep_marks(false);
        }
    }

    /// Whether the last cycle's spans are swept and its marks cleared.
    pub fn ready_to_mark(&self) -> bool {
        self.is_swept()
            && self.clear_chunk.load(Ordering::Relaxed) >= self.clear_end.load(Ordering::Relaxed)
    }

    /// Whether everything is swept since the last swap. All free cells can then be found.
    pub(crate) fn is_swept(&self) -> bool {
        // Ordering: Acquire, both, and in this order. The first pairs with the Release of the
        // thread that passed a site: the unswept spans of that site are counted by then
        // (`Space::lists`). The second pairs with the Release in `count_swept`: each swept span is
        // in its list, or its pages are free.
        self.sweep_site.load(Ordering::Acquire) >= self.sweep_end.load(Ordering::Relaxed)
            && self.unswept.load(Ordering::Acquire) == 0
    }

    /// Stop 2, world stopped: the marked cells become the allocated ones, and all others are free.
    /// O(1).
    #[cfg(any(test, feature = "internals"))]
    pub fn end_marking(&self) {
        self.swap(false, false);
    }

    /// The same, after a collection that was `young`, or whole. `keeps`: the marks stay for a young
    /// collection. The caller then calls
    /// [`LocalAllocator::keep_owned`](crate::alloc::LocalAllocator::keep_owned) for each mutator in
    /// the same stop.
    pub(crate) fn swap(&self, young: bool, keeps: bool) {
        self.role.fetch_xor(1, Ordering::Relaxed);
        self.marking.store(false, Ordering::Relaxed);
        debug_assert!(self.is_swept(), "swapped before all was swept");
        self.swaps.count(young);
        self.unswept.store(self.unsweep_large(), Ordering::Relaxed);
        // A site that is made later has no span from before the swap.
        self.sweep_end.store(self.sites.count(), Ordering::Relaxed);
        self.sweep_site.store(0, Ordering::Relaxed);
        self.reset_allocation_count();
        self.keep_marks(keeps);
    }

    /// [`Space::sweep_piece`] for the collector's thread, which no stop stops. A lock keeps it away
    /// from a walk over all cells.
    pub fn sweep_piece_aside(&self) -> bool {
        let _rearranging = self.rearranging.lock();
        self.sweep_piece()
    }

    /// Outside of stops: sweeps a bounded piece. `true`: there is more, perhaps in the hands of
    /// other threads. A mutator calls it under `no_preempt`.
    pub fn sweep_piece(&self) -> bool {
        if self.is_swept() {
            return false;
        }
        let (mut looks, mut passed) = (0, 0);
        // Large objects first: they are few, and give back the most pages.
        while looks < SPANS_PER_PIECE && self.sweep_large_piece() {
            looks += 1;
        }
        while looks < SPANS_PER_PIECE && passed < SITES_PER_PIECE {
            let site = self.sweep_site.load(Ordering::Relaxed);
            if site >= self.sweep_end.load(Ordering::Relaxed) {
                break;
            }
            if self.sweep_span(site) {
                looks += 1;
            } else {
                // No thread puts a span into this site's unswept list before the next stop 2. The
                // exchange fails if another thread has moved on already, which has the same effect.
                // Ordering: Release, see `is_swept`.
                let _ = self.sweep_site.compare_exchange(
                    site,
                    site + 1,
                    Ordering::Release,
                    Ordering::Relaxed,
                );
                passed += 1;
            }
        }
        !self.is_swept()
    }

    /// Sweeps one span of a site. `false`: the site has no unswept span.
    fn sweep_span(&self, site: usize) -> bool {
        let entry = self.sites.at(site);
        let class = entry.class();
        let popped = self.pop_unswept(&mut self.lists(entry), class);
        let Some(span) = popped else {
            return false;
        };
        // SAFETY: the span is in no list any more, so this thread owns its record.
        let allocated_black = unsafe { (*self.records().at(span)).flags.take_allocated_black() };
        let occupancy = self.allocated_bits().span(span, class).occupancy();
        match occupancy {
            // Its cells that were allocated black are young, so a young collection sweeps the span
            // again.
            Occupancy::Full if allocated_black => self.lists(entry).full.push(self.records(), span),
            Occupancy::Partial => self.lists(entry).partial.push(self.records(), span),
            Occupancy::Full => self.lists(entry).old.push(self.records(), span),
            Occupancy::Empty => {
                self.lists(entry).unchain(self.records(), span);
                for page in span..span + class.pages as usize {
                    self.page_table().set(page, Page::Free);
                }
                self.give_pages(span, class.pages as usize);
            }
        }
        self.count_swept();
        true
    }

    /// Takes an unswept span out of its site's list and copies its marks to the spare bitmap, if
    /// that keeps them. The span is the caller's, which allocates in it or puts it into a list, and
    /// calls [`Space::count_swept`] afterwards.
    pub(super) fn pop_unswept(&self, lists: &mut SpanLists, class: &Class) -> Option<usize> {
        let span = lists.unswept.pop(self.records())?;
        if seam::keeps_marks() {
            self.keep_span(span, class);
        }
        Some(span)
    }

    /// Counts a span or a large object as swept.
    pub(super) fn count_swept(&self) {
        // Ordering: Release pairs with the Acquire in `is_swept`: a thread that finds the count at
        // zero finds the marks that were copied, and the pages that were given back.
        self.unswept.fetch_sub(1, Ordering::Release);
    }

    /// Outside of stops, by one thread at a time: clears a bounded piece of the spare bitmap, the
    /// bits of 2 MiB of the heap. `true`: there is more.
    pub fn clear_spare_piece(&self) -> bool {
        let (chunk, end) = (
            self.clear_chunk.load(Ordering::Relaxed),
            self.clear_end.load(Ordering::Relaxed),
        );
        if chunk >= end {
            return false;
        }
        const PAGES: usize = CHUNK_PAGES / PAGES_PER_BITMAP_PAGE;
        for bitmap_page in chunk * PAGES..(chunk + 1) * PAGES {
            if self.noted_bits(bitmap_page).load(Ordering::Relaxed) != 0 {
                self.marked_bits()
                    .clear_pages(bitmap_page * PAGES_PER_BITMAP_PAGE, PAGES_PER_BITMAP_PAGE);
            }
        }
        // Ordering: Release, for a thread that calls `ready_to_mark`. The next stop orders the
        // cleared bits before any marking.
        self.clear_chunk.store(chunk + 1, Ordering::Release);
        chunk + 1 < end
    }
}

mod seam {
    use crate::fault::Fault;

    /// In the child of a fork.
    pub(super) fn forgets_marks() -> bool {
        !Fault::MarksKeptInChild.planted()
    }

    /// Keeps the marks of a span that is swept.
    pub(super) fn keeps_marks() -> bool {
        !Fault::UnsweptUnkept.planted()
    }
}
