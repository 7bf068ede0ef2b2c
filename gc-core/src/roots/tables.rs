//! The tables of a heap's roots: handles, root ranges, root callbacks.

use core::hint::black_box;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use gc_preempt::{Mutex, MutexGuard};

use super::visitor::RootVisitor;
use crate::encoding::Encoding;
use crate::memory::MapError;
use crate::memory::places::Places;
use crate::memory::tables::{Mapped, Slab};

/// The roots of a heap besides stacks.
pub(crate) struct Roots {
    slots: Mapped<AtomicUsize>,
    tables: Mutex<Tables>,
}

/// The tables behind the lock. All of them are in mapped memory: mutators change them inside
/// `no_preempt`, where malloc may not be called.
pub(crate) struct Tables {
    /// The slots that are used.
    used: Places,
    /// Slots of the snapshot that have not been scanned.
    unscanned: Range<usize>,
    pub(super) ranges: Slab<RangeRoot>,
    pub(super) callbacks: Slab<Callback>,
}

/// The most root ranges of a heap: one or two a mutator. A heap of few addresses has one range for
/// this many handles.
const MAX_RANGES: usize = 1 << 20;
const HANDLES_A_RANGE: usize = 16;
/// The most root callbacks of a heap, in the same way.
const MAX_CALLBACKS: usize = 1 << 16;
const HANDLES_A_CALLBACK: usize = 64;

/// An embedder's root callback.
pub(crate) type Callback = Box<dyn FnMut(&mut RootVisitor<'_>) + Send>;

/// A declared root range.
#[derive(Clone, Copy)]
pub(crate) struct RangeRoot {
    pub(crate) base: *const usize,
    pub(crate) limit: *const AtomicUsize,
    pub(crate) encoding: Encoding,
    /// The limit at registration. Only a planted fault uses it.
    pub(super) cached: usize,
}

// SAFETY: only the collector follows the pointers, while the world is stopped, as
// `Mutator::root_range` demands.
unsafe impl Send for RangeRoot {}

impl RangeRoot {
    /// # Safety
    /// See `Mutator::root_range`.
    pub(crate) unsafe fn new(
        base: *const usize,
        limit: *const AtomicUsize,
        encoding: Encoding,
    ) -> Self {
        // SAFETY: the caller passes a live limit word. Relaxed: the caller's own thread writes it.
        let cached = unsafe { (*limit).load(Ordering::Relaxed) };
        Self {
            base,
            limit,
            encoding,
            cached,
        }
    }
}

impl Roots {
    /// Tables with room for `handles` handles.
    pub(crate) fn new(handles: usize) -> Result<Self, MapError> {
        Ok(Self {
            slots: Mapped::growing(handles)?,
            tables: Mutex::new(Tables::new(handles)?),
        })
    }

    /// Locks the tables, to read or change them: inside `no_preempt`, or by a thread that is no
    /// mutator.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock()
    }

    /// By the collector, before the stop that scans them: brings the ranges into the cache of its
    /// processor, and does not use their contents.
    pub(crate) fn rehearse(&self) {
        /// The most ranges that are read: a cache line takes a tenth of a microsecond to arrive,
        /// and a stop takes more than a hundred times as long.
        const MOST: usize = 64;
        let mut tables = self.lock();
        let mut from = 0;
        for _ in 0..MOST {
            let Some((at, range)) = tables.ranges.next(from) else {
                break;
            };
            black_box(range);
            from = at + 1;
        }
    }

    /// Makes a handle on the cell at `address` (or on nothing: zero). `None`: the table is full.
    /// Protected as [`Roots::lock`].
    pub(crate) fn add(&self, address: usize) -> Option<usize> {
        self.add_locked(&mut self.lock(), address)
    }

    fn add_locked(&self, tables: &mut Tables, address: usize) -> Option<usize> {
        let slot = tables.used.take()?;
        if slot >= self.slots.writable() && self.slots.make_writable(slot + 1).is_err() {
            tables.used.give(slot);
            return None;
        }
        // Relaxed: the lock orders the slots' use, and a thread that reads the handle got it from
        // its maker.
        self.slots[slot].store(address, Ordering::Relaxed);
        Some(slot)
    }

    /// Makes a second handle on the cell that `slot` names.
    pub(crate) fn copy(&self, slot: usize) -> Option<usize> {
        // Read under the lock: between a read before it and the lock, another thread could change
        // the slot and a collection free the cell.
        let mut tables = self.lock();
        self.add_locked(&mut tables, self.get(slot))
    }

    /// Frees a handle, or lets it name another cell. If the slot is still to be scanned, calls
    /// `log` with its old word, under the lock. Protected as [`Roots::lock`].
    pub(crate) fn change(&self, slot: usize, to: Option<usize>, log: impl FnOnce(usize)) {
        let mut tables = self.lock();
        if tables.unscanned.contains(&slot) {
            let word = self.slots[slot].load(Ordering::Relaxed);
            if word != 0 {
                log(word);
            }
        }
        match to {
            // Release pairs with the Acquire of `get`.
            Some(address) => self.slots[slot].store(address, Ordering::Release),
            None => {
                tables.used.give(slot);
            }
        }
    }

    /// The word of a handle: a cell's address, or zero.
    #[inline]
    pub(crate) fn get(&self, slot: usize) -> usize {
        // Acquire pairs with the Release of `change`: a thread that gets the cell here sees its
        // contents.
        self.slots[slot].load(Ordering::Acquire)
    }

    /// In stop 1: notes that the slots that are used now are to be scanned, and returns their
    /// number. `grows`: so are slots that are used later, until
    /// [`end_snapshot`](Self::end_snapshot).
    ///
    /// The snapshot grows while stacks are still to be scanned: code inside `blocking` may make a
    /// root of a cell that a variable of its caller names, and clear the variable.
    pub(crate) fn snapshot(&self, grows: bool) -> usize {
        let mut tables = self.lock();
        let end = if grows { usize::MAX } else { tables.used.end() };
        tables.unscanned = 0..end;
        tables.used.used()
    }

    /// All stacks have been scanned: slots beyond the last one that is used now need no scan.
    /// Called before the first piece.
    pub(crate) fn end_snapshot(&self) {
        let mut tables = self.lock();
        tables.unscanned.end = tables.unscanned.end.min(tables.used.end());
    }

    /// Notes that no slot is to be scanned: in the child of a fork.
    pub(crate) fn forget_snapshot(&self) {
        self.lock().unscanned = 0..0;
    }

    /// Calls `f` with the words of some more slots of the snapshot; `false`: there are no more.
    pub(crate) fn scan_piece(&self, mut f: impl FnMut(usize)) -> bool {
        /// Slots that are scanned under one lock: some microseconds.
        const PIECE: usize = 1024;
        let mut tables = self.lock();
        let Range { start, end } = tables.unscanned.clone();
        let mut from = start;
        for _ in 0..PIECE {
            let Some(slot) = tables.used.next(from, end) else {
                tables.unscanned = 0..0;
                return false;
            };
            // Relaxed: under the lock.
            f(self.slots[slot].load(Ordering::Relaxed));
            from = slot + 1;
        }
        tables.unscanned.start = from;
        true
    }

    /// Calls `f` with the word of each slot. In the stop.
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize)) {
        let tables = self.lock();
        let mut from = 0;
        while let Some(slot) = tables.used.next(from, usize::MAX) {
            f(self.slots[slot].load(Ordering::Relaxed));
            from = slot + 1;
        }
    }

    /// Returns the memory of the tables that a peak has left to the system. Outside of stops.
    pub(crate) fn trim(&self) {
        let mut from = Some(0);
        while let Some(at) = from {
            // SAFETY: whole pages of slots, none of which is used.
            from = self.lock().used.trim_piece(at, |empty| unsafe {
                self.slots.discard(empty);
            });
        }
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.lock().ranges.trim_piece(at);
        }
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.lock().callbacks.trim_piece(at);
        }
    }
}

impl Tables {
    fn new(slots: usize) -> Result<Self, MapError> {
        Ok(Self {
            used: Places::new(slots)?,
            unscanned: 0..0,
            ranges: Slab::new((slots / HANDLES_A_RANGE).clamp(1, MAX_RANGES))?,
            callbacks: Slab::new((slots / HANDLES_A_CALLBACK).clamp(1, MAX_CALLBACKS))?,
        })
    }

    pub(crate) fn add_range(&mut self, range: RangeRoot) -> Option<usize> {
        self.ranges.add(range).ok()
    }

    pub(crate) fn remove_range(&mut self, at: usize) {
        self.ranges.take(at);
    }

    /// Adds a callback. If the table is full, it returns the callback, to be dropped outside of the
    /// lock.
    pub(crate) fn add_callback(&mut self, callback: Callback) -> Result<usize, Callback> {
        self.callbacks.add(callback)
    }

    /// Removes a callback and returns it, to be dropped outside of the lock: its drop is the
    /// embedder's code.
    #[must_use]
    pub(crate) fn take_callback(&mut self, at: usize) -> Option<Callback> {
        self.callbacks.take(at)
    }
}
