//! The type to which a root callback of the embedder reports its words.

use core::ops::Range;

use crate::encoding::Encoding;

/// Takes the words that a root callback reports.
///
/// The callback runs while the world is stopped. It must not allocate, lock a lock that a mutator
/// may hold, print or panic. Of the data that mutators change, it may read only what they change
/// inside `no_preempt`: a `Vec` that was stopped in the middle of growing has no valid state.
///
/// ```
/// use gc_core::Heap;
/// use gc_core::raw::{Encoding, Kind};
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
///
/// let heap = Heap::builder().build()?;
/// let leaf = heap.kind(Kind::leaf("leaf"))?;
/// let global = Arc::new(AtomicUsize::new(0));
/// let root = global.clone();
/// // SAFETY: the callback reads one atomic word.
/// let _guard = unsafe {
///     heap.add_root_callback(move |roots| roots.word(root.load(Relaxed), Encoding::RAW))
/// }?;
/// let mutator = heap.attach()?;
/// // SAFETY: the cell has 16 bytes, and the callback reports it.
/// unsafe {
///     let cell = mutator.alloc_raw(leaf, 16)?.cast::<usize>();
///     cell.write(7);
///     global.store(cell.as_ptr() as usize, Relaxed);
///     heap.collect();
///     assert_eq!(cell.read(), 7);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RootVisitor<'s> {
    scanner: &'s mut (dyn VisitRoots + 's),
}

impl<'s> RootVisitor<'s> {
    pub(super) fn new(scanner: &'s mut (dyn VisitRoots + 's)) -> RootVisitor<'s> {
        RootVisitor { scanner }
    }
}

/// The consumer of the words of declared roots: the scanner or the lister, which embedders do not
/// see.
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
