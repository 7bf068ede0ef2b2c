//! A heap's address range, and the tables that cover it.

use std::sync::atomic::{AtomicU8, Ordering};

use super::bitmap::{Bitmap, PAGES_PER_BITMAP_PAGE};
use super::page_runs::{CHUNK_PAGES, Dirty, Records};
use super::page_table::PageTable;
use super::size_classes::PAGE;
use crate::memory::MapError;
use crate::memory::os::{Map, Table};

/// The address range and the tables that cover it. All of them are reservations: what is below the
/// end of `Spans` can be written, and so can the tables' parts that tell of it.
pub(super) struct Range {
    pub(super) memory: Map,
    pub(super) base: usize,
    pub(super) page_table: PageTable,
    pub(super) records: Records,
    pub(super) dirty: Dirty,
    pub(super) bits: [Bitmap; 2],
    /// A byte for each page of the bitmaps: see
    /// [`Space::note_bits`](crate::heap::Space::note_bits).
    pub(super) noted_bits: Table<AtomicU8>,
    /// A byte a chunk: has the system been asked to back it since it was given back last, and by
    /// small pages alone?
    pub(super) backed: Table<AtomicU8>,
}

impl Range {
    pub(super) fn new(bytes: usize) -> Result<Range, MapError> {
        const ALIGN: usize = CHUNK_PAGES * PAGE;
        let pages = bytes / PAGE;
        let memory = Map::reserve_aligned(bytes, ALIGN)?;
        memory.prefer_huge_pages_from(0);
        let base = memory.base() as usize;
        Ok(Range {
            memory,
            base,
            page_table: PageTable::new(pages)?,
            records: Records::new(pages)?,
            dirty: Dirty::new(pages)?,
            bits: [Bitmap::new(pages)?, Bitmap::new(pages)?],
            noted_bits: Table::reserve(pages / PAGES_PER_BITMAP_PAGE)?,
            backed: Table::reserve(pages / CHUNK_PAGES)?,
        })
    }

    /// Has pages `[from, to)`, whole chunks, and the tables' parts that tell of them, written from
    /// now on. By one thread at a time, with all below `from` writable. Should the system refuse in
    /// the middle, what was made writable stays so and is asked for again.
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

    /// Has so many pages backed, and what the tables say of them. False: the system had not memory
    /// for all, or is too old to be asked.
    pub(super) fn back(&self, first: usize, pages: usize) -> bool {
        self.memory.back(first * PAGE, pages * PAGE)
            && self.back_tables(first, pages)
            && self.bits.iter().all(|bits| bits.back(first, pages))
    }

    /// Of the tables, those that are written when pages are taken.
    pub(super) fn back_tables(&self, first: usize, pages: usize) -> bool {
        self.page_table.back(first, pages) && self.records.back(first, pages)
    }
}

/// What [`Range::backed`] says of a chunk that the system backs by small pages.
const SMALL_PAGES: u8 = 2;

impl Range {
    pub(super) fn backed(&self, chunk: usize) -> &AtomicU8 {
        // SAFETY: a chunk of the address range; zeroed memory is a valid AtomicU8.
        unsafe { &*self.backed.at(chunk) }
    }

    /// Was the system asked to back it? Relaxed, here and below: who reads an old value asks for
    /// nothing, or takes the fault.
    pub(super) fn is_backed(&self, chunk: usize) -> bool {
        self.backed(chunk).load(Ordering::Relaxed) != 0
    }

    pub(super) fn set_backed(&self, chunk: usize, is: bool) {
        self.backed(chunk).store(is.into(), Ordering::Relaxed);
    }

    /// Does the system back the chunk by small pages alone?
    pub(super) fn has_small_pages(&self, chunk: usize) -> bool {
        self.backed(chunk).load(Ordering::Relaxed) == SMALL_PAGES
    }

    /// Has the system back the chunk by small pages alone, or by a huge one again; whether that is
    /// new. Such a chunk counts as backed: a first touch in it clears 4 KiB. By the thread that
    /// gives memory back.
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
