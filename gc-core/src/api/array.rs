//! Cells whose length is chosen when they are made: arrays of edges, and bytes.
//!
//! ```text
//! Array<T>      [ length | field | field | ... ]       every word after the first is an edge
//! Bytes         [ length | the bytes ...       ]       a leaf
//! ```
//! The collector does not read the length: words that were never written are zero, and zero is no
//! edge. So it may trace an array at any moment of its construction. The length is for Rust code
//! only, and is written last.

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

/// An array of edges in a cell. [`Scope::alloc_array`] makes one; all its edges are null.
///
/// A table that grows is a `Field<Array<T>>`: make a longer array with [`grown`](Array::grown), and
/// replace the old one by one store.
#[repr(C)]
pub struct Array<T> {
    len: usize,
    _fields: PhantomData<Field<T>>,
}

impl<T> Array<T> {
    /// The number of edges.
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
        // length. Each word is zero or was stored by `Field`. The cell's address is exposed, so a
        // new pointer may cover all of it.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }

    /// The target of edge `index`: [`Field::get`].
    ///
    /// # Panics
    /// If `index` is out of range, and as [`Field::get`].
    #[inline]
    #[track_caller]
    pub fn get<'s>(&self, index: usize, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        self.fields()[index].get(scope)
    }

    /// Makes edge `index` lead to `value`: [`Field::set`].
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
    /// Makes an array of `len` edges, and copies this array's edges to its beginning, as many as
    /// fit.
    ///
    /// ```
    /// # use gc_core::{Bytes, Heap};
    /// # let heap = Heap::builder().build()?;
    /// # let mutator = heap.attach()?;
    /// mutator.scope(|s| {
    ///     let array = s.alloc_array::<Bytes>(2)?;
    ///     let first = s.alloc_bytes(b"first")?;
    ///     array.set(0, s, &first);
    ///     let longer = array.grown(4, s)?;
    ///     assert_eq!(longer.len(), 4);
    ///     assert!(longer.get(0, s).unwrap().same(first));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AllocError`]: as for [`Scope::alloc`].
    ///
    /// # Panics
    /// If this array does not lie in the scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn grown<'s>(
        &self,
        len: usize,
        scope: &Scope<'s>,
    ) -> Result<Local<'s, Array<T>>, AllocError> {
        let new = scope.alloc_array::<T>(len)?;
        scope.check_address((&raw const *self) as usize, "array");
        for (to, from) in new.fields().iter().zip(self.fields()) {
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

/// Immutable bytes in a cell: a string's text, a buffer, code. [`Scope::alloc_bytes`] makes one.
#[repr(C)]
pub struct Bytes {
    len: usize,
}

impl Deref for Bytes {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        let first = (&raw const *self).expose_provenance() + WORD;
        // SAFETY: as in `Array::fields`. The bytes were written before any other code had the cell,
        // and do not change.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }
}

impl Bytes {
    /// The bytes as text; `None` if they are not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        core::str::from_utf8(self).ok()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

/// A layout of cells of any length, with one kind in each heap, which all types of the layout
/// share.
pub(crate) trait Shape: 'static {
    const SHARING: Sharing = Sharing::Shared;

    fn kind() -> Kind;
}

struct OfEdges;
impl Shape for OfEdges {
    fn kind() -> Kind {
        Kind::array("array of edges", 1, Encoding::RAW)
    }
}

pub(crate) struct OfBytes;
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
        let info = shared.type_info(id, 0, S::SHARING, S::kind)?;
        self.types().put(id, info);
        Ok(info.kind)
    }

    /// Makes a zeroed cell of a shape, with room for a length and `len` elements of `element`
    /// bytes. The thread's window is open on return.
    pub(crate) fn cell_of_shape<S: Shape>(
        &self,
        len: usize,
        element: usize,
    ) -> Result<NonNull<usize>, AllocError> {
        self.cell_of_shape_after::<S>(WORD, len, element)
    }

    /// The same, with `len` elements from byte `first` on.
    pub(crate) fn cell_of_shape_after<S: Shape>(
        &self,
        first: usize,
        len: usize,
        element: usize,
    ) -> Result<NonNull<usize>, AllocError> {
        let bytes = len
            .checked_mul(element)
            .and_then(|bytes| bytes.checked_add(first))
            .filter(|bytes| *bytes <= isize::MAX as usize - GRANULE)
            .ok_or(AllocError::TooLarge { bytes: usize::MAX })?;
        let kind = self.shape::<S>()?;
        // SAFETY: the shape's kind demands no size of the cell beyond its first word, which is no
        // edge. The caller makes a handle of the cell.
        Ok(unsafe { self.alloc_in_window(kind, bytes) }?.cast())
    }
}

impl<'s> Scope<'s> {
    /// Makes an array of `len` null edges.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// Inside `blocking`.
    #[track_caller]
    pub fn alloc_array<T: Trace>(&self, len: usize) -> Result<Local<'s, Array<T>>, AllocError> {
        self.check_running();
        let cell = self.mutator().cell_of_shape::<OfEdges>(len, WORD)?;
        // SAFETY: a new cell with room for the length and the fields, which are null. No other code
        // has the cell.
        unsafe {
            cell.write(len);
            self.try_hold_cell(cell.cast())
        }
    }

    /// Makes a cell that holds a copy of `bytes`.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// Inside `blocking`.
    #[track_caller]
    pub fn alloc_bytes(&self, bytes: &[u8]) -> Result<Local<'s, Bytes>, AllocError> {
        self.check_running();
        let cell = self.mutator().cell_of_shape::<OfBytes>(bytes.len(), 1)?;
        // SAFETY: a new cell with room for the length and the bytes. No other code has the cell.
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
