//! Memory taken from the OS: zeroed, lazily backed, typed where it helps.
//!
//! All of the heap and all of its side tables are such mappings. Nothing here mallocs after construction, and a page
//! costs nothing until it is written.

use std::fmt;
use std::marker::PhantomData;

use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};

/// The OS did not give the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapError {
    /// How much was asked for.
    pub bytes: usize,
    /// The OS's error number.
    pub errno: i32,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = std::io::Error::from_raw_os_error(self.errno);
        write!(
            f,
            "the system refused to map {} bytes of address space: {why}",
            self.bytes
        )
    }
}

impl std::error::Error for MapError {}

/// A private anonymous mapping that reserves no swap.
pub(crate) struct Map {
    map: MmapMut,
}

impl Map {
    pub(crate) fn new(bytes: usize) -> Result<Map, MapError> {
        MmapOptions::new()
            .len(bytes.max(1))
            .no_reserve_swap()
            .map_anon()
            .map(|map| Map { map })
            .map_err(|e| MapError {
                bytes,
                errno: e.raw_os_error().unwrap_or(libc::EINVAL),
            })
    }

    /// The first byte. All accesses go through pointers from here; no reference to the whole is ever made.
    pub(crate) fn base(&self) -> *mut u8 {
        self.map.as_ptr().cast_mut()
    }

    /// Asks for huge pages. A kernel without them says no, and that is no error.
    pub(crate) fn prefer_huge_pages(&self) {
        let _ = self.map.advise(Advice::HugePage);
    }

    /// As [`Map::prefer_huge_pages`], from byte `offset` on, if there is anything.
    fn prefer_huge_pages_from(&self, offset: usize) {
        if let Some(rest @ 1..) = self.map.len().checked_sub(offset) {
            let _ = self.map.advise_range(Advice::HugePage, offset, rest);
        }
    }

    /// Has the pages of `[offset, offset + bytes)` backed, as if each were written, and changes nothing in them. False: the kernel has no
    /// memory, or is older than 5.14.
    pub(crate) fn back(&self, offset: usize, bytes: usize) -> bool {
        self.map
            .advise_range(Advice::PopulateWrite, offset, bytes)
            .is_ok()
    }

    /// Gives the pages of `[offset, offset + bytes)` back; they read as zero afterwards. False: the kernel refused,
    /// and the contents stand.
    ///
    /// # Safety
    /// Page-aligned range inside the mapping, and nobody uses its contents.
    pub(crate) unsafe fn discard(&self, offset: usize, bytes: usize) -> bool {
        // SAFETY: the caller promises that the contents are nobody's.
        unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes)
                .is_ok()
        }
    }
}

/// A mapped array whose elements start as zero bytes.
pub(crate) struct Table<T> {
    map: Map,
    len: usize,
    element: PhantomData<*mut T>,
}

// SAFETY: a table is memory reached through raw pointers; who dereferences them answers for the sharing.
unsafe impl<T> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Table<T> {}

impl<T> Table<T> {
    pub(crate) fn new(len: usize) -> Result<Table<T>, MapError> {
        const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0) };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(MapError {
            bytes: usize::MAX,
            errno: libc::ENOMEM,
        })?;
        Ok(Table {
            map: Map::new(bytes)?,
            len,
            element: PhantomData,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A pointer to element `index`. The bound is checked in debug builds only: this is on the marker's path.
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> *mut T {
        debug_assert!(index < self.len, "table index {index} of {}", self.len);
        self.map.base().cast::<T>().wrapping_add(index)
    }

    /// Asks for huge pages from element `first` on, where that is a page's first.
    pub(crate) fn prefer_huge_pages_from(&self, first: usize) {
        self.map.prefer_huge_pages_from(first * size_of::<T>());
    }

    /// Has the pages of `count` elements from `first` on backed, as far as there are so many. See [`Map::back`].
    pub(crate) fn back(&self, first: usize, count: usize) -> bool {
        let from = first * size_of::<T>() / 4096 * 4096;
        let to = ((first + count) * size_of::<T>()).next_multiple_of(4096);
        let to = to.min(self.map.map.len().next_multiple_of(4096));
        from >= to || self.map.back(from, to - from)
    }

    /// Where it lies.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.map.base() as usize;
        start..start + self.len * size_of::<T>()
    }

    /// See [`Map::discard`]: whole pages inside `[first, first + count)` elements.
    ///
    /// # Safety
    /// The range is page-aligned in bytes, inside the table, and nobody uses its contents.
    pub(crate) unsafe fn discard(&self, first: usize, count: usize) -> bool {
        // SAFETY: forwarded.
        unsafe {
            self.map
                .discard(first * size_of::<T>(), count * size_of::<T>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absurd_length_is_an_error_value() {
        assert!(Table::<u64>::new(usize::MAX / 4).is_err());
        assert!(Map::new(1 << 60).is_err());
    }

    #[test]
    fn discarded_memory_reads_as_zero() {
        let map = Map::new(1 << 16).unwrap();
        // SAFETY: our own fresh mapping.
        unsafe {
            map.base().add(4096).write(7);
            assert!(map.discard(4096, 4096));
            assert_eq!(map.base().add(4096).read(), 0);
        }
    }
}
