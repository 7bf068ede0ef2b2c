//! A typed root: keeps a cell alive from any memory and any thread.

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

/// Keeps one cell and its heap alive, from memory that the collector does not scan, and on threads
/// that are not attached.
///
/// To read through a root costs one load. To make, clone or drop one takes a lock. A cell that
/// holds a root to itself, directly or through other cells, is never collected.
pub struct Root<T: Trace> {
    raw: RawRoot,
    _target: PhantomData<*const T>,
}

// SAFETY: a lock protects the table of roots, which threads share. Threads may share the target,
// since `T: Trace` implies `Send` and `Sync`.
unsafe impl<T: Trace> Send for Root<T> {}
// SAFETY: as above.
unsafe impl<T: Trace> Sync for Root<T> {}

impl Heap {
    /// Makes a root that keeps the cell of `local` alive. Any thread may use, clone and drop the
    /// root.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// #[derive(Trace, Default)]
    /// struct Node { next: Field<Node>, value: u64 }
    ///
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let root = mutator.scope(|s| {
    ///     let node = s.alloc(Node { value: 7, ..Node::default() })?;
    ///     Ok(heap.root(&node))
    /// })?;
    /// let value = std::thread::spawn(move || root.value).join().unwrap();
    /// assert_eq!(value, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If the cell lies in another heap, or if the table of roots is full.
    #[track_caller]
    pub fn root<T: Trace>(&self, local: &Local<'_, T>) -> Root<T> {
        or_panic(self.try_root(local))
    }

    /// Does what [`root`](Self::root) does, with an error where the table of roots is full.
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

    /// Makes a root that keeps the cell of `gc` alive.
    ///
    /// # Panics
    /// If the table of roots is full.
    ///
    /// # Safety
    /// The cell is alive and lies in this heap.
    #[track_caller]
    pub unsafe fn root_gc<T: Trace>(&self, gc: Gc<T>) -> Root<T> {
        // SAFETY: forwarded.
        or_panic(unsafe { self.try_root_gc(gc) })
    }

    /// Does what [`root_gc`](Self::root_gc) does, with an error where that panics.
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

    /// Makes another root of the same cell: `clone`, with an error where the table of roots is
    /// full.
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
    /// If the cell does not lie in the scope's heap, if the system has no memory for another
    /// handle, and inside `blocking`.
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
        // SAFETY: this root keeps the cell and the heap alive. The cell holds a `T`, which is
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

// SAFETY: a root is not an edge, so the marker need not find it. A cell that holds a root to itself
// lives as long as the heap.
unsafe impl<T: Trace> Leaf for Root<T> {}
