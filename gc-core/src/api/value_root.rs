//! A root of a dynamic value.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::api::heap::Heap;
use crate::api::local::Scope;
use crate::api::root::RawRoot;
use crate::api::trace::Leaf;
use crate::api::value::{Dynamic, cell_of};
use crate::error::TableFull;

/// Keeps a dynamic value, and the cell that it leads to, alive from memory that the collector does
/// not scan, and on threads that are not attached: a [`Root`](crate::Root) for values. `V` is the
/// enum with the lifetime `'static`.
///
/// To make, clone or drop one takes a lock, and so does a change of its value. Where many values
/// are kept, as the globals of a language, one root of a table is cheaper.
///
/// ```
/// use gc_core::{Bytes, Heap, Local, RootValue, Trace};
///
/// #[derive(Trace, Clone, Copy)]
/// enum Value<'s> { Nil, Number(f64), Text(Local<'s, Bytes>) }
///
/// let heap = Heap::builder().build()?;
/// let mutator = heap.attach()?;
/// let mut global: RootValue<Value<'static>> = mutator.scope(|s| {
///     let text = s.alloc_bytes(b"kept")?;
///     Ok(heap.root_value(Value::Text(text)))
/// })?;
/// mutator.collect();
/// mutator.with_scope(|s| {
///     let Value::Text(text) = global.get(s) else { unreachable!() };
///     assert_eq!(&text[..], b"kept");
///     global.set(s, Value::Number(1.0));
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RootValue<V> {
    raw: RawRoot,
    word: usize,
    /// Invariant in `V`, as a field.
    _value: PhantomData<*mut V>,
}

// SAFETY: a lock protects the table of roots. Threads may share what a dynamic value leads to, and
// send what it holds.
unsafe impl<V: Dynamic> Send for RootValue<V> {}
// SAFETY: as above.
unsafe impl<V: Dynamic> Sync for RootValue<V> {}

impl Heap {
    /// Makes a root that keeps `value` alive. Any thread may use, clone and drop the root.
    ///
    /// # Panics
    /// If the cell of the value lies in another heap, or if the table of roots is full.
    #[track_caller]
    pub fn root_value<V: Dynamic>(&self, value: V) -> RootValue<V::In<'static>> {
        or_panic(self.try_root_value(value))
    }

    /// Does what [`root_value`](Self::root_value) does, with an error where the table of roots is
    /// full.
    ///
    /// # Errors
    /// [`TableFull`]: as [`try_root`](Self::try_root).
    ///
    /// # Panics
    /// If the cell of the value lies in another heap.
    #[track_caller]
    pub fn try_root_value<V: Dynamic>(
        &self,
        value: V,
    ) -> Result<RootValue<V::In<'static>>, TableFull> {
        let word = value.encode() as usize;
        let cell = cell_of(word);
        assert!(
            cell.is_none_or(|cell| self.shared().space.contains(cell.as_ptr() as usize)),
            "the value's cell at {cell:?} does not lie in this heap"
        );
        Ok(RootValue {
            raw: RawRoot::new(self, address(cell))?,
            word,
            _value: PhantomData,
        })
    }
}

fn address(cell: Option<NonNull<u8>>) -> usize {
    cell.map_or(0, |cell| cell.as_ptr() as usize)
}

#[track_caller]
fn or_panic<V>(root: Result<RootValue<V>, TableFull>) -> RootValue<V> {
    match root {
        Ok(root) => root,
        Err(full) => panic!("{full}"),
    }
}

impl<V: Dynamic> RootValue<V> {
    /// The value. A reference is a handle of `scope`.
    ///
    /// # Panics
    /// If the cell does not lie in the scope's heap, if the system has no memory for another
    /// handle, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn get<'s>(&self, scope: &Scope<'s>) -> V::In<'s> {
        scope.check_value(self.word);
        // SAFETY: a value of this enum encoded the word, and this root keeps its cell alive.
        unsafe { scope.hold_word(|| self.word) }
    }

    /// Makes the root keep another value.
    ///
    /// # Panics
    /// If the cell of the value does not lie in this root's heap, or if `scope` is of another heap,
    /// and inside `blocking`.
    #[track_caller]
    pub fn set(&mut self, scope: &Scope<'_>, value: V::In<'_>) {
        let word = value.encode() as usize;
        scope.check_value(word);
        let cell = cell_of(word);
        assert!(
            core::ptr::eq(scope.mutator().heap().shared(), self.heap().shared()),
            "the scope is one of another heap than the root's"
        );
        // SAFETY: the value is one of an open scope, so its cell is alive. It lies in the scope's
        // heap, which is this root's.
        unsafe { self.raw.set(cell) };
        self.word = word;
    }

    /// Makes another root of the same value: `clone`, with an error where the table of roots is
    /// full.
    ///
    /// # Errors
    /// [`TableFull`]: as [`Heap::try_root`].
    pub fn try_clone(&self) -> Result<Self, TableFull> {
        Ok(Self {
            raw: self.raw.try_clone()?,
            word: self.word,
            _value: PhantomData,
        })
    }

    /// The root's heap.
    pub fn heap(&self) -> &Heap {
        self.raw.heap()
    }
}

impl<V: Dynamic> Clone for RootValue<V> {
    /// # Panics
    /// If the table of roots is full.
    #[track_caller]
    fn clone(&self) -> Self {
        or_panic(self.try_clone())
    }
}

impl<V> fmt::Debug for RootValue<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match cell_of(self.word) {
            Some(cell) => write!(f, "RootValue(-> {cell:p})"),
            None => write!(f, "RootValue({:#x})", self.word),
        }
    }
}

// SAFETY: a root is not an edge, as for `Root`.
unsafe impl<V: Dynamic + 'static> Leaf for RootValue<V> {}
