//! The page table: one word for each page of the address range, from which an address finds its
//! cell.
//!
//! ```text
//! free    0
//! small   01 | - | class (7 bits) | distance (6) | kind (16)
//! large   10 | distance (30)
//! ```
//!
//! `distance` counts pages back to the first one of the span. A word is stored last, after
//! everything that it leads to (Release), and zeroed first: an address in a span that is not
//! published names nothing.

use std::sync::atomic::{AtomicU32, Ordering};

use super::size_classes::PAGE;
use crate::kind::KindId;
use crate::memory::os::{MapError, Table};

/// So many pages have 2 MiB of words, more than a core's own cache holds. Of a heap that lies at
/// random over more, cells are marked sooner when each word is asked for ahead, together with the
/// mark bit. `gclab mark MIB --concurrent`, seconds that a cycle marks (medians; runs in
/// alternation), without and with:
///
/// | MiB of cells, GiB that they lie on | without | with |
/// |---|---|---|
/// | 4,096 on 12 | 12.5 13.0 | 8.0 7.7 |
/// | 1,024 on 5 | 1.86 1.49 1.74 | 1.48 1.37 1.29 |
/// | the same in another hour | 1.47 1.27 1.38 | 1.37 1.25 1.29 |
/// | 256 on 1 | 0.30 0.25 0.34 | 0.24 0.27 0.25 |
///
/// Of the two runs of 4 GiB the second had huge pages for these words, which changed nothing. In
/// small heaps, and where cells lie in the order in which they are met, it costs up to 4 %, some of
/// which is the code's layout.
const FAR: usize = (2 << 30) / PAGE;

/// Do markers ask for words ahead in a heap that reaches so far?
pub(super) fn are_far(pages: usize) -> bool {
    pages > FAR
}

/// What a page's word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// Nothing is published here.
    Free,
    /// Part of a span of equal cells.
    Small {
        class: usize,
        distance: usize,
        kind: KindId,
    },
    /// Part of a large object.
    Large { distance: usize },
}

impl Page {
    #[inline(always)]
    pub(crate) fn decode(word: u32) -> Page {
        match word >> 30 {
            1 => Page::Small {
                class: (word >> 22 & 0x7f) as usize,
                distance: (word >> 16 & 0x3f) as usize,
                kind: KindId(word as u16),
            },
            2 => Page::Large {
                distance: (word & 0x3fff_ffff) as usize,
            },
            _ => Page::Free,
        }
    }

    fn encode(self) -> u32 {
        match self {
            Page::Free => 0,
            Page::Small {
                class,
                distance,
                kind,
            } => 1 << 30 | (class as u32) << 22 | (distance as u32) << 16 | kind.0 as u32,
            Page::Large { distance } => 2 << 30 | distance as u32,
        }
    }
}

/// See the module's head.
pub(crate) struct PageTable {
    words: Table<AtomicU32>,
}

impl PageTable {
    /// See [`Table::back`].
    pub(super) fn back(&self, first: usize, pages: usize) -> bool {
        self.words.back(first, pages)
    }

    /// See [`Table::make_writable`].
    pub(super) fn make_writable(&self, pages: usize) -> Result<(), MapError> {
        self.words.make_writable(pages)
    }

    /// Gives the words of free pages back to the system, whole pages of them.
    ///
    /// # Safety
    /// The caller owns the pages, and all those words are zero.
    pub(super) unsafe fn discard(&self, first: usize, count: usize) {
        // SAFETY: forwarded. Who reads a word meanwhile reads zero, before and after.
        unsafe { self.words.discard_part(first, count) };
    }

    pub(crate) fn new(pages: usize) -> Result<PageTable, MapError> {
        Ok(PageTable {
            words: Table::reserve(pages)?,
        })
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        self.words.addresses()
    }

    #[inline(always)]
    pub(crate) fn word(&self, page: usize) -> &AtomicU32 {
        // SAFETY: callers pass pages of the address range; zeroed memory is a valid AtomicU32.
        unsafe { &*self.words.at(page) }
    }

    /// Asks for a page's word.
    #[inline(always)]
    pub(crate) fn prefetch(&self, page: usize) {
        crate::memory::prefetch::prefetch(self.words.at(page) as usize);
    }

    #[inline(always)]
    pub(crate) fn get(&self, page: usize) -> Page {
        // Ordering: Acquire pairs with the Release in `set`: who sees the word sees the span's
        // record.
        Page::decode(self.word(page).load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, page: usize, value: Page) {
        // Ordering: Release publishes the record and the bitmap words that were prepared before.
        self.word(page).store(value.encode(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_was_stored() {
        for page in [
            Page::Free,
            Page::Small {
                class: 0,
                distance: 0,
                kind: KindId(0),
            },
            Page::Small {
                class: 71,
                distance: 63,
                kind: KindId(u16::MAX),
            },
            Page::Large { distance: 0 },
            Page::Large {
                distance: crate::limits::MAX_PAGES - 1,
            },
        ] {
            assert_eq!(Page::decode(page.encode()), page);
        }
    }
}
