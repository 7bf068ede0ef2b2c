//! A typed root: keeps a cell alive from anywhere, for any thread.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::api::gc::Gc;
use crate::api::heap::Heap;
use crate::api::local::{Local, Scope};
use crate::api::root::RawRoot;
use crate::api::trace::{Leaf, Trace};
use crate::error::TableFull;

/// Keeps one cell alive, and its heap: from memory that the collector does not know, from threads
/// that are not attached.
///
/// Reading through it costs a load; making, cloning and dropping one takes a lock. A cell that
/// holds a root to itself, directly or by way of others, is never collected.
pub struct Root<T: Trace> {
    raw: RawRoot,
    _target: PhantomData<*const T>,
}

// SAFETY: the table behind it is shared between threads under a lock; what it leads to may be
// shared between threads, since `T: Trace` is.
unsafe impl<T: Trace> Send for Root<T> {}
// SAFETY: as above.
unsafe impl<T: Trace> Sync for Root<T> {}

impl Heap {
    /// A root on what `local` names.
    ///
    /// # Panics
    /// If the cell lies in another heap, or if the table of roots is full.
    #[track_caller]
    pub fn root<T: Trace>(&self, local: &Local<'_, T>) -> Root<T> {
        or_panic(self.try_root(local))
    }

    /// [`root`](Self::root), with an error where the table of roots is full.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// # #[derive(Trace, Default)]
    /// # struct Node { next: Field<Node> }
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let root = mutator.scope(|s| Ok(heap.try_root(&s.alloc(Node::default())?)?))?;
    /// assert!(root.next.is_null());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`TableFull`]: the heap has as many roots as it can have, or the system has no memory for
    /// another.
    ///
    /// # Panics
    /// If the cell lies in another heap.
    #[track_caller]
    pub fn try_root<T: Trace>(&self, local: &Local<'_, T>) -> Result<Root<T>, TableFull> {
        let cell = local.cell().cast::<u8>();
        assert!(
            self.shared().space.contains(cell.as_ptr() as usize),
            "the handle's cell at {cell:p} does not lie in this heap"
        );
        RawRoot::new(self, cell.as_ptr() as usize).map(Root::new)
    }

    /// A root on what `gc` names.
    ///
    /// # Panics
    /// If the table of roots is full.
    ///
    /// # Safety
    /// The cell is alive and of this heap.
    #[track_caller]
    pub unsafe fn root_gc<T: Trace>(&self, gc: Gc<T>) -> Root<T> {
        // SAFETY: forwarded.
        or_panic(unsafe { self.try_root_gc(gc) })
    }

    /// [`root_gc`](Self::root_gc), with an error where that panics.
    ///
    /// # Errors
    /// As [`try_root`](Self::try_root).
    ///
    /// # Safety
    /// As [`root_gc`](Self::root_gc).
    pub unsafe fn try_root_gc<T: Trace>(&self, gc: Gc<T>) -> Result<Root<T>, TableFull> {
        // SAFETY: forwarded.
        unsafe { self.root_raw(gc.cell().cast()) }.map(Root::new)
    }
}

#[track_caller]
fn or_panic<T: Trace>(root: Result<Root<T>, TableFull>) -> Root<T> {
    match root {
        Ok(root) => root,
        Err(full) => panic!("{full}"),
    }
}

impl<T: Trace> Root<T> {
    fn new(raw: RawRoot) -> Self {
        Self {
            raw,
            _target: PhantomData,
        }
    }

    /// `clone`, with an error where the table of roots is full.
    ///
    /// # Errors
    /// As [`Heap::try_root`].
    pub fn try_clone(&self) -> Result<Self, TableFull> {
        self.raw.try_clone().map(Self::new)
    }

    fn cell(&self) -> NonNull<T> {
        match self.raw.get() {
            Some(cell) => cell.cast(),
            None => unreachable!("a typed root is made with a cell and never changed"),
        }
    }

    /// A handle of `scope` on the same cell.
    ///
    /// # Panics
    /// If the cell lies in another heap than the scope's, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn get<'s>(&self, scope: &Scope<'s>) -> Local<'s, T> {
        let cell = self.cell();
        scope.check_address(cell.as_ptr() as usize, "root's cell");
        // SAFETY: this root keeps the cell alive, and it lies in the scope's heap.
        unsafe { scope.hold_cell(cell) }
    }

    /// The heap that the cell lies in.
    pub fn heap(&self) -> &Heap {
        self.raw.heap()
    }
}

impl<T: Trace> Deref for Root<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this root keeps the cell and the heap alive, and the cell holds a `T`, which is
        // `Sync`.
        unsafe { self.cell().as_ref() }
    }
}

impl<T: Trace> Clone for Root<T> {
    /// # Panics
    /// If the table of roots is full.
    #[track_caller]
    fn clone(&self) -> Self {
        or_panic(self.try_clone())
    }
}

impl<T: Trace + fmt::Debug> fmt::Debug for Root<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

// SAFETY: not an edge but a root. A cell that holds a root to itself lives for ever.
unsafe impl<T: Trace> Leaf for Root<T> {}
