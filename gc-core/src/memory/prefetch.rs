//! Prefetches, and a ring that gives prefetched cache lines the time to arrive (Cher, Hosking and
//! Vitek 2004).

/// Prefetches the cache line of an address. The address may be any word; an unmapped one does no
/// harm.
#[inline(always)]
pub(crate) fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not access memory as far as the program can tell.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address as *const i8);
    }
}

/// The value of an empty element: no offset and no item of the mark queue is all ones.
const EMPTY: usize = usize::MAX;

/// A FIFO of up to `N` (a power of two) values. One index serves both ends: a new value replaces
/// the oldest one.
pub(crate) struct Ring<const N: usize> {
    places: [usize; N],
    next: usize,
}

impl<const N: usize> Ring<N> {
    pub(crate) fn new() -> Ring<N> {
        const { assert!(N.is_power_of_two()) };
        Ring {
            places: [EMPTY; N],
            next: 0,
        }
    }

    /// Puts a value in. Returns the oldest one, if the ring was full.
    #[inline(always)]
    pub(crate) fn exchange(&mut self, value: usize) -> Option<usize> {
        let place = &mut self.places[self.next % N];
        let oldest = *place;
        *place = value;
        self.next = self.next.wrapping_add(1);
        if oldest == EMPTY { None } else { Some(oldest) }
    }

    /// Takes the oldest value out.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<usize> {
        for age in 0..N {
            let place = &mut self.places[self.next.wrapping_add(age) % N];
            if *place != EMPTY {
                return Some(std::mem::replace(place, EMPTY));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ring is first in, first out, and loses no element.
    #[test]
    fn first_in_is_first_out_and_nothing_is_lost() {
        let mut ring = Ring::<4>::new();
        let mut out = Vec::new();
        for n in 0..10 {
            out.extend(ring.exchange(n));
        }
        out.extend(ring.pop());
        out.extend(ring.exchange(10));
        out.extend(std::iter::from_fn(|| ring.pop()));
        assert_eq!(out, (0..11).collect::<Vec<_>>());
    }
}
