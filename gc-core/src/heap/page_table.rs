//! The page table: one word for each page of the address range, from which an address finds its
//! cell.
//!
//! ```text
//! free    0
//! small   01 | - | class (7 bits) | distance (6) | kind (16)
//! large   10 | distance (30)
//! ```
//!
//! `distance` counts the pages back to the first page of the span. A word is stored after
//! everything that it leads to (Release), and is made zero first. So an address in a span that is
//! not published names nothing. Markers do not prefetch these words: docs/experiments.md.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::kind::KindId;
use crate::memory::os::{MapError, Table};

/// What a page's word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// No cell is published here.
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

    /// Gives the words of free pages back to the system, as whole system pages.
    ///
    /// # Safety
    /// The caller owns the pages, and all those words are zero.
    pub(super) unsafe fn discard(&self, first: usize, count: usize) {
        // SAFETY: forwarded. A thread that reads a word meanwhile reads zero, before and after.
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

    #[inline(always)]
    pub(crate) fn get(&self, page: usize) -> Page {
        // Ordering: Acquire pairs with the Release in `set`: a thread that reads the word can read
        // the span's record.
        Page::decode(self.word(page).load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, page: usize, value: Page) {
        // Ordering: Release publishes the record and the bitmap words that were written before.
        self.word(page).store(value.encode(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word of the page table decodes to the page that was encoded.
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
