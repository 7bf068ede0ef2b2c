//! Dynamic values: an enum of references and plain data that is one word in a cell.
//!
//! `datum.rs` has the form of the word, and `derive(Trace)` implements [`Dynamic`] for an enum.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::api::datum::Class;
use crate::api::local::Scope;
use crate::api::mutator::Mutator;
use crate::api::trace::Trace;
use crate::encoding::Encoding;
use crate::error::AllocError;

/// A dynamic value: an enum with the lifetime of a scope, whose variants hold nothing, a
/// [`Local`](crate::Local), or plain data. Derive it: [`Trace`](derive@crate::Trace).
///
/// The enum is for the stack, for a `Vec`, for arguments: it is matched plainly, and is valid while
/// its scope is open. In a cell it is one word, a [`ValueField`].
///
/// ```
/// # #![forbid(unsafe_code)]
/// use gc_core::{Bytes, Heap, Local, Trace, ValueField};
///
/// #[derive(Trace, Clone, Copy)]
/// enum Value<'s> {
///     Nil,
///     Bool(bool),
///     Number(f64),
///     Text(Local<'s, Bytes>),
///     Pair(Local<'s, Pair>),
/// }
///
/// /// 16 bytes.
/// #[derive(Trace, Default)]
/// struct Pair {
///     car: ValueField<Value<'static>>,
///     cdr: ValueField<Value<'static>>,
/// }
///
/// let heap = Heap::builder().build()?;
/// heap.attach()?.scope(|s| {
///     let mut list = Value::Nil;
///     for n in 0..3 {
///         let pair = s.alloc(Pair::default())?;
///         pair.car.set(s, Value::Number(n.into()));
///         pair.cdr.set(s, list);
///         list = Value::Pair(pair);
///     }
///     let mut sum = 0.0;
///     while let Value::Pair(pair) = list {
///         if let Value::Number(n) = pair.car.get(s) {
///             sum += n;
///         }
///         list = pair.cdr.get(s);
///     }
///     assert_eq!(sum, 3.0);
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A variant may hold a [`Local`](crate::Local) (up to 16 variants), an `f64` (one variant; all
/// NaNs are one), plain data of up to 32 bits (any number of variants), of up to 48 bits or a
/// [`Static`](crate::Static) (13 variants).
///
/// # The null variant
/// A new field holds the enum's null variant: the one that is marked `#[trace(null)]` or
/// `#[default]`; otherwise the first variant without data; otherwise the first one with plain data,
/// which is then zero.
///
/// # Safety
/// `decode` returns what `encode` was called with, and the null variant for 0. A word is an edge in
/// [`Encoding::DYNAMIC`] if the value is a reference, and leads to its cell. `In` is the same enum.
/// What the variants hold besides references is `Send`, `Sync` and `'static`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a dynamic value",
    label = "not an enum that derives `Trace`",
    note = "derive it for an enum with the lifetime of a scope: `#[derive(Trace, Clone, Copy)] enum Value<'s> {{ Nil, Int(i32), Pair(Local<'s, Pair>) }}`"
)]
pub unsafe trait Dynamic: Sized {
    /// The enum with the lifetime of another scope.
    type In<'s>: Dynamic;

    /// What each variant holds.
    #[doc(hidden)]
    const CLASSES: &'static [Class];

    /// The number of the null variant.
    #[doc(hidden)]
    const NULL: usize;

    /// The value as a word.
    #[doc(hidden)]
    fn encode(self) -> u64;

    /// The value of a word.
    ///
    /// # Safety
    /// The word was encoded by this enum, in any lifetime, or is zero. If it is a reference, the
    /// cell lives while the lifetime of the enum lasts.
    #[doc(hidden)]
    unsafe fn decode(word: u64) -> Self;
}

/// A dynamic value in a cell: one word, which is an edge if the value is a reference.
///
/// `V` is the enum with the lifetime `'static`. A new field holds the enum's
/// [null variant](Dynamic#the-null-variant). Each change is one atomic store with the write
/// barrier, as for a [`Field`](crate::Field), and what is said there holds here: several threads
/// may read and change it at once, and a field never leaves its place.
#[repr(transparent)]
pub struct ValueField<V> {
    word: AtomicUsize,
    /// Invariant in `V`, since `&self` changes it.
    _value: PhantomData<*mut V>,
}

// SAFETY: the word is atomic, and threads may share what the variants of a dynamic value lead to,
// and send what they hold.
unsafe impl<V: Dynamic> Send for ValueField<V> {}
// SAFETY: as above.
unsafe impl<V: Dynamic> Sync for ValueField<V> {}

// SAFETY: the field is one word, at offset 0, and is tagged.
unsafe impl<V: Dynamic + 'static> Trace for ValueField<V> {
    const TAGGED: bool = true;

    #[inline(always)]
    fn edges(edge: &mut impl FnMut(usize)) {
        edge(0);
    }
}

// SAFETY: the fields lie side by side.
unsafe impl<V: Dynamic + 'static, const N: usize> Trace for [ValueField<V>; N] {
    const TAGGED: bool = true;

    #[inline]
    fn edges(edge: &mut impl FnMut(usize)) {
        for i in 0..N {
            edge(i * size_of::<ValueField<V>>());
        }
    }
}

/// The cell that a word leads to.
#[inline(always)]
pub(crate) fn cell_of(word: usize) -> Option<NonNull<u8>> {
    let address = Encoding::DYNAMIC.decode(word)?;
    NonNull::new(core::ptr::with_exposed_provenance_mut(address))
}

impl<V> ValueField<V> {
    /// A field with the null variant.
    #[must_use]
    pub const fn null() -> Self {
        Self {
            word: AtomicUsize::new(0),
            _value: PhantomData,
        }
    }
}

impl<V: Dynamic> ValueField<V> {
    /// A field with plain data.
    ///
    /// ```
    /// # use gc_core::{Bytes, Heap, Local, Trace, ValueField};
    /// # #[derive(Trace, Clone, Copy)]
    /// # enum Value<'s> { Nil, Number(f64), Text(Local<'s, Bytes>) }
    /// #[derive(Trace)]
    /// struct Variable { value: ValueField<Value<'static>> }
    ///
    /// let heap = Heap::builder().build()?;
    /// heap.attach()?.scope(|s| {
    ///     let one = s.alloc(Variable { value: ValueField::of(Value::Number(1.0)) })?;
    ///     assert!(matches!(one.value.get(s), Value::Number(1.0)));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If the value is a reference: [`set`](Self::set) it when the field lies in a cell.
    #[must_use]
    #[track_caller]
    pub fn of(value: V) -> Self {
        let word = value.encode() as usize;
        assert!(
            cell_of(word).is_none(),
            "a reference in a field outside of the heap: set it when the struct lies in a cell"
        );
        Self {
            word: AtomicUsize::new(word),
            _value: PhantomData,
        }
    }

    /// The value. A reference is a handle of `scope`.
    ///
    /// # Panics
    /// If the field does not lie in the scope's heap, if the system has no memory for another
    /// handle, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn get<'s>(&self, scope: &Scope<'s>) -> V::In<'s> {
        scope.check_address(self.address() as usize, "field");
        scope.check_running();
        // Acquire pairs with the barrier's store, as in `Field`.
        let load = || self.word.load(Ordering::Acquire);
        // SAFETY: the field lies in this heap, and so does its target, which lives while the field
        // of a live cell leads to it. The word is zero, or a value of this enum encoded it.
        unsafe { scope.hold_word::<V::In<'s>>(load) }
    }

    /// Makes the field hold `value`.
    ///
    /// # Panics
    /// If the field, or the cell of the value, does not lie in the scope's heap, and inside
    /// `blocking`. If the value is a reference and the field belongs to a value whose `Drop` runs.
    #[inline]
    #[track_caller]
    pub fn set(&self, scope: &Scope<'_>, value: V::In<'_>) {
        self.set_word(scope, value.encode() as usize);
    }

    /// [`set`](Self::set) for the word of a value.
    #[inline]
    #[track_caller]
    pub(crate) fn set_word(&self, scope: &Scope<'_>, word: usize) {
        if let Some(cell) = cell_of(word) {
            scope.check_address(cell.as_ptr() as usize, "value");
            scope.check_living(self.address() as usize);
        }
        self.store(scope, word);
    }

    /// Stores the value of `from` in this field. The caller has opened its window.
    ///
    /// # Safety
    /// Both fields lie in live cells of the mutator's heap.
    pub(crate) unsafe fn copy_from(&self, mutator: &Mutator, from: &Self) {
        // Acquire pairs with the barrier's store: a thread that loads this field finds the cell
        // initialised.
        let word = from.word.load(Ordering::Acquire);
        // SAFETY: forwarded.
        unsafe { mutator.write(self.address(), word) };
    }

    /// Makes the field hold the null variant.
    ///
    /// # Panics
    /// If the field does not lie in the scope's heap, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn clear(&self, scope: &Scope<'_>) {
        self.store(scope, 0);
    }

    /// Makes the field hold the null variant, and returns its former value: [`Field::take`]. The
    /// load and the store are two steps.
    ///
    /// [`Field::take`]: crate::Field::take
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn take<'s>(&self, scope: &Scope<'s>) -> V::In<'s> {
        let taken = self.get(scope);
        self.clear(scope);
        taken
    }

    /// Makes the field hold `value`, and returns its former value. The load and the store are two
    /// steps: if several threads replace the value of one field, more than one may get it.
    ///
    /// # Panics
    /// As [`get`](Self::get) and [`set`](Self::set).
    #[track_caller]
    pub fn replace<'s>(&self, scope: &Scope<'s>, value: V::In<'_>) -> V::In<'s> {
        let former = self.get(scope);
        self.set(scope, value);
        former
    }

    #[inline]
    #[track_caller]
    fn store(&self, scope: &Scope<'_>, word: usize) {
        scope.check_address(self.address() as usize, "field");
        scope.check_running();
        // SAFETY: the field is a word of a live cell of this mutator's heap, since the caller has a
        // reference to it. Only the barrier's code changes it.
        unsafe { scope.mutator().write(self.address(), word) };
    }

    /// The address of the word, for machine code and the raw tier. The word is an edge in
    /// [`Encoding::DYNAMIC`](crate::raw::Encoding::DYNAMIC).
    #[inline]
    pub fn address(&self) -> *mut usize {
        self.word.as_ptr()
    }
}

impl<V> Default for ValueField<V> {
    fn default() -> Self {
        Self::null()
    }
}

impl<V> fmt::Debug for ValueField<V> {
    /// Prints the target's address only: the graph may have cycles.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word.load(Ordering::Relaxed);
        match cell_of(word) {
            Some(cell) => write!(f, "-> {cell:p}"),
            None if word == 0 => f.write_str("null"),
            None => write!(f, "{word:#x}"),
        }
    }
}

impl<'s> Scope<'s> {
    /// Makes a value of this scope from a value of another scope, an inner one as a rule.
    ///
    /// ```
    /// # use gc_core::{Bytes, Heap, Local, Trace};
    /// # #[derive(Trace, Clone, Copy)]
    /// # enum Value<'s> { Nil, Text(Local<'s, Bytes>) }
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// mutator.scope(|outer| {
    ///     let kept = mutator.scope(|inner| {
    ///         let value = Value::Text(inner.alloc_bytes(b"kept")?);
    ///         Ok(outer.hold_value(value))
    ///     })?;
    ///     let Value::Text(text) = kept else { unreachable!() };
    ///     assert_eq!(&text[..], b"kept");
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If the cell does not lie in this scope's heap, if the system has no memory for another
    /// handle, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn hold_value<V: Dynamic>(&self, value: V) -> V::In<'s> {
        let word = value.encode() as usize;
        self.check_value(word);
        // SAFETY: the cell is alive, since the value is one of an open scope, and in this heap.
        unsafe { self.hold_word::<V::In<'s>>(|| word) }
    }

    /// Does what [`hold_value`](Self::hold_value) does, with an error where no memory is left.
    ///
    /// # Errors
    /// [`AllocError::System`]: the system has no memory for another handle.
    ///
    /// # Panics
    /// Inside `blocking`, and if the cell does not lie in this scope's heap.
    #[inline]
    #[track_caller]
    pub fn try_hold_value<V: Dynamic>(&self, value: V) -> Result<V::In<'s>, AllocError> {
        let word = value.encode() as usize;
        self.check_value(word);
        if let Some(cell) = cell_of(word) {
            // SAFETY: as in `hold_value`.
            unsafe { self.try_hold_cell(cell)? };
        }
        // SAFETY: the word was encoded by this enum, and a handle of this scope has its cell.
        Ok(unsafe { V::In::decode(word as u64) })
    }

    /// Checks that the thread runs, and that the cell of a word, if it has one, is of this heap.
    #[inline]
    #[track_caller]
    pub(crate) fn check_value(&self, word: usize) {
        self.check_running();
        if let Some(cell) = cell_of(word) {
            self.check_address(cell.as_ptr() as usize, "handle");
        }
    }

    /// Loads a word, and makes a handle of its cell if it is a reference. The thread's window is
    /// open in between.
    ///
    /// # Safety
    /// The word was encoded by the enum, or is zero. If it is a reference, its cell is alive and
    /// lies in this heap. The thread is not inside `blocking`.
    #[inline(always)]
    #[track_caller]
    pub(crate) unsafe fn hold_word<V: Dynamic>(&self, load: impl FnOnce() -> usize) -> V {
        let record = self.mutator().record();
        record.open_window();
        let word = load();
        match cell_of(word) {
            Some(cell) => {
                // SAFETY: forwarded. From the load on, the cell is in a register of this thread.
                unsafe { self.keep(cell) };
            }
            None => record.close_window(),
        }
        // SAFETY: the caller says that the enum encoded the word. A handle of this scope keeps the
        // cell.
        unsafe { V::decode(word as u64) }
    }
}
