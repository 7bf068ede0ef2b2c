//! The sites of a heap: for each (kind, size class) that is in use, the lists of its spans.
//!
//! A span is in exactly one place: owned by a mutator that takes runs from it, or in one of four
//! lists. After stop 2 every listed span is `unswept`, but for those in which a young collection
//! could free nothing; who sweeps it finds it empty and gives it back, or puts it where it belongs.
//!
//! A heap may have tens of thousands of sites, so the stop does not move their spans: it counts the
//! swap ([`Swaps`]), and who takes a site's lock next moves them
//! ([`Space::lists`](crate::heap::Space::lists), which is the only way to the lists). So this holds
//! for whoever has the lock: a span is in `partial` or `full` only if it was put there after the
//! last swap, and in `old` only if it was put there after the last swap that was whole. The sweep
//! looks at each site between two swaps. Should a site miss some, it is moved once for all of them:
//! what is in `partial` and `full`, and if any of them was whole, in `old`; nobody has put a span
//! into a list in between.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::page_runs::Records;
use super::size_classes::{self, CLASSES, Class, MAX_SMALL};
use crate::error::SiteError;
use crate::kind::{KindId, Kinds};
use crate::limits::MAX_SITES;
use crate::memory::os::{MapError, Table};
use gc_preempt::{Mutex, MutexGuard};

/// A (kind, size class) pair: what an allocation site in machine code needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site {
    pub(crate) index: u32,
    pub(crate) size: u32,
}
impl Site {
    /// The index of this site's [`Run`](crate::jit::Run) in a mutator's array.
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// The size of its cells in bytes: how far the cursor moves.
    pub const fn size(self) -> usize {
        self.size as usize
    }
}
/// Entries of a kind's row in the index: a power of two that holds all classes.
const ROW: usize = 128;
const _: () = assert!(CLASSES <= ROW);

/// Sites for which there is room for each kind that there is room for. Few kinds have cells of many
/// sizes.
const SITES_A_KIND: usize = 4;

/// A list of spans, linked through their records.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// Appends a span. The caller owns its record and holds the list's lock.
    pub(crate) fn push(&mut self, records: &Records, span: usize) {
        // SAFETY: the record is the caller's, and the tail's belongs to this list.
        unsafe {
            (*records.at(span)).next = 0;
            match self.tail {
                0 => self.head = span as u32 + 1,
                tail => (*records.at(tail as usize - 1)).next = span as u32 + 1,
            }
        }
        self.tail = span as u32 + 1;
        self.len += 1;
    }

    /// Takes the first span; its record is then the caller's.
    pub(crate) fn pop(&mut self, records: &Records) -> Option<usize> {
        let span = (self.head as usize).checked_sub(1)?;
        // SAFETY: the record belongs to this list, whose lock the caller holds.
        self.head = unsafe { (*records.at(span)).next };
        if self.head == 0 {
            self.tail = 0;
        }
        self.len -= 1;
        Some(span)
    }

    /// Calls `f` for each span. The caller holds the list's lock.
    pub(crate) fn each(&self, records: &Records, f: &mut dyn FnMut(usize)) {
        let mut link = self.head;
        while link != 0 {
            f(link as usize - 1);
            // SAFETY: the record belongs to this list.
            link = unsafe { (*records.at(link as usize - 1)).next };
        }
    }

    /// Moves all of `other` to the end of this list, at once.
    pub(crate) fn append(&mut self, records: &Records, other: &mut List) {
        if other.head == 0 {
            return;
        }
        match self.tail {
            0 => self.head = other.head,
            // SAFETY: as in `push`.
            tail => unsafe { (*records.at(tail as usize - 1)).next = other.head },
        }
        self.tail = other.tail;
        self.len += other.len;
        *other = List::default();
    }
}

/// The spans of a site that no mutator owns, and the chain of all its spans.
#[derive(Debug, Default)]
pub(crate) struct SpanLists {
    /// Not looked at since the last collection.
    pub(crate) unswept: List,
    /// Has free cells.
    pub(crate) partial: List,
    /// Has none: a mutator has filled it.
    pub(crate) full: List,
    /// Has none since it was swept: what is in it was marked by the last collection, and a young
    /// one has nothing to free there. So it is swept after whole ones only.
    pub(crate) old: List,
    /// The first of all spans of the site, owned ones too; linked by `all_next`.
    pub(crate) all: u32,
    /// The last swap that the lists tell of.
    pub(super) seen: u64,
}

impl SpanLists {
    /// All lists.
    pub(crate) fn each(&self) -> [&List; 4] {
        [&self.unswept, &self.partial, &self.full, &self.old]
    }

    pub(crate) fn chain(&mut self, records: &Records, span: usize) {
        // SAFETY: chain links belong to the site's lock, which the caller holds.
        unsafe {
            (*records.at(span)).all_prev = 0;
            (*records.at(span)).all_next = self.all;
            if self.all != 0 {
                (*records.at(self.all as usize - 1)).all_prev = span as u32 + 1;
            }
        }
        self.all = span as u32 + 1;
    }

    pub(crate) fn unchain(&mut self, records: &Records, span: usize) {
        // SAFETY: as in `chain`.
        unsafe {
            let (prev, next) = ((*records.at(span)).all_prev, (*records.at(span)).all_next);
            match prev {
                0 => self.all = next,
                prev => (*records.at(prev as usize - 1)).all_next = next,
            }
            if next != 0 {
                (*records.at(next as usize - 1)).all_prev = prev;
            }
        }
    }
}

/// One site. Two cache lines, so that neighbours do not share the lock's.
#[repr(C, align(128))]
pub(crate) struct Entry {
    pub(crate) kind: KindId,
    pub(crate) class: u8,
    /// See [`Space::lists`](crate::heap::Space::lists).
    pub(super) lists: Mutex<SpanLists>,
}

impl Entry {
    pub(crate) fn class(&self) -> &'static Class {
        &size_classes::TABLE[self.class as usize]
    }
}

/// How often the bitmaps have swapped: what sites are told in a stop. Changes in stops only, so all
/// loads and stores are Relaxed.
#[derive(Debug, Default)]
pub(crate) struct Swaps {
    number: AtomicU64,
    /// The number of the last swap after a collection that was not young.
    whole: AtomicU64,
}

impl Swaps {
    /// The number of the last swap; the first has 1.
    #[inline(always)]
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// Stop 2: counts a swap after a collection that was `young` or not.
    pub(crate) fn count(&self, young: bool) {
        let number = self.number() + 1;
        self.number.store(number, Ordering::Relaxed);
        if !young {
            self.whole.store(number, Ordering::Relaxed);
        }
    }

    pub(super) fn last_whole(&self) -> u64 {
        self.whole.load(Ordering::Relaxed)
    }
}

/// Can cells of this kind have this size? Markers read the slots of a cell without asking.
pub(crate) fn check(
    kinds: &Kinds,
    kind: KindId,
    bytes: usize,
    size: usize,
) -> Result<(), SiteError> {
    if !kinds.contains(kind) {
        return Err(SiteError::UnknownKind(kind));
    }
    let least = kinds.least_bytes(kind);
    if size < least {
        return Err(SiteError::TooSmall { bytes, least });
    }
    Ok(())
}

/// All sites of a heap.
pub(crate) struct Sites {
    entries: Table<Entry>,
    count: AtomicU32,
    /// Site index + 1 by kind and class, 0: not made yet.
    index: Table<AtomicU32>,
    making: Mutex<()>,
    /// Bytes that each cell has beyond those asked for: 1 where a word past their end is to lie in
    /// their cell.
    spare: usize,
}

impl Sites {
    /// For at most so many kinds.
    pub(crate) fn new(kinds: usize, spare: usize) -> Result<Sites, MapError> {
        Ok(Sites {
            spare,
            entries: Table::reserve((SITES_A_KIND * kinds).min(MAX_SITES))?,
            count: AtomicU32::new(0),
            index: Table::reserve(kinds * ROW)?,
            making: Mutex::new(()),
        })
    }

    /// Bytes that a cell for `bytes` bytes has at least.
    #[inline(always)]
    pub(crate) fn room(&self, bytes: usize) -> usize {
        bytes.saturating_add(self.spare)
    }

    pub(crate) fn lock_making(&self) -> MutexGuard<'_, ()> {
        self.making.lock()
    }

    pub(crate) fn count(&self) -> usize {
        // Ordering: Acquire pairs with the Release in `make`.
        self.count.load(Ordering::Acquire) as usize
    }

    #[inline(always)]
    pub(crate) fn at(&self, site: usize) -> &Entry {
        // SAFETY: sites are within the table and written before they are counted or indexed; after
        // that only the lists change, under their lock.
        unsafe { &*self.entries.at(site) }
    }

    #[inline(always)]
    fn slot(&self, kind: KindId, class: usize) -> &AtomicU32 {
        debug_assert!(class < ROW);
        // SAFETY: the kind is one of the heap's, so within the table; a class is below ROW; zeroed
        // memory is a valid AtomicU32.
        unsafe { &*self.index.at(kind.index() * ROW + class) }
    }

    #[inline(always)]
    pub(crate) fn get(&self, kinds: &Kinds, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        let room = self.room(bytes);
        if room > MAX_SMALL {
            return Err(SiteError::Large { bytes });
        }
        // Another heap's kind, perhaps.
        if kind.index() * ROW >= self.index.len() {
            return Err(SiteError::UnknownKind(kind));
        }
        let class = size_classes::class_of(room);
        // Ordering: Acquire pairs with the Release in `make`.
        match self.slot(kind, class).load(Ordering::Acquire) {
            0 => self.make(kinds, kind, class, bytes),
            index => Ok(Site {
                index: index - 1,
                size: size_classes::TABLE[class].size,
            }),
        }
    }

    #[cold]
    fn make(
        &self,
        kinds: &Kinds,
        kind: KindId,
        class: usize,
        bytes: usize,
    ) -> Result<Site, SiteError> {
        let size = size_classes::TABLE[class].size;
        check(kinds, kind, bytes, size as usize)?;
        let _making = self.making.lock();
        let slot = self.slot(kind, class);
        if let Some(made) = slot.load(Ordering::Relaxed).checked_sub(1) {
            return Ok(Site { index: made, size });
        }
        let index = self.count.load(Ordering::Relaxed);
        if index as usize == self.entries.len() {
            return Err(SiteError::TooMany);
        }
        self.entries
            .make_writable(index as usize + 1)
            .and_then(|()| self.index.make_writable((kind.index() + 1) * ROW))
            .map_err(SiteError::System)?;
        let entry = Entry {
            kind,
            class: class as u8,
            lists: Mutex::new(SpanLists::default()),
        };
        // SAFETY: the entry is not counted yet, so it is only ours.
        unsafe { self.entries.at(index as usize).write(entry) };
        // Ordering: Release publishes the entry, for `count` and for `get`.
        self.count.store(index + 1, Ordering::Release);
        slot.store(index + 1, Ordering::Release);
        Ok(Site { index, size })
    }

    /// The sites of one kind.
    pub(crate) fn of_kind(&self, kind: KindId) -> impl Iterator<Item = &Entry> {
        (0..CLASSES).filter_map(move |class| {
            let index = self.slot(kind, class).load(Ordering::Acquire);
            index.checked_sub(1).map(|index| self.at(index as usize))
        })
    }
}
