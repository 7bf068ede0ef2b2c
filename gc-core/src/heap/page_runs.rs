//! Which pages are free: page runs are taken, given back and joined here.
//!
//! A page run is a number of neighbouring pages in one state, free or in use. Its length and state
//! are in the records of its first and last page (Knuth's boundary tags), so that a freed page run
//! finds its free neighbours at once. Free page runs are in lists by length, as in TLSF (Masmano et
//! al. 2004): a bitmap of the lists that are not empty leads to a page run that is long enough
//! without a search. The pages from `top` on were never taken.
//!
//! A page is *dirty* if it may hold something other than zeros. A page that was never taken is
//! clean, and so is one that was given back to the system. The dirty bits of a page run in use are
//! as they were before it was taken, and are set when it is freed.

use std::sync::atomic::{AtomicU64, Ordering};

use super::size_classes::PAGE;
use crate::memory::os::{MapError, Table};

/// Pages of a chunk: 2 MiB, which the system can map as one huge page and which go back to it as
/// one.
pub(crate) const CHUNK_PAGES: usize = (2 << 20) / PAGE;

/// Pages of the shortest page run that goes back to the system where no whole chunk does. A large
/// object has nine pages at least, and a free page run between two of them may be as short.
pub(super) const LEAST_PART: usize = 4;

/// The lists for lengths of 1 to this many pages have one length each.
const EXACT: usize = 64;
/// For longer page runs, four lists for each doubling, up to 2^30 pages.
const LISTS: usize = EXACT + 24 * 4 + 1;

/// The state of the page run that a record is the first or the last of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// In use. The zeroed record of a page that was never taken says so, too.
    InUse = 0,
    Free,
}

/// What is known of a page run, in the record of its first page. The record of its last page has
/// `pages` and `state`.
///
/// A page run in use belongs to the thread that took it, and so does its record. A free page run
/// belongs to the lock of [`PageRuns`].
#[repr(C)]
pub(crate) struct Record {
    /// Length in pages.
    pub(crate) pages: u32,
    /// Link in a free list, a site's list or the list of large objects: first page + 1; 0: none.
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

/// What the owner of a span notes of it.
#[derive(Clone, Copy)]
pub(crate) struct Flags(u8);

impl Flags {
    const AS_IS: u8 = 1;
    const ALLOCATED_BLACK: u8 = 2;

    /// The flags of a new span.
    pub(crate) fn new(as_is: bool) -> Flags {
        Flags(if as_is { Flags::AS_IS } else { 0 })
    }

    /// Whether its free cells are allocated as they are: they are still zero, or their kind is not
    /// cleared.
    #[inline(always)]
    pub(crate) fn as_is(self) -> bool {
        self.0 & Flags::AS_IS != 0
    }

    pub(crate) fn set_as_is(&mut self, on: bool) {
        self.0 = self.0 & !Flags::AS_IS | Flags::new(on).0;
    }

    /// Notes that cells of the span were allocated black.
    pub(crate) fn note_allocated_black(&mut self) {
        self.0 |= Flags::ALLOCATED_BLACK;
    }

    /// Whether cells were allocated black since the last call.
    pub(crate) fn take_allocated_black(&mut self) -> bool {
        let any = self.0 & Flags::ALLOCATED_BLACK != 0;
        self.0 &= !Flags::ALLOCATED_BLACK;
        any
    }
}

/// The records of all pages.
pub(crate) struct Records {
    table: Table<Record>,
}

impl Records {
    /// See [`Table::back`].
    pub(super) fn back(&self, first: usize, pages: usize) -> bool {
        self.table.back(first, pages)
    }

    pub(crate) fn new(pages: usize) -> Result<Records, MapError> {
        Ok(Records {
            table: Table::reserve(pages)?,
        })
    }

    /// See [`Table::make_writable`].
    pub(super) fn make_writable(&self, pages: usize) -> Result<(), MapError> {
        self.table.make_writable(pages)
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        self.table.addresses()
    }

    /// The record of a page of the address range. The caller dereferences it while it holds what
    /// the record belongs to.
    #[inline(always)]
    pub(crate) fn at(&self, page: usize) -> *mut Record {
        self.table.at(page)
    }

    /// Gives the records of free pages back to the system, as whole system pages.
    ///
    /// # Safety
    /// All pages lie inside one page run, neither first nor last of it, and the caller owns it.
    pub(crate) unsafe fn discard(&self, first: usize, count: usize) {
        // SAFETY: forwarded. Records in the middle of a page run have no meaning.
        unsafe { self.table.discard_part(first, count) };
    }
}

/// One bit for each page: it may hold something other than zeros.
pub(crate) struct Dirty {
    words: Table<AtomicU64>,
}

impl Dirty {
    pub(crate) fn new(pages: usize) -> Result<Dirty, MapError> {
        Ok(Dirty {
            words: Table::reserve(pages.div_ceil(64))?,
        })
    }

    /// See [`Table::make_writable`].
    pub(super) fn make_writable(&self, pages: usize) -> Result<(), MapError> {
        self.words.make_writable(pages.div_ceil(64))
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        self.words.addresses()
    }

    fn each(&self, first: usize, count: usize, mut f: impl FnMut(&AtomicU64, u64)) {
        let (mut page, end) = (first, first + count);
        while page < end {
            let here = (64 - page % 64).min(end - page);
            let mask = (u64::MAX >> (64 - here)) << (page % 64);
            // SAFETY: the word covers pages of the address range; zeroed memory is a valid
            // AtomicU64.
            f(unsafe { &*self.words.at(page / 64) }, mask);
            page += here;
        }
    }

    pub(crate) fn count(&self, first: usize, count: usize) -> usize {
        let mut dirty = 0;
        // Ordering: Relaxed here and below. The bits of a page run change under the lock of
        // [`PageRuns`], or by its owner; beside them only bits of other page runs in the same word
        // change.
        self.each(first, count, |word, mask| {
            dirty += (word.load(Ordering::Relaxed) & mask).count_ones() as usize
        });
        dirty
    }

    /// The first dirty page of these.
    pub(crate) fn first(&self, first: usize, count: usize) -> Option<usize> {
        let (mut page, mut found) = (first, None);
        self.each(first, count, |word, mask| {
            let dirty = word.load(Ordering::Relaxed) & mask;
            if dirty != 0 && found.is_none() {
                found = Some(page / 64 * 64 + dirty.trailing_zeros() as usize);
            }
            page += mask.count_ones() as usize;
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

/// The free page runs, and how many pages are in use. It lies behind a lock; the tables beside it
/// are arguments.
pub(crate) struct PageRuns {
    heads: [u32; LISTS],
    tails: [u32; LISTS],
    filled: [u64; LISTS.div_ceil(64)],
    /// The first page that was never taken.
    top: usize,
    /// One past the last page that can be written. Only grows.
    end: usize,
    /// Pages in use.
    used: usize,
    /// The most pages in use since the last [`PageRuns::take_peak`].
    peak: usize,
    /// The most pages that may be in use.
    limit: usize,
    /// Dirty pages that are free. They could be given back to the system.
    free_dirty: usize,
}

/// Why no page run was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPages {
    /// The hard limit allows no more.
    Limit,
    /// The address range has no free page run of this length.
    Exhausted,
    /// The system refused memory.
    System(MapError),
}

const fn list_of(pages: usize) -> usize {
    if pages <= EXACT {
        pages - 1
    } else {
        let doubling = pages.ilog2() as usize;
        EXACT + (doubling - 6) * 4 + ((pages >> (doubling - 2)) & 3)
    }
}

impl PageRuns {
    /// A range whose pages `first..pages` can be written, and of which at most `limit` pages may be
    /// in use at a time.
    pub(crate) fn new(first: usize, pages: usize, limit: usize) -> PageRuns {
        PageRuns {
            heads: [0; LISTS],
            tails: [0; LISTS],
            filled: [0; LISTS.div_ceil(64)],
            top: first,
            end: pages,
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

    /// Notes that the pages below `end` can be written.
    pub(crate) fn set_end(&mut self, end: usize) {
        debug_assert!(end >= self.end);
        self.end = end;
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Changes the most pages that may be in use. More may be in use already.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The number of pages that the limit leaves.
    pub(crate) fn room(&self) -> usize {
        self.limit.saturating_sub(self.used)
    }

    /// The most pages in use since the last call.
    pub(crate) fn take_peak(&mut self) -> usize {
        std::mem::replace(&mut self.peak, self.used)
    }

    pub(crate) fn free_dirty(&self) -> usize {
        self.free_dirty
    }

    /// Takes `pages` pages and returns the first one. The states in their records are set; all else
    /// belongs to the caller.
    pub(crate) fn take(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        pages: usize,
    ) -> Result<usize, NoPages> {
        let (first, _) = self.take_some(records, dirty, pages, pages)?;
        Ok(first)
    }

    /// Takes a multiple of `least` pages: `least`, and up to `most` if more lie there in one piece
    /// and in the same chunk. Returns the first page and the number of pages.
    pub(crate) fn take_some(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        least: usize,
        most: usize,
    ) -> Result<(usize, usize), NoPages> {
        if least > self.room() {
            return Err(NoPages::Limit);
        }
        let most = most.min(self.room());
        let part = |first: usize, whole: usize| {
            let chunk_end = (first + 1).next_multiple_of(CHUNK_PAGES);
            let some = most.min(whole).min(chunk_end - first);
            (some / least * least).max(least)
        };
        let (first, pages) = match self.find(records, least) {
            Some(first) => {
                let whole = self.unlink(records, first);
                let pages = part(first, whole);
                if whole > pages {
                    self.link(records, dirty, first + pages, whole - pages);
                }
                self.free_dirty -= dirty.count(first, pages);
                (first, pages)
            }
            None if least <= self.end - self.top => {
                let first = self.top;
                let pages = part(first, self.end - first);
                self.top += pages;
                (first, pages)
            }
            None => return Err(NoPages::Exhausted),
        };
        self.used += pages;
        self.peak = self.peak.max(self.used);
        self.tag(records, first, pages, State::InUse);
        Ok((first, pages))
    }

    /// Gives back a page run that was not used. Its dirty bits say what it is like.
    pub(crate) fn put_back_used(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        first: usize,
        pages: usize,
    ) {
        self.used -= pages;
        self.put_back(records, dirty, first, pages);
    }

    /// Frees the next `pages` pages that were never taken. Their dirty bits are set already. It is
    /// one step, so that neither the limit nor the child of a fork sees these pages in use.
    pub(crate) fn free_top(&mut self, records: &Records, dirty: &Dirty, pages: usize) {
        let first = self.top;
        self.top += pages;
        self.used += pages;
        self.give(records, dirty, first, pages);
    }

    /// Frees a page run and joins it with its free neighbours. Its page-table words are zero and
    /// its dirty bits set already; the caller does both, since both may take long.
    pub(crate) fn give(&mut self, records: &Records, dirty: &Dirty, first: usize, pages: usize) {
        self.free_dirty += pages;
        self.used -= pages;
        self.join(records, dirty, first, pages);
    }

    /// Takes a free page run that has a whole dirty chunk out of the lists, for the scavenger. It
    /// does not count as used. Looks at no more than `looks` page runs.
    pub(crate) fn take_to_scavenge(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        looks: usize,
    ) -> Option<(usize, usize)> {
        self.take_dirty(records, dirty, CHUNK_PAGES, looks, |first, pages| {
            let chunk = first.next_multiple_of(CHUNK_PAGES);
            let end = (first + pages) / CHUNK_PAGES * CHUNK_PAGES;
            chunk < end && dirty.count(chunk, end - chunk) > 0
        })
    }

    /// The same for a page run without a whole chunk: a long one that has dirty pages. Lists have
    /// their dirty page runs first, as far as the first [`CHUNK_PAGES`] pages of each tell.
    pub(crate) fn take_part_to_scavenge(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        looks: usize,
    ) -> Option<(usize, usize)> {
        if !seam::gives_parts_back() {
            return None;
        }
        self.take_dirty(records, dirty, LEAST_PART, looks, |first, pages| {
            dirty.count(first, pages) != 0
        })
    }

    /// Takes the first free page run that is `wanted` out of the lists of those with at least
    /// `least` pages, longest first. Looks at no more than `looks` page runs.
    fn take_dirty(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        least: usize,
        mut looks: usize,
        wanted: impl Fn(usize, usize) -> bool,
    ) -> Option<(usize, usize)> {
        for list in (list_of(least)..LISTS).rev() {
            let mut link = self.heads[list];
            while link != 0 && looks > 0 {
                looks -= 1;
                let first = link as usize - 1;
                // SAFETY: the page run is free, so its record belongs to the lock, which the caller
                // holds.
                let record = unsafe { &*records.at(first) };
                let (pages, next) = (record.pages as usize, record.next);
                if wanted(first, pages) {
                    self.unlink(records, first);
                    self.tag(records, first, pages, State::InUse);
                    self.free_dirty -= dirty.count(first, pages);
                    return Some((first, pages));
                }
                link = next;
            }
        }
        None
    }

    /// Puts back the page run that [`PageRuns::take_to_scavenge`] took. Its dirty bits say which
    /// pages have not gone.
    pub(crate) fn put_back(
        &mut self,
        records: &Records,
        dirty: &Dirty,
        first: usize,
        pages: usize,
    ) {
        self.free_dirty += dirty.count(first, pages);
        self.join(records, dirty, first, pages);
    }

    fn join(&mut self, records: &Records, dirty: &Dirty, mut first: usize, mut pages: usize) {
        if first > 0 {
            // SAFETY: page `first - 1` is the last of its page run, and the tag in its record
            // changes under the lock only.
            let before = unsafe { &*records.at(first - 1) };
            if before.state == State::Free {
                let length = before.pages as usize;
                first -= length;
                self.unlink(records, first);
                pages += length;
            }
        }
        if first + pages < self.top {
            // SAFETY: as above; `first + pages` is the first of its page run.
            let after = unsafe { &*records.at(first + pages) };
            if after.state == State::Free {
                pages += self.unlink(records, first + pages);
            }
        }
        self.link(records, dirty, first, pages);
    }

    /// A free page run of at least `pages`, still in its list.
    fn find(&self, records: &Records, pages: usize) -> Option<usize> {
        let list = list_of(pages);
        if pages <= EXACT {
            if self.heads[list] != 0 {
                return Some(self.heads[list] as usize - 1);
            }
        } else if let Some(first) = self.search(records, list, pages, 16) {
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
        // No list has only page runs that are long enough. Before more is made writable or refused,
        // the search looks at every page run in the list of this length.
        if pages > EXACT && pages > self.end - self.top {
            self.search(records, list, pages, usize::MAX)
        } else {
            None
        }
    }

    fn search(&self, records: &Records, list: usize, pages: usize, looks: usize) -> Option<usize> {
        let mut link = self.heads[list];
        for _ in 0..looks {
            if link == 0 {
                return None;
            }
            // SAFETY: a free page run's record belongs to the lock, which the caller holds.
            let record = unsafe { &*records.at(link as usize - 1) };
            if record.pages as usize >= pages {
                return Some(link as usize - 1);
            }
            link = record.next;
        }
        None
    }

    fn tag(&self, records: &Records, first: usize, pages: usize, state: State) {
        for page in [first, first + pages - 1] {
            // SAFETY: both pages belong to the page run that the caller took, or holds under the
            // lock.
            let record = unsafe { &mut *records.at(page) };
            record.pages = pages as u32;
            record.state = state;
        }
    }

    /// Puts a free page run into its list. A clean one goes to the list's end, so that memory which
    /// the system still backs is used first.
    fn link(&mut self, records: &Records, dirty: &Dirty, first: usize, pages: usize) {
        self.tag(records, first, pages, State::Free);
        let list = list_of(pages);
        let link = first as u32 + 1;
        let at_end = dirty.count(first, pages.min(CHUNK_PAGES)) == 0;
        let (prev, next) = if at_end {
            (self.tails[list], 0)
        } else {
            (0, self.heads[list])
        };
        // SAFETY: the page run is free and under the lock, and so are its neighbours in the list.
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

    /// Takes a free page run out of its list and returns its length.
    fn unlink(&mut self, records: &Records, first: usize) -> usize {
        // SAFETY: as in `link`.
        unsafe {
            let record = &*records.at(first);
            debug_assert_eq!(record.state, State::Free);
            let (pages, prev, next) = (record.pages as usize, record.prev, record.next);
            let list = list_of(pages);
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
            pages
        }
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn gives_parts_back() -> bool {
        !Fault::PartsKept.planted()
    }
}

#[cfg(test)]
mod tests;
