//! Roots that an embedder declares: handles, ranges of its own stacks, and callbacks.

use core::ptr::NonNull;
use core::sync::atomic::AtomicUsize;

use crate::api::heap::Heap;
use crate::api::mutator::Mutator;
use crate::encoding::Encoding;
use crate::error::TableFull;
use crate::fault::protected;
use crate::roots::{RangeRoot, RootVisitor};

/// A heap has as many handles as it can have.
const FULL: TableFull = TableFull {
    table: "roots",
    cure: "drop roots that are no longer needed, or build the heap with a larger reserve",
};

/// A handle that keeps one cell alive from anywhere: from memory that the collector does not know,
/// from threads that are not attached.
///
/// It also keeps the heap alive. Cheap, but not free: making and dropping one takes a lock. Reading
/// it does not.
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

    /// The cell, or `None` if the handle holds nothing.
    #[inline]
    pub fn get(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.heap.shared().roots.get(self.slot) as *mut u8)
    }

    /// Lets the handle hold another cell, or nothing.
    ///
    /// # Safety
    /// The cell is alive, and one of this handle's heap.
    pub unsafe fn set(&self, cell: Option<NonNull<u8>>) {
        let address = cell.map_or(0, |c| c.as_ptr() as usize);
        protected(|| self.heap.shared().change_root(self.slot, Some(address)));
    }

    /// A second handle on the same cell.
    ///
    /// # Errors
    /// [`TableFull`]: the heap has as many handles as it can have.
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

/// A declared root range; dropping it ends the declaration. See
/// [`Mutator::root_range`](crate::Mutator::root_range).
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

/// A root callback; dropping it ends the calls. See [`Heap::add_root_callback`].
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
    /// A handle that keeps `cell` alive from anywhere.
    ///
    /// # Errors
    /// [`TableFull`]: there are as many handles as there can be.
    ///
    /// # Safety
    /// `cell` is a live cell of this heap.
    pub unsafe fn root_raw(&self, cell: NonNull<u8>) -> Result<RawRoot, TableFull> {
        self.shared().stacks.are_used();
        RawRoot::new(self, cell.as_ptr() as usize)
    }

    /// Has `callback` report roots at every collection, until the guard is dropped.
    ///
    /// # Safety
    /// The callback runs on the collector's thread while every mutator is stopped, perhaps in the
    /// middle of anything. It must not allocate with malloc, take a lock that a mutator may hold
    /// outside `no_preempt`, print or panic, and may only read what mutators change inside
    /// `no_preempt`.
    ///
    /// # Errors
    /// [`TableFull`]: the heap has 65,536 callbacks already.
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
    /// Declares the words from `base` up to the address in `*limit` roots, edges of `encoding`,
    /// until the guard is dropped. Meant for an interpreter's stack: the limit is read in the stop,
    /// so let it be the end of the deepest frame, changed on call and return only, and not a top of
    /// stack that lives in a register in between. Stores into the range need no barrier. A stale
    /// word (one that was popped, and names a cell that has died since) keeps something too long at
    /// worst.
    ///
    /// # Errors
    /// [`TableFull`]: the heap has a million ranges already.
    ///
    /// # Safety
    /// While the guard lives, at every instruction of this thread: `limit` is readable, and so is
    /// every word from `base` to where it points.
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

    /// A handle that keeps `cell` alive from anywhere. See [`Heap::root_raw`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// `cell` is a live cell of this heap.
    pub unsafe fn root_raw(&self, cell: NonNull<u8>) -> Result<RawRoot, TableFull> {
        // SAFETY: forwarded.
        unsafe { self.heap.root_raw(cell) }
    }
}
