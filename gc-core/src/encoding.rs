//! How a word becomes an edge: which bits say "this is a pointer", and which bits of it are the
//! address.
//!
//! A runtime may keep its pointers raw, with tags in the low bits, or NaN-boxed. The same small
//! rule serves fields, root ranges, stack-map slots and the words that a conservative scan finds in
//! registers.

/// A rule that turns a word into an address, or says that it is none.
///
/// A word `w` is an edge if `w & mask == value` and `w & keep != 0`; it then leads to the address
/// `w & keep`.
///
/// ```
/// use gc_core::Encoding;
/// // Quiet NaN with the sign bit set, as the book's clox boxes its objects.
/// let boxed = Encoding::nan_box(0xfffc_0000_0000_0000, 0xfffc_0000_0000_0000, 0x0000_ffff_ffff_ffff);
/// assert_eq!(boxed.decode(0xfffc_0000_dead_bee0), Some(0xdead_bee0));
/// assert_eq!(boxed.decode(1.5f64.to_bits() as usize), None);
/// assert_eq!(Encoding::low_bits(3).decode(0x1005), Some(0x1000));
/// assert_eq!(Encoding::RAW.decode(0), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Encoding {
    /// The bits that are compared with `value`.
    pub mask: usize,
    /// What the masked bits are in an edge.
    pub value: usize,
    /// The bits of an edge that are its address.
    pub keep: usize,
}

impl Encoding {
    /// The word is the address; zero is null.
    pub const RAW: Encoding = Encoding {
        mask: 0,
        value: 0,
        keep: usize::MAX,
    };

    /// The word is the address plus a tag in its `bits` lowest bits, whatever the tag says.
    ///
    /// `bits` above 63 leave no address: such an encoding decodes nothing.
    pub const fn low_bits(bits: u32) -> Encoding {
        let keep = if bits >= usize::BITS {
            0
        } else {
            usize::MAX << bits
        };
        Encoding {
            mask: 0,
            value: 0,
            keep,
        }
    }

    /// The word is an edge if its `mask` bits are `value`; its `keep` bits are the address.
    pub const fn nan_box(mask: usize, value: usize, keep: usize) -> Encoding {
        Encoding { mask, value, keep }
    }

    /// The address that `word` leads to, or `None` for null and for words that are no edge.
    #[inline(always)]
    pub const fn decode(self, word: usize) -> Option<usize> {
        let address = word & self.keep;
        if word & self.mask == self.value && address != 0 {
            Some(address)
        } else {
            None
        }
    }
}

impl Default for Encoding {
    fn default() -> Encoding {
        Encoding::RAW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_no_edge_in_any_encoding() {
        let boxed = Encoding::nan_box(0xffff << 48, 0xfffc << 48, (1 << 48) - 1);
        assert_eq!(Encoding::RAW.decode(0), None);
        assert_eq!(Encoding::low_bits(3).decode(0b101), None);
        assert_eq!(boxed.decode(0xfffc << 48), None);
    }

    #[test]
    fn a_word_of_another_tag_is_no_edge() {
        let tagged = Encoding {
            mask: 0b11,
            value: 0b01,
            keep: !0b11,
        };
        assert_eq!(tagged.decode(0x1001), Some(0x1000));
        assert_eq!(tagged.decode(0x1002), None);
        assert_eq!(tagged.decode(0x1000), None);
    }

    #[test]
    fn an_encoding_without_address_bits_decodes_nothing() {
        assert_eq!(Encoding::low_bits(64).decode(usize::MAX), None);
        assert_eq!(Encoding::low_bits(0).decode(7), Some(7));
    }
}
