//! Encodings: which words are edges, and which of their bits are the address.
//!
//! A runtime may keep plain pointers, tag their low bits, or box them in NaNs. One rule of three
//! masks describes all of these. It applies to words of cells, root ranges, slots of stack maps,
//! and conservative words.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use gc_preempt::Mutex;

use crate::memory::MapError;
use crate::memory::tables::Mapped;

/// A rule that says which words are edges, and where an edge leads.
///
/// A word `w` is an edge if `w & mask == value` and `w & keep != 0`. It leads to the address
/// `w & keep`.
///
/// ```
/// use gc_core::raw::Encoding;
/// // A quiet NaN with the sign bit set, as clox boxes its objects.
/// let tag = 0xfffc_0000_0000_0000;
/// let boxed = Encoding::nan_box(tag, tag, 0x0000_ffff_ffff_ffff);
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
    /// The value of the masked bits in an edge.
    pub value: usize,
    /// The bits of an edge that make up its address.
    pub keep: usize,
}

impl Encoding {
    /// Plain addresses; zero is null.
    pub const RAW: Encoding = Encoding {
        mask: 0,
        value: 0,
        keep: usize::MAX,
    };

    /// The words of dynamic values ([`Dynamic`](crate::Dynamic)): the upper 16 bits of an edge are
    /// zero, and its lowest 4 bits are the variant's number. A plain address is an edge, too.
    ///
    /// ```
    /// use gc_core::raw::Encoding;
    /// assert_eq!(Encoding::DYNAMIC.decode(0x7f00_dead_bee3), Some(0x7f00_dead_bee0));
    /// assert_eq!(Encoding::DYNAMIC.decode(1.5f64.to_bits() as usize + (1 << 48)), None);
    /// ```
    pub const DYNAMIC: Encoding = Encoding {
        mask: 0xffff << 48,
        value: 0,
        keep: 0x0000_ffff_ffff_fff0,
    };

    /// Addresses with a tag in their `bits` lowest bits; the tag may have any value. With `bits`
    /// above 63 no address is left, and no word is an edge.
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

    /// Words whose `mask` bits are `value`; their `keep` bits are the address. If `value` has bits
    /// outside of `mask`, no word is an edge.
    pub const fn nan_box(mask: usize, value: usize, keep: usize) -> Encoding {
        Encoding { mask, value, keep }
    }

    /// The address that `word` leads to; `None` if it is null or no edge.
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

/// The encodings of one heap's edges. Each has a number, by which stack maps refer to it.
///
/// A number belongs to one heap: a thread that is attached to two heaps has frames of both heaps'
/// code, and each of the two collectors walks all of them.
pub(crate) struct Encodings {
    /// Three words for each encoding: mask, value, keep.
    words: Mapped<AtomicUsize>,
    count: AtomicUsize,
    adding: Mutex<()>,
    /// The upper bits of this table's numbers. With 0, `numbered` finds none of them.
    table: u32,
}

/// The most encodings of a heap. A number's lower bits are the index; runtimes have a handful.
const MOST: usize = 1 << TABLE_SHIFT;
const TABLE_SHIFT: u32 = 10;

/// The number of tables so far that have upper bits of their own.
static TABLES: AtomicU32 = AtomicU32::new(0);

impl Encodings {
    /// A table whose first encoding is [`Encoding::RAW`], in which the collector's own tables hold
    /// their words.
    pub(crate) fn new() -> Result<Encodings, MapError> {
        // Relaxed: each value is given to one table. When the values are used up, further tables
        // have 0.
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
        // Relaxed: the Acquire of the count orders these loads.
        let [mask, value, keep] = [0, 1, 2].map(|word| words[word].load(Ordering::Relaxed));
        Encoding { mask, value, keep }
    }

    /// The encoding of a number; `None` if the number is not of this heap. May be called in a stop.
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

    /// All encodings of the heap.
    #[inline]
    pub(crate) fn all(&self) -> impl Iterator<Item = Encoding> + '_ {
        let words = &self.words[..3 * self.count()];
        words.chunks_exact(3).map(Encodings::read)
    }

    fn count(&self) -> usize {
        // Acquire pairs with the Release in `number`: entries below the count are complete, and do
        // not change.
        self.count.load(Ordering::Acquire)
    }

    /// The number of `encoding`, which is added if it has none. `None` if the table is full. Call
    /// it outside of `no_preempt`, which it enters while it holds the lock.
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

    /// Takes the lock, so that no thread holds it during a fork.
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
        // The other heap has the encoding, too, under a number of its own.
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
