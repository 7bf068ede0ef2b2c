//! The source of a fuzzer's decisions: the bytes that a fuzzing engine mutates, or a seed.

/// A source of decisions. A source whose bytes are used up decides zero, so every prefix of an
/// input is an input.
#[derive(Clone, Debug)]
pub enum Choices<'a> {
    /// The bytes of an input.
    Bytes(&'a [u8]),
    /// The state of a generator: SplitMix64 by Steele, Lea and Flood.
    Seeded(u64),
}

impl Choices<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        match self {
            Choices::Bytes(bytes) => {
                let n = bytes.len().min(N);
                out[..n].copy_from_slice(&bytes[..n]);
                *bytes = &bytes[n..];
            }
            Choices::Seeded(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                let word = (z ^ z >> 31).to_le_bytes();
                out.copy_from_slice(&word[..N]);
            }
        }
        out
    }

    /// A number below `n`. `n` must be at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        if n <= 1 << 8 {
            self.bytes::<1>()[0] as usize % n
        } else if n <= 1 << 16 {
            u16::from_le_bytes(self.bytes()) as usize % n
        } else {
            self.word() % n
        }
    }

    /// True with a chance of one in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 1 % n
    }

    /// Any word.
    pub fn word(&mut self) -> usize {
        u64::from_le_bytes(self.bytes()) as usize
    }

    /// Whether the bytes of the input are used up.
    pub fn is_spent(&self) -> bool {
        matches!(self, Choices::Bytes([]))
    }
}
