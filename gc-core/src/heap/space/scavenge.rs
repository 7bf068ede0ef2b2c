//! What a space gives back to the system.

use std::sync::atomic::Ordering;

use super::super::bitmap::PAGES_PER_BITMAP_PAGE;
use super::super::page_runs::{CHUNK_PAGES, LEAST_PART};
use super::super::size_classes::PAGE;
use super::Space;
use crate::fault::planted;

/// Free stretches that one piece looks at.
const LOOKS: usize = 256;

/// Chunks that one piece gives back: 64 MiB, some milliseconds of the kernel's time.
const CHUNKS_PER_PIECE: usize = 32;

impl Space {
    /// Outside any stop, by one thread at a time and never by a mutator: returns free memory to the
    /// system until less than 2 MiB more than `keep` free bytes are still backed; and of 2 MiB that
    /// are in use in part, until less than `grain` bytes more are. One bounded piece of at most
    /// `most` bytes; the bytes returned, 0 when nothing is left to do (or the spare bitmap is not
    /// cleared yet).
    ///
    /// Memory that comes back from here is known to be zero, and so is the heap's bookkeeping of
    /// it.
    pub fn scavenge_piece(&self, keep: u64, grain: u64, most: u64) -> u64 {
        if self.clear_chunk.load(Ordering::Relaxed) < self.clear_end.load(Ordering::Relaxed) {
            return 0;
        }
        // A child of a fork must find the stretch in the lists.
        let _rearranging = self.rearranging.lock();
        let (first, pages, surplus) = {
            let mut spans = self.spans.lock();
            let surplus = spans.free_dirty().saturating_sub(keep as usize / PAGE);
            let surplus = surplus.min(most as usize / PAGE);
            let (records, dirty) = (self.records(), &self.range.dirty);
            let mut found = None;
            if surplus >= CHUNK_PAGES {
                found = spans.take_for_release(records, dirty, LOOKS);
            }
            // A little more than is to stay is not worth a page that the system has to split.
            if found.is_none() && surplus >= (grain as usize / PAGE).max(LEAST_PART) {
                found = spans.take_part_for_release(records, dirty, LOOKS);
            }
            let Some((first, pages)) = found else {
                return 0;
            };
            (first, pages, surplus)
        };
        let most = (surplus / CHUNK_PAGES).min(CHUNKS_PER_PIECE);
        // The stretch is out of all lists now; the lock is free while the kernel works.
        let mut released = 0;
        let mut parts = 0;
        let mut chunk = first.next_multiple_of(CHUNK_PAGES);
        while chunk + CHUNK_PAGES <= first + pages && released < most {
            if self.range.dirty.count(chunk, CHUNK_PAGES) != 0 && self.release_chunk(chunk) {
                released += 1;
            }
            chunk += CHUNK_PAGES;
        }
        let mut end = chunk;
        if released == 0 {
            parts = self.release_part(first, pages, surplus);
            end = first + pages;
        }
        self.release_tables(first, pages, end);
        self.has_released.store(true, Ordering::Relaxed);
        self.spans
            .lock()
            .put_back(self.records(), &self.range.dirty, first, pages);
        ((released * CHUNK_PAGES + parts) * PAGE) as u64
    }

    /// Gives pages of a free stretch back that has no whole dirty chunk: what lies beside cells in
    /// the same 2 MiB. At most so many, from the first dirty one on; how many of them were dirty.
    fn release_part(&self, first: usize, pages: usize, most: usize) -> usize {
        let dirty = &self.range.dirty;
        let Some(from) = dirty.first(first, pages) else {
            return 0;
        };
        let end = (first + pages).min(from + most);
        let count = dirty.count(from, end - from);
        // What lies before it in the same chunk is zero, and the system backs it all the same if it
        // does so by a huge page.
        let from = first.max(from / CHUNK_PAGES * CHUNK_PAGES);
        for page in [from, end - 1] {
            self.use_small_pages(page);
        }
        // SAFETY: only this thread has the stretch, and no cell is in it.
        if !unsafe { self.range.memory.discard(from * PAGE, (end - from) * PAGE) } {
            return 0;
        }
        dirty.clear(from, end - from);
        count
    }

    /// Has the system back the chunk of this page by small pages.
    fn use_small_pages(&self, page: usize) {
        let chunk = page / CHUNK_PAGES;
        if self.range.has_small_pages(chunk) {
            return;
        }
        if self.small_chunks.add() && !self.range.set_small_pages(chunk, true) {
            self.small_chunks.remove(1);
        }
        self.range.memory.split_huge_page(page * PAGE);
    }

    /// Of a free stretch that only this thread has, gives back what tables say of the pages below
    /// `end`, whole pages. It is zero, but for records, which say nothing in the middle of a
    /// stretch.
    fn release_tables(&self, first: usize, pages: usize, end: usize) {
        if planted("tables-kept") {
            return;
        }
        let bitmap_pages = first.div_ceil(PAGES_PER_BITMAP_PAGE)..end / PAGES_PER_BITMAP_PAGE;
        let noted = |bitmap_page| self.noted_bits(bitmap_page).swap(0, Ordering::Relaxed) != 0;
        if bitmap_pages
            .filter(|bitmap_page| noted(*bitmap_page))
            .count()
            != 0
        {
            for bits in &self.range.bits {
                // SAFETY: nothing is allocated here, so one bitmap is clear; and the spare one has
                // been cleared.
                unsafe { bits.discard_units(first, end - first) };
            }
        }
        let records = first + 1..end.min(first + pages - 1);
        // SAFETY: strictly inside the stretch.
        unsafe { self.records().discard(records.start, records.len()) };
        // SAFETY: the words of free pages are zero.
        unsafe { self.range.page_table.discard(first, end - first) };
    }

    /// Outside any stop, by the thread that gives memory back: has huge pages wherever they were
    /// given up for parts that went back, if the heap is about as full as it ever was.
    pub(crate) fn use_huge_pages_again(&self) {
        if !self.has_released.load(Ordering::Relaxed) {
            return;
        }
        let (used, top) = {
            let spans = self.spans.lock();
            (spans.used(), spans.top())
        };
        if used < top - top / 8 {
            return;
        }
        self.has_released.store(false, Ordering::Relaxed);
        for chunk in 0..top.div_ceil(CHUNK_PAGES) {
            if self.range.set_small_pages(chunk, false) {
                self.small_chunks.remove(1);
            }
        }
        for bits in &self.range.bits {
            bits.use_huge_pages_again();
        }
    }

    /// The bytes in use now, and the most that were in use since this was called last. By one
    /// thread at a time.
    pub(crate) fn used_lately(&self) -> (u64, u64) {
        let mut spans = self.spans.lock();
        (
            (spans.used() * PAGE) as u64,
            (spans.take_peak() * PAGE) as u64,
        )
    }

    /// Bytes of free memory that could go back.
    pub(crate) fn free_backed(&self) -> u64 {
        (self.spans.lock().free_dirty() * PAGE) as u64
    }

    fn release_chunk(&self, chunk: usize) -> bool {
        // SAFETY: the chunk lies in a stretch that only this thread has, and no cell is in it.
        if !unsafe { self.range.memory.discard(chunk * PAGE, CHUNK_PAGES * PAGE) } {
            return false;
        }
        self.range.dirty.clear(chunk, CHUNK_PAGES);
        if self.range.set_small_pages(chunk / CHUNK_PAGES, false) {
            self.small_chunks.remove(1);
        }
        self.range.set_backed(chunk / CHUNK_PAGES, false);
        true
    }
}
