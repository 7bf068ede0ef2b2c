//! Cells whose length is chosen when they are made: arrays of edges, and bytes.
//!
//! ```text
//! Array<T>      [ length | field | field | ... ]       every word after the first is an edge
//! Bytes         [ length | the bytes ...       ]       a leaf
//! ```
//! The collector needs no length: words that were never written are zero, and zero is no edge. So
//! an array that was stopped in the middle of being made is as good as any (its length is written
//! last, and for Rust alone).

use core::any::TypeId;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, Index};
use core::ptr::NonNull;

use crate::api::field::Field;
use crate::api::local::{Local, Scope};
use crate::api::mutator::Mutator;
use crate::api::trace::{Trace, made_by_the_heap};
use crate::encoding::Encoding;
use crate::error::AllocError;
use crate::heap::GRANULE;
use crate::kind::{Kind, KindId};
use crate::mutator::types::Sharing;

const WORD: usize = size_of::<usize>();

/// An array of edges in a cell of its own. Made by [`Scope::alloc_array`], all null.
///
/// A table that grows is a `Field<Array<T>>`: make a longer array with [`grown`](Array::grown), and
/// replace the old one by one store.
#[repr(C)]
pub struct Array<T> {
    len: usize,
    _fields: PhantomData<Field<T>>,
}

impl<T> Array<T> {
    /// How many edges.
    #[inline]
    #[allow(
        clippy::len_without_is_empty,
        reason = "an empty array is a choice, not a state"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The edges.
    #[inline]
    pub fn fields(&self) -> &[Field<T>] {
        let first = (&raw const *self).expose_provenance() + WORD;
        // SAFETY: an `Array` exists in the heap only, in a cell with room for `len` words after the
        // length; fields are words of any value that is zero or was stored by `Field`. The cell's
        // address is exposed, so the pointer may be made anew for all of it.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }

    /// [`Field::get`] of one edge.
    ///
    /// # Panics
    /// If `index` is out of range, and as [`Field::get`].
    #[inline]
    #[track_caller]
    pub fn get<'s>(&self, index: usize, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        self.fields()[index].get(scope)
    }

    /// [`Field::set`] of one edge.
    ///
    /// # Panics
    /// If `index` is out of range, and as [`Field::set`].
    #[inline]
    #[track_caller]
    pub fn set(&self, index: usize, scope: &Scope<'_>, value: &Local<'_, T>) {
        self.fields()[index].set(scope, value);
    }
}

impl<T: Trace> Array<T> {
    /// A new array of `len` edges that begins with this one's (as many as fit).
    ///
    /// # Errors
    /// [`AllocError`].
    ///
    /// # Panics
    /// As [`Field::get`].
    #[track_caller]
    pub fn grown<'s>(
        &self,
        len: usize,
        scope: &Scope<'s>,
    ) -> Result<Local<'s, Array<T>>, AllocError> {
        let new = scope.alloc_array::<T>(len)?;
        scope.check_address((&raw const *self) as usize, "array");
        for (to, from) in new.fields().iter().zip(self.fields()) {
            // SAFETY: both lie in live cells of this heap; what is loaded is in a register until it
            // is stored.
            unsafe {
                let record = scope.mutator().record();
                record.open_window();
                to.copy_from(scope.mutator(), from);
                record.close_window();
            }
        }
        Ok(new)
    }
}

impl<T> Index<usize> for Array<T> {
    type Output = Field<T>;
    #[inline]
    #[track_caller]
    fn index(&self, index: usize) -> &Field<T> {
        &self.fields()[index]
    }
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.fields()).finish()
    }
}

/// Bytes in a cell of their own: a string's text, a buffer, code. Made by [`Scope::alloc_bytes`],
/// and not changed any more.
#[repr(C)]
pub struct Bytes {
    len: usize,
}

impl Deref for Bytes {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        let first = (&raw const *self).expose_provenance() + WORD;
        // SAFETY: as `Array::fields`; the bytes were written before anybody knew the cell, and do
        // not change.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }
}

impl Bytes {
    /// The bytes as text, if they are UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        core::str::from_utf8(self).ok()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

/// The shapes that types of any length share, one kind of each a heap.
pub(crate) trait Shape: 'static {
    fn kind() -> Kind;
}

struct OfEdges;
impl Shape for OfEdges {
    fn kind() -> Kind {
        Kind::array("array of edges", 1, Encoding::RAW)
    }
}

struct OfBytes;
impl Shape for OfBytes {
    fn kind() -> Kind {
        Kind::leaf("bytes")
    }
}

impl Mutator {
    fn shape<S: Shape>(&self) -> Result<KindId, AllocError> {
        let id = TypeId::of::<S>();
        if let Some(info) = self.types().get(id) {
            return Ok(info.kind);
        }
        let shared = self.heap().shared();
        let info = shared.type_info(id, 0, Sharing::Shared, S::kind)?;
        self.types().put(id, info);
        Ok(info.kind)
    }

    /// A zeroed cell of a shape, in an open window: a length, and room for `len` elements of
    /// `element` bytes.
    pub(crate) fn cell_of_shape<S: Shape>(
        &self,
        len: usize,
        element: usize,
    ) -> Result<NonNull<usize>, AllocError> {
        let bytes = len
            .checked_mul(element)
            .and_then(|bytes| bytes.checked_add(WORD))
            .filter(|bytes| *bytes <= isize::MAX as usize - GRANULE)
            .ok_or(AllocError::TooLarge { bytes: usize::MAX })?;
        let kind = self.shape::<S>()?;
        // SAFETY: the shape's kind says nothing of the cell's size, but that its first word is no
        // edge. The caller roots the cell.
        Ok(unsafe { self.alloc_in_window(kind, bytes) }?.cast())
    }
}

impl<'s> Scope<'s> {
    /// An array of `len` null edges.
    ///
    /// # Errors
    /// [`AllocError`].
    ///
    /// # Panics
    /// Inside `blocking`.
    #[track_caller]
    pub fn alloc_array<T: Trace>(&self, len: usize) -> Result<Local<'s, Array<T>>, AllocError> {
        self.check_running();
        let cell = self.mutator().cell_of_shape::<OfEdges>(len, WORD)?;
        // SAFETY: a new cell with room for the length and the fields, which are null; no other code
        // knows it.
        unsafe {
            cell.write(len);
            self.try_hold_cell(cell.cast())
        }
    }

    /// A cell that holds a copy of `bytes`.
    ///
    /// # Errors
    /// [`AllocError`].
    ///
    /// # Panics
    /// Inside `blocking`.
    #[track_caller]
    pub fn alloc_bytes(&self, bytes: &[u8]) -> Result<Local<'s, Bytes>, AllocError> {
        self.check_running();
        let cell = self.mutator().cell_of_shape::<OfBytes>(bytes.len(), 1)?;
        // SAFETY: a new cell with room for the length and the bytes; no other code knows it.
        unsafe {
            cell.write(bytes.len());
            cell.add(1)
                .cast::<u8>()
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
            self.try_hold_cell(cell.cast())
        }
    }
}

made_by_the_heap!([T: Trace] Array<T>, [] Bytes);
