//! What a root callback of the embedder reports its words to.

use core::ops::Range;

use crate::encoding::Encoding;

/// A root callback reports to it.
///
/// The callback runs while the world is stopped: it must not allocate, lock anything that a mutator
/// may hold, print or panic, and may only read what mutators change inside `no_preempt` (a `Vec`
/// that was stopped in the middle of growing has no valid state).
pub struct RootVisitor<'s> {
    scanner: &'s mut (dyn VisitRoots + 's),
}

impl<'s> RootVisitor<'s> {
    pub(super) fn new(scanner: &'s mut (dyn VisitRoots + 's)) -> RootVisitor<'s> {
        RootVisitor { scanner }
    }
}

/// What takes the words that a callback reports: the scanner, which embedders do not see.
pub(super) trait VisitRoots {
    fn exact_word(&mut self, word: usize, encoding: Encoding);
    fn any_words(&mut self, words: Range<usize>);
}

impl RootVisitor<'_> {
    /// A word that is an edge of the given encoding, or none.
    pub fn word(&mut self, word: usize, encoding: Encoding) {
        self.scanner.exact_word(word, encoding);
    }

    /// Words that are edges of the given encoding.
    pub fn words(&mut self, words: &[usize], encoding: Encoding) {
        for word in words {
            self.scanner.exact_word(*word, encoding);
        }
    }

    /// Memory whose every word may be anything.
    pub fn conservative(&mut self, words: &[usize]) {
        let range = words.as_ptr_range();
        self.scanner
            .any_words(range.start as usize..range.end as usize);
    }
}
