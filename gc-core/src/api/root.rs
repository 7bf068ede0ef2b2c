//! Roots that an embedder declares: handles, ranges of its own stacks, and callbacks.

use core::ptr::NonNull;

use crate::api::heap::Heap;
use crate::fault::protected;

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
    pub(crate) fn new(heap: &Heap, address: usize) -> Option<Self> {
        let slot = protected(|| heap.shared().roots.add(address))?;
        Some(Self {
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

    /// A second handle on the same cell. `None`: the heap has as many handles as it can have.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        let slot = protected(|| self.heap.shared().roots.copy(self.slot))?;
        Some(Self {
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
    pub(crate) heap: Heap,
    pub(crate) at: usize,
}

impl Drop for RootRange {
    fn drop(&mut self) {
        protected(|| self.heap.shared().roots.lock().remove_range(self.at));
    }
}

/// A root callback; dropping it ends the calls. See [`Heap::add_root_callback`].
#[must_use = "the callback is called only while this guard lives"]
pub struct RootCallback {
    pub(crate) heap: Heap,
    pub(crate) at: usize,
}

impl Drop for RootCallback {
    fn drop(&mut self) {
        let callback = protected(|| self.heap.shared().roots.lock().take_callback(self.at));
        drop(callback); // the embedder's code: outside of the lock
    }
}
