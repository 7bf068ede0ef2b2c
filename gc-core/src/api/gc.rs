//! The fast tier: a bare pointer to a cell, for code that knows where the collector looks.

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::api::local::{Local, Scope};
use crate::api::mutator::Mutator;
use crate::api::trace::Trace;
use crate::error::AllocError;
use crate::stacks::{gc_was_made, keep_alive_address};

/// A pointer to a cell, without a handle: one word, one instruction to use, and nothing that keeps
/// the cell alive but what the collector scans anyway.
///
/// # What the maker promises
/// Every function that makes one is unsafe, and its caller answers for all copies: a `Gc` is
/// kept in registers and on the stack of an attached thread, in a [`Field`](crate::Field), in a
/// [`Root`](crate::Root), in a declared root range or a place that a root callback reports, and
/// nowhere else. Memory from malloc (a `Vec`, a `Box`, a captured variable of a spawned closure) is
/// not scanned: there it dangles after the next collection. So does one that is used after its
/// thread has detached.
///
/// An optimiser may keep only a pointer into the middle of a cell, which roots it as well. Where it
/// keeps only what was computed from the pointer (an index, a pointer past the end), or what a
/// foreign function was given, [`keep_alive`] says how long the cell is needed.
#[repr(transparent)]
pub struct Gc<T> {
    cell: NonNull<T>,
}

impl<T> Gc<T> {
    /// # Safety
    /// A live cell that holds a `T`; the caller answers for what [`Gc`] asks.
    #[inline]
    pub unsafe fn from_cell(cell: NonNull<T>) -> Self {
        gc_was_made();
        Self { cell }
    }

    /// The cell.
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
        // SAFETY: its maker promised that the cell is alive.
        unsafe { self.cell.as_ref() }
    }
}

impl<T> fmt::Debug for Gc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gc({:p})", self.cell)
    }
}

/// Keeps the cell alive up to here: the pointer itself is in a register of this thread when
/// execution passes this point, and memory accesses before it stay before it. Costs no instruction
/// beyond what keeping a value costs.
#[inline(always)]
pub fn keep_alive<T>(gc: Gc<T>) {
    keep_alive_address(gc.cell.as_ptr().cast());
}

impl Mutator {
    /// Moves a value into a cell of its own: a bump through this thread's run, and the stores of
    /// the value.
    ///
    /// # Errors
    /// [`AllocError`]: the heap is full, and a collection did not help. The value is dropped.
    ///
    /// # Safety
    /// The result is used as [`Gc`] asks, and this is not called inside `blocking`.
    #[inline(always)]
    pub unsafe fn alloc_gc<T: Trace>(&self, value: T) -> Result<Gc<T>, AllocError> {
        self.cell_with::<T, true>(value).map(|cell| Gc { cell })
    }
}

impl<'s> Scope<'s> {
    /// A handle on what `gc` names.
    ///
    /// # Safety
    /// The cell is alive and of this scope's heap.
    #[inline]
    pub unsafe fn hold_gc<T>(&self, gc: Gc<T>) -> Local<'s, T> {
        // SAFETY: forwarded.
        unsafe { self.hold_cell(gc.cell) }
    }
}

impl<T> Local<'_, T> {
    /// The bare pointer.
    ///
    /// # Safety
    /// It is used as [`Gc`] asks once the scope has ended.
    #[inline]
    pub unsafe fn as_gc(self) -> Gc<T> {
        gc_was_made();
        Gc { cell: self.cell() }
    }
}
