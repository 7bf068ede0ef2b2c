//! Notes which cells were allocated black: the rest of each mutator's runs at stop 1, and the cells
//! taken while marking is on.
//!
//! Such a cell is marked without a look at it, and most of these cells may be dead when marking
//! ends. So they are noted, and their marks are cleared before a young collection marks. A cell is
//! old only if it was made before the last collection's stop 1 and was found alive by it. If cells
//! that were allocated black became old at once, all that mutators allocate while a whole
//! collection marks would stay until the next whole one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use super::bitmap::Bitmap;
use crate::memory::MapError;
use crate::memory::tables::Mapped;

/// Bytes of the heap for each entry that there is room for. A run has 8 KiB; where live and dead
/// cells are mixed an entry stands for 1 KiB at most.
const BYTES_AN_ENTRY: usize = 2048;

/// The most entries.
const MOST: usize = 8 << 20;

/// Set in the first word of an entry that is a range of granules; the second word is their number.
/// Without it the first word is the number of a bitmap word, and the second one has the bits.
const RANGE: usize = 1;

/// The notes. Mutators add to them under `no_preempt` while marking; the collector reads them in
/// the next cycle.
pub(crate) struct AllocatedBlack {
    entries: Mapped<AtomicUsize>,
    /// The number of entries that were asked for, also those that did not fit. It has a cache line
    /// of its own, since each refill reads the fields beside it.
    len: CachePadded<AtomicUsize>,
    peak: AtomicUsize,
    /// Cells are noted, since the next collection might be young. Changes in stops.
    noting: AtomicBool,
}

impl AllocatedBlack {
    /// Notes for a heap of `heap_bytes` bytes of addresses.
    pub(crate) fn new(heap_bytes: usize) -> Result<AllocatedBlack, MapError> {
        let entries = seam::entries((heap_bytes / BYTES_AN_ENTRY).min(MOST));
        Ok(AllocatedBlack {
            entries: Mapped::growing(2 * entries)?,
            len: CachePadded::default(),
            peak: AtomicUsize::new(0),
            noting: AtomicBool::new(false),
        })
    }

    /// Stop 1: begins with no notes. `notes` says whether cells are noted from now on.
    pub(crate) fn begin(&self, notes: bool) {
        self.noting.store(notes, Ordering::Relaxed);
        // Relaxed, here and below: a stop lies between the note and the thread that reads it.
        let len = self.len.swap(0, Ordering::Relaxed);
        self.peak.fetch_max(len, Ordering::Relaxed);
    }

    /// The most bytes that the notes ever took.
    pub(super) fn peak_bytes(&self) -> usize {
        let most = self
            .peak
            .load(Ordering::Relaxed)
            .max(self.len.load(Ordering::Relaxed));
        (2 * most).min(self.entries.len()) * size_of::<usize>()
    }

    /// By the collector between cycles: gives the memory of a longer list back, if that is more
    /// than `keep` bytes. Returns how many bytes.
    pub(crate) fn trim(&self, keep: u64) -> u64 {
        const PAGE: usize = 4096;
        let len = (2 * self.len.load(Ordering::Relaxed)).min(self.entries.len());
        let kept = (len * size_of::<usize>()).next_multiple_of(PAGE);
        let gone = self
            .peak_bytes()
            .next_multiple_of(PAGE)
            .saturating_sub(kept);
        if gone == 0 || gone as u64 <= keep {
            return 0;
        }
        let elements = kept / size_of::<usize>()..(kept + gone) / size_of::<usize>();
        let elements = elements.start..elements.end.min(self.entries.len());
        self.peak.store(len / 2, Ordering::Relaxed);
        // SAFETY: whole system pages of entries that no thread reads, and none is written before
        // the next cycle.
        unsafe { self.entries.discard(elements) };
        gone as u64
    }

    /// Whether every cell that was allocated black is noted. It is not so if there were more than
    /// there is room for.
    pub(crate) fn are_known(&self) -> bool {
        let fit = 2 * self.len.load(Ordering::Relaxed) <= self.entries.len();
        self.noting.load(Ordering::Relaxed) && (fit || !seam::knows_its_room())
    }

    pub(super) fn note_range(&self, first_granule: usize, granules: usize) {
        self.note(first_granule << 1 | RANGE, granules);
    }

    pub(super) fn note(&self, what: usize, how: usize) {
        if !self.noting.load(Ordering::Relaxed) {
            return;
        }
        let at = 2 * self.len.fetch_add(1, Ordering::Relaxed);
        let Some([first, second]) = self.entries.get(at..at + 2) else {
            return;
        };
        if at + 2 > self.entries.writable() && self.entries.make_writable(at + 2).is_err() {
            // Without memory the notes are not complete, and [`AllocatedBlack::are_known`] says so.
            self.len.fetch_max(self.entries.len(), Ordering::Relaxed);
            return;
        }
        first.store(what, Ordering::Relaxed);
        second.store(how, Ordering::Relaxed);
    }

    /// Clears the marks of all noted cells. By one thread, while no thread marks, and only if the
    /// notes are complete.
    pub(super) fn unmark(&self, marks: &Bitmap) {
        let len = 2 * self.len.load(Ordering::Relaxed);
        let (entries, _) = self.entries[..len.min(self.entries.len())].as_chunks::<2>();
        for [first, second] in entries {
            let (first, second) = (
                first.load(Ordering::Relaxed),
                second.load(Ordering::Relaxed),
            );
            if first & RANGE == 0 {
                marks.clear_in(first >> 1, second as u64);
                continue;
            }
            let (mut granule, end) = (first >> 1, (first >> 1) + second);
            while granule < end {
                let next = (granule + 1).next_multiple_of(64).min(end);
                let bits = u64::MAX >> (64 - (next - granule)) << (granule % 64);
                marks.clear_in(granule / 64, bits);
                granule = next;
            }
        }
    }
}

mod seam {
    use crate::fault::Fault;

    /// Not a planted fault: the tests of a full list need a short one.
    pub(super) fn entries(entries: usize) -> usize {
        if Fault::ShortAllocatedBlack.planted() {
            3
        } else {
            entries
        }
    }

    /// Knows that there were more cells than there is room for.
    pub(super) fn knows_its_room() -> bool {
        !Fault::AllocatedBlackForgotten.planted()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bitmap::WORDS_PER_PAGE;
    use super::super::size_classes::{GRANULE, PAGE};
    use super::*;

    /// `unmark` clears exactly the bits of the ranges and words that were noted.
    #[test]
    fn the_bits_of_ranges_and_words_are_cleared_and_no_others() {
        let allocated_black = AllocatedBlack::new(1 << 20).unwrap();
        allocated_black.note_range(5, 1);
        assert_eq!(allocated_black.peak_bytes(), 0, "cells are not noted yet");
        allocated_black.begin(true);
        let bits = Bitmap::new(8, true).unwrap();
        bits.make_writable(8).unwrap();
        let mut expected = vec![true; 8 * PAGE / GRANULE];
        let fill = |bits: &Bitmap| {
            (0..8 * WORDS_PER_PAGE).for_each(|w| {
                bits.word(w).store(u64::MAX, Ordering::Relaxed);
            })
        };
        fill(&bits);
        for (first, count) in [(0, 1), (63, 2), (130, 62), (256, 64), (400, 300), (1023, 1)] {
            allocated_black.note_range(first, count);
            expected[first..first + count].fill(false);
        }
        allocated_black.note(17 << 1, 0x8000_0000_0000_0101);
        for bit in [0, 8, 63] {
            expected[17 * 64 + bit] = false;
        }
        allocated_black.unmark(&bits);
        for (granule, expected) in expected.iter().enumerate() {
            assert_eq!(bits.test(granule * GRANULE), *expected, "granule {granule}");
        }
        allocated_black.begin(true);
        fill(&bits);
        allocated_black.unmark(&bits);
        assert!(bits.test(0) && bits.test(63 * GRANULE));
        assert_eq!(allocated_black.peak_bytes(), 7 * 16);
    }

    /// A record that is full says that cells are unknown, until the next cycle begins.
    #[test]
    fn more_than_there_is_room_for_are_noticed() {
        let allocated_black = AllocatedBlack::new(8 * BYTES_AN_ENTRY).unwrap();
        assert!(!allocated_black.are_known());
        allocated_black.begin(true);
        for granule in 0..8 {
            allocated_black.note_range(granule, 1);
            assert!(allocated_black.are_known());
        }
        allocated_black.note_range(8, 1);
        assert!(!allocated_black.are_known());
        assert_eq!(allocated_black.peak_bytes(), 8 * 16);
        allocated_black.begin(true);
        assert!(allocated_black.are_known());
        allocated_black.begin(false);
        assert!(!allocated_black.are_known());
    }
}
