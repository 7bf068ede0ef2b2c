//! Tracing: from roots to marked cells, without malloc and without recursion.

pub(crate) mod queue;

use std::marker::PhantomData;

use crate::encoding::Encoding;
use crate::heap::{Cell, Space};

pub use queue::MarkQueue;

/// What a traced kind's function reports its edges to.
pub struct Tracer<'a> {
    marker: PhantomData<&'a ()>,
}

impl Tracer<'_> {
    /// One word of the cell, as an edge if `encoding` says so.
    #[inline]
    pub fn edge(&mut self, _word: usize, _encoding: Encoding) {}

    /// Every word of `words` (a byte range, word-aligned), as edges.
    ///
    /// # Safety
    /// The range lies in the cell that is traced, or in memory that no mutator frees while it runs.
    pub unsafe fn edges(&mut self, _words: std::ops::Range<usize>, _encoding: Encoding) {}

    /// A word that may be anything: marks the cell it names, if it names one.
    pub fn conservative(&mut self, _word: usize) {}
}

/// One thread that marks. All its memory is mapped before.
pub struct Marker<'a> {
    space: &'a Space,
    queue: &'a MarkQueue,
}

impl<'a> Marker<'a> {
    /// A marker of `space` that shares `queue` with its fellows.
    pub fn new(space: &'a Space, queue: &'a MarkQueue) -> Marker<'a> {
        Marker { space, queue }
    }

    /// A precise root or edge: a word that is null, no edge, or leads to an allocated cell's first byte.
    #[inline]
    pub fn edge(&mut self, _word: usize, _encoding: Encoding) {}

    /// A precise edge that may lead into the middle of its cell (a derived pointer).
    #[inline]
    pub fn interior(&mut self, address: usize) {
        let _ = self.space.resolve(address);
    }

    /// A word that may be anything, tried with all of the heap's conservative encodings (and past the end, where
    /// configured). True: it named a cell that was not marked yet.
    pub fn conservative(&mut self, _word: usize) -> bool {
        false
    }

    /// Marks a cell found by [`Space::resolve`]. True: it was not marked yet.
    pub fn cell(&mut self, _cell: Cell) -> bool {
        false
    }

    /// Traces until nothing is left. All edges from everything marked have then been followed.
    pub fn drain(&mut self) {
        let _ = self.queue;
    }

    /// Cells and bytes newly marked by this marker since it was made.
    pub fn marked(&self) -> Marked {
        Marked::default()
    }
}

/// What a marker has marked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marked {
    /// Cells.
    pub cells: u64,
    /// Their bytes.
    pub bytes: u64,
}
