//! Which units are free: stretches of the address range are taken, given back and joined here.
//!
//! Every stretch, free or in use, has its length and state in the records of its first and last
//! unit (Knuth's boundary tags), so that a freed one finds its free neighbours at once. Free
//! stretches hang in lists by length, as in TLSF (Masmano et al. 2004): the bitmap of filled lists
//! gives a stretch that is long enough without a search. Beyond `top` nothing has ever been taken.
//!
//! A unit that may hold something else than zeros is *dirty*; fresh ones and those given back to
//! the system are not. The bits of a stretch in use say what it was like before it was taken, and
//! are set when it comes back.

use std::sync::atomic::{AtomicU64, Ordering};

use super::size_classes::UNIT;
use crate::memory::os::{MapError, Table};

/// Units of the 2 MiB that the system maps as one page, and that are given back as one.
pub(crate) const CHUNK_UNITS: usize = (2 << 20) / UNIT;

/// Units of the shortest stretch that is given back where it does not fill a chunk. Large objects
/// have nine units at least, and what is free between them may be as short.
pub(super) const LEAST_PART: usize = 4;

/// Lists of one length each, for 1 to this many units.
const EXACT: usize = 64;
/// Beyond, four lists a doubling, up to 2^30 units.
const LISTS: usize = EXACT + 24 * 4 + 1;

/// The state of the stretch that a record is the first or the last of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// In use by whoever took it; also what the zeroed record of a unit says that was never taken.
    InUse = 0,
    Free,
}

/// What is known of a stretch, in the record of its first unit. The last unit's has `units` and
/// `state`.
///
/// A stretch in use belongs to whoever took it, record included; free ones belong to the
/// allocator's lock.
#[repr(C)]
pub(crate) struct Record {
    /// Length in units.
    pub(crate) units: u32,
    /// Link in a free list, a site's list or the list of large objects: unit + 1, 0 is none.
    pub(crate) next: u32,
    /// Link in a free list.
    prev: u32,
    /// Links in the list of all spans of a site.
    pub(crate) all_next: u32,
    pub(crate) all_prev: u32,
    /// A large object's kind.
    pub(crate) kind: u16,
    pub(crate) state: State,
    pub(crate) flags: Flags,
}

/// What is noted of a span, by who owns it.
#[derive(Clone, Copy)]
pub(crate) struct Flags(u8);

impl Flags {
    const AS_IS: u8 = 1;
    const BIRTHS: u8 = 2;

    /// A new span's.
    pub(crate) fn new(as_is: bool) -> Flags {
        Flags(if as_is { Flags::AS_IS } else { 0 })
    }

    /// Are its free cells handed out as they are? Because they are still zero, or of a kind that is
    /// not cleared.
    #[inline(always)]
    pub(crate) fn as_is(self) -> bool {
        self.0 & Flags::AS_IS != 0
    }

    pub(crate) fn set_as_is(&mut self, on: bool) {
        self.0 = self.0 & !Flags::AS_IS | Flags::new(on).0;
    }

    /// Cells were handed out while a collection marked.
    pub(crate) fn note_allocated_black(&mut self) {
        self.0 |= Flags::BIRTHS;
    }

    /// Whether there were any since this was asked last.
    pub(crate) fn take_allocated_black(&mut self) -> bool {
        let any = self.0 & Flags::BIRTHS != 0;
        self.0 &= !Flags::BIRTHS;
        any
    }
}

/// The records of all units.
pub(crate) struct Records {
    table: Table<Record>,
}

impl Records {
    /// See [`Table::back`].
    pub(super) fn back(&self, first: usize, units: usize) -> bool {
        self.table.back(first, units)
    }

    pub(crate) fn new(units: usize) -> Result<Records, MapError> {
        Ok(Records {
            table: Table::reserve(units)?,
        })
    }

    /// See [`Table::make_writable`].
    pub(super) fn make_writable(&self, units: usize) -> Result<(), MapError> {
        self.table.make_writable(units)
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        self.table.addresses()
    }

    /// The record of a unit of the address range. Who dereferences it holds what the record belongs
    /// to.
    #[inline(always)]
    pub(crate) fn at(&self, unit: usize) -> *mut Record {
        self.table.at(unit)
    }

    /// Gives the records of free units back to the system, whole pages only.
    ///
    /// # Safety
    /// All units lie inside one stretch, neither first nor last of it, and the caller owns it.
    pub(crate) unsafe fn discard(&self, first: usize, count: usize) {
        // SAFETY: forwarded. Records in the middle of a stretch say nothing.
        unsafe { self.table.discard_part(first, count) };
    }
}

/// A bit a unit: may it hold something else than zeros?
pub(crate) struct Dirty {
    words: Table<AtomicU64>,
}

impl Dirty {
    pub(crate) fn new(units: usize) -> Result<Dirty, MapError> {
        Ok(Dirty {
            words: Table::reserve(units.div_ceil(64))?,
        })
    }

    /// See [`Table::make_writable`].
    pub(super) fn make_writable(&self, units: usize) -> Result<(), MapError> {
        self.words.make_writable(units.div_ceil(64))
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        self.words.addresses()
    }

    fn each(&self, first: usize, count: usize, mut f: impl FnMut(&AtomicU64, u64)) {
        let (mut unit, end) = (first, first + count);
        while unit < end {
            let here = (64 - unit % 64).min(end - unit);
            let mask = (u64::MAX >> (64 - here)) << (unit % 64);
            // SAFETY: the word covers units of the address range; zeroed memory is a valid
            // AtomicU64.
            f(unsafe { &*self.words.at(unit / 64) }, mask);
            unit += here;
        }
    }

    pub(crate) fn count(&self, first: usize, count: usize) -> usize {
        let mut dirty = 0;
        // Ordering: Relaxed here and below. The bits of a stretch change under the allocator's
        // lock, or by its owner; only bits of other stretches in the same word change beside it.
        self.each(first, count, |word, mask| {
            dirty += (word.load(Ordering::Relaxed) & mask).count_ones() as usize
        });
        dirty
    }

    /// The first dirty one of these units.
    pub(crate) fn first(&self, first: usize, count: usize) -> Option<usize> {
        let (mut unit, mut found) = (first, None);
        self.each(first, count, |word, mask| {
            let dirty = word.load(Ordering::Relaxed) & mask;
            if dirty != 0 && found.is_none() {
                found = Some(unit / 64 * 64 + dirty.trailing_zeros() as usize);
            }
            unit += mask.count_ones() as usize;
        });
        found
    }

    pub(crate) fn set(&self, first: usize, count: usize) {
        self.each(first, count, |word, mask| {
            word.fetch_or(mask, Ordering::Relaxed);
        });
    }

    pub(crate) fn clear(&self, first: usize, count: usize) {
        self.each(first, count, |word, mask| {
            word.fetch_and(!mask, Ordering::Relaxed);
        });
    }
}

/// The free stretches. Behind a lock; the tables beside it are passed in.
pub(crate) struct Spans {
    heads: [u32; LISTS],
    tails: [u32; LISTS],
    filled: [u64; LISTS.div_ceil(64)],
    /// The first unit that was never taken.
    top: usize,
    /// One past the last unit that can be written. Only grows.
    end: usize,
    /// Units in use.
    used: usize,
    /// The most that were since somebody asked.
    peak: usize,
    /// Units that may be in use at most.
    limit: usize,
    /// Dirty units that are free: what could be given back.
    free_dirty: usize,
}

/// Why a stretch was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSpan {
    /// The hard limit.
    Limit,
    /// There is no stretch of this length.
    Exhausted,
    /// The system has no memory.
    System(MapError),
}

const fn list_of(units: usize) -> usize {
    if units <= EXACT {
        units - 1
    } else {
        let doubling = units.ilog2() as usize;
        EXACT + (doubling - 6) * 4 + ((units >> (doubling - 2)) & 3)
    }
}

impl Spans {
    /// Units `first..units` can be written, and at most `limit` may be in use at a time.
    pub(crate) fn new(first: usize, units: usize, limit: usize) -> Spans {
        Spans {
            heads: [0; LISTS],
            tails: [0; LISTS],
            filled: [0; LISTS.div_ceil(64)],
            top: first,
            end: units,
            used: 0,
            peak: 0,
            limit,
            free_dirty: 0,
        }
    }

    pub(crate) fn top(&self) -> usize {
        self.top
    }

    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// More units can be written.
    pub(crate) fn set_end(&mut self, end: usize) {
        debug_assert!(end >= self.end);
        self.end = end;
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Units that the limit leaves.
    pub(crate) fn room(&self) -> usize {
        self.limit.saturating_sub(self.used)
    }

    /// The most units in use since this was called last.
    pub(crate) fn take_peak(&mut self) -> usize {
        std::mem::replace(&mut self.peak, self.used)
    }

    pub(crate) fn free_dirty(&self) -> usize {
        self.free_dirty
    }

    /// Takes `units` units; the first one of them. Their records' states are set, everything else
    /// is the caller's.
    pub(crate) fn take(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        units: usize,
    ) -> Result<usize, NoSpan> {
        let (first, _) = self.take_some(records, dirty, units, units)?;
        Ok(first)
    }

    /// Takes at least `least` units, and up to `most` if more lie there in one piece and in the
    /// same chunk, whole multiples of `least`; the first of them and how many.
    pub(crate) fn take_some(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        least: usize,
        most: usize,
    ) -> Result<(usize, usize), NoSpan> {
        if least > self.room() {
            return Err(NoSpan::Limit);
        }
        let most = most.min(self.room());
        let part = |first: usize, whole: usize| {
            let chunk_end = (first + 1).next_multiple_of(CHUNK_UNITS);
            let some = most.min(whole).min(chunk_end - first);
            (some / least * least).max(least)
        };
        let (first, units) = match self.find(records, least) {
            Some(first) => {
                let whole = self.unlink(records, first);
                let units = part(first, whole);
                if whole > units {
                    self.link(records, dirty, first + units, whole - units);
                }
                self.free_dirty -= dirty.count(first, units);
                (first, units)
            }
            None if least <= self.end - self.top => {
                let first = self.top;
                let units = part(first, self.end - first);
                self.top += units;
                (first, units)
            }
            None => return Err(NoSpan::Exhausted),
        };
        self.used += units;
        self.peak = self.peak.max(self.used);
        self.tag(records, first, units, State::InUse);
        Ok((first, units))
    }

    /// Gives a stretch back that was not used: its dirty bits say what it is like.
    pub(crate) fn put_back_used(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        first: usize,
        units: usize,
    ) {
        self.used -= units;
        self.put_back(records, dirty, first, units);
    }

    /// Frees units that were never taken: the next ones, of which there are as many. Their dirty
    /// bits are set already. In one step, so that neither the limit nor the child of a fork meets
    /// them in between.
    pub(crate) fn free_top(&mut self, records: &Records, dirty: &Dirty, units: usize) {
        let first = self.top;
        self.top += units;
        self.used += units;
        self.give(records, dirty, first, units);
    }

    /// Gives a stretch back and joins it with its free neighbours. Its unit words are zero and its
    /// dirty bits set already, both of which may take long.
    pub(crate) fn give(&mut self, records: &Records, dirty: &Dirty, first: usize, units: usize) {
        self.free_dirty += units;
        self.used -= units;
        self.join(records, dirty, first, units);
    }

    /// Takes a free stretch that has a whole dirty chunk out of the lists, to be given back to the
    /// system. It does not count as used. Looks at no more than `looks` stretches.
    pub(crate) fn take_for_release(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        mut looks: usize,
    ) -> Option<(usize, usize)> {
        for list in (list_of(CHUNK_UNITS)..LISTS).rev() {
            let mut link = self.heads[list];
            while link != 0 && looks > 0 {
                looks -= 1;
                let first = link as usize - 1;
                // SAFETY: the stretch is free, so its record is ours under the lock.
                let (units, next) = unsafe {
                    (
                        (*records.at(first)).units as usize,
                        (*records.at(first)).next,
                    )
                };
                let chunk = first.next_multiple_of(CHUNK_UNITS);
                let end = (first + units) / CHUNK_UNITS * CHUNK_UNITS;
                if chunk < end && dirty.count(chunk, end - chunk) > 0 {
                    self.unlink(records, first);
                    self.tag(records, first, units, State::InUse);
                    self.free_dirty -= dirty.count(first, units);
                    return Some((first, units));
                }
                link = next;
            }
        }
        None
    }

    /// The same for one without a whole chunk: a long one that has dirty units. Lists have their
    /// dirty stretches first, as far as their first [`CHUNK_UNITS`] tell.
    pub(crate) fn take_part_for_release(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        mut looks: usize,
    ) -> Option<(usize, usize)> {
        if crate::fault::planted("parts-kept") {
            return None;
        }
        for list in (list_of(LEAST_PART)..LISTS).rev() {
            let mut link = self.heads[list];
            while link != 0 && looks > 0 {
                looks -= 1;
                let first = link as usize - 1;
                // SAFETY: the stretch is free, so its record is ours under the lock.
                let record = unsafe { &*records.at(first) };
                let (units, next) = (record.units as usize, record.next);
                if dirty.count(first, units) != 0 {
                    self.unlink(records, first);
                    self.tag(records, first, units, State::InUse);
                    self.free_dirty -= dirty.count(first, units);
                    return Some((first, units));
                }
                link = next;
            }
        }
        None
    }

    /// Puts back what [`Spans::take_for_release`] gave; its dirty bits say what is left.
    pub(crate) fn put_back(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        first: usize,
        units: usize,
    ) {
        self.free_dirty += dirty.count(first, units);
        self.join(records, dirty, first, units);
    }

    fn join(&mut self, records: &Records, dirty: &Dirty, mut first: usize, mut units: usize) {
        if first > 0 {
            // SAFETY: unit `first - 1` is the last of its stretch; its record's tag is set under
            // the lock only.
            let before = unsafe { &*records.at(first - 1) };
            if before.state == State::Free {
                let length = before.units as usize;
                first -= length;
                self.unlink(records, first);
                units += length;
            }
        }
        if first + units < self.top {
            // SAFETY: as above; `first + units` is the first of its stretch.
            let after = unsafe { &*records.at(first + units) };
            if after.state == State::Free {
                units += self.unlink(records, first + units);
            }
        }
        self.link(records, dirty, first, units);
    }

    /// A free stretch of at least `units`, still in its list.
    fn find(&self, records: &Records, units: usize) -> Option<usize> {
        let list = list_of(units);
        if units <= EXACT {
            if self.heads[list] != 0 {
                return Some(self.heads[list] as usize - 1);
            }
        } else if let Some(first) = self.search(records, list, units, 16) {
            return Some(first);
        }
        let mut word = (list + 1) / 64;
        let mut bits = self.filled.get(word)? & (u64::MAX << ((list + 1) % 64));
        loop {
            if bits != 0 {
                let longer = word * 64 + bits.trailing_zeros() as usize;
                return Some(self.heads[longer] as usize - 1);
            }
            word += 1;
            match self.filled.get(word) {
                Some(&next) => bits = next,
                None => break,
            }
        }
        // Nothing is surely long enough; before more is made writable or refused, every stretch of
        // about this length is asked.
        if units > EXACT && units > self.end - self.top {
            self.search(records, list, units, usize::MAX)
        } else {
            None
        }
    }

    fn search(&self, records: &Records, list: usize, units: usize, looks: usize) -> Option<usize> {
        let mut link = self.heads[list];
        for _ in 0..looks {
            if link == 0 {
                return None;
            }
            // SAFETY: free stretches' records are ours under the lock.
            let record = unsafe { &*records.at(link as usize - 1) };
            if record.units as usize >= units {
                return Some(link as usize - 1);
            }
            link = record.next;
        }
        None
    }

    fn tag(&self, records: &Records, first: usize, units: usize, state: State) {
        for unit in [first, first + units - 1] {
            // SAFETY: both units belong to the stretch that the caller took or holds under the
            // lock.
            let record = unsafe { &mut *records.at(unit) };
            record.units = units as u32;
            record.state = state;
        }
    }

    /// Clean stretches go to the list's end, so that memory which the system still backs is used
    /// first.
    fn link(&mut self, records: &Records, dirty: &Dirty, first: usize, units: usize) {
        self.tag(records, first, units, State::Free);
        let list = list_of(units);
        let link = first as u32 + 1;
        let at_end = dirty.count(first, units.min(CHUNK_UNITS)) == 0;
        let (prev, next) = if at_end {
            (self.tails[list], 0)
        } else {
            (0, self.heads[list])
        };
        // SAFETY: the stretch is free and under the lock, and so are its neighbours in the list.
        unsafe {
            (*records.at(first)).prev = prev;
            (*records.at(first)).next = next;
            match prev {
                0 => self.heads[list] = link,
                prev => (*records.at(prev as usize - 1)).next = link,
            }
            match next {
                0 => self.tails[list] = link,
                next => (*records.at(next as usize - 1)).prev = link,
            }
        }
        self.filled[list / 64] |= 1 << (list % 64);
    }

    /// Takes a free stretch out of its list; its length.
    fn unlink(&mut self, records: &Records, first: usize) -> usize {
        // SAFETY: as in `link`.
        unsafe {
            let record = &*records.at(first);
            debug_assert_eq!(record.state, State::Free);
            let (units, prev, next) = (record.units as usize, record.prev, record.next);
            let list = list_of(units);
            match prev {
                0 => self.heads[list] = next,
                prev => (*records.at(prev as usize - 1)).next = next,
            }
            match next {
                0 => self.tails[list] = prev,
                next => (*records.at(next as usize - 1)).prev = prev,
            }
            if self.heads[list] == 0 {
                self.filled[list / 64] &= !(1 << (list % 64));
            }
            units
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Model {
        spans: Spans,
        records: Records,
        dirty: Dirty,
        used: BTreeMap<usize, usize>,
    }

    impl Model {
        fn new(units: usize, limit: usize) -> Model {
            Model {
                spans: Spans::new(0, units, limit),
                records: {
                    let records = Records::new(units).unwrap();
                    records.make_writable(units).unwrap();
                    records
                },
                dirty: {
                    let dirty = Dirty::new(units).unwrap();
                    dirty.make_writable(units).unwrap();
                    dirty
                },
                used: BTreeMap::new(),
            }
        }

        fn take(&mut self, units: usize) -> Result<usize, NoSpan> {
            let first = self.spans.take(&self.records, &self.dirty, units)?;
            let before = self
                .used
                .range(..=first)
                .next_back()
                .map_or(0, |(f, n)| f + n);
            let after = self
                .used
                .range(first..)
                .next()
                .map_or(usize::MAX, |(f, _)| *f);
            assert!(before <= first && first + units <= after, "overlap");
            self.used.insert(first, units);
            Ok(first)
        }

        fn give(&mut self, first: usize) {
            let units = self.used.remove(&first).unwrap();
            self.dirty.set(first, units);
            self.spans.give(&self.records, &self.dirty, first, units);
        }

        /// Walks the stretches by their tags: they tile `[0, top)`, no two free ones touch, the
        /// used ones are ours.
        fn check(&self) {
            let (mut unit, mut was_free, mut used) = (0, false, 0);
            while unit < self.spans.top() {
                // SAFETY: no other thread has this model.
                let record = unsafe { &*self.records.at(unit) };
                let units = record.units as usize;
                assert!(units > 0);
                match record.state {
                    State::Free => assert!(!was_free, "free neighbours were not joined"),
                    State::InUse => {
                        assert_eq!(self.used.get(&unit), Some(&units));
                        used += units;
                    }
                }
                was_free = record.state == State::Free;
                unit += units;
            }
            assert_eq!(unit, self.spans.top());
            assert_eq!(used, self.spans.used());
        }
    }

    proptest! {
        #[test]
        fn stretches_never_overlap_and_always_join(steps in prop::collection::vec((any::<bool>(), 1usize..600, any::<prop::sample::Index>()), 1..300)) {
            let mut model = Model::new(8192, usize::MAX);
            for (take, units, which) in steps {
                if take || model.used.is_empty() {
                    let _ = model.take(units);
                } else {
                    let first = *model.used.keys().nth(which.index(model.used.len())).unwrap();
                    model.give(first);
                }
                model.check();
            }
            for first in model.used.keys().copied().collect::<Vec<_>>() {
                model.give(first);
            }
            model.check();
            if model.spans.top() > 0 {
                // All of it is one stretch again.
                let top = model.spans.top();
                prop_assert_eq!(model.take(top), Ok(0));
            }
        }
    }

    #[test]
    fn the_limit_and_the_end_are_told_apart() {
        let mut model = Model::new(100, 60);
        assert_eq!(model.take(61), Err(NoSpan::Limit));
        assert_eq!(model.take(60), Ok(0));
        assert_eq!(model.take(1), Err(NoSpan::Limit));
        let mut model = Model::new(100, 1000);
        assert_eq!(model.take(101), Err(NoSpan::Exhausted));
        assert_eq!(model.take(100), Ok(0));
        assert_eq!(model.take(1), Err(NoSpan::Exhausted));
    }

    #[test]
    fn a_stretch_of_just_the_right_length_is_found_when_memory_is_short() {
        let mut model = Model::new(71 + 70, usize::MAX);
        let (a, _b) = (model.take(70).unwrap(), model.take(71).unwrap());
        model.give(a);
        // 70 shares its list with lengths from 64 to 79, so the list alone does not say that it is
        // long enough.
        assert_eq!(model.take(70), Ok(a));
    }

    #[test]
    fn released_chunks_are_clean_and_are_taken_once() {
        let mut model = Model::new(4 * CHUNK_UNITS, usize::MAX);
        let a = model.take(3 * CHUNK_UNITS).unwrap();
        model.give(a);
        assert_eq!(model.spans.free_dirty(), 3 * CHUNK_UNITS);
        let (first, units) = model
            .spans
            .take_for_release(&model.records, &model.dirty, 8)
            .unwrap();
        model.dirty.clear(first, units);
        model
            .spans
            .put_back(&model.records, &model.dirty, first, units);
        assert_eq!(model.spans.free_dirty(), 0);
        assert_eq!(
            model
                .spans
                .take_for_release(&model.records, &model.dirty, 8),
            None
        );
        model.check();
    }
}
