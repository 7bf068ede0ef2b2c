//! The methods of [`Space`] that have memory backed before a mutator touches it.

use std::sync::atomic::Ordering;

use super::super::page_runs::CHUNK_PAGES;
use super::super::prefault::{ColdPages, LOCKS, MOST, PART};
use super::super::size_classes::PAGE;
use super::Space;

/// The chunks that these pages lie in.
fn chunks(first: usize, pages: usize) -> std::ops::Range<usize> {
    first / CHUNK_PAGES..(first + pages).div_ceil(CHUNK_PAGES)
}

impl Space {
    /// Whether a mutator asked for more memory to be backed.
    #[inline]
    pub(crate) fn wants_backing(&self) -> bool {
        self.prefault.wanted.load(Ordering::Relaxed)
    }

    /// Whether the caller should wake the collector for it. `true` once for each request.
    #[inline]
    pub(crate) fn must_tell(&self) -> bool {
        self.prefault.untold.load(Ordering::Relaxed)
            && self.prefault.untold.swap(false, Ordering::Relaxed)
    }

    /// Outside of stops, by the collector's thread: has one chunk backed that will be taken soon,
    /// in a heap that may have `room` bytes in all. `false`: no more is wanted.
    pub(crate) fn back_piece(&self, room: u64) -> bool {
        let prefault = &self.prefault;
        if !self.wants_backing() {
            return false;
        }
        let (top, used) = {
            let page_runs = self.page_runs.lock();
            (page_runs.top(), page_runs.used())
        };
        let room = (room / PAGE as u64) as usize;
        let limit = self
            .hard_limit()
            .map_or(room, |limit| room.min(limit as usize / PAGE));
        let chunks = (used / PART / CHUNK_PAGES).clamp(1, MOST);
        let target = top + (chunks * CHUNK_PAGES).min(limit.saturating_sub(used));
        let target = target.min(self.len / PAGE) / CHUNK_PAGES * CHUNK_PAGES;
        let from = prefault.backed.load(Ordering::Relaxed);
        let from = from.max(top.next_multiple_of(CHUNK_PAGES));
        if from < target && self.back(from) {
            prefault.backed.store(from + CHUNK_PAGES, Ordering::Relaxed);
            return true;
        }
        // Mutators ask again when they have taken half of the backed pages, so that the collector
        // has time to wake. Where there is no room, or the system refused, they ask after half a
        // chunk at least.
        let half = target.saturating_sub(top) / 2;
        let low_water = top + half.max(CHUNK_PAGES / 2);
        prefault.low_water.store(low_water, Ordering::Relaxed);
        prefault.wanted.store(false, Ordering::Relaxed);
        false
    }

    /// These pages, if their first touch would be a page fault in which the kernel clears a huge
    /// page.
    pub(crate) fn cold(&self, first: usize, pages: usize) -> Option<ColdPages> {
        let is_cold = chunks(first, pages).any(|chunk| !self.range.is_backed(chunk));
        is_cold.then_some(ColdPages { first, pages })
    }

    /// Has all chunks of these pages backed, which the caller has taken and not touched. The caller
    /// is in a blocking region, or its thread is no mutator: the system takes 0.1 ms for each
    /// chunk, and some milliseconds in a guest whose host has to find the memory.
    pub fn back_taken(&self, cold: ColdPages) {
        for chunk in chunks(cold.first, cold.pages) {
            self.back(chunk * CHUNK_PAGES);
        }
    }

    /// Has the chunk at this page backed, unless it is. The chunk was never taken, or is about to
    /// be; a value that a mutator writes meanwhile stays. Where the system cannot back it, it is
    /// not asked again.
    fn back(&self, page: usize) -> bool {
        let chunk = page / CHUNK_PAGES;
        let _one = self.prefault.backing[chunk % LOCKS].lock();
        if self.range.is_backed(chunk) {
            return true;
        }
        // A mutator that takes the first pages of the next chunk writes tables before it can have
        // them backed, so they are backed here.
        let next = page + CHUNK_PAGES;
        let pages = CHUNK_PAGES.min(self.len / PAGE - next);
        if !self.writable_up_to(next + pages) && !self.writable_up_to(next) {
            return false;
        }
        let backed = self.range.back(page, CHUNK_PAGES) && self.range.back_tables(next, pages);
        self.range.set_backed(chunk, true);
        backed
    }

    /// Outside of stops, by the collector's thread when it scavenges: makes the pages that were
    /// backed and never used free, so that they go back to the system, too. It does so if the heap
    /// has become much smaller than it was.
    pub(crate) fn give_up_prefaulted(&self) {
        let prefault = &self.prefault;
        let backed = prefault.backed.load(Ordering::Relaxed);
        let mut page_runs = self.page_runs.lock();
        let top = page_runs.top();
        if backed <= top.max(self.pre_touched as usize / PAGE) || page_runs.used() > top / 2 {
            return;
        }
        self.range.dirty.set(top, backed - top);
        page_runs.free_top(self.records(), &self.range.dirty, backed - top);
        // All pages below `backed` have to be in use again before more are backed.
        prefault.low_water.store(backed, Ordering::Relaxed);
        prefault.wanted.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
