//! What a space does with its record of the cells that were allocated black.

use super::super::bitmap::WORDS_PER_PAGE;
use super::super::size_classes::{Class, GRANULE, PAGE};
use super::Space;

impl Space {
    /// By a span's owner while marking, or in stop 1 for it: the cells `[from, to)` are handed out.
    pub(crate) fn note_allocated_black(&self, span: usize, class: &Class, from: usize, to: usize) {
        if from < to {
            // SAFETY: the span is the caller's.
            unsafe { (*self.records().at(span)).flags.note_allocated_black() };
            let first = span * PAGE / GRANULE + from * class.stride();
            self.allocated_black
                .note_range(first, (to - from) * class.stride());
        }
    }

    /// The same for those whose bits in a word of the span's bitmap are `bits`.
    pub(crate) fn note_allocated_black_in_word(&self, span: usize, word: usize, bits: u64) {
        if bits != 0 {
            // SAFETY: as above.
            unsafe { (*self.records().at(span)).flags.note_allocated_black() };
            let word = span * WORDS_PER_PAGE + word;
            self.allocated_black.note(word << 1, bits as usize);
        }
    }

    /// Before a young collection's stop 1: what was handed out while the last one marked is young.
    pub(crate) fn unmark_allocated_black(&self) {
        debug_assert!(self.keeps_marks() && self.allocated_black.are_known());
        self.allocated_black.unmark(self.marked_bits());
    }
}
