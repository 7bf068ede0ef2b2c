//! The sites of a heap: for each (kind, size class) pair that is in use, the lists of its spans.
//!
//! A span has one place: a mutator owns it and takes runs from it, or it is in one of four lists.
//! After stop 2 every listed span is `unswept`, except spans in which a young collection could free
//! nothing. The thread that sweeps a span gives it back if it is empty, and otherwise puts it into
//! the list where it belongs.
//!
//! A heap may have tens of thousands of sites, so the stop does not move their spans. It counts the
//! swap ([`Swaps`]), and the next thread that takes a site's lock moves the site's spans
//! ([`Space::lists`](super::Space::lists)). There is no other way to the lists. So the thread that
//! holds the lock finds this:
//!
//! * a span is in `partial` or `full` only if it was put there after the last swap;
//! * a span is in `old` only if it was put there after the last swap of a whole collection.
//!
//! The sweep looks at each site between two swaps. A site that missed several swaps is moved once
//! for all of them: `partial` and `full`, and also `old` if one of the swaps was a whole
//! collection's. No thread has put a span into a list between them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::page_runs::Records;
use super::size_classes::{self, CLASSES, Class, MAX_SMALL};
use crate::error::SiteError;
use crate::kind::{KindId, Kinds};
use crate::limits::MAX_SITES;
use crate::memory::os::{MapError, Table};
use gc_preempt::{Mutex, MutexGuard};

/// A (kind, size class) pair of a heap, from which [`Mutator::alloc_at`](crate::Mutator::alloc_at)
/// and machine code allocate. [`Heap::site`](crate::Heap::site) returns one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site {
    pub(crate) index: u32,
    pub(crate) size: u32,
}
impl Site {
    /// The index of this site's [`Run`](crate::alloc::Run) in a mutator's array.
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// The bytes of each of its cells, by which an allocation moves the cursor.
    pub const fn size(self) -> usize {
        self.size as usize
    }
}
/// Elements of a kind's row in the index: a power of two that holds all classes.
const ROW: usize = 128;
const _: () = assert!(CLASSES <= ROW);

/// The number of sites that the table has room for, for each kind. Few kinds have cells of many
/// sizes.
const SITES_A_KIND: usize = 4;

/// A list of spans, linked through their records. A link is a span's first page + 1; 0: none.
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

    /// Moves all spans of `other` to the end of this list, in constant time.
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

/// The spans of a site that no mutator owns, and the chain of all spans of the site.
#[derive(Debug, Default)]
pub(crate) struct SpanLists {
    /// Spans that are not swept since the last collection.
    pub(crate) unswept: List,
    /// Swept spans that have free cells.
    pub(crate) partial: List,
    /// Spans that a mutator has filled.
    pub(crate) full: List,
    /// Spans that were full when they were swept. The last collection marked all their cells, so a
    /// young collection has nothing to free there. They are swept after whole collections only.
    pub(crate) old: List,
    /// The first of all spans of the site, with those that mutators own; linked by `all_next`.
    pub(crate) all: u32,
    /// The number of the last swap for which the lists were moved.
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

/// One site. Aligned to two cache lines, so that neighbours' locks share none.
#[repr(C, align(128))]
pub(crate) struct SiteEntry {
    pub(crate) kind: KindId,
    pub(crate) class: u8,
    /// Read and written through [`Space::lists`](super::Space::lists) alone.
    pub(super) lists: Mutex<SpanLists>,
}

impl SiteEntry {
    pub(crate) fn class(&self) -> &'static Class {
        &size_classes::TABLE[self.class as usize]
    }
}

/// The number of swaps of the bitmaps. Relaxed: it changes in stops only, and a stop orders all
/// accesses.
#[derive(Debug, Default)]
pub(crate) struct Swaps {
    number: AtomicU64,
    /// The number of the last swap after a whole collection.
    whole: AtomicU64,
}

impl Swaps {
    /// The number of the last swap; the first has 1.
    #[inline(always)]
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// Stop 2: counts the swap of a collection that was `young`, or whole.
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

/// Checks that cells of this kind can have this size. Markers read the slots of a cell without such
/// a check.
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
pub(crate) struct SiteTable {
    entries: Table<SiteEntry>,
    count: AtomicU32,
    /// By kind and class, the site's index + 1; 0: not made yet.
    index: Table<AtomicU32>,
    making: Mutex<()>,
    /// Bytes that each cell has beyond those asked for: 1 where an address one past the end is to
    /// lie in the cell.
    spare: usize,
}

impl SiteTable {
    /// A table for at most `kinds` kinds.
    pub(crate) fn new(kinds: usize, spare: usize) -> Result<SiteTable, MapError> {
        Ok(SiteTable {
            spare,
            entries: Table::reserve((SITES_A_KIND * kinds).min(MAX_SITES))?,
            count: AtomicU32::new(0),
            index: Table::reserve(kinds * ROW)?,
            making: Mutex::new(()),
        })
    }

    /// The least size of a cell for `bytes` bytes.
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
    pub(crate) fn at(&self, site: usize) -> &SiteEntry {
        // SAFETY: a site is within the table, and it is written before it is counted or indexed.
        // Afterwards only its lists change, under their lock.
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
        // The kind may be another heap's.
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
        let entry = SiteEntry {
            kind,
            class: class as u8,
            lists: Mutex::new(SpanLists::default()),
        };
        // SAFETY: the site is not counted yet, so no other thread has it.
        unsafe { self.entries.at(index as usize).write(entry) };
        // Ordering: Release publishes the site, for the Acquire in `count` and in `get`.
        self.count.store(index + 1, Ordering::Release);
        slot.store(index + 1, Ordering::Release);
        Ok(Site { index, size })
    }

    /// The sites of one kind.
    pub(crate) fn of_kind(&self, kind: KindId) -> impl Iterator<Item = &SiteEntry> {
        (0..CLASSES).filter_map(move |class| {
            let index = self.slot(kind, class).load(Ordering::Acquire);
            index.checked_sub(1).map(|index| self.at(index as usize))
        })
    }
}
