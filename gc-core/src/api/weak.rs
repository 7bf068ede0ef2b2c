//! Weak references and weak tables: words that do not keep their targets alive, and are null once
//! those have died.

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

/// A weak reference: a cell of its own, which a [`Field`](crate::Field) or a [`Root`](crate::Root)
/// holds like any other.
///
/// It is cleared in the collection that finds its target dead, before a value that needs `Drop` is
/// queued for it: an upgrade gives a whole value, or nothing.
#[repr(C)]
pub struct Weak<T> {
    words: WeakArray<T>,
}

impl<T: Trace> Weak<T> {
    /// The target, as a handle of `scope`, or `None` once it has died.
    ///
    /// # Panics
    /// If this does not lie in the scope's heap, and inside `blocking`.
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

/// An array of weak words: what an intern table or a cache is made of. Made by
/// [`Scope::alloc_weak_array`], all null.
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
///     assert_eq!(table.upgrade(7, s).unwrap().as_str(), Some("name")); // `name` is a handle: it keeps it
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct WeakArray<T> {
    len: usize,
    /// Invariant: its words are changed by `&self`.
    _targets: PhantomData<*mut T>,
}

// SAFETY: its words are atomic; what they lead to may be shared between threads.
unsafe impl<T: Send + Sync> Send for WeakArray<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for WeakArray<T> {}

impl<T> WeakArray<T> {
    /// How many words.
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
        // the length, whose address is exposed.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }

    /// The target of one word, as a handle of `scope`, or `None` if it has died, or never was.
    ///
    /// # Panics
    /// If `index` is out of range, if this does not lie in the scope's heap, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn upgrade<'s>(&self, index: usize, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        let word = self.words()[index].as_ptr();
        scope.check_address(word as usize, "weak word");
        scope.check_running();
        // SAFETY: a word of a live weak cell of this heap. The unit makes what it loads strong: for
        // a collector that marks meanwhile by logging it, for one that stops us from here on by
        // having it in a register.
        let load = || {
            // SAFETY: as said above.
            let target = unsafe { scope.mutator().load_weak_word(word) };
            NonNull::new(core::ptr::with_exposed_provenance_mut(target))
        };
        // SAFETY: not null, so not cleared: a live cell, which holds a `T` since `set` stored it.
        scope.hold_loaded(load, |cell| unsafe { scope.hold_cell(cell) })
    }

    /// Lets one word name `target`.
    ///
    /// # Panics
    /// If `index` is out of range, if this or the target does not lie in the scope's heap, and
    /// inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn set(&self, index: usize, scope: &Scope<'_>, target: &Local<'_, T>) {
        let target = target.cell().as_ptr().expose_provenance();
        scope.check_address(target, "target");
        self.store(index, scope, target);
    }

    /// Makes one word null.
    ///
    /// # Panics
    /// As [`set`](Self::set).
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
        // No barrier: a weak word is no path of the snapshot. Release: a thread that upgrades finds
        // the target initialised.
        word.store(target, Ordering::Release);
    }
}

impl<T> fmt::Debug for WeakArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeakArray({})", self.len)
    }
}

impl<'s> Scope<'s> {
    /// A weak reference to `target`.
    ///
    /// # Errors
    /// [`AllocError`].
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
        // SAFETY: a new cell with room for the length and one word; nobody else knows it, and the
        // target lives.
        unsafe {
            cell.write(1);
            cell.add(1).write(target);
            self.try_hold_cell(cell.cast())
        }
    }

    /// An array of `len` null weak words.
    ///
    /// # Errors
    /// [`AllocError`].
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
        // SAFETY: as `alloc_weak`; the words are null.
        unsafe {
            cell.write(len);
            self.try_hold_cell(cell.cast())
        }
    }
}

made_by_the_heap!([T: Trace] Weak<T>, [T: Trace] WeakArray<T>);
