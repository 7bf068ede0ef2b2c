//! Marks that stay, so that a young collection need not set them again (*sticky mark bits*: Demers,
//! Weiser, Hayes, Boehm, Bobrow and Shenker 1990, "Combining generational and conservative garbage
//! collection: framework and implementations").
//!
//! What was made before a collection's stop 1, and was found alive by it, is *old*, all else is
//! *young*. A young collection finds the old cells marked when it begins: it takes them for alive,
//! and traces and frees young ones only. No cell moves, so an old one is nothing but a set bit.
//!
//! When the bitmaps swap, the marks become the bits of what is allocated, and mutators add to
//! these. The bitmap that is now spare takes the marks over before anybody does:
//!
//! * of spans and large objects that nobody owns, one by one, as they are swept: whoever takes a
//!   span to allocate in it sweeps it first;
//! * of spans that were full of old cells before and are so still, not at all: both bitmaps have
//!   the same bits there, which are only swapped;
//! * of the span that a mutator owns, in the stop.
//!
//! Among these marks are those of cells that were born marked. Before the next young collection
//! marks anything, they are taken back (`heap/allocated_black.rs`). The rest of a mutator's run at
//! stop 2 is part of them: nobody has these cells yet.
//!
//! Whatever else the spare bitmap has bits of was free before and is free again. So its bits of
//! free memory, and of spans that are taken from there, are clear, as they are after a collection
//! that keeps nothing.
//!
//! That no old cell leads to a young one that nobody marks is not this room's business: see
//! `mark/old.rs`.

use std::sync::atomic::Ordering;

use super::super::page_runs::CHUNK_PAGES;
use super::super::size_classes::{Class, PAGE};
use super::Space;

impl Space {
    /// Does the spare bitmap hold what was marked last?
    pub(crate) fn keeps_marks(&self) -> bool {
        // Relaxed: set in a stop, and taken back by the collector alone, when nothing is left to be
        // swept.
        self.sticky.load(Ordering::Relaxed)
    }

    /// Stop 2, after the swap: the spare bitmap is to keep the marks, or is to be cleared.
    pub(crate) fn keep_marks(&self, keeps: bool) {
        self.sticky.store(keeps, Ordering::Relaxed);
        let chunks = self.top().div_ceil(CHUNK_PAGES);
        let end = if keeps { 0 } else { chunks };
        self.clear_chunk.store(0, Ordering::Relaxed);
        self.clear_end.store(end, Ordering::Relaxed);
    }

    /// The next collection is no young one after all: the spare bitmap is to be cleared. When all
    /// is swept, by the collector.
    pub(crate) fn forget_marks(&self) {
        if self.keeps_marks() {
            self.keep_marks(false);
        }
    }

    /// Pages that were ever in use are below it. Takes the heap's lock.
    pub(crate) fn top(&self) -> usize {
        self.spans.lock().top()
    }

    /// The marks of a span stay. By whoever sweeps it, before anything is allocated in it.
    pub(crate) fn keep_span(&self, span: usize, class: &Class) {
        if self.keeps_marks() {
            let allocated = self.allocated_bits().span(span, class);
            self.marked_bits().span(span, class).copy_from(&allocated);
        }
    }

    /// The same for a large object, or what was one.
    pub(crate) fn keep_large(&self, first: usize, is_allocated: bool) {
        if self.keeps_marks() {
            self.marked_bits().write_first(first, is_allocated);
        }
    }

    /// Bytes of spans whose cells need not be looked at once they are old, although they have
    /// edges. Outside of stops: O(sites).
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
