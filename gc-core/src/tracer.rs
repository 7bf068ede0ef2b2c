//! The interface between kinds, which find the edges of a cell, and markers, which follow them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::encoding::Encoding;

/// Bytes of a word.
pub(crate) const WORD: usize = size_of::<usize>();

/// Reads a word that a mutator may be writing.
///
/// # Safety
/// `address` is word-aligned and readable.
#[inline(always)]
pub(crate) unsafe fn load(address: usize) -> usize {
    // SAFETY: forwarded. Relaxed: the stop that begins marking orders all earlier stores before
    // this load, and a later value leads to a cell that was allocated black.
    unsafe { (*(address as *const AtomicUsize)).load(Ordering::Relaxed) }
}

/// Receives the edges of cells. A marker follows them; an oracle only reads them.
pub(crate) trait Sink {
    /// A word that may be an edge. An edge leads to a cell's first byte.
    fn edge(&mut self, word: usize, encoding: Encoding);
    /// A word of unknown meaning: it is treated conservatively.
    fn conservative(&mut self, word: usize);
    /// A pair of an ephemeron cell; `slot` is the address of its first word.
    fn pair(&mut self, slot: usize, encoding: Encoding);
    /// The key of a pair that a later call of [`Sink::pair`] will report, for a prefetch.
    fn key_ahead(&mut self, word: usize, encoding: Encoding);

    /// Each word of a range of addresses, as by [`Sink::edge`].
    ///
    /// # Safety
    /// The range is readable and word-aligned.
    unsafe fn edges(&mut self, words: Range<usize>, encoding: Encoding) {
        for word in words.step_by(WORD) {
            // SAFETY: forwarded.
            self.edge(unsafe { load(word) }, encoding);
        }
    }
}

/// Receives the edges that a traced kind's function reports
/// ([`Kind::traced`](crate::raw::Kind::traced)).
pub struct Tracer<'a> {
    sink: &'a mut dyn Sink,
}

impl<'a> Tracer<'a> {
    pub(crate) fn new(sink: &'a mut dyn Sink) -> Tracer<'a> {
        Tracer { sink }
    }
}

impl Tracer<'_> {
    /// Reports one word of the cell: an edge if `encoding` says so. Any word may be passed.
    #[inline]
    pub fn edge(&mut self, word: usize, encoding: Encoding) {
        if encoding.decode(word).is_some() {
            self.sink.edge(word, encoding);
        }
    }

    /// Reports every word of a range of **addresses**, from the first word's address to one past
    /// the last word: each is an edge if `encoding` says so. (These are byte addresses, not numbers
    /// of words as in [`Kind::words_at`](crate::raw::Kind::words_at).)
    ///
    /// # Safety
    /// The range is readable and word-aligned. It is part of the traced cell, or memory that stays
    /// allocated while the cell is traced.
    pub unsafe fn edges(&mut self, words: Range<usize>, encoding: Encoding) {
        // SAFETY: forwarded.
        unsafe { self.sink.edges(words, encoding) };
    }

    /// Reports a word of unknown meaning: if it names a cell, the cell is kept. The heap's
    /// conservative encodings apply.
    pub fn conservative(&mut self, word: usize) {
        self.sink.conservative(word);
    }
}
