//! Random numbers for the laboratory's programs: Marsaglia's xorshift64. All peers draw the same
//! numbers.

/// A generator. Equal seeds give equal numbers, here and in `benches/programs/`.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    /// A number below `n`, which is at most 2^32.
    #[inline]
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * n as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_that_the_peers_draw() {
        let mut random = Random::default();
        // The first three numbers of `below(1000)` in `benches/programs/work.h`.
        assert_eq!([(); 3].map(|()| random.below(1000)), [859, 394, 480]);
    }
}
