//! Which places of a table are in use: numbers that come and go, in mapped memory. The owner's lock
//! protects it.
//!
//! ```text
//! group of 512 places:  [ a bit a place | how many are used | neighbours in its list ]
//!
//! open:   groups with used and free places     the next place comes from here,
//! empty:  groups with free places only         or else from here, or else from a group never used
//! full groups are in no list
//! ```
//!
//! After a peak, a table costs what is left in it. [`Places::trim_piece`] gives the memory of empty
//! groups back and forgets those beyond the last used place, so a walk over the table looks at the
//! others alone. Links through the free places themselves lost: the free places would have to be
//! sorted before the table could shrink, and a walk would touch each of them.

use core::ops::Range;

use crate::memory::os::{MapError, Table};

/// Places of a group. A group of words fills a system page, and a group of larger elements fills
/// whole system pages.
pub(crate) const GROUP: usize = 512;

/// Groups that [`Places::trim_piece`] looks at under one lock.
const TRIM: usize = 256;

struct Group {
    used: [u64; GROUP / 64],
    count: u32,
    /// The groups before and after it in its list, plus one; 0: none.
    previous: u32,
    next: u32,
    /// A place of it has been used since the group's memory last went back.
    touched: bool,
}

/// The places of one table.
pub(crate) struct Places {
    /// Zero is an empty group.
    groups: Table<Group>,
    len: usize,
    /// Groups from here on are empty, untouched and in no list.
    high: usize,
    /// The first group of each list, plus one; 0: none.
    open: u32,
    empty: u32,
    used: usize,
    /// Whether a group became empty since the last trim.
    emptied: bool,
}

impl Places {
    /// `len` places, all free.
    pub(crate) fn new(len: usize) -> Result<Self, MapError> {
        Ok(Self {
            groups: Table::new(len.div_ceil(GROUP))?,
            len,
            high: 0,
            open: 0,
            empty: 0,
            used: 0,
            emptied: false,
        })
    }

    /// The number of used places.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// No place from here on is used.
    pub(crate) fn end(&self) -> usize {
        (self.high * GROUP).min(self.len)
    }

    fn group(&self, group: usize) -> &Group {
        // SAFETY: callers pass groups of the table; zeroed memory is an empty group; `self` is
        // borrowed.
        unsafe { &*self.groups.at(group) }
    }

    fn group_mut(&mut self, group: usize) -> &mut Group {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { &mut *self.groups.at(group) }
    }

    /// The list for groups with free places: of empty groups, or of open ones.
    fn list(&mut self, is_empty: bool) -> &mut u32 {
        if is_empty {
            &mut self.empty
        } else {
            &mut self.open
        }
    }

    fn link(&mut self, group: usize) {
        let is_empty = self.group(group).count == 0;
        let next = core::mem::replace(self.list(is_empty), group as u32 + 1);
        (self.group_mut(group).previous, self.group_mut(group).next) = (0, next);
        if next != 0 {
            self.group_mut(next as usize - 1).previous = group as u32 + 1;
        }
    }

    /// Takes a group out of its list. Called before its count changes.
    fn unlink(&mut self, group: usize) {
        let (previous, next) = (self.group(group).previous, self.group(group).next);
        let is_empty = self.group(group).count == 0;
        match previous {
            0 => *self.list(is_empty) = next,
            previous => self.group_mut(previous as usize - 1).next = next,
        }
        if next != 0 {
            self.group_mut(next as usize - 1).previous = previous;
        }
    }

    /// The number of places of a group: fewer than [`GROUP`] in the last one.
    fn room(&self, group: usize) -> usize {
        GROUP.min(self.len - group * GROUP)
    }

    /// Takes a free place. `None`: there is none.
    pub(crate) fn take(&mut self) -> Option<usize> {
        let listed = if self.open != 0 {
            self.open
        } else {
            self.empty
        };
        let group = match (listed as usize).checked_sub(1) {
            Some(group) => group,
            None if self.high * GROUP < self.len => {
                self.high += 1;
                self.link(self.high - 1);
                self.high - 1
            }
            None => return None,
        };
        let words = &self.group(group).used;
        let word = words.iter().position(|word| *word != !0)?;
        let bit = words[word].trailing_ones();
        let was_empty = self.group(group).count == 0;
        if was_empty {
            self.unlink(group);
        }
        let room = self.room(group);
        let entry = self.group_mut(group);
        entry.used[word] |= 1 << bit;
        entry.count += 1;
        entry.touched = true;
        let is_full = entry.count as usize == room;
        if is_full && !was_empty {
            self.unlink(group);
        } else if !is_full && was_empty {
            self.link(group);
        }
        self.used += 1;
        Some(group * GROUP + word * 64 + bit as usize)
    }

    /// Frees a place. `false`: it was free.
    pub(crate) fn give(&mut self, place: usize) -> bool {
        if !self.is_used(place) {
            return false;
        }
        let (group, at) = (place / GROUP, place % GROUP);
        let room = self.room(group);
        let count = self.group(group).count as usize;
        if count < room && count == 1 {
            self.unlink(group);
        }
        let entry = self.group_mut(group);
        entry.used[at / 64] &= !(1 << (at % 64));
        entry.count -= 1;
        if count == room || count == 1 {
            self.link(group);
        }
        self.emptied |= count == 1;
        self.used -= 1;
        true
    }

    /// Whether the place is used.
    pub(crate) fn is_used(&self, place: usize) -> bool {
        let (group, at) = (place / GROUP, place % GROUP);
        group < self.high && self.group(group).used[at / 64] & 1 << (at % 64) != 0
    }

    /// The first used place from `from` on, below `end`.
    pub(crate) fn next(&self, from: usize, end: usize) -> Option<usize> {
        let end = end.min(self.end());
        let mut at = from;
        while at < end {
            let group = self.group(at / GROUP);
            if group.count == 0 {
                at = (at / GROUP + 1) * GROUP;
                continue;
            }
            let left = group.used[at % GROUP / 64] >> (at % 64);
            if left != 0 {
                at += left.trailing_zeros() as usize;
                return (at < end).then_some(at);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Gives the memory of empty groups among `TRIM` groups back, from group `from` on: calls
    /// `discard` with the places of each row of empty groups. Returns the group at which to go on,
    /// if there is one. Outside of stops; the owner may release its lock between two pieces.
    pub(crate) fn trim_piece(
        &mut self,
        from: usize,
        mut discard: impl FnMut(Range<usize>),
    ) -> Option<usize> {
        if from == 0 && !core::mem::take(&mut self.emptied) {
            return None;
        }
        let end = (from + TRIM).min(self.high);
        let mut group = from;
        while group < end {
            let first = group;
            while group < end && self.group(group).count == 0 && self.group(group).touched {
                self.group_mut(group).touched = false;
                group += 1;
            }
            if group > first {
                discard(first * GROUP..(group * GROUP).min(self.len));
            }
            group += 1;
        }
        if end < self.high {
            return Some(end);
        }
        while let Some(last) = self.high.checked_sub(1)
            && self.group(last).count == 0
            && !self.group(last).touched
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

    /// Each place is given out once, and no more than there are.
    #[test]
    fn places_are_handed_out_once_and_there_are_so_many() {
        const LEN: usize = 3 * GROUP + 7;
        let mut places = Places::new(LEN).unwrap();
        let mut taken: Vec<usize> = (0..LEN).map(|_| places.take().unwrap()).collect();
        assert_eq!(places.take(), None);
        taken.sort_unstable();
        assert_eq!(taken, (0..LEN).collect::<Vec<_>>());
        assert_eq!((all(&places), places.used()), (taken, LEN));
        assert!(places.give(700) && !places.give(700) && !places.give(LEN + 9));
        assert_eq!((places.take(), places.take()), (Some(700), None));
    }

    /// Random takes and returns agree with a set, and a trim gives back unused places only.
    #[test]
    fn a_random_walk_agrees_with_a_set() {
        let mut places = Places::new(5 * GROUP).unwrap();
        let mut model = std::collections::BTreeSet::new();
        let mut random = 7u64;
        for step in 0..60_000 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Phases in which the table fills, and in which it empties.
            let fills = random >> 33 & 7 < if step / 6_000 % 2 == 0 { 6 } else { 2 };
            if fills {
                match places.take() {
                    Some(place) => assert!(model.insert(place)),
                    None => assert_eq!(model.len(), 5 * GROUP),
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

    /// The places of a peak are trimmed once, and are no longer walked.
    #[test]
    fn what_a_peak_left_is_given_back_and_not_walked_any_more() {
        let mut places = Places::new(1 << 20).unwrap();
        let taken: Vec<usize> = (0..1 << 20).map(|_| places.take().unwrap()).collect();
        assert!(trim(&mut places).is_empty());
        for place in taken {
            assert!(place == 5000 || places.give(place));
        }
        let given: usize = trim(&mut places).iter().map(|range| range.len()).sum();
        assert_eq!(given, (1 << 20) - GROUP);
        assert_eq!(
            (all(&places), places.end()),
            (vec![5000], (5000 / GROUP + 1) * GROUP)
        );
        assert!(trim(&mut places).is_empty(), "it is given back once");
        // Empty groups below are used again.
        let again = places.take().unwrap();
        assert!(again < places.end());
    }
}
