//! A small FIFO that gives a prefetched cache line the time to arrive.

/// Asks for the cache line of an address. Any address may be asked for; an unmapped one does nothing.
#[inline(always)]
pub(crate) fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not access memory as far as the program can tell.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address as *const i8);
    }
}

/// Holds up to `N` (a power of two) offsets, first in first out.
pub(crate) struct Ring<const N: usize> {
    slots: [usize; N],
    /// Counts of all that went in and out.
    pushed: usize,
    popped: usize,
}

impl<const N: usize> Ring<N> {
    pub(crate) fn new() -> Ring<N> {
        const { assert!(N.is_power_of_two()) };
        Ring {
            slots: [0; N],
            pushed: 0,
            popped: 0,
        }
    }

    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        self.pushed.wrapping_sub(self.popped) == N
    }

    /// The ring must not be full; if it is, the oldest is lost.
    #[inline(always)]
    pub(crate) fn push(&mut self, value: usize) {
        self.slots[self.pushed % N] = value;
        self.pushed = self.pushed.wrapping_add(1);
    }

    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<usize> {
        if self.pushed == self.popped {
            return None;
        }
        let value = self.slots[self.popped % N];
        self.popped = self.popped.wrapping_add(1);
        Some(value)
    }

    /// Puts one in; the oldest comes out if the ring was full.
    #[inline(always)]
    pub(crate) fn exchange(&mut self, value: usize) -> Option<usize> {
        let oldest = if self.is_full() { self.pop() } else { None };
        self.push(value);
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_is_first_out_and_nothing_is_lost() {
        let mut ring = Ring::<4>::new();
        let mut out = Vec::new();
        for n in 0..10 {
            out.extend(ring.exchange(n));
        }
        assert!(ring.is_full());
        out.extend(std::iter::from_fn(|| ring.pop()));
        assert_eq!(out, (0..10).collect::<Vec<_>>());
    }
}
