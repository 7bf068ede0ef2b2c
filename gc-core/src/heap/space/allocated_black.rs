//! The methods of [`Space`] on the notes of cells allocated black.

use super::super::bitmap::WORDS_PER_PAGE;
use super::super::size_classes::{Class, GRANULE, PAGE};
use super::Space;

impl Space {
    /// Notes the cells `[from, to)` of a span. By the span's owner while marking, or for it in stop
    /// 1.
    pub(crate) fn note_allocated_black(&self, span: usize, class: &Class, from: usize, to: usize) {
        if from < to {
            // SAFETY: the caller owns the span, and so its record.
            unsafe { (*self.records().at(span)).flags.note_allocated_black() };
            let first = span * PAGE / GRANULE + from * class.stride();
            self.allocated_black
                .note_range(first, (to - from) * class.stride());
        }
    }

    /// Notes the cells whose bits in the word `word` of the span's bitmap are `bits`.
    pub(crate) fn note_allocated_black_in_word(&self, span: usize, word: usize, bits: u64) {
        if bits != 0 {
            // SAFETY: as above.
            unsafe { (*self.records().at(span)).flags.note_allocated_black() };
            let word = span * WORDS_PER_PAGE + word;
            self.allocated_black.note(word << 1, bits as usize);
        }
    }

    /// Before a young collection's stop 1: makes the cells young that were allocated black while
    /// the last collection marked.
    pub(crate) fn unmark_allocated_black(&self) {
        debug_assert!(self.keeps_marks() && self.allocated_black.are_known());
        self.allocated_black.unmark(self.marked_bits());
    }
}
