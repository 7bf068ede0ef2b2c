//! Sticky mark bits: marks that stay, so that a young collection takes old cells for alive (Demers,
//! Weiser, Hayes, Boehm, Bobrow and Shenker 1990, "Combining generational and conservative garbage
//! collection: framework and implementations").
//!
//! A cell that was made before a collection's stop 1 and was found alive by it is *old*; every
//! other cell is *young*. A young collection finds the old cells marked when it begins. It traces
//! and frees young cells only. No cell moves, so an old cell is nothing but a set bit.
//!
//! When the bitmaps swap, the marks become the allocated bits, and mutators add to these. The
//! bitmap that is now spare takes the marks over before a mutator allocates in the span:
//!
//! * for each span and large object that no mutator owns, when it is swept: a thread that takes a
//!   span to allocate in it sweeps it first;
//! * not at all for spans that were full of old cells before and are so still: both bitmaps have
//!   the same bits there;
//! * for each span that a mutator owns, in the stop.
//!
//! Some of these marks are those of cells that were allocated black. They are cleared before the
//! next young collection marks (`heap/allocated_black.rs`). The rest of a mutator's run at stop 2
//! is among them: no program has these cells yet.
//!
//! Every other bit of the spare bitmap belongs to memory that was free before and is free again. So
//! the spare bitmap's bits of free memory are clear, and so are those of spans that are taken from
//! there, as after a collection that keeps no marks.
//!
//! `mark/old.rs` has the other half of the invariant: no old cell leads to a young cell that is not
//! marked.

use std::sync::atomic::Ordering;

use super::super::page_runs::CHUNK_PAGES;
use super::super::size_classes::{Class, PAGE};
use super::Space;

impl Space {
    /// Whether the spare bitmap holds the marks of the last collection.
    pub(crate) fn keeps_marks(&self) -> bool {
        // Relaxed: it is set in a stop, and taken back by the collector alone, when everything is
        // swept.
        self.sticky.load(Ordering::Relaxed)
    }

    /// Stop 2, after the swap: says whether the spare bitmap keeps the marks, or is cleared.
    pub(crate) fn keep_marks(&self, keeps: bool) {
        self.sticky.store(keeps, Ordering::Relaxed);
        let chunks = self.top().div_ceil(CHUNK_PAGES);
        let end = if keeps { 0 } else { chunks };
        self.clear_chunk.store(0, Ordering::Relaxed);
        self.clear_end.store(end, Ordering::Relaxed);
    }

    /// Makes the next collection a whole one: the spare bitmap is cleared. By the collector, when
    /// everything is swept.
    pub(crate) fn forget_marks(&self) {
        if self.keeps_marks() {
            self.keep_marks(false);
        }
    }

    /// One past the last page that was ever taken. Takes the heap's lock.
    pub(crate) fn top(&self) -> usize {
        self.page_runs.lock().top()
    }

    /// Copies the marks of a span to the spare bitmap, if that keeps them. By the thread that
    /// sweeps the span, before a cell is allocated in it.
    pub(crate) fn keep_span(&self, span: usize, class: &Class) {
        if self.keeps_marks() {
            let allocated = self.allocated_bits().span(span, class);
            self.marked_bits().span(span, class).copy_from(&allocated);
        }
    }

    /// The same for a large object, dead or alive.
    pub(crate) fn keep_large(&self, first: usize, is_allocated: bool) {
        if self.keeps_marks() {
            self.marked_bits().write_first(first, is_allocated);
        }
    }

    /// Bytes of spans whose kinds have edges and are immutable: a young collection does not look
    /// into their old cells. Outside of stops. O(sites).
    pub(crate) fn immutable_bytes(&self) -> u64 {
        let mut bytes = 0;
        for site in 0..self.sites.count() {
            let entry = self.sites.at(site);
            if self.kinds.get(entry.kind).has_immutable_edges() {
                let lists = self.lists(entry);
                let spans: usize = lists.each().iter().map(|list| list.len()).sum();
                bytes += spans * entry.class().pages as usize * PAGE;
            }
        }
        bytes as u64
    }
}
