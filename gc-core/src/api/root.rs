//! Roots that an embedder declares: raw roots, ranges of its own stacks, and callbacks.

use core::ptr::NonNull;
use core::sync::atomic::AtomicUsize;

use crate::api::heap::Heap;
use crate::api::mutator::Mutator;
use crate::encoding::Encoding;
use crate::error::TableFull;
use crate::fault::protected;
use crate::roots::{RangeRoot, RootVisitor};

/// The error of a full table of roots.
const FULL: TableFull = TableFull {
    table: "roots",
    cure: "drop roots that are no longer needed, or build the heap with a larger reserve",
};

/// Keeps one cell and its heap alive, from memory that the collector does not scan, and on threads
/// that are not attached.
///
/// To make or drop a root takes a lock; to read it does not. Any thread may use and drop it.
pub struct RawRoot {
    heap: Heap,
    slot: usize,
}

impl RawRoot {
    pub(crate) fn new(heap: &Heap, address: usize) -> Result<Self, TableFull> {
        let slot = protected(|| heap.shared().roots.add(address)).ok_or(FULL)?;
        Ok(Self {
            heap: heap.clone(),
            slot,
        })
    }

    /// The cell, or `None` if the root holds none.
    #[inline]
    pub fn get(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.heap.shared().roots.get(self.slot) as *mut u8)
    }

    /// Makes the root hold another cell, or none.
    ///
    /// # Safety
    /// The cell is alive and lies in this root's heap.
    pub unsafe fn set(&self, cell: Option<NonNull<u8>>) {
        let address = cell.map_or(0, |c| c.as_ptr() as usize);
        protected(|| self.heap.shared().change_root(self.slot, Some(address)));
    }

    /// Makes another root of the same cell.
    ///
    /// # Errors
    /// [`TableFull`]: the heap has as many roots as it can have, or the system has no memory for
    /// another.
    pub fn try_clone(&self) -> Result<Self, TableFull> {
        let slot = protected(|| self.heap.shared().roots.copy(self.slot)).ok_or(FULL)?;
        Ok(Self {
            heap: self.heap.clone(),
            slot,
        })
    }

    /// The heap that the cell lies in.
    pub fn heap(&self) -> &Heap {
        &self.heap
    }
}

impl Drop for RawRoot {
    fn drop(&mut self) {
        protected(|| self.heap.shared().change_root(self.slot, None));
    }
}

impl core::fmt::Debug for RawRoot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("RawRoot").field(&self.get()).finish()
    }
}

/// A declared root range. Its drop ends the declaration.
/// [`Mutator::root_range`](crate::Mutator::root_range) makes one.
#[must_use = "the range is scanned only while this guard lives"]
pub struct RootRange {
    heap: Heap,
    at: usize,
}

impl Drop for RootRange {
    fn drop(&mut self) {
        protected(|| self.heap.shared().roots.lock().remove_range(self.at));
    }
}

/// A registered root callback. Its drop removes the callback. [`Heap::add_root_callback`] makes
/// one.
#[must_use = "the callback is called only while this guard lives"]
pub struct RootCallback {
    heap: Heap,
    at: usize,
}

impl Drop for RootCallback {
    fn drop(&mut self) {
        let callback = protected(|| self.heap.shared().roots.lock().take_callback(self.at));
        drop(callback); // the embedder's code: outside of the lock
    }
}

impl Heap {
    /// Makes a root that keeps `cell` alive.
    ///
    /// # Errors
    /// [`TableFull`]: the heap has as many roots as it can have, or the system has no memory for
    /// another.
    ///
    /// # Safety
    /// `cell` is a live cell of this heap.
    pub unsafe fn root_raw(&self, cell: NonNull<u8>) -> Result<RawRoot, TableFull> {
        self.shared().stacks.are_used();
        RawRoot::new(self, cell.as_ptr() as usize)
    }

    /// Registers `callback`, which reports roots in every collection, until the guard is dropped.
    ///
    /// # Safety
    /// The callback runs on the collector's thread while every mutator is stopped, at any
    /// instruction. It must not call malloc, take a lock that a mutator may hold outside of
    /// `no_preempt`, print, or panic. It may read only memory that mutators change inside
    /// `no_preempt`.
    ///
    /// # Errors
    /// [`TableFull`]: the heap has 65,536 callbacks, or the system has no memory for another.
    pub unsafe fn add_root_callback(
        &self,
        callback: impl FnMut(&mut RootVisitor<'_>) + Send + 'static,
    ) -> Result<RootCallback, TableFull> {
        self.shared().stacks.are_used();
        let callback = Box::new(callback);
        let added = protected(|| self.shared().roots.lock().add_callback(callback));
        let at = added.map_err(|_| TableFull {
            table: "root callbacks",
            cure: "drop callbacks that are no longer needed: one may report many roots",
        })?;
        Ok(RootCallback {
            heap: self.clone(),
            at,
        })
    }
}

impl Mutator {
    /// Declares the words from `base` up to the address in `*limit` as roots, until the guard is
    /// dropped. The words are edges of `encoding`. Stores into the range need no barrier.
    ///
    /// It is meant for an interpreter's stack. The collector reads the limit in the stop. So the
    /// limit should be the end of the deepest frame and change on calls and returns only, not a top
    /// of stack that lives in a register in between. A popped word below the limit keeps the cell
    /// that it names, which costs precision only.
    ///
    /// ```
    /// # use gc_core::Heap;
    /// # use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    /// # use gc_core::raw::{Encoding, Kind};
    /// # let heap = Heap::builder().build()?;
    /// # let mutator = heap.attach()?;
    /// # let leaf = heap.kind(Kind::leaf("leaf"))?;
    /// let mut stack = vec![0usize; 64];
    /// let base = stack.as_mut_ptr();
    /// let limit = AtomicUsize::new(base as usize);
    /// // SAFETY: the words from `base` up to the limit are readable while the guard lives.
    /// unsafe {
    ///     let _range = mutator.root_range(base, &limit, Encoding::RAW)?;
    ///     // A push stores the word first, and moves the limit after it.
    ///     base.write(mutator.alloc_raw(leaf, 16)?.as_ptr() as usize);
    ///     limit.store(base.add(1) as usize, Relaxed);
    ///     mutator.collect();
    /// }
    /// assert!(heap.stats().last.cells_live >= 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`TableFull`]: the heap has a million ranges, or the system has no memory for another.
    ///
    /// # Safety
    /// While the guard lives, and at every instruction of this thread, `limit` is readable, and so
    /// is every word from `base` up to the address in `*limit`.
    pub unsafe fn root_range(
        &self,
        base: *const usize,
        limit: *const AtomicUsize,
        encoding: Encoding,
    ) -> Result<RootRange, TableFull> {
        self.heap.shared().stacks.are_used();
        // SAFETY: forwarded.
        let range = unsafe { RangeRoot::new(base, limit, encoding) };
        let added = protected(|| self.heap.shared().roots.lock().add_range(range));
        let at = added.ok_or(TableFull {
            table: "root ranges",
            cure: "drop ranges that are no longer needed",
        })?;
        Ok(RootRange {
            heap: Heap::clone(&self.heap),
            at,
        })
    }

    /// Makes a root that keeps `cell` alive: [`Heap::root_raw`].
    ///
    /// # Errors
    /// As [`Heap::root_raw`].
    ///
    /// # Safety
    /// As [`Heap::root_raw`].
    pub unsafe fn root_raw(&self, cell: NonNull<u8>) -> Result<RawRoot, TableFull> {
        // SAFETY: forwarded.
        unsafe { self.heap.root_raw(cell) }
    }
}
