//! Weak references and weak tables: words that do not keep their targets alive, and are null after
//! the targets have died.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::api::array::Shape;
use crate::api::local::{Local, Scope};
use crate::api::trace::{Trace, made_by_the_heap};
use crate::encoding::Encoding;
use crate::error::AllocError;
use crate::kind::Kind;

const WORD: usize = size_of::<usize>();

/// `[ length | weak word | weak word | ... ]`
struct OfWeak;
impl Shape for OfWeak {
    fn kind() -> Kind {
        Kind::weak("weak", 1, Encoding::RAW, 0)
    }
}

/// A weak reference: a cell that does not keep its target alive. A [`Field`](crate::Field) or a
/// [`Root`](crate::Root) holds it like any other cell. [`Scope::alloc_weak`] makes one.
///
/// The collection that finds the target dead clears the reference. If the target's type needs
/// `Drop`, the reference is cleared before the value is queued for drop. So
/// [`upgrade`](Self::upgrade) returns an undropped value, or `None`.
#[repr(C)]
pub struct Weak<T> {
    words: WeakArray<T>,
}

impl<T: Trace> Weak<T> {
    /// The target, as a handle of `scope`; `None` after it has died.
    ///
    /// # Panics
    /// If this cell does not lie in the scope's heap, if the system has no memory for another
    /// handle, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn upgrade<'s>(&self, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        self.words.upgrade(0, scope)
    }
}

impl<T> fmt::Debug for Weak<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Weak")
    }
}

/// An array of weak words, for intern tables and caches. [`Scope::alloc_weak_array`] makes one; all
/// its words are null.
///
/// ```
/// # use gc_core::{Heap, Bytes, WeakArray};
/// let heap = Heap::builder().build()?;
/// let mutator = heap.attach()?;
/// mutator.scope(|s| {
///     let table = s.alloc_weak_array::<Bytes>(64)?;
///     let name = s.alloc_bytes(b"name")?;
///     table.set(7, s, &name);
///     mutator.collect();
///     assert_eq!(table.upgrade(7, s).unwrap().as_str(), Some("name")); // `name` is a handle
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct WeakArray<T> {
    len: usize,
    /// Invariant in `T`, since `&self` changes the words.
    _targets: PhantomData<*mut T>,
}

// SAFETY: the words are atomic, and threads may share the targets.
unsafe impl<T: Send + Sync> Send for WeakArray<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for WeakArray<T> {}

impl<T> WeakArray<T> {
    /// The number of words.
    #[inline]
    #[allow(
        clippy::len_without_is_empty,
        reason = "an empty array is a choice, not a state"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn words(&self) -> &[AtomicUsize] {
        let first = (&raw const *self).expose_provenance() + WORD;
        // SAFETY: a `WeakArray` exists in the heap only, in a cell with room for `len` words after
        // the length. The cell's address is exposed.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }

    /// The target of word `index`, as a handle of `scope`; `None` if the word is null or its target
    /// has died.
    ///
    /// # Panics
    /// If `index` is out of range, if this cell does not lie in the scope's heap, if the system has
    /// no memory for another handle, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn upgrade<'s>(&self, index: usize, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        let word = self.words()[index].as_ptr();
        scope.check_address(word as usize, "weak word");
        scope.check_running();
        // SAFETY: a word of a live weak cell of this heap. The weak load makes the target strong: a
        // collection that is marking finds it in the log, and a later stop finds it in a register
        // of this thread.
        let load = || {
            // SAFETY: as above.
            let target = unsafe { scope.mutator().load_weak_word(word) };
            NonNull::new(core::ptr::with_exposed_provenance_mut(target))
        };
        // SAFETY: the word is not null, so it names a live cell, which holds a `T`, since `set`
        // stored it.
        scope.hold_loaded(load, |cell| unsafe { scope.hold_cell(cell) })
    }

    /// Makes word `index` name `target`.
    ///
    /// # Panics
    /// If `index` is out of range, if this cell or the target does not lie in the scope's heap, and
    /// inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn set(&self, index: usize, scope: &Scope<'_>, target: &Local<'_, T>) {
        let target = target.cell().as_ptr().expose_provenance();
        scope.check_address(target, "target");
        self.store(index, scope, target);
    }

    /// Makes word `index` null.
    ///
    /// # Panics
    /// If `index` is out of range, if this cell does not lie in the scope's heap, and inside
    /// `blocking`.
    #[inline]
    #[track_caller]
    pub fn clear(&self, index: usize, scope: &Scope<'_>) {
        self.store(index, scope, 0);
    }

    #[inline]
    #[track_caller]
    fn store(&self, index: usize, scope: &Scope<'_>, target: usize) {
        let word = &self.words()[index];
        scope.check_address(word.as_ptr() as usize, "weak word");
        scope.check_running();
        // No barrier: no marker reaches a cell through a weak word. Release pairs with the weak
        // load's Acquire: a thread that upgrades the word finds the target initialised.
        word.store(target, Ordering::Release);
    }
}

impl<T> fmt::Debug for WeakArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeakArray({})", self.len)
    }
}

impl<'s> Scope<'s> {
    /// Makes a weak reference to `target`.
    ///
    /// ```
    /// # use gc_core::Heap;
    /// # let heap = Heap::builder().build()?;
    /// # let mutator = heap.attach()?;
    /// mutator.scope(|s| {
    ///     let name = s.alloc_bytes(b"name")?;
    ///     let weak = s.alloc_weak(&name)?;
    ///     assert!(weak.upgrade(s).unwrap().same(name));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// If the target does not lie in this scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn alloc_weak<T: Trace>(
        &self,
        target: &Local<'_, T>,
    ) -> Result<Local<'s, Weak<T>>, AllocError> {
        self.check_running();
        let target = target.cell().as_ptr().expose_provenance();
        self.check_address(target, "target");
        let cell = self.mutator().cell_of_shape::<OfWeak>(1, WORD)?;
        // SAFETY: a new cell with room for the length and one word. No other code has the cell, and
        // the target is alive.
        unsafe {
            cell.write(1);
            cell.add(1).write(target);
            self.try_hold_cell(cell.cast())
        }
    }

    /// Makes an array of `len` null weak words.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// Inside `blocking`.
    #[track_caller]
    pub fn alloc_weak_array<T: Trace>(
        &self,
        len: usize,
    ) -> Result<Local<'s, WeakArray<T>>, AllocError> {
        self.check_running();
        let cell = self.mutator().cell_of_shape::<OfWeak>(len, WORD)?;
        // SAFETY: as in `alloc_weak`; the words are null.
        unsafe {
            cell.write(len);
            self.try_hold_cell(cell.cast())
        }
    }
}

made_by_the_heap!([T: Trace] Weak<T>, [T: Trace] WeakArray<T>);
