//! A bitmap: one bit for each granule of the address range, with operations on one bit, on the bits
//! of a run, and on the bits of a span.
//!
//! The bit of a cell is the bit of its first granule. The other bits of a cell are clear. A page
//! has 256 granules, so the bits of a span begin at the first bit of a word.

use std::sync::atomic::{AtomicU64, Ordering};

use super::size_classes::{Class, GRANULE, PAGE};
use crate::memory::os::{MapError, Table};

/// Bitmap words of a page.
pub(crate) const WORDS_PER_PAGE: usize = PAGE / GRANULE / 64;

/// Bytes of the heap, from its start on, whose bits lie in system pages. A huge page has the bits
/// of 256 MiB, so a smaller heap would have more memory in bits than in cells. Beyond this, marking
/// gains by huge pages (docs/experiments.md).
const SMALL_PAGES: usize = 512 << 20;

/// Pages of the heap whose bits fill a bitmap page: a system page of a bitmap.
pub(crate) const PAGES_PER_BITMAP_PAGE: usize = 4096 / (WORDS_PER_PAGE * size_of::<u64>());

/// One bit for each granule of the address range.
pub(crate) struct Bitmap {
    words: Table<AtomicU64>,
}

impl Bitmap {
    pub(crate) fn new(pages: usize, huge_pages: bool) -> Result<Bitmap, MapError> {
        let words = Table::reserve(pages * WORDS_PER_PAGE)?;
        if huge_pages {
            words.prefer_huge_pages_from(SMALL_PAGES / PAGE * WORDS_PER_PAGE);
        }
        Ok(Bitmap { words })
    }

    /// See [`Table::make_writable`].
    pub(super) fn make_writable(&self, pages: usize) -> Result<(), MapError> {
        self.words.make_writable(pages * WORDS_PER_PAGE)
    }

    /// See [`Table::back`].
    pub(super) fn back(&self, first: usize, pages: usize) -> bool {
        self.words
            .back(first * WORDS_PER_PAGE, pages * WORDS_PER_PAGE)
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        self.words.addresses()
    }

    /// The address of the first word.
    pub(crate) fn words(&self) -> *const AtomicU64 {
        self.words.at(0)
    }

    #[inline(always)]
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: callers pass words of pages inside the address range; zeroed memory is a valid
        // AtomicU64.
        unsafe { &*self.words.at(index) }
    }

    /// The bit of the granule at byte `offset` of the address range.
    #[inline(always)]
    pub(crate) fn test(&self, offset: usize) -> bool {
        let granule = offset / GRANULE;
        // Ordering: Relaxed. Bits are read in a stop, which orders everything, or by markers, which
        // use them only to skip work.
        self.word(granule / 64).load(Ordering::Relaxed) & (1 << (granule % 64)) != 0
    }

    /// Sets the bit. `true`: it was clear. The bit is tested before the atomic `or`, since most
    /// edges lead to marked cells, and a locked instruction costs as much as a cache miss.
    #[inline(always)]
    pub(crate) fn set(&self, offset: usize) -> bool {
        let granule = offset / GRANULE;
        let (word, bit) = (self.word(granule / 64), 1u64 << (granule % 64));
        // Ordering: Relaxed, as in `test`. Of several markers exactly one sees the bit change.
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// The word that holds the bit of the granule at byte `offset`, and the bit.
    #[inline(always)]
    pub(crate) fn place(offset: usize) -> (usize, u64) {
        let granule = offset / GRANULE;
        (granule / 64, 1 << (granule % 64))
    }

    /// Prefetches the cache line of a bit.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: usize) {
        crate::memory::prefetch::prefetch(self.words.at(offset / GRANULE / 64) as usize);
    }

    /// Clears bits of a word that no other thread changes meanwhile.
    pub(crate) fn clear_in(&self, index: usize, bits: u64) {
        let word = self.word(index);
        word.store(word.load(Ordering::Relaxed) & !bits, Ordering::Relaxed);
    }

    /// Sets or clears the bit of the first granule of a page, as `on` says. The page has no other
    /// cell. By the owner of the page.
    pub(crate) fn write_first(&self, page: usize, on: bool) {
        self.word(page * WORDS_PER_PAGE)
            .store(on.into(), Ordering::Relaxed);
    }

    /// Clears all bits of `count` pages from `first` on, word by word. No other thread changes them
    /// meanwhile.
    pub(crate) fn clear_pages(&self, first: usize, count: usize) {
        for word in first * WORDS_PER_PAGE..(first + count) * WORDS_PER_PAGE {
            self.word(word).store(0, Ordering::Relaxed);
        }
    }

    /// Gives the bits of `count` pages back to the system, as whole bitmap pages.
    ///
    /// # Safety
    /// All those bits are clear, and no thread sets one meanwhile.
    pub(crate) unsafe fn discard_pages(&self, first: usize, count: usize) {
        // SAFETY: forwarded. The bits are zero before and after, also if the system refuses.
        unsafe {
            self.words
                .discard_part(first * WORDS_PER_PAGE, count * WORDS_PER_PAGE)
        };
    }

    /// Has the system back the bits beyond the first 512 MiB of the heap by huge pages again, where
    /// parts of them have gone back.
    pub(super) fn use_huge_pages_again(&self) {
        self.words
            .use_huge_pages_again(SMALL_PAGES / PAGE * WORDS_PER_PAGE);
    }

    /// The bits of a span's cells.
    pub(crate) fn span<'a>(&'a self, first_page: usize, class: &'a Class) -> SpanBits<'a> {
        SpanBits {
            bitmap: self,
            first_word: first_page * WORDS_PER_PAGE,
            class,
        }
    }
}

/// Bits at the multiples of `stride` (below 64), from bit 0.
const PATTERNS: [u64; 64] = {
    let mut patterns = [1u64; 64];
    let mut stride = 1;
    while stride < 64 {
        let mut bit = 0;
        while bit < 64 {
            patterns[stride] |= 1 << bit;
            bit += stride;
        }
        stride += 1;
    }
    patterns
};

/// Takes the first run of neighbouring cells out of `bits`, which are bits of cells at distances of
/// `stride`. Returns the bits of the run.
#[inline]
pub(crate) fn take_first_run(bits: &mut u64, stride: usize) -> u64 {
    let first = bits.trailing_zeros();
    let missing = (PATTERNS[stride] << first) & !*bits;
    // If no cell is missing, the shift is by 64, and all remaining bits belong to the run.
    let before = 1u64
        .checked_shl(missing.trailing_zeros())
        .map_or(u64::MAX, |bit| bit - 1);
    let run = *bits & before;
    *bits &= !before;
    run
}

/// How many of a span's cells are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occupancy {
    Empty,
    Partial,
    Full,
}

/// See [`Bitmap::span`].
pub(crate) struct SpanBits<'a> {
    bitmap: &'a Bitmap,
    first_word: usize,
    class: &'a Class,
}

impl SpanBits<'_> {
    #[inline(always)]
    fn load(&self, word: usize) -> u64 {
        self.bitmap
            .word(self.first_word + word)
            .load(Ordering::Relaxed)
    }

    /// The cell whose first granule is `bit`.
    #[inline(always)]
    pub(crate) fn cell_at(&self, bit: usize) -> usize {
        self.class.index_of(bit * GRANULE)
    }

    /// Calls `f(word, mask)` for each word that has bits of the cells `[from, to)`, until `f`
    /// returns `false`.
    #[inline(always)]
    fn masks(&self, from: usize, to: usize, mut f: impl FnMut(usize, u64) -> bool) {
        let stride = self.class.stride();
        if stride >= 64 {
            for cell in from..to {
                let bit = cell * stride;
                if !f(bit / 64, 1 << (bit % 64)) {
                    return;
                }
            }
            return;
        }
        let (first, end) = (from * stride, to * stride);
        let mut start = first;
        while start < end {
            let word = start / 64;
            // `start` is the bit of a cell, and the pattern has the bits of its followers in this
            // word. The bits of the cells from `to` on are cut off.
            let mut mask = PATTERNS[stride] << (start % 64);
            if end - word * 64 < 64 {
                mask &= (1u64 << (end - word * 64)) - 1;
            }
            if !f(word, mask) {
                return;
            }
            // The bit of the first cell at or after the start of the next word.
            start += ((word + 1) * 64 - start).div_ceil(stride) * stride;
        }
    }

    /// The first cell from `from` on whose bit is clear.
    pub(crate) fn next_clear(&self, from: usize) -> Option<usize> {
        let mut found = None;
        self.masks(from, self.class.cells as usize, |word, mask| {
            let clear = mask & !self.load(word);
            if clear != 0 {
                found = Some(self.cell_at(word * 64 + clear.trailing_zeros() as usize));
            }
            clear == 0
        });
        found
    }

    /// The first cell in `[from, to)` whose bit is set, or `to`.
    pub(crate) fn next_set(&self, from: usize, to: usize) -> usize {
        let mut found = to;
        self.masks(from, to, |word, mask| {
            let set = mask & self.load(word);
            if set != 0 {
                found = self.cell_at(word * 64 + set.trailing_zeros() as usize);
            }
            set == 0
        });
        found
    }

    /// The first word from the cell `from` on that has a clear bit: its number in the span, the
    /// bits of its clear cells, and whether every cell of the word from the first of them on is
    /// clear. For classes with several cells in a word.
    pub(crate) fn next_word_with_clear(&self, from: usize) -> Option<(usize, u64, bool)> {
        let mut found = None;
        self.masks(from, self.class.cells as usize, |word, mask| {
            let clear = mask & !self.load(word);
            if clear != 0 {
                found = Some((
                    word,
                    clear,
                    clear == mask & u64::MAX << clear.trailing_zeros(),
                ));
            }
            clear == 0
        });
        found
    }

    /// The first cell whose bit lies behind a word.
    pub(crate) fn cell_after(&self, word: usize) -> usize {
        ((word + 1) * 64).div_ceil(self.class.stride())
    }

    /// [`set_cells`](Self::set_cells) for cells of one word.
    pub(crate) fn set_in_word(&self, word: usize, bits: u64) {
        let word = self.bitmap.word(self.first_word + word);
        // Ordering: Release, as in `set_cells`.
        word.fetch_or(bits, Ordering::Release);
    }

    /// [`set_cells_alone`](Self::set_cells_alone) for cells of one word.
    pub(crate) fn set_in_word_alone(&self, word: usize, bits: u64) {
        let word = self.bitmap.word(self.first_word + word);
        word.store(word.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
    }

    /// [`clear_cells_alone`](Self::clear_cells_alone) for cells of one word.
    pub(crate) fn clear_in_word_alone(&self, word: usize, bits: u64) {
        self.bitmap.clear_in(self.first_word + word, bits);
    }

    /// Copies the bits of the same span from another bitmap. No thread changes either meanwhile.
    pub(crate) fn copy_from(&self, other: &SpanBits<'_>) {
        for word in 0..self.class.pages as usize * WORDS_PER_PAGE {
            let here = self.bitmap.word(self.first_word + word);
            here.store(other.load(word), Ordering::Relaxed);
        }
    }

    /// Whether none, some or all bits are set. A mixed span takes a look at a word or two.
    pub(crate) fn occupancy(&self) -> Occupancy {
        let (mut any, mut all) = (false, true);
        self.masks(0, self.class.cells as usize, |word, mask| {
            let set = mask & self.load(word);
            any |= set != 0;
            all &= set == mask;
            all || !any
        });
        match (any, all) {
            (false, _) => Occupancy::Empty,
            (true, false) => Occupancy::Partial,
            (true, true) => Occupancy::Full,
        }
    }

    /// The number of set bits.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        let mut count = 0;
        self.masks(0, self.class.cells as usize, |word, mask| {
            count += (mask & self.load(word)).count_ones() as usize;
            true
        });
        count
    }

    /// Sets the bits of the cells `[from, to)`, which no other thread can find, in a bitmap that
    /// other threads change, too: mark bits while marking.
    pub(crate) fn set_cells(&self, from: usize, to: usize) {
        let stride = self.class.stride();
        // The mask of a word whose cells are all in `[from, to)`. No other thread has a reason to
        // change such a word, so a plain store does, which is cheaper than a locked instruction
        // (see `set_cells_alone`).
        let whole = if stride < 64 && stride.is_power_of_two() {
            PATTERNS[stride]
        } else {
            0
        };
        self.masks(from, to, |word, mask| {
            let word = self.bitmap.word(self.first_word + word);
            // Ordering: Release. A marker whose queue overflowed looks for marked cells by their
            // bits, and must then find the cells cleared.
            if mask == whole {
                word.store(mask, Ordering::Release);
            } else {
                word.fetch_or(mask, Ordering::Release);
            }
            true
        });
    }

    /// Sets the bits of the cells `[from, to)`. No other thread changes a word of this span
    /// meanwhile: these are allocated bits, set by the span's owner. An atomic `or` would wait for
    /// all stores before it, and a refill that clears cells makes hundreds of stores that miss the
    /// caches.
    pub(crate) fn set_cells_alone(&self, from: usize, to: usize) {
        self.masks(from, to, |word, mask| {
            // Ordering: Relaxed. Another thread reads the word in a stop, or after it has got a
            // cell of the word from this thread.
            let word = self.bitmap.word(self.first_word + word);
            word.store(word.load(Ordering::Relaxed) | mask, Ordering::Relaxed);
            true
        });
    }

    /// Clears the bits of the cells `[from, to)`. No other thread changes a word of this span
    /// meanwhile.
    pub(crate) fn clear_cells_alone(&self, from: usize, to: usize) {
        self.masks(from, to, |word, mask| {
            // Ordering: Relaxed, as above.
            self.bitmap.clear_in(self.first_word + word, mask);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::size_classes::TABLE;
    use super::*;
    use proptest::prelude::*;

    /// The first run of clear cells from `from` on, cell by cell.
    fn naive(class: &Class, set: &[bool], from: usize) -> Option<(usize, usize)> {
        let start = (from..class.cells as usize).find(|&c| !set[c])?;
        let end = (start..class.cells as usize)
            .find(|&c| set[c])
            .unwrap_or(class.cells as usize);
        Some((start, end))
    }

    proptest! {
        /// Searches, counts and changes of a span's bits agree with a search cell by cell, for
        /// every size class, and change no other bit.
        #[test]
        fn runs_are_the_naive_ones(
            class in 0..TABLE.len(),
            density in prop_oneof![1 => Just(0.0), 1 => Just(1.0), 6 => 0.0f64..1.0],
            seed in any::<u64>(),
            from in any::<prop::sample::Index>(),
        ) {
            let class = &TABLE[class];
            let cells = class.cells as usize;
            let mut state = seed | 1;
            let mut random = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            let set: Vec<bool> = (0..cells).map(|_| random() < density).collect();
            let bitmap = Bitmap::new(192, true).unwrap();
            bitmap.make_writable(192).unwrap();
            let bits = bitmap.span(64, class);
            for (cell, _) in set.iter().enumerate().filter(|(_, s)| **s) {
                prop_assert!(bitmap.set(64 * PAGE + cell * class.size as usize));
            }
            let live = set.iter().filter(|s| **s).count();
            prop_assert_eq!(bits.count(), live);
            let occupancy = match live {
                0 => Occupancy::Empty,
                _ if live == cells => Occupancy::Full,
                _ => Occupancy::Partial,
            };
            prop_assert_eq!(bits.occupancy(), occupancy);
            let from = from.index(cells);
            let found = bits.next_clear(from).map(|start| (start, bits.next_set(start, cells)));
            prop_assert_eq!(found, naive(class, &set, from));
            if let Some((start, end)) = found {
                bits.set_cells(start, end);
                for (cell, before) in set.iter().enumerate() {
                    let expected = *before || (start..end).contains(&cell);
                    prop_assert_eq!(bitmap.test(64 * PAGE + cell * class.size as usize), expected);
                }
                // The set bits are those of cells, and none lies outside the span.
                let all: u32 = (0..192 * WORDS_PER_PAGE).map(|w| bitmap.word(w).load(Ordering::Relaxed).count_ones()).sum();
                prop_assert_eq!(all as usize, bits.count());
                bits.clear_cells_alone(start, end);
                prop_assert_eq!(bits.count(), set.iter().filter(|s| **s).count());
                bits.set_cells_alone(start, end);
                prop_assert_eq!(bits.count(), all as usize);
                bits.clear_cells_alone(start, end);
                prop_assert_eq!(bits.count(), set.iter().filter(|s| **s).count());
            }
        }
    }
}
