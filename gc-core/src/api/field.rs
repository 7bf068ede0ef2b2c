//! An edge: the one word of a cell by which it leads to another.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::api::gc::Gc;
use crate::api::local::{Local, Scope};
use crate::api::mutator::Mutator;
use crate::api::trace::Trace;

/// An edge from one cell to another, or null.
///
/// Born null, and null it stays until its struct has been moved into a cell: [`set`](Self::set)
/// refuses a field that does not lie in the heap. Each change is one atomic store with the write
/// barrier, so it may be read and changed by several threads at once; the last store wins.
///
/// A field is neither `Clone` nor `Copy`, and nothing gives out a cell's value by value. A value's
/// `Drop` alone has it by `&mut`: its fields are null then, and stay so. So an edge never leaves
/// its place.
///
/// A field of `T` is no field of another type, not even of a sub- or supertype of `T`: what one of
/// them stored, the other would load.
#[repr(transparent)]
pub struct Field<T> {
    word: AtomicUsize,
    /// Invariant: it is changed by `&self`.
    _target: PhantomData<*mut T>,
}

// SAFETY: the word is atomic; what it leads to is shared between threads, and may be dropped by any
// of them.
unsafe impl<T: Send + Sync> Send for Field<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Field<T> {}

// SAFETY: the field is its one word.
unsafe impl<T: Trace> Trace for Field<T> {
    #[inline(always)]
    fn edges(edge: &mut impl FnMut(usize)) {
        edge(0);
    }
}

// SAFETY: fields side by side.
unsafe impl<T: Trace, const N: usize> Trace for [Field<T>; N] {
    #[inline]
    fn edges(edge: &mut impl FnMut(usize)) {
        for i in 0..N {
            edge(i * size_of::<Field<T>>());
        }
    }
}

impl<T> Field<T> {
    /// A null field.
    #[must_use]
    pub const fn null() -> Self {
        Self {
            word: AtomicUsize::new(0),
            _target: PhantomData,
        }
    }

    /// Where the edge leads, as a handle of `scope`.
    ///
    /// # Panics
    /// If the field does not lie in the scope's heap, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn get<'s>(&self, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        scope.check_address(self.address() as usize, "field");
        scope.check_running();
        // SAFETY: the field lies in this heap, so what it leads to does, and lives while a live
        // cell's field leads to it; from the load on it is in a register of this thread. Nothing
        // but a `T` is ever stored.
        scope.hold_loaded(|| self.load(), |cell| unsafe { scope.keep(cell) })
    }

    /// Lets the edge lead to `value`.
    ///
    /// # Panics
    /// If the field or the value does not lie in the scope's heap, if the field belongs to a value
    /// whose `Drop` runs (its cell is dead, so nothing would keep what the edge leads to), and
    /// inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn set(&self, scope: &Scope<'_>, value: &Local<'_, T>) {
        let value = value.cell().as_ptr() as usize;
        scope.check_address(value, "value");
        scope.check_living(self.address() as usize);
        self.store(scope, value);
    }

    /// Makes the edge null.
    ///
    /// # Panics
    /// If the field does not lie in the scope's heap, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn clear(&self, scope: &Scope<'_>) {
        self.store(scope, 0);
    }

    /// Where the edge leads, and makes it null: what a queue or a list does with the link of a node
    /// that it takes out. A stale word of some stack that names the node keeps that one then, and
    /// not all that came after it. Not one unit: of several threads that take from one field, more
    /// than one may get what it led to.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// #[derive(Trace, Default)]
    /// struct Node { next: Field<Node>, value: u64 }
    ///
    /// let heap = Heap::builder().build()?;
    /// heap.attach()?.scope(|s| {
    ///     let (first, second) = (s.alloc(Node::default())?, s.alloc(Node::default())?);
    ///     first.next.set(s, &second);
    ///     assert!(first.next.take(s).unwrap().same(second));
    ///     assert!(first.next.is_null());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn take<'s>(&self, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        let taken = self.get(scope)?;
        self.clear(scope);
        Some(taken)
    }

    /// Whether the edge leads nowhere. A hint, where other threads change it.
    #[inline]
    pub fn is_null(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }

    #[inline]
    #[track_caller]
    fn store(&self, scope: &Scope<'_>, value: usize) {
        scope.check_address(self.address() as usize, "field");
        scope.check_running();
        // SAFETY: the field is a word of a live cell of this mutator's heap (the caller has a
        // reference to it), changed by this unit alone.
        unsafe { scope.mutator().write(self.address(), value) };
    }

    /// Stores what `from` holds. The caller's window is open.
    ///
    /// # Safety
    /// Both are words of live cells of the mutator's heap.
    pub(crate) unsafe fn copy_from(&self, mutator: &Mutator, from: &Self) {
        let word = from
            .load()
            .map_or(0, |cell| cell.as_ptr().expose_provenance());
        // SAFETY: forwarded.
        unsafe { mutator.write(self.address(), word) };
    }

    #[inline]
    fn load(&self) -> Option<NonNull<T>> {
        // Ordering: Acquire pairs with the store of the barrier unit, which is a release: on this
        // architecture every store is, and the compiler moves nothing across the unit's call. So
        // a thread that loads the cell here finds it initialised.
        NonNull::new(core::ptr::with_exposed_provenance_mut(
            self.word.load(Ordering::Acquire),
        ))
    }

    /// The word itself, for machine code and the raw tier.
    #[inline]
    pub fn address(&self) -> *mut usize {
        self.word.as_ptr()
    }

    /// Where the edge leads: the fast tier's [`get`](Self::get), without checks and without a
    /// handle.
    ///
    /// # Safety
    /// The field lies in a live cell. The result is used as [`Gc`] asks.
    #[inline]
    pub unsafe fn get_gc(&self) -> Option<Gc<T>> {
        // SAFETY: forwarded.
        self.load().map(|cell| unsafe { Gc::from_cell(cell) })
    }

    /// The fast tier's [`take`](Self::take), without checks and without a handle.
    ///
    /// # Safety
    /// The field lies in a live cell of the mutator's heap. The result is used as [`Gc`] asks.
    #[inline]
    pub unsafe fn take_gc(&self, mutator: &Mutator) -> Option<Gc<T>> {
        // SAFETY: forwarded.
        unsafe {
            let taken = self.get_gc()?;
            self.set_gc(mutator, None);
            Some(taken)
        }
    }

    /// The fast tier's [`set`](Self::set), without checks: the barrier's unit and nothing else.
    ///
    /// # Safety
    /// The field lies in a live cell of the mutator's heap, and so does what `value` names.
    #[inline]
    pub unsafe fn set_gc(&self, mutator: &Mutator, value: Option<Gc<T>>) {
        let value = value.map_or(0, |v| v.cell().as_ptr().expose_provenance());
        // SAFETY: forwarded.
        unsafe { mutator.write(self.address(), value) };
    }
}

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self::null()
    }
}

impl<T> fmt::Debug for Field<T> {
    /// Says where it leads and no more: the graph may have cycles.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.word.load(Ordering::Relaxed) {
            0 => f.write_str("null"),
            address => write!(f, "-> {address:#x}"),
        }
    }
}
