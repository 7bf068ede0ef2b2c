//! Strings, bytes that are built in place, and bytes that change.

use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::api::array::{Bytes, OfBytes};
use crate::api::local::{Local, Scope};
use crate::api::slice::Slice;
use crate::api::trace::made_by_the_heap;
use crate::error::AllocError;

const WORD: usize = size_of::<usize>();

/// An immutable string in a cell, used as a `str`. [`Scope::alloc_str`] makes one. It is UTF-8 by
/// its type, so no use checks it again.
///
/// ```
/// # use gc_core::Heap;
/// # let heap = Heap::builder().build()?;
/// heap.attach()?.scope(|s| {
///     let name = s.alloc_str("naïve")?;
///     let greeting = s.alloc_concat(&["hello, ", &name])?;
///     assert_eq!((name.chars().count(), &**greeting), (5, "hello, naïve"));
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Str {
    bytes: Bytes,
}

impl Deref for Str {
    type Target = str;
    #[inline]
    fn deref(&self) -> &str {
        // SAFETY: the bytes were copied from strings, and do not change.
        unsafe { core::str::from_utf8_unchecked(&self.bytes) }
    }
}

impl AsRef<str> for Str {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Debug for Str {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl fmt::Display for Str {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

made_by_the_heap!([] Str);

/// Bytes that change, of a fixed length: a language's byte vector, or the memory of its strings. A
/// slice of atomics, since threads share cells.
///
/// ```
/// # use gc_core::Heap;
/// # let heap = Heap::builder().build()?;
/// heap.attach()?.scope(|s| {
///     let buffer = s.alloc_buffer(8)?;
///     buffer.write_at(2, b"abc");
///     let mut part = [0; 4];
///     buffer.read_at(1, &mut part);
///     assert_eq!(part, *b"\0abc");
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Buffer = Slice<AtomicU8>;

impl Buffer {
    /// Copies bytes from the buffer, from byte `at` on. If another thread writes meanwhile, each
    /// byte is an old or a new one.
    ///
    /// # Panics
    /// If the bytes do not lie in the buffer.
    #[track_caller]
    pub fn read_at(&self, at: usize, to: &mut [u8]) {
        let from = &self[at..][..to.len()];
        for (to, from) in to.iter_mut().zip(from) {
            // Relaxed, here and below: the bytes order nothing.
            *to = from.load(Ordering::Relaxed);
        }
    }

    /// Copies bytes into the buffer, from byte `at` on.
    ///
    /// # Panics
    /// If the bytes do not lie in the buffer.
    #[track_caller]
    pub fn write_at(&self, at: usize, from: &[u8]) {
        let to = &self[at..][..from.len()];
        for (to, from) in to.iter().zip(from) {
            to.store(*from, Ordering::Relaxed);
        }
    }
}

impl<'s> Scope<'s> {
    /// Makes a cell of `len` bytes, which `fill` writes in place. They are zero before.
    ///
    /// ```
    /// # use gc_core::Heap;
    /// # use std::io::Read;
    /// # let heap = Heap::builder().build()?;
    /// # let mut file = std::io::Cursor::new(b"content".to_vec());
    /// heap.attach()?.scope(|s| {
    ///     let mut result = Ok(());
    ///     let bytes = s.alloc_bytes_with(7, |bytes| result = file.read_exact(bytes))?;
    ///     assert!(result.is_ok() && &bytes[..] == b"content");
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// Inside `blocking`, and if `fill` panics.
    #[track_caller]
    pub fn alloc_bytes_with(
        &self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Local<'s, Bytes>, AllocError> {
        self.check_running();
        let cell = self.mutator().cell_of_shape::<OfBytes>(len, 1)?;
        // SAFETY: a new cell, with room for the length and the bytes, which no other code has. The
        // handle keeps it while the closure runs. The bytes are zero, and no reference to the value
        // exists before the closure has returned.
        unsafe {
            let local = self.try_hold_cell(cell.cast())?;
            cell.write(len);
            let first = cell.as_ptr().expose_provenance() + WORD;
            let first = core::ptr::with_exposed_provenance_mut(first);
            fill(core::slice::from_raw_parts_mut(first, len));
            Ok(local)
        }
    }

    /// Makes a cell that holds a copy of `text`.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// Inside `blocking`.
    #[track_caller]
    pub fn alloc_str(&self, text: &str) -> Result<Local<'s, Str>, AllocError> {
        self.alloc_concat(&[text])
    }

    /// Makes a string of `parts`, one after another, which are copied once.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// Inside `blocking`.
    #[track_caller]
    pub fn alloc_concat(&self, parts: &[&str]) -> Result<Local<'s, Str>, AllocError> {
        let len = parts
            .iter()
            .try_fold(0usize, |len, part| len.checked_add(part.len()))
            .ok_or(AllocError::TooLarge { bytes: usize::MAX })?;
        let bytes = self.alloc_bytes_with(len, |mut to| {
            for part in parts {
                let (head, tail) = to.split_at_mut(part.len());
                head.copy_from_slice(part.as_bytes());
                to = tail;
            }
        })?;
        // SAFETY: a `Str` is the same cell as its bytes, which are UTF-8: strings one after
        // another. The handle of `bytes` keeps the cell.
        Ok(unsafe { Local::from_cell(bytes.cell().cast()) })
    }

    /// Makes a buffer of `len` bytes, which are zero.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// Inside `blocking`.
    #[track_caller]
    pub fn alloc_buffer(&self, len: usize) -> Result<Local<'s, Buffer>, AllocError> {
        self.alloc_slice(len)
    }
}
