//! The methods of [`Space`] that give free memory back to the system.

use std::sync::atomic::Ordering;

use super::super::bitmap::PAGES_PER_BITMAP_PAGE;
use super::super::page_runs::{CHUNK_PAGES, LEAST_PART};
use super::super::size_classes::PAGE;
use super::Space;

/// Free page runs that one piece looks at.
const LOOKS: usize = 256;

/// Chunks that one piece gives back: 64 MiB, some milliseconds in the kernel.
const CHUNKS_PER_PIECE: usize = 32;

impl Space {
    /// Outside of stops, by one thread at a time and never by a mutator: gives one bounded piece of
    /// at most `most` bytes of free memory back to the system. Whole free chunks go back while more
    /// than `keep` bytes plus a chunk are free and backed; free parts of chunks that are in use go
    /// back while more than `keep` plus `grain` bytes are. Returns the number of bytes; 0: there is
    /// nothing to do, or the spare bitmap is not cleared yet.
    ///
    /// Memory that went back is known to be zero, and so are the parts of the tables for it.
    pub fn scavenge_piece(&self, keep: u64, grain: u64, most: u64) -> u64 {
        if self.clear_chunk.load(Ordering::Relaxed) < self.clear_end.load(Ordering::Relaxed) {
            return 0;
        }
        // A fork takes this lock, so the child finds the page run in its list.
        let _rearranging = self.rearranging.lock();
        let (first, pages, surplus) = {
            let mut page_runs = self.page_runs.lock();
            let surplus = page_runs.free_dirty().saturating_sub(keep as usize / PAGE);
            let surplus = surplus.min(most as usize / PAGE);
            let (records, dirty) = (self.records(), &self.range.dirty);
            let mut found = None;
            if surplus >= CHUNK_PAGES {
                found = page_runs.take_to_scavenge(records, dirty, LOOKS);
            }
            // A small surplus is not worth a huge page that the system would split.
            if found.is_none() && surplus >= (grain as usize / PAGE).max(LEAST_PART) {
                found = page_runs.take_part_to_scavenge(records, dirty, LOOKS);
            }
            let Some((first, pages)) = found else {
                return 0;
            };
            (first, pages, surplus)
        };
        let most = (surplus / CHUNK_PAGES).min(CHUNKS_PER_PIECE);
        // The page run is in no list now. The lock is free while the kernel works.
        let mut scavenged = 0;
        let mut parts = 0;
        let mut chunk = first.next_multiple_of(CHUNK_PAGES);
        while chunk + CHUNK_PAGES <= first + pages && scavenged < most {
            if self.range.dirty.count(chunk, CHUNK_PAGES) != 0 && self.scavenge_chunk(chunk) {
                scavenged += 1;
            }
            chunk += CHUNK_PAGES;
        }
        let mut end = chunk;
        if scavenged == 0 {
            parts = self.scavenge_part(first, pages, surplus);
            end = first + pages;
        }
        self.scavenge_tables(first, pages, end);
        self.has_scavenged.store(true, Ordering::Relaxed);
        self.page_runs
            .lock()
            .put_back(self.records(), &self.range.dirty, first, pages);
        ((scavenged * CHUNK_PAGES + parts) * PAGE) as u64
    }

    /// Gives back pages of a free page run that has no whole dirty chunk: free memory beside cells
    /// in the same chunk. At most `most` pages from the first dirty one on. Returns how many of
    /// them were dirty.
    fn scavenge_part(&self, first: usize, pages: usize, most: usize) -> usize {
        let dirty = &self.range.dirty;
        let Some(from) = dirty.first(first, pages) else {
            return 0;
        };
        let end = (first + pages).min(from + most);
        let count = dirty.count(from, end - from);
        // The pages before it in the same chunk are zero. The system backs them all the same if it
        // backs the chunk by a huge page.
        let from = first.max(from / CHUNK_PAGES * CHUNK_PAGES);
        for page in [from, end - 1] {
            self.use_small_pages(page);
        }
        // SAFETY: this thread alone has the page run, and no cell is in it.
        if !unsafe { self.range.memory.discard(from * PAGE, (end - from) * PAGE) } {
            return 0;
        }
        dirty.clear(from, end - from);
        count
    }

    /// Has the system back the chunk of this page by system pages alone.
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

    /// Gives back the tables' parts for the pages below `end` of a free page run that this thread
    /// alone has, as whole system pages. They are zero, except records, which have no meaning in
    /// the middle of a page run.
    fn scavenge_tables(&self, first: usize, pages: usize, end: usize) {
        if !seam::gives_tables_back() {
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
                // SAFETY: no cell is allocated here, so the allocated bitmap is clear; and the
                // spare one has been cleared.
                unsafe { bits.discard_pages(first, end - first) };
            }
        }
        let records = first + 1..end.min(first + pages - 1);
        // SAFETY: these pages are neither first nor last of the page run.
        unsafe { self.records().discard(records.start, records.len()) };
        // SAFETY: the words of free pages are zero.
        unsafe { self.range.page_table.discard(first, end - first) };
    }

    /// Outside of stops, by the scavenger: asks for huge pages again in all chunks that gave them
    /// up, if the heap is about as full as it ever was.
    pub(crate) fn use_huge_pages_again(&self) {
        if !self.huge_pages || !self.has_scavenged.load(Ordering::Relaxed) {
            return;
        }
        let (used, top) = {
            let page_runs = self.page_runs.lock();
            (page_runs.used(), page_runs.top())
        };
        if used < top - top / 8 {
            return;
        }
        self.has_scavenged.store(false, Ordering::Relaxed);
        for chunk in 0..top.div_ceil(CHUNK_PAGES) {
            if self.range.set_small_pages(chunk, false) {
                self.small_chunks.remove(1);
            }
        }
        for bits in &self.range.bits {
            bits.use_huge_pages_again();
        }
    }

    /// The bytes in use now, and the most bytes in use since the last call. By one thread at a
    /// time.
    pub(crate) fn used_lately(&self) -> (u64, u64) {
        let mut page_runs = self.page_runs.lock();
        (
            (page_runs.used() * PAGE) as u64,
            (page_runs.take_peak() * PAGE) as u64,
        )
    }

    /// Bytes of free memory that could go back.
    pub(crate) fn free_backed(&self) -> u64 {
        (self.page_runs.lock().free_dirty() * PAGE) as u64
    }

    fn scavenge_chunk(&self, chunk: usize) -> bool {
        // SAFETY: the chunk lies in a page run that this thread alone has, and no cell is in it.
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

mod seam {
    use crate::fault::Fault;

    pub(super) fn gives_tables_back() -> bool {
        !Fault::TablesKept.planted()
    }
}
