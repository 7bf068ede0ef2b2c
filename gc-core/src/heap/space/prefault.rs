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
            .hard_limit
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
mod tests {
    use super::*;
    use crate::heap::SpaceConfig;

    const CHUNK: usize = CHUNK_PAGES * PAGE;

    fn space(hard_limit: Option<u64>) -> Space {
        Space::new(SpaceConfig {
            reserve: 256 << 20,
            hard_limit,
            ..SpaceConfig::default()
        })
        .unwrap()
    }

    /// True if the system backs the page at byte `offset` of the range.
    fn is_backed(space: &Space, offset: usize) -> bool {
        let mut page = 0u8;
        // SAFETY: a page of the range, which is mapped, with one byte for it.
        let result = unsafe { libc::mincore((space.base() + offset) as *mut _, 1, &raw mut page) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        page & 1 != 0
    }

    /// Takes `bytes` bytes of pages, and backs all chunks that are wanted then. Returns their
    /// number.
    fn take(space: &Space, bytes: usize, room: u64) -> usize {
        space.take_pages(bytes / PAGE).unwrap();
        std::iter::from_fn(|| space.back_piece(room).then_some(())).count()
    }

    /// A heap above 32 MiB that grows has the next chunks backed before a mutator touches them.
    #[test]
    fn a_heap_that_grows_finds_its_memory_backed() {
        let space = space(None);
        assert_eq!(take(&space, 31 << 20, u64::MAX), 0, "a small heap waits");
        assert!(!space.must_tell());
        assert_eq!(
            take(&space, 33 << 20, u64::MAX),
            1,
            "a 16th of 64 MiB, of whole chunks"
        );
        assert!(
            space.must_tell() && !space.must_tell(),
            "the collector is woken once"
        );
        let top = space.page_runs.lock().top() * PAGE;
        assert!(!is_backed(&space, top));
        assert!(is_backed(&space, top.next_multiple_of(CHUNK)));
        assert!(!is_backed(&space, top.next_multiple_of(CHUNK) + CHUNK));
        // The backed pages are taken, and the next ones are backed before they are needed.
        assert!(take(&space, CHUNK, u64::MAX) > 0);
        assert!(is_backed(&space, space.page_runs.lock().top() * PAGE));
    }

    /// Memory that is touched beforehand is backed with its tables, up to the hard limit, and stays
    /// so.
    #[test]
    fn what_is_touched_beforehand_is_backed_and_stays_so() {
        let config = SpaceConfig {
            reserve: 256 << 20,
            pre_touch: (5 << 20) + 1,
            ..SpaceConfig::default()
        };
        let touched = Space::new(config.clone()).unwrap();
        assert!(is_backed(&touched, 0) && is_backed(&touched, (6 << 20) - PAGE));
        assert!(!is_backed(&touched, 6 << 20));
        let small = Space::new(config.clone()).unwrap();
        small.give_up_prefaulted();
        while small.scavenge_piece(small.pre_touched, 0, u64::MAX) > 0 {}
        assert!(is_backed(&small, 0) && is_backed(&small, (6 << 20) - PAGE));
        let limited = Space::new(SpaceConfig {
            hard_limit: Some(2 << 20),
            ..config
        });
        assert!(
            !is_backed(&limited.unwrap(), 2 << 20),
            "beyond the hard limit"
        );
    }

    /// Taken pages are cold until they were backed, and again after they went back.
    #[test]
    fn what_is_taken_is_cold_until_it_was_backed_and_again_when_it_went_back() {
        let space = space(None);
        let pages = 2 * CHUNK_PAGES - 1;
        let (first, _) = space.take_pages(pages).unwrap();
        let is_cold = |first, pages| space.cold(first, pages).is_some();
        assert!(is_cold(first, 1) && is_cold(first, pages));
        space.back_taken(ColdPages { first, pages: 1 });
        assert!(is_backed(&space, CHUNK - PAGE) && !is_backed(&space, CHUNK));
        assert!(!is_cold(first, 1));
        assert!(is_cold(CHUNK_PAGES - 1, 2), "one of two chunks");
        space.back_taken(space.cold(CHUNK_PAGES - 1, 2).unwrap());
        assert!(!is_cold(first, pages));
        let word = core::ptr::from_ref(space.page_table().word(3 * CHUNK_PAGES));
        let tables = word as usize - space.base();
        assert!(
            is_backed(&space, tables & !4095),
            "the table's memory for the next pages"
        );
        space.give_pages(first, pages);
        while space.scavenge_piece(0, 0, u64::MAX) > 0 {}
        assert!(is_cold(CHUNK_PAGES, 1) && !is_backed(&space, CHUNK));
    }

    /// No chunk is backed that a hard limit or the given room excludes.
    #[test]
    fn nothing_is_backed_that_the_heap_may_not_have() {
        let tight = space(Some(65 << 20));
        assert_eq!(take(&tight, 64 << 20, u64::MAX), 0);
        let roomy = space(None);
        assert_eq!(take(&roomy, 64 << 20, 65 << 20), 0);
    }

    /// A heap that became small gives its prefaulted chunks up.
    #[test]
    fn a_heap_that_became_small_keeps_nothing_ahead() {
        let space = space(None);
        let (first, _) = space.take_pages((100 << 20) / PAGE).unwrap();
        assert!(space.back_piece(u64::MAX));
        let ahead = (space.page_runs.lock().top() * PAGE).next_multiple_of(CHUNK);
        space.give_up_prefaulted();
        assert!(
            space.back_piece(u64::MAX),
            "the heap has not become smaller"
        );
        space.give_pages(first, (100 << 20) / PAGE);
        space.give_up_prefaulted();
        while space.scavenge_piece(0, 0, u64::MAX) > 0 {}
        assert!(!is_backed(&space, ahead));
        assert!(!space.back_piece(u64::MAX));
    }
}
