//! Fixed-capacity arrays in memory that was reserved beforehand, for everything that is written while the world is stopped.
//!
//! The stopped world may not call malloc: a mutator may have been stopped while it held malloc's lock. So the tables that the
//! collector fills (weak cells, finalizers, roots, the barrier's log) are address space reserved when the heap is built; a page of it
//! becomes memory at its first touch, which takes no lock of this process. What was never touched costs nothing.

use core::marker::PhantomData;
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, AtomicUsize};

use crate::heap::map::{Map, MapError};

/// Types for which all-zero bytes are a valid value and which may be shared between threads as they lie in memory.
///
/// # Safety
/// The type has no padding that is read, no niche that zero would violate, and no drop glue.
pub(crate) unsafe trait Zeroed: Sync {}
// SAFETY: an integer; zero is a value of it.
unsafe impl Zeroed for AtomicUsize {}
// SAFETY: as above.
unsafe impl Zeroed for AtomicU64 {}

/// A zeroed array of `T` that never moves and never grows.
pub(crate) struct Mapped<T: Zeroed> {
    map: Map,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Zeroed> Mapped<T> {
    /// Reserves room for `wanted` elements; where the system refuses (an address-space limit), for half as many, and so on down to
    /// `least`.
    pub(crate) fn reserve(wanted: usize, least: usize) -> Result<Self, MapError> {
        let mut len = wanted.max(least).max(1);
        loop {
            match Map::new(len * size_of::<T>()) {
                Ok(map) => {
                    return Ok(Self {
                        map,
                        len,
                        of: PhantomData,
                    });
                }
                Err(e) if len / 2 < least.max(1) => return Err(e),
                Err(_) => len /= 2,
            }
        }
    }
}

impl<T: Zeroed> Deref for Mapped<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page-aligned, holds `len` elements, lives as long as `self`, and any bytes in it that nobody wrote are
        // zero, which `Zeroed` makes a value. `T` is `Sync`, and only shared references are given out.
        unsafe { core::slice::from_raw_parts(self.map.base().cast::<T>(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering::Relaxed;

    #[test]
    fn untouched_elements_are_zero() {
        let m = Mapped::<AtomicUsize>::reserve(1 << 20, 1).unwrap();
        m[5].store(7, Relaxed);
        assert_eq!((m[5].load(Relaxed), m[m.len() - 1].load(Relaxed)), (7, 0));
    }

    #[test]
    fn a_refused_reservation_is_halved() {
        let m = Mapped::<AtomicU64>::reserve(1 << 59, 8).unwrap();
        assert!(m.len() >= 8 && m.len() < 1 << 59);
    }
}
