//! Tables of fixed capacity in mapped memory, for what is changed in a stop or under `no_preempt`.
//!
//! A stop calls no malloc: a mutator may have been stopped while it held malloc's lock. A mutator
//! inside `no_preempt` calls none either: it would wait for a thread that was stopped a moment
//! before, and the stop would wait for it. So the tables that the collector and such sections fill
//! (finalizers, roots, kinds, the barrier's log) are address space that is reserved when the heap
//! is built, as much as the heap's reserve may need. A system page of it becomes memory when it is
//! first touched, which takes no lock of this process.

use core::ops::Deref;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

use crate::memory::os::{MapError, Table};
use crate::memory::places::Places;

/// Types for which all-zero bytes are a value, and whose values may be shared between threads.
///
/// # Safety
/// The type has no padding that is read, no niche that zero would violate, and no drop glue.
pub(crate) unsafe trait Zeroed: Sync {}
// SAFETY: an integer; zero is a value of it.
unsafe impl Zeroed for AtomicUsize {}
// SAFETY: as above.
unsafe impl Zeroed for AtomicU64 {}
// SAFETY: as above.
unsafe impl Zeroed for AtomicU32 {}

/// A zeroed array of `T` that never moves.
pub(crate) struct Mapped<T: Zeroed> {
    table: Table<T>,
}

impl<T: Zeroed> Mapped<T> {
    /// An array of `len` elements that can be written at once.
    pub(crate) fn new(len: usize) -> Result<Self, MapError> {
        Ok(Self {
            table: Table::new(len.max(1))?,
        })
    }

    /// An array of `len` elements that reads as zeros. [`Mapped::make_writable`] comes before the
    /// first write. For large arrays that are seldom full: see the head of `memory/os.rs`.
    pub(crate) fn growing(len: usize) -> Result<Self, MapError> {
        Ok(Self {
            table: Table::reserve(len.max(1))?,
        })
    }

    /// The number of elements from the first one on that can be written.
    #[inline]
    pub(crate) fn writable(&self) -> usize {
        self.table.writable()
    }

    /// Makes at least the first `count` elements writable. See [`Table::make_writable`].
    pub(crate) fn make_writable(&self, count: usize) -> Result<(), MapError> {
        self.table.make_writable(count)
    }

    /// An array of `wanted` elements. If the system refuses it (an address-space limit), of half as
    /// many, and so on down to `least`.
    pub(crate) fn reserve(wanted: usize, least: usize) -> Result<Self, MapError> {
        let mut len = wanted.max(least).max(1);
        loop {
            match Self::new(len) {
                Ok(mapped) => return Ok(mapped),
                Err(e) if len / 2 < least.max(1) => return Err(e),
                Err(_) => len /= 2,
            }
        }
    }

    /// Gives the memory of these elements back; they are zero afterwards. They fill whole system
    /// pages.
    ///
    /// # Safety
    /// The first element is the first of a system page, and no thread uses these elements.
    pub(crate) unsafe fn discard(&self, elements: core::ops::Range<usize>) -> bool {
        // SAFETY: forwarded.
        unsafe { self.table.discard(elements.start, elements.len()) }
    }

    /// Makes the first `count` elements zero. The memory of many elements goes back to the system.
    /// Outside of stops.
    ///
    /// # Safety
    /// No other thread uses these elements meanwhile.
    pub(crate) unsafe fn zero(&self, count: usize) {
        /// Below this many bytes, clearing them costs less than taking them anew.
        const LARGE: usize = 1 << 20;
        const PAGE: usize = 4096;
        let bytes = count.min(self.table.len()) * size_of::<T>();
        let pages = bytes / PAGE * PAGE;
        // SAFETY: whole system pages from the start of the mapping, and the caller says that no
        // thread uses their contents.
        let given = bytes >= LARGE && unsafe { self.table.discard_first(pages) };
        let first = if given { pages } else { 0 };
        // SAFETY: within the mapping, and no thread uses it.
        unsafe {
            let base = self.table.at(0).cast::<u8>();
            base.add(first).write_bytes(0, bytes - first);
        }
    }
}

impl<T: Zeroed> Deref for Mapped<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page-aligned, holds `len` elements and lives as long as `self`.
        // Bytes of it that no thread wrote are zero, which `Zeroed` makes a value. `T` is `Sync`,
        // and only shared references are given out.
        unsafe { core::slice::from_raw_parts(self.table.at(0), self.table.len()) }
    }
}

/// Values that come and go, at numbered places. The owner's lock protects it.
pub(crate) struct Slab<T> {
    /// The items at used places are values.
    items: Table<T>,
    places: Places,
}

// SAFETY: the slab owns its values and hands out references as it is borrowed.
unsafe impl<T: Send> Send for Slab<T> {}

impl<T> Slab<T> {
    /// A slab of `capacity` places.
    pub(crate) fn new(capacity: usize) -> Result<Self, MapError> {
        const { assert!(size_of::<T>().is_multiple_of(size_of::<usize>())) };
        Ok(Self {
            items: Table::reserve(capacity)?,
            places: Places::new(capacity)?,
        })
    }

    /// Puts a value at a free place and returns the place. The value comes back if there is no free
    /// place, or no memory for one.
    pub(crate) fn add(&mut self, item: T) -> Result<usize, T> {
        let Some(at) = self.places.take() else {
            return Err(item);
        };
        if self.items.make_writable(at + 1).is_err() {
            self.places.give(at);
            return Err(item);
        }
        // SAFETY: within the table, and not a value yet.
        unsafe { self.items.at(at).write(item) };
        Ok(at)
    }

    /// Takes the value of a place out, and frees the place.
    pub(crate) fn take(&mut self, at: usize) -> Option<T> {
        // SAFETY: the place was used, so it holds a value, which belongs to the caller from now on.
        self.places
            .give(at)
            .then(|| unsafe { self.items.at(at).read() })
    }

    /// The value at a place.
    pub(crate) fn get(&mut self, at: usize) -> Option<&mut T> {
        // SAFETY: the place is used, so it holds a value; `self` is borrowed for as long as the
        // result.
        self.places
            .is_used(at)
            .then(|| unsafe { &mut *self.items.at(at) })
    }

    /// The first used place from `from` on, and its value.
    pub(crate) fn next(&mut self, from: usize) -> Option<(usize, &mut T)> {
        let at = self.places.next(from, usize::MAX)?;
        self.get(at).map(|item| (at, item))
    }

    /// Gives the memory of free places back. See [`Places::trim_piece`].
    pub(crate) fn trim_piece(&mut self, from: usize) -> Option<usize> {
        let items = &self.items;
        // SAFETY: whole system pages of places, none of which is used.
        self.places.trim_piece(from, |empty| unsafe {
            items.discard(empty.start, empty.len());
        })
    }
}

impl<T> Drop for Slab<T> {
    fn drop(&mut self) {
        let mut from = 0;
        while let Some((at, _)) = self.next(from) {
            drop(self.take(at));
            from = at + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering::Relaxed;

    /// Elements that were not written are zero.
    #[test]
    fn untouched_elements_are_zero() {
        let m = Mapped::<AtomicUsize>::reserve(1 << 20, 1).unwrap();
        m[5].store(7, Relaxed);
        assert_eq!((m[5].load(Relaxed), m[m.len() - 1].load(Relaxed)), (7, 0));
    }

    /// `zero(count)` clears the first `count` elements only.
    #[test]
    fn zeroed_elements_are_zero_and_no_others() {
        let m = Mapped::<AtomicUsize>::reserve(1 << 20, 1).unwrap();
        for count in [0, 1, 513, (1 << 17) + 3, 1 << 19] {
            m.iter().for_each(|word| word.store(1, Relaxed));
            // SAFETY: only this test has the table.
            unsafe { m.zero(count) };
            assert!(m[..count].iter().all(|word| word.load(Relaxed) == 0));
            assert!(m[count..].iter().all(|word| word.load(Relaxed) == 1));
        }
    }

    /// A reservation that the system refuses is halved until it fits.
    #[test]
    fn a_refused_reservation_is_halved() {
        let m = Mapped::<AtomicU64>::reserve(1 << 59, 8).unwrap();
        assert!(m.len() >= 8 && m.len() < 1 << 59);
    }

    /// A slab drops items that are taken and items that are left, and uses free places again.
    #[test]
    fn a_slab_drops_what_is_taken_and_what_is_left() {
        let kept = std::sync::Arc::new(());
        let mut slab = Slab::new(3).unwrap();
        assert_eq!([(); 3].map(|()| slab.add(kept.clone()).unwrap()), [0, 1, 2]);
        assert!(slab.add(kept.clone()).is_err());
        assert!(slab.take(1).is_some() && slab.take(1).is_none() && slab.take(7).is_none());
        assert!(slab.take(0).is_some() && slab.get(0).is_none() && slab.get(2).is_some());
        assert_eq!(slab.next(0).map(|(at, _)| at), Some(2));
        assert_eq!(slab.add(kept.clone()), Ok(0));
        assert_eq!(std::sync::Arc::strong_count(&kept), 3);
        drop(slab);
        assert_eq!(std::sync::Arc::strong_count(&kept), 1);
    }

    /// Items of a slab outlive a trim.
    #[test]
    fn a_slab_s_items_outlive_a_trim() {
        let mut slab = Slab::new(1 << 16).unwrap();
        let all: Vec<usize> = (0..1 << 16)
            .map(|i: usize| slab.add(i * 3).unwrap())
            .collect();
        for at in all {
            assert!(at % 1000 == 7 || slab.take(at) == Some(at * 3));
        }
        let mut from = Some(0);
        while let Some(at) = from {
            from = slab.trim_piece(at);
        }
        let (mut left, mut from) = (Vec::new(), 0);
        while let Some((at, item)) = slab.next(from) {
            assert_eq!(*item, at * 3);
            (left, from) = ([left, vec![at]].concat(), at + 1);
        }
        assert_eq!(left, (7..1 << 16).step_by(1000).collect::<Vec<_>>());
        assert!(slab.add(1).is_ok());
    }
}
