//! An edge: the word of a cell that leads to another cell.

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
/// A new field is null, and stays null until its struct has been moved into a cell:
/// [`set`](Self::set) panics for a field outside of the heap. Each change is one atomic store with
/// the write barrier. So several threads may read and change a field at once; the last store wins.
///
/// A field is neither `Clone` nor `Copy`, and no function returns a cell's value by value. Only a
/// value's `Drop` has its fields by `&mut`, and they are null then and stay null. So an edge never
/// leaves its place.
///
/// A `Field<T>` cannot be used as a field of another type, not even of a subtype or supertype of
/// `T`: one type's store would be the other type's load.
#[repr(transparent)]
pub struct Field<T> {
    word: AtomicUsize,
    /// Invariant in `T`, since `&self` changes it.
    _target: PhantomData<*mut T>,
}

// SAFETY: the word is atomic. Threads share the target, and any of them may drop it.
unsafe impl<T: Send + Sync> Send for Field<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Field<T> {}

// SAFETY: the field is one word, at offset 0.
unsafe impl<T: Trace> Trace for Field<T> {
    #[inline(always)]
    fn edges(edge: &mut impl FnMut(usize)) {
        edge(0);
    }
}

// SAFETY: the fields lie side by side.
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

    /// The target of the edge, as a handle of `scope`; `None` if the edge is null.
    /// # Panics
    /// If the field does not lie in the scope's heap, if the system has no memory for another
    /// handle, and inside `blocking`.
    /// If the field does not lie in the scope's heap, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn get<'s>(&self, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        scope.check_address(self.address() as usize, "field");
        scope.check_running();
        // SAFETY: the field lies in this heap, and so does its target, which lives while the field
        // of a live cell leads to it. From the load on, the target is in a register of this thread.
        // A field stores nothing but cells that hold a `T`.
        scope.hold_loaded(|| self.load(), |cell| unsafe { scope.keep(cell) })
    }

    /// Makes the edge lead to `value`.
    ///
    /// # Panics
    /// If the field or the value does not lie in the scope's heap, and inside `blocking`. If the
    /// field belongs to a value whose `Drop` runs: its cell is dead, so the edge would not keep
    /// `value` alive.
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

    /// Makes the edge null, and returns its former target. A queue or a list takes out a node by
    /// this: a stale word of a stack that names the node then keeps only the node, not all later
    /// ones. The load and the store are two steps: if several threads take from one field, more
    /// than one may get the target.
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

    /// Makes the edge lead to `new` if it leads to `current`, in one step. `None` is a null edge.
    /// Of several threads that exchange the same target, one succeeds.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// #[derive(Trace, Default)]
    /// struct Node { next: Field<Node>, value: u64 }
    ///
    /// let heap = Heap::builder().build()?;
    /// heap.attach()?.scope(|s| {
    ///     // A stack that threads share.
    ///     let (stack, node) = (s.alloc(Node::default())?, s.alloc(Node::default())?);
    ///     let mut top = stack.next.get(s);
    ///     loop {
    ///         match top {
    ///             Some(top) => node.next.set(s, &top),
    ///             None => node.next.clear(s),
    ///         }
    ///         match stack.next.compare_exchange(s, top, Some(node)) {
    ///             Ok(()) => break,
    ///             Err(now) => top = now,
    ///         }
    ///     }
    ///     assert!(stack.next.get(s).unwrap().same(node));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The edge led elsewhere, and is not changed: its target, as a handle of `scope`.
    ///
    /// # Panics
    /// As [`set`](Self::set), and if the system has no memory for another handle.
    #[track_caller]
    pub fn compare_exchange<'s>(
        &self,
        scope: &Scope<'s>,
        current: Option<Local<'_, T>>,
        new: Option<Local<'_, T>>,
    ) -> Result<(), Option<Local<'s, T>>> {
        let word = |local: Option<Local<'_, T>>| {
            local.map_or(0, |local| local.cell().as_ptr().expose_provenance())
        };
        let (current, new) = (word(current), word(new));
        if new != 0 {
            scope.check_address(new, "value");
            scope.check_living(self.address() as usize);
        }
        scope.check_address(self.address() as usize, "field");
        scope.check_running();
        let mut stored = false;
        let exchange = || {
            let found = self.exchange(scope.mutator(), current, new);
            stored = found.is_ok();
            found
                .err()
                .and_then(|word| NonNull::new(core::ptr::with_exposed_provenance_mut(word)))
        };
        // SAFETY: as in `get`.
        let found = scope.hold_loaded(exchange, |cell| unsafe { scope.keep(cell) });
        if stored { Ok(()) } else { Err(found) }
    }

    /// Exchanges the word with the barrier. The old value is `current` if the exchange succeeds,
    /// so it can be logged first; a `current` that is logged in vain is kept by a handle anyway.
    /// No stop comes between the log and the exchange: a cycle that begins there would have
    /// `current` in its snapshot and in no log.
    fn exchange(&self, mutator: &Mutator, current: usize, new: usize) -> Result<usize, usize> {
        mutator.thread().no_preempt(|| {
            if current != 0 && seam::logs() {
                mutator.record().log(current);
            }
            // Release publishes the content of the new target to `load`'s Acquire; Acquire pairs
            // with the store of the target that the caller gets.
            self.word
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
        })
    }

    /// Whether the edge is null. Another thread may change it at once.
    #[inline]
    pub fn is_null(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }

    #[inline]
    #[track_caller]
    fn store(&self, scope: &Scope<'_>, value: usize) {
        scope.check_address(self.address() as usize, "field");
        scope.check_running();
        // SAFETY: the field is a word of a live cell of this mutator's heap, since the caller has a
        // reference to it. Only the barrier's code changes it.
        unsafe { scope.mutator().write(self.address(), value) };
    }

    /// Stores the target of `from` in this field. The caller has opened its window.
    ///
    /// # Safety
    /// Both fields lie in live cells of the mutator's heap.
    pub(crate) unsafe fn copy_from(&self, mutator: &Mutator, from: &Self) {
        let word = from
            .load()
            .map_or(0, |cell| cell.as_ptr().expose_provenance());
        // SAFETY: forwarded.
        unsafe { mutator.write(self.address(), word) };
    }

    #[inline]
    fn load(&self) -> Option<NonNull<T>> {
        // Acquire pairs with the barrier's store, which is a release: on x86-64 every store is, and
        // the compiler moves no access across the call of the barrier. So a thread that loads the
        // cell here finds it initialised.
        NonNull::new(core::ptr::with_exposed_provenance_mut(
            self.word.load(Ordering::Acquire),
        ))
    }

    /// The address of the target's cell, or 0. The caller has opened its window.
    #[inline]
    pub(crate) fn target(&self) -> usize {
        self.load()
            .map_or(0, |cell| cell.as_ptr().expose_provenance())
    }

    /// The address of the word, for machine code and the raw tier.
    #[inline]
    pub fn address(&self) -> *mut usize {
        self.word.as_ptr()
    }

    /// The target of the edge: the fast tier's [`get`](Self::get), without checks and without a
    /// handle.
    ///
    /// # Safety
    /// The field lies in a live cell, and the caller keeps the rules of [`Gc`] for the result.
    #[inline]
    pub unsafe fn get_gc(&self) -> Option<Gc<T>> {
        // SAFETY: forwarded.
        self.load().map(|cell| unsafe { Gc::from_cell(cell) })
    }

    /// Makes the edge null, and returns its former target: the fast tier's [`take`](Self::take),
    /// without checks and without a handle.
    ///
    /// # Safety
    /// The field lies in a live cell of the mutator's heap, and the caller keeps the rules of
    /// [`Gc`] for the result. The thread is not inside `blocking`.
    #[inline]
    pub unsafe fn take_gc(&self, mutator: &Mutator) -> Option<Gc<T>> {
        // SAFETY: forwarded.
        unsafe {
            let taken = self.get_gc()?;
            self.set_gc(mutator, None);
            Some(taken)
        }
    }

    /// Makes the edge lead to `value`, or null: the fast tier's [`set`](Self::set), without checks.
    /// It is the write barrier and nothing else.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// # #[derive(Trace, Default)]
    /// # struct Node { next: Field<Node>, value: u64 }
    /// # let heap = Heap::builder().build()?;
    /// # let mutator = heap.attach()?;
    /// // SAFETY: the pointers stay in this frame.
    /// let (first, second) =
    ///     unsafe { (mutator.alloc_gc(Node::default())?, mutator.alloc_gc(Node::default())?) };
    /// // SAFETY: both cells are alive and of this heap.
    /// unsafe { first.next.set_gc(&mutator, Some(second)) };
    /// // SAFETY: as above.
    /// assert!(unsafe { first.next.get_gc() }.unwrap().same(second));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// The field lies in a live cell of the mutator's heap, and so does `value`. The thread is not
    /// inside `blocking`.
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
    /// Prints the target's address only: the graph may have cycles.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.word.load(Ordering::Relaxed) {
            0 => f.write_str("null"),
            address => write!(f, "-> {address:#x}"),
        }
    }
}

mod seam {
    use crate::fault::Fault;

    /// Logs what an exchange takes out of a field.
    #[inline(always)]
    pub(super) fn logs() -> bool {
        !Fault::ExchangesUnlogged.planted()
    }
}
