//! The fast tier: a bare pointer to a cell, for code that keeps it only where the collector scans.

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::api::local::{Local, Scope};
use crate::api::mutator::Mutator;
use crate::api::trace::Trace;
use crate::error::AllocError;
use crate::stacks::{gc_was_made, keep_alive_address};

/// A pointer to a cell, without a handle. It is one word. Its cell lives only while the collector
/// finds a reference to it in a root or in a live cell.
///
/// # Rules of a `Gc`
///
/// Every function that makes a `Gc` is unsafe, and its caller answers for all copies. A `Gc` may be
/// kept only:
///
/// * in registers and on the stack of a thread that is attached,
/// * in a [`Field`](crate::Field) or a [`Root`](crate::Root),
/// * in a declared root range, or in a place that a root callback reports.
///
/// The collector does not scan memory from malloc (a `Vec`, a `Box`, a captured variable of a
/// spawned closure): a `Gc` there dangles after the next collection. So does a `Gc` that is used
/// after its thread has detached.
///
/// An optimiser may keep only a pointer to a byte inside the cell; that keeps the cell alive as
/// well. If it keeps only a value computed from the pointer (an index, a pointer one past the end),
/// or if only foreign code has the pointer, call [`keep_alive`] after the last use.
#[repr(transparent)]
pub struct Gc<T> {
    cell: NonNull<T>,
}

impl<T> Gc<T> {
    /// Makes a `Gc` of a cell's address.
    ///
    /// # Safety
    /// `cell` is a live cell that holds a `T`, and the caller keeps the rules of [`Gc`].
    #[inline]
    pub unsafe fn from_cell(cell: NonNull<T>) -> Self {
        gc_was_made();
        Self { cell }
    }

    /// The cell's address.
    #[inline]
    pub fn cell(self) -> NonNull<T> {
        self.cell
    }

    /// Whether both name the same cell.
    #[inline]
    pub fn same(self, other: Self) -> bool {
        self.cell == other.cell
    }
}

impl<T> Clone for Gc<T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Gc<T> {}

impl<T> Deref for Gc<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the maker of the `Gc` promised that the cell is alive.
        unsafe { self.cell.as_ref() }
    }
}

impl<T> fmt::Debug for Gc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gc({:p})", self.cell)
    }
}

/// Keeps the cell alive up to this call: the pointer is in a register of this thread here, and the
/// compiler moves no earlier memory access behind this point. The call itself is no instruction.
///
/// ```
/// use gc_core::{Heap, keep_alive};
///
/// let heap = Heap::builder().build()?;
/// let mutator = heap.attach()?;
/// // SAFETY: the pointer stays in this frame.
/// let number = unsafe { mutator.alloc_gc(7u64)? };
/// let hidden = !(number.cell().as_ptr() as usize); // no word that the collector recognises
/// mutator.collect();
/// // SAFETY: `keep_alive` below keeps the cell alive up to that line.
/// assert_eq!(unsafe { *(!hidden as *const u64) }, 7);
/// keep_alive(number);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[inline(always)]
pub fn keep_alive<T>(gc: Gc<T>) {
    keep_alive_address(gc.cell.as_ptr().cast());
}

impl Mutator {
    /// Moves a value into a new cell: a bump through this thread's run, and the stores of the
    /// value.
    ///
    /// # Errors
    /// [`AllocError`]: the heap has no room, after a collection as well. The value is dropped,
    /// unless 65,536 values of the heap are being dropped.
    /// [`SiteError::FastTier`](crate::raw::SiteError::FastTier) in a heap with
    /// [`exact(true)`](crate::HeapBuilder::exact).
    ///
    /// # Safety
    /// The caller keeps the rules of [`Gc`] for the result. The thread is not inside `blocking`.
    #[inline(always)]
    pub unsafe fn alloc_gc<T: Trace>(&self, value: T) -> Result<Gc<T>, AllocError> {
        self.cell_with::<T, true>(value).map(|cell| Gc { cell })
    }
}

impl<'s> Scope<'s> {
    /// Makes a handle of the cell of `gc`.
    ///
    /// # Panics
    /// If the system has no memory for another handle, and inside `blocking`.
    ///
    /// # Safety
    /// The cell is alive and lies in this scope's heap.
    #[inline]
    pub unsafe fn hold_gc<T>(&self, gc: Gc<T>) -> Local<'s, T> {
        // SAFETY: forwarded.
        unsafe { self.hold_cell(gc.cell) }
    }
}

impl<T> Local<'_, T> {
    /// The cell as a bare pointer.
    ///
    /// # Safety
    /// Once the scope has ended, the caller keeps the rules of [`Gc`].
    #[inline]
    pub unsafe fn as_gc(self) -> Gc<T> {
        gc_was_made();
        Gc { cell: self.cell() }
    }
}
