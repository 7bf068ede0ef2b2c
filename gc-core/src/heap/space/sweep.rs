//! Finds what is free again after a collection: runs in spans that are partly alive, and spans that
//! are wholly free.
//!
//! Freeing itself is one step: the bitmaps swap their roles at stop 2, and every cell without a
//! mark is free. What is left to do is lazy, in bounded pieces and outside any stop, but done
//! before the next stop 1: each span is looked at once, by the background or by a mutator that
//! needs cells of its site, and the bitmap that is now spare is cleared for the next marking.

use std::sync::atomic::Ordering;

use super::super::bitmap::{Occupancy, PAGES_PER_BITMAP_PAGE};
use super::super::page_runs::CHUNK_PAGES;
use super::super::page_table::Page;
use super::Space;
use crate::fault::planted;

/// Spans that one piece looks at: some 20 us at worst.
const SPANS_PER_PIECE: usize = 32;

/// Sites whose lists one piece looks at, though they have nothing to be swept: some microseconds.
const SITES_PER_PIECE: usize = 256;

impl Space {
    /// Stop 1, world stopped: from now on refills mark what they hand out. [`Space::ready_to_mark`]
    /// must hold.
    #[cfg(any(test, feature = "internals"))]
    pub fn begin_marking(&self) {
        self.begin_marking_and(true);
    }

    /// The same; what is handed out meanwhile is written down, or is not: then the next collection
    /// is no young one.
    pub(crate) fn begin_marking_and(&self, notes_allocated_black: bool) {
        debug_assert!(
            self.ready_to_mark(),
            "the spare bitmap still has bits of the last cycle"
        );
        // Ordering: Relaxed. Mutators see it through their resumption.
        self.marking.store(true, Ordering::Relaxed);
        self.far.store(self.is_far(), Ordering::Relaxed);
        self.allocated_black.begin(notes_allocated_black);
    }

    /// Ends marking, if that is on, without a swap: nothing is freed, and the marks set so far are
    /// cleared before the next time. In the child of a fork.
    pub(crate) fn abandon_marking(&self) {
        // Marks that were to stay do not: a thread that is gone may have been sweeping.
        let kept = self.keeps_marks() && !planted("marks-kept-in-child");
        if self.marking.swap(false, Ordering::Relaxed) || kept {
            self.keep_marks(false);
        }
    }

    /// Has all that the last cycle left been swept and cleared?
    pub fn ready_to_mark(&self) -> bool {
        self.is_swept()
            && self.clear_chunk.load(Ordering::Relaxed) >= self.clear_end.load(Ordering::Relaxed)
    }

    /// Has all been swept that the last swap left? Then all is to be found that it freed.
    pub(crate) fn is_swept(&self) -> bool {
        // Ordering: Acquire, both, and in this order. The first pairs with the Release of who has
        // passed a site: what that site had to be swept is counted by then (`Space::lists`). The
        // second pairs with the Release of each decrement: what was swept is where it belongs.
        self.sweep_site.load(Ordering::Acquire) >= self.sweep_end.load(Ordering::Relaxed)
            && self.unswept.load(Ordering::Acquire) == 0
    }

    /// Stop 2, world stopped: the marked cells are now the allocated ones, everything else is free.
    /// O(1).
    #[cfg(any(test, feature = "internals"))]
    pub fn end_marking(&self) {
        self.swap(false, false);
    }

    /// The same, after a collection that was `young` or not; and where `keeps` says so the marks
    /// stay for another. Those of spans that mutators own are to be kept in the same stop, by
    /// `Space::keep_owned`.
    pub(crate) fn swap(&self, young: bool, keeps: bool) {
        self.role.fetch_xor(1, Ordering::Relaxed);
        self.marking.store(false, Ordering::Relaxed);
        debug_assert!(self.is_swept(), "swapped before all was swept");
        self.swaps.count(young);
        self.unswept.store(self.unsweep_large(), Ordering::Relaxed);
        // A site that is made later has no span that was there before.
        self.sweep_end.store(self.sites.count(), Ordering::Relaxed);
        self.sweep_site.store(0, Ordering::Relaxed);
        self.reset_allocation_count();
        self.keep_marks(keeps);
    }

    /// [`Space::sweep_piece`] by the collector, which no stop holds up: a walk over all cells
    /// excludes it by a lock.
    pub fn sweep_piece_aside(&self) -> bool {
        let _rearranging = self.rearranging.lock();
        self.sweep_piece()
    }

    /// Outside any stop: sweeps a bounded piece. True: there is more, perhaps in other threads'
    /// hands. A mutator is inside `no_preempt`.
    pub fn sweep_piece(&self) -> bool {
        if self.is_swept() {
            return false;
        }
        let (mut looks, mut passed) = (0, 0);
        // Large objects first: they are few and give back the most.
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
                // Nobody puts a span into a site's unswept list before the next stop 2. Another
                // thread that has moved on already makes this fail, which is as good. Ordering:
                // Release, see `is_swept`.
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

    /// Sweeps one span of a site, if there is an unswept one.
    fn sweep_span(&self, site: usize) -> bool {
        let entry = self.sites.at(site);
        let Some(span) = self.lists(entry).unswept.pop(self.records()) else {
            return false;
        };
        let class = entry.class();
        self.keep_span(span, class);
        // SAFETY: popped from its list, the span is ours.
        let allocated_black = unsafe { (*self.records().at(span)).flags.take_allocated_black() };
        let occupancy = self.allocated_bits().span(span, class).occupancy();
        match occupancy {
            // Those are young.
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
        // Ordering: Release. Who sees the count at zero finds what was given back (see
        // `after_sweep`).
        self.unswept.fetch_sub(1, Ordering::Release);
        true
    }

    /// Outside any stop, by one thread at a time: clears a bounded piece (2 MiB of the heap) of the
    /// spare bitmap. True: there is more.
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
        // Ordering: Release pairs with nothing but the next stop, which orders all; for
        // `ready_to_mark` by another thread.
        self.clear_chunk.store(chunk + 1, Ordering::Release);
        chunk + 1 < end
    }
}
