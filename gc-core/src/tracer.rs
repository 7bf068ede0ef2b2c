//! The sink of a cell's edges: the floor between the kinds, which know where edges lie, and the
//! markers, which follow them.

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
    // SAFETY: forwarded. Ordering: Relaxed; the stop orders what a snapshot at the beginning must
    // see, and later values lead to cells that were allocated black.
    unsafe { (*(address as *const AtomicUsize)).load(Ordering::Relaxed) }
}

/// Receives the edges of cells: a marker, or an oracle that only looks at them.
pub(crate) trait Sink {
    /// A word that may be an edge: an edge of the heap leads to a cell's first byte.
    fn edge(&mut self, word: usize, encoding: Encoding);
    /// A word that may be anything.
    fn conservative(&mut self, word: usize);
    /// A pair of an ephemeron cell, by its first word's address.
    fn pair(&mut self, slot: usize, encoding: Encoding);
    /// A key that a later [`Sink::pair`] will ask for.
    fn key_ahead(&mut self, word: usize, encoding: Encoding);

    /// Words of memory, each as by [`Sink::edge`].
    ///
    /// # Safety
    /// The range is readable and word-aligned.
    unsafe fn edges(&mut self, words: Range<usize>, encoding: Encoding) {
        for word in words.step_by(WORD) {
            // SAFETY: the caller says so.
            self.edge(unsafe { load(word) }, encoding);
        }
    }
}

/// A traced kind's function reports its edges to it.
pub struct Tracer<'a> {
    sink: &'a mut dyn Sink,
}

impl<'a> Tracer<'a> {
    pub(crate) fn new(sink: &'a mut dyn Sink) -> Tracer<'a> {
        Tracer { sink }
    }
}

impl Tracer<'_> {
    /// One word of the cell: an edge if `encoding` says so.
    #[inline]
    pub fn edge(&mut self, word: usize, encoding: Encoding) {
        if encoding.decode(word).is_some() {
            self.sink.edge(word, encoding);
        }
    }

    /// Every word of a range of **addresses**, in bytes, from the first word's to one past the last
    /// word's: edges where `encoding` says so. (Not numbers of words, as
    /// [`Kind::words_at`](crate::raw::Kind::words_at) takes them.)
    ///
    /// # Safety
    /// The range is readable and word-aligned: part of the traced cell, or memory that stays
    /// allocated while the cell is marked.
    pub unsafe fn edges(&mut self, words: Range<usize>, encoding: Encoding) {
        // SAFETY: forwarded.
        unsafe { self.sink.edges(words, encoding) };
    }

    /// A word that may be anything: the cell it names, if it names one, is an edge.
    pub fn conservative(&mut self, word: usize) {
        self.sink.conservative(word);
    }
}
