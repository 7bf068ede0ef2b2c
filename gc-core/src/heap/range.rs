//! A heap's address range, and the tables that cover it.

use std::sync::atomic::{AtomicU8, Ordering};

use super::bitmap::{Bitmap, PAGES_PER_BITMAP_PAGE};
use super::page_runs::{CHUNK_PAGES, Dirty, Records};
use super::page_table::PageTable;
use super::size_classes::PAGE;
use crate::memory::MapError;
use crate::memory::os::{Map, Table};

/// The address range and the tables that cover it. Each of them is a reservation: the pages below
/// `end` of [`PageRuns`](super::page_runs::PageRuns) can be written, and so can the parts of the
/// tables that describe them.
pub(super) struct Range {
    pub(super) memory: Map,
    pub(super) base: usize,
    pub(super) page_table: PageTable,
    pub(super) records: Records,
    pub(super) dirty: Dirty,
    pub(super) bits: [Bitmap; 2],
    /// A byte for each bitmap page: see [`Space::note_bits`](super::Space::note_bits).
    pub(super) noted_bits: Table<AtomicU8>,
    /// A byte for each chunk: 0 if the system was not asked to back it since it last went back,
    /// [`SMALL_PAGES`] if the system backs it by system pages alone, 1 otherwise.
    pub(super) backed: Table<AtomicU8>,
}

impl Range {
    pub(super) fn new(bytes: usize, huge_pages: bool) -> Result<Range, MapError> {
        const ALIGN: usize = CHUNK_PAGES * PAGE;
        let pages = bytes / PAGE;
        let memory = Map::reserve_aligned(bytes, ALIGN)?;
        if huge_pages {
            memory.prefer_huge_pages_from(0);
        } else {
            memory.allow_huge_pages(0, bytes, false);
        }
        let base = memory.base() as usize;
        Ok(Range {
            memory,
            base,
            page_table: PageTable::new(pages)?,
            records: Records::new(pages)?,
            dirty: Dirty::new(pages)?,
            bits: [
                Bitmap::new(pages, huge_pages)?,
                Bitmap::new(pages, huge_pages)?,
            ],
            noted_bits: Table::reserve(pages / PAGES_PER_BITMAP_PAGE)?,
            backed: Table::reserve(pages / CHUNK_PAGES)?,
        })
    }

    /// Makes pages `[from, to)`, whole chunks, and the tables' parts for them writable. By one
    /// thread at a time, with all pages below `from` writable. If the system refuses in the middle,
    /// the parts that were made writable stay so, and the next call makes them writable again.
    pub(super) fn make_writable(&self, from: usize, to: usize) -> Result<(), MapError> {
        self.page_table.make_writable(to)?;
        self.records.make_writable(to)?;
        self.dirty.make_writable(to)?;
        for bits in &self.bits {
            bits.make_writable(to)?;
        }
        self.noted_bits.make_writable(to / PAGES_PER_BITMAP_PAGE)?;
        self.backed.make_writable(to / CHUNK_PAGES)?;
        self.memory.make_writable(from * PAGE, (to - from) * PAGE)
    }

    /// Has the system back `pages` pages and the tables' parts for them. `false`: the system has no
    /// memory for all of them, or a kernel without `MADV_POPULATE_WRITE`.
    pub(super) fn back(&self, first: usize, pages: usize) -> bool {
        self.memory.back(first * PAGE, pages * PAGE)
            && self.back_tables(first, pages)
            && self.bits.iter().all(|bits| bits.back(first, pages))
    }

    /// Backs the tables that are written when pages are taken.
    pub(super) fn back_tables(&self, first: usize, pages: usize) -> bool {
        self.page_table.back(first, pages) && self.records.back(first, pages)
    }
}

/// The value in [`Range::backed`] of a chunk that the system backs by system pages alone.
const SMALL_PAGES: u8 = 2;

impl Range {
    pub(super) fn backed(&self, chunk: usize) -> &AtomicU8 {
        // SAFETY: a chunk of the address range; zeroed memory is a valid AtomicU8.
        unsafe { &*self.backed.at(chunk) }
    }

    /// Whether the system was asked to back the chunk. Relaxed, here and below: a thread that reads
    /// an old value does not ask, or takes the page fault.
    pub(super) fn is_backed(&self, chunk: usize) -> bool {
        self.backed(chunk).load(Ordering::Relaxed) != 0
    }

    pub(super) fn set_backed(&self, chunk: usize, is: bool) {
        self.backed(chunk).store(is.into(), Ordering::Relaxed);
    }

    /// Whether the system backs the chunk by system pages alone.
    pub(super) fn has_small_pages(&self, chunk: usize) -> bool {
        self.backed(chunk).load(Ordering::Relaxed) == SMALL_PAGES
    }

    /// Has the system back the chunk by system pages alone, or by a huge page again. Returns
    /// whether that is new. A chunk of system pages counts as backed: a first touch in it clears 4
    /// KiB. By the scavenger.
    pub(super) fn set_small_pages(&self, chunk: usize, small: bool) -> bool {
        let state = self.backed(chunk);
        if self.has_small_pages(chunk) == small {
            return false;
        }
        let offset = chunk * CHUNK_PAGES * PAGE;
        let is_done = self
            .memory
            .allow_huge_pages(offset, CHUNK_PAGES * PAGE, !small);
        if is_done {
            state.store(if small { SMALL_PAGES } else { 1 }, Ordering::Relaxed);
        }
        is_done
    }
}
