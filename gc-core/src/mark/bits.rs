//! The mark bits, by the address of their words.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::heap::{Bitmap, WORDS_PER_PAGE};
use crate::memory::prefetch::prefetch;

/// A bitmap by the address of its words: a marker prefetches a word for each edge and reads it
/// later, and through the bitmap each would take another load.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    words: *const AtomicU64,
    bitmap: PhantomData<&'a Bitmap>,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bitmap: &'a Bitmap) -> Bits<'a> {
        Bits {
            words: bitmap.words(),
            bitmap: PhantomData,
        }
    }

    /// See [`Bitmap::word`].
    #[inline(always)]
    pub(super) fn word(&self, index: usize) -> &'a AtomicU64 {
        // SAFETY: callers pass words of pages inside the address range, which the bitmap has as
        // long as it lives.
        unsafe { &*self.words.add(index) }
    }

    /// See [`Bitmap::prefetch`].
    #[inline(always)]
    pub(super) fn prefetch(&self, offset: usize) {
        prefetch(self.words.wrapping_add(Bitmap::place(offset).0) as usize);
    }

    /// [`Bitmap::test`] in one order with all changes of bits, for a marker that has just linked a
    /// pair which waits for the bit.
    #[inline(always)]
    pub(super) fn test_now(&self, offset: usize) -> bool {
        let (index, bit) = Bitmap::place(offset);
        // Ordering: SeqCst pairs with `set_word`; a plain load on this architecture.
        self.word(index).load(Ordering::SeqCst) & bit != 0
    }

    /// Sets bits of a word; returns the bits that were clear.
    #[inline(always)]
    pub(super) fn set_word(&self, index: usize, bits: u64) -> u64 {
        // Ordering: SeqCst, which costs nothing on this architecture. It pairs with `test_now`: a
        // marker with a pair tests the key's bit after it has linked the pair, and a marker that
        // sets the bit looks for waiting pairs afterwards (the argument is in `weak/waiting.rs`).
        bits & !self.word(index).fetch_or(bits, Ordering::SeqCst)
    }

    /// As [`Bits::set_word`], where no other thread changes bits of this bitmap meanwhile.
    #[inline(always)]
    pub(super) fn set_word_alone(&self, index: usize, bits: u64) -> u64 {
        let word = self.word(index);
        let before = word.load(Ordering::Relaxed);
        word.store(before | bits, Ordering::Relaxed);
        bits & !before
    }

    /// The bits of a page, a word after the other: the first granule's number in the page, and the
    /// bits from there on.
    #[inline]
    pub(super) fn words_of(&self, page: usize) -> impl Iterator<Item = (usize, u64)> + use<'a> {
        let bits = *self;
        (0..WORDS_PER_PAGE).map(move |word| {
            // Ordering: SeqCst, as in `test_now`: a marker that sees the bit of a cell that was
            // allocated black sees the cell's zeroes.
            let bits = bits
                .word(page * WORDS_PER_PAGE + word)
                .load(Ordering::SeqCst);
            (word * 64, bits)
        })
    }
}
