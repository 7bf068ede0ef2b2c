//! Cells of elements side by side: arrays of structs with edges and plain data, and of dynamic
//! values.
//!
//! ```text
//! Slice<T>      [ length | element | element | ... ]
//! ```
//! The kind says which words of an element are edges, and how far the elements lie apart. The
//! collector does not read the length, as for an [`Array`](crate::Array): words behind the last
//! element are zero.

use core::any::type_name;
use core::fmt;
use core::marker::PhantomData;
use core::mem::needs_drop;
use core::ops::Deref;
use core::ptr::NonNull;

use bitvec::prelude::{BitVec, Lsb0};

use crate::api::array::Shape;
use crate::api::local::{Local, Scope, check_edges, write_value};
use crate::api::trace::{Trace, encoding_of, made_by_the_heap};
use crate::api::value::{Dynamic, ValueField};
use crate::dying::Place;
use crate::error::AllocError;
use crate::kind::Kind;
use crate::mutator::types::Sharing;

const WORD: usize = size_of::<usize>();

/// Elements side by side in one cell, used as a `[T]`: structs with edges and plain data, dynamic
/// values ([`Values`]), atomics. [`Scope::alloc_slice`] and [`Scope::alloc_slice_with`] make one.
///
/// The length does not change. A table that grows is a `Field<Slice<T>>`. Elements change by
/// interior mutability, as every value in a cell. An array of edges alone is an
/// [`Array`](crate::Array).
///
/// ```
/// use core::sync::atomic::{AtomicU64, Ordering};
/// use gc_core::{Bytes, Field, Heap, Trace};
///
/// /// A slot of a hash table: 24 bytes.
/// #[derive(Trace, Default)]
/// struct Slot {
///     hash: AtomicU64,
///     key: Field<Bytes>,
///     value: Field<Bytes>,
/// }
///
/// let heap = Heap::builder().build()?;
/// heap.attach()?.scope(|s| {
///     let table = s.alloc_slice::<Slot>(8)?;
///     table[3].hash.store(11, Ordering::Relaxed);
///     table[3].key.set(s, &s.alloc_bytes(b"key")?);
///     let used = table.iter().filter(|slot| !slot.key.is_null()).count();
///     assert_eq!((table.len(), used), (8, 1));
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Slice<T> {
    len: usize,
    /// Invariant in `T`, since elements have fields.
    _elements: PhantomData<*mut T>,
}

/// A vector of dynamic values: [`ValueField`]s side by side.
///
/// ```
/// use gc_core::{Bytes, Heap, Local, Trace, ValueField, Values};
///
/// #[derive(Trace, Clone, Copy)]
/// enum Value<'s> {
///     Nil,
///     Number(f64),
///     Text(Local<'s, Bytes>),
///     Vector(Local<'s, Values<Value<'static>>>),
/// }
///
/// let heap = Heap::builder().build()?;
/// heap.attach()?.scope(|s| {
///     let vector = s.alloc_slice::<ValueField<Value>>(3)?;
///     vector[0].set(s, Value::Number(1.5));
///     vector[1].set(s, Value::Vector(vector));
///     assert!(matches!(vector[0].get(s), Value::Number(1.5)));
///     assert!(matches!(vector[2].get(s), Value::Nil));
///     let longer = vector.grown(10, s)?;
///     longer.fill(3.., s, Value::Number(0.0));
///     assert!(matches!(longer[1].get(s), Value::Vector(same) if same.same(vector)));
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Values<V> = Slice<ValueField<V>>;

// SAFETY: the cell holds elements of `T`, which any thread may drop.
unsafe impl<T: Send + Sync> Send for Slice<T> {}
// SAFETY: a reference to the slice gives references to its elements.
unsafe impl<T: Send + Sync> Sync for Slice<T> {}

impl<T> Slice<T> {
    /// The byte at which the elements begin.
    const FIRST: usize = if align_of::<T>() > WORD {
        align_of::<T>()
    } else {
        WORD
    };

    /// The elements of the cell of a slice.
    fn elements(cell: NonNull<u8>) -> *mut T {
        core::ptr::with_exposed_provenance_mut(cell.as_ptr().expose_provenance() + Self::FIRST)
    }
}

impl<T> Deref for Slice<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        let first = (&raw const *self).expose_provenance() + Self::FIRST;
        // SAFETY: a `Slice` exists in the heap only, in a cell with room for `len` elements, which
        // were all written before any other code had the cell. Its address is exposed, so a new
        // pointer may cover all of it.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }
}

impl<T: fmt::Debug> fmt::Debug for Slice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<V: Dynamic + 'static> Values<V> {
    /// Makes a vector of `len` values, and copies this vector's values to its beginning, as many as
    /// fit. Further ones are the null variant.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`Scope::alloc`].
    ///
    /// # Panics
    /// If this vector does not lie in the scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn grown<'s>(
        &self,
        len: usize,
        scope: &Scope<'s>,
    ) -> Result<Local<'s, Values<V>>, AllocError> {
        let new = scope.alloc_slice::<ValueField<V>>(len)?;
        scope.check_address((&raw const *self) as usize, "slice");
        for (to, from) in new.iter().zip(self.iter()) {
            // SAFETY: both fields lie in live cells of this heap. The loaded cell is in a register
            // until it is stored, and the window is open.
            unsafe {
                let record = scope.mutator().record();
                record.open_window();
                to.copy_from(scope.mutator(), from);
                record.close_window();
            }
        }
        Ok(new)
    }

    /// Makes each element of `range` hold `value`.
    ///
    /// # Panics
    /// If the range does not lie in the slice, and as [`ValueField::set`].
    #[track_caller]
    pub fn fill<'a>(
        &self,
        range: impl core::slice::SliceIndex<[ValueField<V>], Output = [ValueField<V>]>,
        scope: &Scope<'_>,
        value: V::In<'a>,
    ) where
        V::In<'a>: Copy,
    {
        let word = value.encode() as usize;
        for field in &self[range] {
            field.set_word(scope, word);
        }
    }
}

/// The elements of a type, of any number.
struct OfElements<T>(PhantomData<T>);

impl<T: Trace> Shape for OfElements<T> {
    const SHARING: Sharing = match needs_drop::<T>() {
        true => Sharing::Own,
        false => Sharing::Shared,
    };

    fn kind() -> Kind {
        let name = type_name::<Slice<T>>();
        let mut slots = BitVec::<u64, Lsb0>::new();
        let stride = size_of::<T>() / WORD;
        T::edges(&mut |offset| {
            assert!(
                offset % WORD == 0
                    && offset < size_of::<T>()
                    && size_of::<T>().is_multiple_of(WORD),
                "{} has an edge at byte {offset}, which is not a word of it",
                type_name::<T>()
            );
            slots.resize(slots.len().max(offset / WORD + 1), false);
            slots.set(offset / WORD, true);
        });
        let (first, encoding) = ((Slice::<T>::FIRST / WORD) as u32, encoding_of::<T>());
        match slots.count_ones() {
            0 => Kind::leaf(name),
            edges if edges == stride => Kind::array(name, first, encoding),
            _ => Kind::elements(name, first, stride as u32, slots, encoding),
        }
    }
}

/// Drops the elements of a dead slice, whose edges the collector has made null.
///
/// # Safety
/// `cell` holds a `Slice<T>` that no other code can reach.
unsafe fn drop_elements<T>(place: Place<'_>, cell: *mut u8) {
    let Some(cell) = NonNull::new(cell) else {
        return;
    };
    // SAFETY: the length is the cell's first word.
    let len = unsafe { cell.cast::<usize>().read() };
    let elements = core::ptr::slice_from_raw_parts_mut(Slice::<T>::elements(cell), len);
    let first = cell.as_ptr() as usize;
    let bytes = Slice::<T>::FIRST + len * size_of::<T>();
    // SAFETY: as the caller promises. A stale word of a stack may lead a thread to the value; it
    // has no edges then.
    place.during(first..first + bytes, || unsafe { elements.drop_in_place() });
}

impl<'s> Scope<'s> {
    /// Makes a slice of `len` elements, each the type's default.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// As [`alloc_slice_with`](Self::alloc_slice_with).
    #[track_caller]
    pub fn alloc_slice<T: Trace + Default>(
        &self,
        len: usize,
    ) -> Result<Local<'s, Slice<T>>, AllocError> {
        self.alloc_slice_with(len, |_| T::default())
    }

    /// Makes a slice of `len` elements, which `element` makes from their indices.
    ///
    /// ```
    /// # use gc_core::Heap;
    /// # let heap = Heap::builder().build()?;
    /// heap.attach()?.scope(|s| {
    ///     let squares = s.alloc_slice_with(10, |i| i * i)?;
    ///     assert_eq!(squares[9], 81);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc). The elements are dropped.
    ///
    /// # Panics
    /// Inside `blocking`, and if an element has an edge that is not null. If `element` panics; the
    /// elements that it has made are not dropped then.
    #[track_caller]
    pub fn alloc_slice_with<T: Trace>(
        &self,
        len: usize,
        mut element: impl FnMut(usize) -> T,
    ) -> Result<Local<'s, Slice<T>>, AllocError> {
        const {
            assert!(
                align_of::<T>() <= 16,
                "cells are aligned to 16 bytes: a type that asks for more cannot lie in one"
            );
            assert!(
                T::TRACE.is_none(),
                "a type with a trace function cannot be the element of a slice: hold a Field to it"
            );
        }
        self.check_running();
        let mutator = self.mutator();
        let cell =
            mutator.cell_of_shape_after::<OfElements<T>>(Slice::<T>::FIRST, len, size_of::<T>())?;
        // The length is zero until all elements are written. The handle keeps the cell while the
        // closure runs.
        // SAFETY: a new cell, which no other code has.
        let slice: Local<'s, Slice<T>> = unsafe { self.try_hold_cell(cell.cast())? };
        let elements = Slice::<T>::elements(cell.cast());
        for index in 0..len {
            let value = element(index);
            check_edges(&value);
            // SAFETY: the cell has room for `len` elements, and no other code writes them.
            unsafe { write_value(NonNull::new_unchecked(elements.add(index)), value) };
        }
        // SAFETY: the cell's first word is the length, and no other code has the cell.
        unsafe { cell.write(len) };
        if needs_drop::<T>() && len != 0 {
            let registered = mutator.register_drop_by(cell.cast(), drop_elements::<T>);
            if let Err(error) = registered {
                // SAFETY: no code but this has the slice, whose elements are whole.
                unsafe {
                    cell.write(0);
                    core::ptr::slice_from_raw_parts_mut(elements, len).drop_in_place();
                }
                return Err(error);
            }
        }
        Ok(slice)
    }
}

made_by_the_heap!([T: Trace] Slice<T>);
