//! Finds what is free again after a collection: runs in spans that are partly alive, and spans that are wholly free.
//!
//! Freeing itself is one step: the bitmaps swap their roles at stop 2, and every cell without a mark is free. What is
//! left to do is lazy, in bounded pieces and outside any stop, but done before the next stop 1: each span is looked at
//! once, by the background or by a mutator that needs cells of its site, and the bitmap that is now spare is cleared
//! for the next marking.

use std::sync::atomic::Ordering;

use crate::fault::planted;
use crate::heap::{BITS_PAGE_UNITS, CHUNK_UNITS, Occupancy, Space, Unit};

/// Spans that one piece looks at: some 20 us at worst.
const SPANS_PER_PIECE: usize = 32;

impl Space {
    /// Stop 1, world stopped: from now on refills mark what they hand out. [`Space::ready_to_mark`] must hold.
    pub fn begin_marking(&self) {
        self.begin_marking_and(true);
    }

    /// The same; what is handed out meanwhile is written down, or is not: then the next collection is no young one.
    pub(crate) fn begin_marking_and(&self, notes_births: bool) {
        debug_assert!(
            self.ready_to_mark(),
            "the spare bitmap still has bits of the last cycle"
        );
        // Ordering: Relaxed. Mutators see it through their resumption.
        self.marking.store(true, Ordering::Relaxed);
        self.far.store(self.is_far(), Ordering::Relaxed);
        self.births.begin(notes_births);
    }

    /// Ends marking, if that is on, without a swap: nothing is freed, and the marks set so far are cleared before the next time. In the child of a fork.
    pub(crate) fn abandon_marking(&self) {
        // Marks that were to stay do not: a thread that is gone may have been sweeping.
        let kept = self.keeps_marks() && !planted("marks-kept-in-child");
        if self.marking.swap(false, Ordering::Relaxed) || kept {
            self.keep_marks(false);
        }
    }

    /// Has all that the last cycle left been swept and cleared?
    pub fn ready_to_mark(&self) -> bool {
        self.unswept.load(Ordering::Acquire) == 0
            && self.clear_chunk.load(Ordering::Relaxed) >= self.clear_end.load(Ordering::Relaxed)
    }

    /// Stop 2, world stopped: the marked cells are now the allocated ones, everything else is free. O(sites).
    pub fn end_marking(&self) {
        self.swap(false, false);
    }

    /// The same, after a collection that was `young` or not; and where `keeps` says so the marks stay for another. Those of spans that
    /// mutators own are to be kept in the same stop, by [`Space::keep_owned`].
    pub(crate) fn swap(&self, young: bool, keeps: bool) {
        self.role.fetch_xor(1, Ordering::Relaxed);
        self.marking.store(false, Ordering::Relaxed);
        let mut unswept = self.unsweep_large();
        for site in 0..self.sites.count() {
            let mut lists = self.sites.at(site).lists.lock();
            let lists = &mut *lists;
            lists.unswept.append(self.records(), &mut lists.partial);
            lists.unswept.append(self.records(), &mut lists.full);
            if !young {
                lists.unswept.append(self.records(), &mut lists.old);
            }
            unswept += lists.unswept.len();
        }
        self.unswept.store(unswept, Ordering::Relaxed);
        self.sweep_site.store(0, Ordering::Relaxed);
        self.forget_handed();
        self.keep_marks(keeps);
    }

    /// [`Space::sweep_piece`] by the collector, which no stop holds up: a walk over all cells excludes it by a lock.
    pub(crate) fn sweep_piece_aside(&self) -> bool {
        let _rearranging = self.rearranging.lock();
        self.sweep_piece()
    }

    /// Outside any stop: sweeps a bounded piece. True: there is more, perhaps in other threads' hands. A mutator is inside `no_preempt`.
    pub fn sweep_piece(&self) -> bool {
        if self.unswept.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut looks = 0;
        // Large objects first: they are few and give back the most.
        while looks < SPANS_PER_PIECE && self.sweep_large_piece() {
            looks += 1;
        }
        while looks < SPANS_PER_PIECE {
            let site = self.sweep_site.load(Ordering::Relaxed);
            if site >= self.sites.count() {
                break;
            }
            if self.sweep_span(site) {
                looks += 1;
            } else {
                // Nobody puts a span into a site's unswept list before the next stop 2. Another thread that has moved on
                // already makes this fail, which is as good.
                let _ = self.sweep_site.compare_exchange(
                    site,
                    site + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
        }
        self.unswept.load(Ordering::Acquire) != 0
    }

    /// Sweeps one span of a site, if there is an unswept one.
    fn sweep_span(&self, site: usize) -> bool {
        let entry = self.sites.at(site);
        let Some(span) = entry.lists.lock().unswept.pop(self.records()) else {
            return false;
        };
        let class = entry.class();
        self.keep_span(span, class);
        // SAFETY: popped from its list, the span is ours.
        let births = unsafe { (*self.records().at(span)).flags.take_births() };
        let occupancy = self.allocated_bits().span(span, class).occupancy();
        match occupancy {
            // Those are young.
            Occupancy::Full if births => entry.lists.lock().full.push(self.records(), span),
            Occupancy::Partial => entry.lists.lock().partial.push(self.records(), span),
            Occupancy::Full => entry.lists.lock().old.push(self.records(), span),
            Occupancy::Empty => {
                entry.lists.lock().unchain(self.records(), span);
                for unit in span..span + class.units as usize {
                    self.units().set(unit, Unit::Free);
                }
                self.give_units(span, class.units as usize);
            }
        }
        // Ordering: Release. Who sees the count at zero finds what was given back (see `after_sweep`).
        self.unswept.fetch_sub(1, Ordering::Release);
        true
    }

    /// Outside any stop, by one thread at a time: clears a bounded piece (2 MiB of the heap) of the spare bitmap. True:
    /// there is more.
    pub fn clear_spare_piece(&self) -> bool {
        let (chunk, end) = (
            self.clear_chunk.load(Ordering::Relaxed),
            self.clear_end.load(Ordering::Relaxed),
        );
        if chunk >= end {
            return false;
        }
        const PAGES: usize = CHUNK_UNITS / BITS_PAGE_UNITS;
        for page in chunk * PAGES..(chunk + 1) * PAGES {
            if self.noted_bits(page).load(Ordering::Relaxed) != 0 {
                self.marked_bits()
                    .clear_units(page * BITS_PAGE_UNITS, BITS_PAGE_UNITS);
            }
        }
        // Ordering: Release pairs with nothing but the next stop, which orders all; for `ready_to_mark` by another thread.
        self.clear_chunk.store(chunk + 1, Ordering::Release);
        chunk + 1 < end
    }
}
