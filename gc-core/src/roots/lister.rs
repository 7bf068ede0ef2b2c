//! Lists the cells that roots name, without marking them: for inspectors.

use core::ops::Range;

use gc_preempt::RootSink;

use super::declared::visit_tables;
use super::tables::Roots;
use super::visitor::VisitRoots;
use crate::encoding::{Encoding, Encodings};
use crate::heap::{Cell, PAGE, Space};

/// Calls a function with the cell of each word that names one. In a stop.
pub(crate) struct Lister<'a> {
    space: &'a Space,
    encodings: &'a Encodings,
    /// Addresses of all pages that were ever in use.
    used: Range<usize>,
    found: &'a mut dyn FnMut(Cell),
}

impl<'a> Lister<'a> {
    pub(crate) fn new(
        space: &'a Space,
        encodings: &'a Encodings,
        found: &'a mut dyn FnMut(Cell),
    ) -> Self {
        Self {
            space,
            encodings,
            used: space.base()..space.base() + space.top() * PAGE,
            found,
        }
    }

    /// Lists the cells of ranges and callbacks, as [`visit_tables`] does.
    pub(crate) fn tables(&mut self, roots: &Roots) {
        visit_tables(roots, self);
    }

    fn address(&mut self, address: usize) {
        if self.used.contains(&address)
            && let Some(cell) = self.space.resolve(address)
        {
            (self.found)(cell);
        }
    }

    /// Lists the cell of an exact word.
    pub(crate) fn word(&mut self, word: usize, encoding: Encoding) {
        if let Some(address) = encoding.decode(word) {
            self.address(address);
        }
    }

    fn any_word(&mut self, word: usize) {
        let space = self.space;
        for encoding in space.encodings() {
            self.word(word, *encoding);
        }
    }
}

impl RootSink for Lister<'_> {
    fn conservative(&mut self, words: Range<usize>) {
        for at in words.step_by(size_of::<usize>()) {
            // SAFETY: the walker passes ranges of a stopped thread's stack and register file, which
            // stay mapped while it is stopped. Volatile: any code may have left its words there.
            self.any_word(unsafe { (at as *const usize).read_volatile() });
        }
    }

    fn exact(&mut self, slot: usize, encoding: u32) {
        // SAFETY: as above; the slot lies in a frame of the stopped thread.
        let word = unsafe { (slot as *const usize).read_volatile() };
        match self.encodings.numbered(encoding) {
            Some(encoding) => self.word(word, encoding),
            // Another heap's code: see `Scanner::foreign_word`.
            None => {
                let encodings = self.encodings;
                for encoding in encodings.all() {
                    self.word(word, encoding);
                }
                self.any_word(word);
            }
        }
    }

    fn derived(&mut self, base: usize, _derived: usize, encoding: u32) {
        self.exact(base, encoding);
    }
}

impl VisitRoots for Lister<'_> {
    fn exact_word(&mut self, word: usize, encoding: Encoding) {
        self.word(word, encoding);
    }

    fn any_words(&mut self, words: Range<usize>) {
        self.conservative(words);
    }
}
