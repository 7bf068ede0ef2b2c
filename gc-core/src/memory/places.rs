//! Which places of a table are in use: numbers that come and go, in mapped memory, under a lock of
//! the owner's.
//!
//! ```text
//! page, 512 places:  [ a bit a place | how many are used | neighbours in its list ]
//!
//! open:   pages with used and free places      the next place comes from here,
//! empty:  pages with free places only          or else from here, or else from a page that was never used
//! full pages are in no list
//! ```
//! What a table costs after a peak is what is left of it: [`Places::trim_piece`] gives the memory
//! of empty pages back and forgets those beyond the last that is used, so that who walks the table
//! walks the others. Rejected: links through the free places themselves. A table's free places
//! would have to be sorted before the table could shrink, and to walk the table would touch each of
//! them.

use core::ops::Range;

use crate::memory::os::{MapError, Table};

/// Places of a page: a page of words is a page of memory, and one of any larger element whole
/// pages.
pub(crate) const PAGE: usize = 512;

/// Pages that [`Places::trim_piece`] looks at under one lock.
const TRIM: usize = 256;

struct Page {
    used: [u64; PAGE / 64],
    count: u32,
    /// The pages before and after it in its list, plus one; 0: none.
    previous: u32,
    next: u32,
    /// A place of it has been used since its memory was given back last.
    touched: bool,
}

/// The places of one table.
pub(crate) struct Places {
    /// Zero: an empty page.
    pages: Table<Page>,
    len: usize,
    /// Pages from here on are empty, untouched and in no list.
    high: usize,
    /// The lists' first pages, plus one; 0: none.
    open: u32,
    empty: u32,
    used: usize,
    /// Pages that became empty since the last trim.
    emptied: bool,
}

impl Places {
    /// `len` places, all free.
    pub(crate) fn new(len: usize) -> Result<Self, MapError> {
        Ok(Self {
            pages: Table::new(len.div_ceil(PAGE))?,
            len,
            high: 0,
            open: 0,
            empty: 0,
            used: 0,
            emptied: false,
        })
    }

    /// How many are used.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// No place from here on is used.
    pub(crate) fn end(&self) -> usize {
        (self.high * PAGE).min(self.len)
    }

    fn page(&self, page: usize) -> &Page {
        // SAFETY: callers name pages of the table; zeroed memory is an empty page; `self` is
        // borrowed.
        unsafe { &*self.pages.at(page) }
    }

    fn page_mut(&mut self, page: usize) -> &mut Page {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { &mut *self.pages.at(page) }
    }

    /// The list that a page with free places is in.
    fn list(&mut self, is_empty: bool) -> &mut u32 {
        if is_empty {
            &mut self.empty
        } else {
            &mut self.open
        }
    }

    fn link(&mut self, page: usize) {
        let is_empty = self.page(page).count == 0;
        let next = core::mem::replace(self.list(is_empty), page as u32 + 1);
        (self.page_mut(page).previous, self.page_mut(page).next) = (0, next);
        if next != 0 {
            self.page_mut(next as usize - 1).previous = page as u32 + 1;
        }
    }

    /// Takes a page out of its list. Before its count changes.
    fn unlink(&mut self, page: usize) {
        let (previous, next) = (self.page(page).previous, self.page(page).next);
        let is_empty = self.page(page).count == 0;
        match previous {
            0 => *self.list(is_empty) = next,
            previous => self.page_mut(previous as usize - 1).next = next,
        }
        if next != 0 {
            self.page_mut(next as usize - 1).previous = previous;
        }
    }

    /// Places of a page: fewer than [`PAGE`] in the last one.
    fn room(&self, page: usize) -> usize {
        PAGE.min(self.len - page * PAGE)
    }

    /// A free place, which is used from now on. `None`: there is none.
    pub(crate) fn take(&mut self) -> Option<usize> {
        let listed = if self.open != 0 {
            self.open
        } else {
            self.empty
        };
        let page = match (listed as usize).checked_sub(1) {
            Some(page) => page,
            None if self.high * PAGE < self.len => {
                self.high += 1;
                self.link(self.high - 1);
                self.high - 1
            }
            None => return None,
        };
        let words = &self.page(page).used;
        let word = words.iter().position(|word| *word != !0)?;
        let bit = words[word].trailing_ones();
        let was_empty = self.page(page).count == 0;
        if was_empty {
            self.unlink(page);
        }
        let room = self.room(page);
        let entry = self.page_mut(page);
        entry.used[word] |= 1 << bit;
        entry.count += 1;
        entry.touched = true;
        let is_full = entry.count as usize == room;
        if is_full && !was_empty {
            self.unlink(page);
        } else if !is_full && was_empty {
            self.link(page);
        }
        self.used += 1;
        Some(page * PAGE + word * 64 + bit as usize)
    }

    /// Frees a place. `false`: it is free.
    pub(crate) fn give(&mut self, place: usize) -> bool {
        if !self.is_used(place) {
            return false;
        }
        let (page, at) = (place / PAGE, place % PAGE);
        let room = self.room(page);
        let count = self.page(page).count as usize;
        if count < room && count == 1 {
            self.unlink(page);
        }
        let entry = self.page_mut(page);
        entry.used[at / 64] &= !(1 << (at % 64));
        entry.count -= 1;
        if count == room || count == 1 {
            self.link(page);
        }
        self.emptied |= count == 1;
        self.used -= 1;
        true
    }

    /// Is the place used?
    pub(crate) fn is_used(&self, place: usize) -> bool {
        let (page, at) = (place / PAGE, place % PAGE);
        page < self.high && self.page(page).used[at / 64] & 1 << (at % 64) != 0
    }

    /// The first used place from `from` on, below `end`.
    pub(crate) fn next(&self, from: usize, end: usize) -> Option<usize> {
        let end = end.min(self.end());
        let mut at = from;
        while at < end {
            let page = self.page(at / PAGE);
            if page.count == 0 {
                at = (at / PAGE + 1) * PAGE;
                continue;
            }
            let left = page.used[at % PAGE / 64] >> (at % 64);
            if left != 0 {
                at += left.trailing_zeros() as usize;
                return (at < end).then_some(at);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Gives memory back, of `TRIM` pages from page `from` on: calls `discard` with the places of
    /// each stretch of pages that are empty. Says where to go on, if that is not the end. Outside
    /// of stops; the owner's lock may be let go of between two pieces.
    pub(crate) fn trim_piece(
        &mut self,
        from: usize,
        mut discard: impl FnMut(Range<usize>),
    ) -> Option<usize> {
        if from == 0 && !core::mem::take(&mut self.emptied) {
            return None;
        }
        let end = (from + TRIM).min(self.high);
        let mut page = from;
        while page < end {
            let first = page;
            while page < end && self.page(page).count == 0 && self.page(page).touched {
                self.page_mut(page).touched = false;
                page += 1;
            }
            if page > first {
                discard(first * PAGE..(page * PAGE).min(self.len));
            }
            page += 1;
        }
        if end < self.high {
            return Some(end);
        }
        while let Some(last) = self.high.checked_sub(1)
            && self.page(last).count == 0
            && !self.page(last).touched
        {
            self.unlink(last);
            self.high = last;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(places: &Places) -> Vec<usize> {
        let mut all = Vec::new();
        let mut at = 0;
        while let Some(place) = places.next(at, usize::MAX) {
            all.push(place);
            at = place + 1;
        }
        all
    }

    fn trim(places: &mut Places) -> Vec<Range<usize>> {
        let mut given = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            from = places.trim_piece(at, |range| given.push(range));
        }
        given
    }

    #[test]
    fn places_are_handed_out_once_and_there_are_so_many() {
        const LEN: usize = 3 * PAGE + 7;
        let mut places = Places::new(LEN).unwrap();
        let mut taken: Vec<usize> = (0..LEN).map(|_| places.take().unwrap()).collect();
        assert_eq!(places.take(), None);
        taken.sort_unstable();
        assert_eq!(taken, (0..LEN).collect::<Vec<_>>());
        assert_eq!((all(&places), places.used()), (taken, LEN));
        assert!(places.give(700) && !places.give(700) && !places.give(LEN + 9));
        assert_eq!((places.take(), places.take()), (Some(700), None));
    }

    #[test]
    fn a_random_walk_agrees_with_a_set() {
        let mut places = Places::new(5 * PAGE).unwrap();
        let mut model = std::collections::BTreeSet::new();
        let mut random = 7u64;
        for step in 0..60_000 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Phases in which the table fills and empties.
            let fills = random >> 33 & 7 < if step / 6_000 % 2 == 0 { 6 } else { 2 };
            if fills {
                match places.take() {
                    Some(place) => assert!(model.insert(place)),
                    None => assert_eq!(model.len(), 5 * PAGE),
                }
            } else if let Some(place) = model.iter().nth(random as usize % model.len().max(1)) {
                let place = *place;
                assert!(places.give(place) && model.remove(&place));
            }
            if step % 997 == 0 {
                for range in trim(&mut places) {
                    assert_eq!(model.range(range).next(), None);
                }
                assert_eq!(all(&places), model.iter().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_a_peak_left_is_given_back_and_not_walked_any_more() {
        let mut places = Places::new(1 << 20).unwrap();
        let taken: Vec<usize> = (0..1 << 20).map(|_| places.take().unwrap()).collect();
        assert!(trim(&mut places).is_empty());
        for place in taken {
            assert!(place == 5000 || places.give(place));
        }
        let given: usize = trim(&mut places).iter().map(|range| range.len()).sum();
        assert_eq!(given, (1 << 20) - PAGE);
        assert_eq!(
            (all(&places), places.end()),
            (vec![5000], (5000 / PAGE + 1) * PAGE)
        );
        assert!(trim(&mut places).is_empty(), "it is given back once");
        // Empty pages below it are used again.
        let again = places.take().unwrap();
        assert!(again < places.end());
    }
}
