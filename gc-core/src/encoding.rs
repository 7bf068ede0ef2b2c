//! How a word becomes an edge: which bits say "this is a pointer", and which bits of it are the
//! address.
//!
//! A runtime may keep its pointers raw, with tags in the low bits, or NaN-boxed. The same small
//! rule serves fields, root ranges, stack-map slots and the words that a conservative scan finds in
//! registers.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use gc_preempt::Mutex;

use crate::memory::MapError;
use crate::memory::tables::Mapped;

/// A rule that turns a word into an address, or says that it is none.
///
/// A word `w` is an edge if `w & mask == value` and `w & keep != 0`; it then leads to the address
/// `w & keep`.
///
/// ```
/// use gc_core::raw::Encoding;
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

/// The encodings of one heap's edges. Each has a number, by which stack maps name it.
///
/// A number belongs to one heap: a thread that is a mutator of two heaps has frames of both heaps'
/// code, and each collector meets all of them.
pub(crate) struct Encodings {
    /// Three words an encoding: mask, value, keep.
    words: Mapped<AtomicUsize>,
    count: AtomicUsize,
    adding: Mutex<()>,
    /// The upper bits of this table's numbers; 0: `numbered` knows none of them.
    table: u32,
}

/// The most encodings of a heap, whose numbers are a number's lower bits. Runtimes have a handful.
const MOST: usize = 1 << TABLE_SHIFT;
const TABLE_SHIFT: u32 = 10;

/// Tables so far that have upper bits of their own.
static TABLES: AtomicU32 = AtomicU32::new(0);

impl Encodings {
    /// A table that has [`Encoding::RAW`], in which the collector's own tables hold their words.
    pub(crate) fn new() -> Result<Encodings, MapError> {
        // Relaxed: each value is given out once. A table that comes after the last one has 0.
        let table = TABLES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tables| {
            (tables < u32::MAX >> TABLE_SHIFT).then_some(tables + 1)
        });
        let encodings = Encodings {
            words: Mapped::new(3 * MOST)?,
            count: AtomicUsize::new(0),
            adding: Mutex::new(()),
            table: table.map_or(0, |before| before + 1),
        };
        encodings.number(Encoding::RAW);
        Ok(encodings)
    }

    #[inline]
    fn read(words: &[AtomicUsize]) -> Encoding {
        // Relaxed: the count's Acquire orders them.
        let [mask, value, keep] = [0, 1, 2].map(|word| words[word].load(Ordering::Relaxed));
        Encoding { mask, value, keep }
    }

    /// The encoding of this number. `None`: it is not a number of this heap. In a stop or out of
    /// it.
    ///
    /// Number 0 is [`Encoding::RAW`] in every heap: code that is registered with a
    /// [`World`](gc_preempt::World) belongs to no heap.
    pub(crate) fn numbered(&self, number: u32) -> Option<Encoding> {
        if number == 0 {
            return Some(Encoding::RAW);
        }
        if number >> TABLE_SHIFT != self.table || self.table == 0 {
            return None;
        }
        let index = number as usize % MOST;
        self.all().nth(index)
    }

    /// All of them.
    #[inline]
    pub(crate) fn all(&self) -> impl Iterator<Item = Encoding> + '_ {
        let words = &self.words[..3 * self.count()];
        words.chunks_exact(3).map(Encodings::read)
    }

    fn count(&self) -> usize {
        // Acquire pairs with the Release in `number`: entries below the count are whole, and do not
        // change.
        self.count.load(Ordering::Acquire)
    }

    /// The number of `encoding`, a new one if it has none. `None`: there are as many as there can
    /// be. Outside `no_preempt`, which it enters for as long as it holds the lock.
    pub(crate) fn number(&self, encoding: Encoding) -> Option<u32> {
        let known = || self.all().position(|known| known == encoding);
        let index = known().or_else(|| {
            gc_preempt::no_preempt_here(|| {
                let _adding = self.adding.lock();
                known().or_else(|| {
                    let at = self.count.load(Ordering::Relaxed);
                    let words = self.words.get(3 * at..3 * at + 3)?;
                    let Encoding { mask, value, keep } = encoding;
                    for (to, from) in words.iter().zip([mask, value, keep]) {
                        to.store(from, Ordering::Relaxed);
                    }
                    self.count.store(at + 1, Ordering::Release);
                    Some(at)
                })
            })
        })?;
        Some(self.table << TABLE_SHIFT | index as u32)
    }

    /// Takes the lock, for the child of a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.adding.lock()
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

    #[test]
    fn an_encoding_has_one_number_and_it_is_its_heaps() {
        let odd = Encoding {
            mask: 7,
            value: 5,
            keep: !7,
        };
        let (one, other) = (Encodings::new().unwrap(), Encodings::new().unwrap());
        assert_eq!(one.numbered(0), Some(Encoding::RAW));
        let number = one.number(odd).unwrap();
        assert_eq!(one.number(odd), Some(number));
        assert_eq!(one.numbered(number), Some(odd));
        assert_ne!(one.number(Encoding::low_bits(3)), Some(number));
        assert_eq!(one.numbered(u32::MAX), None);
        assert_eq!(one.all().next(), Some(Encoding::RAW));
        // Another heap has it, too, by a number of its own.
        let others = other.number(odd).unwrap();
        assert_eq!((one.numbered(others), other.numbered(number)), (None, None));
    }

    #[test]
    fn a_heap_has_a_thousand_encodings_and_no_more() {
        let encodings = Encodings::new().unwrap();
        let nth = |n: usize| Encoding {
            mask: usize::MAX,
            value: n,
            keep: 0,
        };
        for n in 1..MOST {
            assert!(encodings.number(nth(n)).is_some());
        }
        assert_eq!(encodings.number(nth(MOST)), None);
        assert!(encodings.number(nth(7)).is_some());
        assert_eq!(encodings.all().count(), MOST);
    }
}
