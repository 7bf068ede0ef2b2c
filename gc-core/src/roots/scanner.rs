//! The scan: words of stacks, tables and callbacks become marked cells.

use core::ops::Range;

use gc_preempt::{RootSink, WalkStats};

use super::declared::visit_tables;
use super::tables::Roots;
use super::visitor::VisitRoots;
use crate::encoding::{Encoding, Encodings};
use crate::heap::{PAGE, Space};
use crate::mark::Marker;
use crate::memory::prefetch::Ring;
use crate::verify::{Source, Verify};

/// The counts of a scan of the roots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Frames, as the walker counts them.
    pub(crate) frames: WalkStats,
    /// Words without a known meaning.
    pub(crate) conservative_words: u64,
    /// Words of slots that a map, a range or a table names.
    pub(crate) exact_words: u64,
    /// Cells that a conservative word was the first to reach.
    pub(crate) conservative_marked: u64,
    /// Cells that an exact word was the first to reach.
    pub(crate) exact_marked: u64,
}

impl Scanned {
    /// Bytes of the scanned words, which the pacer counts as roots.
    pub(crate) fn bytes(&self) -> u64 {
        (self.conservative_words + self.exact_words) * size_of::<usize>() as u64
    }
}

impl core::ops::AddAssign for Scanned {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.conservative_words += other.conservative_words;
        self.exact_words += other.exact_words;
        self.conservative_marked += other.conservative_marked;
        self.exact_marked += other.exact_marked;
    }
}

/// The most words that wait for their lines of the heap's tables.
const WAITING: usize = 32;

/// Marks the cells that roots name. A word may wait in a ring until the scanner ends.
pub(crate) struct Scanner<'a, 'm> {
    space: &'a Space,
    encodings: &'a Encodings,
    marker: &'a mut Marker<'m>,
    /// Addresses that words decode to, whose lines of the heap's tables are prefetched: those of
    /// exact words, and those of conservative words.
    exact: Ring<WAITING>,
    any: Ring<WAITING>,
    verify: Option<&'m Verify>,
    /// Addresses of all pages that were ever in use. No word beyond them names a cell. To look up
    /// such a word would touch a page of the heap's tables for the first time: a page fault in the
    /// stop, for a word that happens to look like an address of the large reserve.
    used: Range<usize>,
    /// Whether the only conservative encoding is RAW: then one compare rules nearly every word out.
    plain: bool,
    pub(crate) scanned: Scanned,
}

impl<'a, 'm> Scanner<'a, 'm> {
    pub(crate) fn new(
        space: &'a Space,
        encodings: &'a Encodings,
        marker: &'a mut Marker<'m>,
        verify: Option<&'m Verify>,
    ) -> Self {
        marker.record(verify);
        Self {
            space,
            encodings,
            marker,
            exact: Ring::new(),
            any: Ring::new(),
            verify,
            used: space.base()..space.base() + space.top() * PAGE,
            plain: space.encodings() == [Encoding::RAW],
            scanned: Scanned::default(),
        }
    }

    pub(crate) fn space(&self) -> &'a Space {
        self.space
    }

    /// Notes that the words that follow come from `source`.
    pub(crate) fn source(&mut self, source: Source) {
        if let Some(verify) = self.verify {
            self.settle();
            verify.source(source);
        }
    }

    /// Marks the cells of the words that wait in the rings.
    fn settle(&mut self) {
        while let Some(address) = self.exact.pop() {
            self.name(address);
        }
        while let Some(address) = self.any.pop() {
            self.may_name(address);
        }
    }

    /// Marks the cells of the words that wait in the rings, and returns the counts.
    pub(crate) fn finish(mut self) -> Scanned {
        self.settle();
        self.scanned
    }

    /// Marks the cell that an exact word's address names, if it names one.
    fn name(&mut self, address: usize) {
        if let Some(cell) = self.space.resolve(address) {
            self.scanned.exact_marked += u64::from(self.marker.cell(cell));
        }
    }

    /// Marks the cell that a conservative word's address names, if it names one.
    fn may_name(&mut self, address: usize) {
        self.scanned.conservative_marked += u64::from(self.marker.interior(address));
    }

    /// Scans ranges and callbacks, as [`visit_tables`] does.
    pub(crate) fn tables(&mut self, roots: &Roots) {
        visit_tables(roots, self);
    }

    /// Prefetches the lines that tell whether an address names a cell. False: it names none.
    fn ask(&self, address: usize) -> bool {
        let is_used = address.wrapping_sub(self.used.start) < self.used.len();
        is_used && self.space.prefetch_cell(address)
    }

    /// Scans one exact word.
    pub(crate) fn word(&mut self, word: usize, encoding: Encoding) {
        self.scanned.exact_words += 1;
        let Some(address) = encoding.decode(word) else {
            return;
        };
        if !seam::asks() {
            self.marker.edge(word, encoding);
        } else if self.ask(address)
            && let Some(oldest) = self.exact.exchange(address)
        {
            self.name(oldest);
        }
    }

    /// Scans a word of a slot whose code another heap has registered, or no heap: the encoding's
    /// number has no meaning here. A word that leads to a cell of this heap has an encoding of this
    /// heap.
    #[cold]
    fn foreign_word(&mut self, word: usize) {
        let encodings = self.encodings;
        for encoding in encodings.all() {
            self.word(word, encoding);
        }
        self.any_word(word);
    }

    /// Scans one conservative word.
    fn any_word(&mut self, word: usize) {
        let space = self.space;
        for encoding in space.encodings() {
            if let Some(address) = encoding.decode(word)
                && self.ask(address)
                && let Some(oldest) = self.any.exchange(address)
            {
                self.may_name(oldest);
            }
        }
    }
}

impl Drop for Scanner<'_, '_> {
    fn drop(&mut self) {
        self.settle();
        self.marker.record(None);
    }
}

impl RootSink for Scanner<'_, '_> {
    fn conservative(&mut self, words: Range<usize>) {
        self.scanned.conservative_words += (words.len() / size_of::<usize>()) as u64;
        // As in `ask`.
        let (base, last) = match self.plain {
            true => (self.used.start, self.used.len().saturating_sub(1)),
            false => (0, usize::MAX),
        };
        for at in words.step_by(size_of::<usize>()) {
            // SAFETY: the walker passes ranges of a stopped thread's stack and register file, which
            // stay mapped while it is stopped. Volatile: any code may have left its words there,
            // initialised or not.
            let word = unsafe { (at as *const usize).read_volatile() };
            if word.wrapping_sub(base) <= last {
                self.any_word(word);
            }
        }
    }

    fn exact(&mut self, slot: usize, encoding: u32) {
        // SAFETY: as above; the slot lies in a frame of the stopped thread.
        let word = unsafe { (slot as *const usize).read_volatile() };
        match self.encodings.numbered(encoding) {
            Some(encoding) => self.word(word, encoding),
            None => self.foreign_word(word),
        }
    }

    fn derived(&mut self, base: usize, _derived: usize, encoding: u32) {
        self.exact(base, encoding);
    }
}

/// Ignores the words that a walk finds: see `stacks.rs`.
pub(crate) struct Unscanned;

impl RootSink for Unscanned {
    fn conservative(&mut self, _words: Range<usize>) {}
    fn exact(&mut self, _slot: usize, _encoding: u32) {}
    fn derived(&mut self, _base: usize, _derived: usize, _encoding: u32) {}
}

impl VisitRoots for Scanner<'_, '_> {
    fn exact_word(&mut self, word: usize, encoding: Encoding) {
        self.word(word, encoding);
    }

    fn any_words(&mut self, words: Range<usize>) {
        self.conservative(words);
    }
}

mod seam {
    use crate::fault::Fault;

    /// Asks whether a word names a cell.
    #[inline(always)]
    pub(super) fn asks() -> bool {
        !Fault::TrustRoots.planted()
    }
}
