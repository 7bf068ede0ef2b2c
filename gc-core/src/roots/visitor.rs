//! The type to which a root callback of the embedder reports its words.

use core::ops::Range;

use crate::encoding::Encoding;

/// Takes the words that a root callback reports.
///
/// The callback runs while the world is stopped. It must not allocate, lock a lock that a mutator
/// may hold, print or panic. Of the data that mutators change, it may read only what they change
/// inside `no_preempt`: a `Vec` that was stopped in the middle of growing has no valid state.
pub struct RootVisitor<'s> {
    scanner: &'s mut (dyn VisitRoots + 's),
}

impl<'s> RootVisitor<'s> {
    pub(super) fn new(scanner: &'s mut (dyn VisitRoots + 's)) -> RootVisitor<'s> {
        RootVisitor { scanner }
    }
}

/// The consumer of the words that a callback reports: the scanner, which embedders do not see.
pub(super) trait VisitRoots {
    fn exact_word(&mut self, word: usize, encoding: Encoding);
    fn any_words(&mut self, words: Range<usize>);
}

impl RootVisitor<'_> {
    /// Reports a word that is an edge in the given encoding, or no edge.
    pub fn word(&mut self, word: usize, encoding: Encoding) {
        self.scanner.exact_word(word, encoding);
    }

    /// Reports words, each as [`word`](Self::word) does.
    pub fn words(&mut self, words: &[usize], encoding: Encoding) {
        for word in words {
            self.scanner.exact_word(*word, encoding);
        }
    }

    /// Reports words each of which may be anything, as the words of a stack.
    pub fn conservative(&mut self, words: &[usize]) {
        let range = words.as_ptr_range();
        self.scanner
            .any_words(range.start as usize..range.end as usize);
    }
}
