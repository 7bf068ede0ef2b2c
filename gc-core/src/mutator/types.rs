//! The kind and the site of each Rust type in a heap: made at the type's first allocation, then
//! found in a few instructions.
//!
//! A heap has one table, under a lock. Each mutator has a small cache of it that only its thread
//! uses. The index of a cache line and its comparison come from the type's `TypeId`, which is a
//! constant, so a hit is two compares and a load.
//!
//! # Types of one layout share a kind
//! A kind has spans of its own for each size of its cells, and each mutator that allocates cells of
//! the kind has one of these spans: 64 KiB for a single cell. So types whose cells the collector
//! treats alike share one kind: all leaves, and all types with edges at the same offsets. A kind
//! says nothing but the layout: the compiler types handles and fields, and a value that needs
//! `Drop` is registered with its own function.
//!
//! A type has a kind of its own if
//! - it has a trace function, which cannot be compared,
//! - it needs `Drop`,
//! - the heap verifies ([`HeapBuilder::verify`](crate::HeapBuilder::verify)): reports name a cell's
//!   type by the name of its kind.

use core::any::TypeId;
use core::cell::Cell;
use core::hash::{Hash, Hasher};
use core::mem::MaybeUninit;

use crate::heap::{MAX_SMALL, Site};
use crate::kind::{KindId, Kinds};
use crate::memory::MapError;
use crate::memory::os::Table;
use gc_preempt::Mutex;

/// A type's kind and, if its cells are small, its site.
#[derive(Clone, Copy)]
pub(crate) struct TypeInfo {
    pub(crate) kind: KindId,
    /// Without meaning for types that have no site ([`has_site`]).
    pub(crate) site: Site,
}

pub(super) const NO_SITE: Site = Site { index: 0, size: 0 };

/// Do values of this size have a site in every heap? Values of [`MAX_SMALL`] bytes have none in a
/// heap whose cells have a spare byte.
pub(crate) const fn has_site(bytes: usize) -> bool {
    bytes < MAX_SMALL
}

/// An entry of the table; all zero bytes: empty.
struct Entry {
    used: bool,
    /// Initialised if `used` is set.
    line: MaybeUninit<Line>,
}

/// A heap's types: an open-addressed table in mapped memory, since it is changed inside
/// `no_preempt`, where nothing may call malloc.
pub(crate) struct Types {
    /// Held while the tables are read or changed.
    lock: Mutex<()>,
    entries: Table<Entry>,
    /// Kinds that types share, open-addressed by their layout: the number plus one; 0: empty.
    shared: Table<u32>,
}

/// Whether a type's cells may have the kind of other types of its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Shared,
    Own,
}

impl Types {
    /// A table with room for every kind twice, so that probing stays short.
    pub(crate) fn new(kinds: usize) -> Result<Self, MapError> {
        Ok(Self {
            lock: Mutex::new(()),
            entries: Table::new(2 * kinds)?,
            shared: Table::new(2 * kinds)?,
        })
    }

    /// Takes the lock, for a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.lock.lock()
    }

    /// The kind that types of this layout share. If there is none, `new` becomes that kind.
    pub(super) fn find_shared(
        &self,
        kinds: &Kinds,
        layout: &[u64],
        new: Option<KindId>,
    ) -> Option<KindId> {
        let _lock = self.lock.lock();
        let first = layout.iter().fold(0u64, |hash, word| {
            (hash ^ word)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(29)
        });
        let places = self.shared.len();
        for step in 0..places {
            let at = self.shared.at((first as usize).wrapping_add(step) % places);
            // SAFETY: within the table, under its lock; zeroed memory is an empty place.
            let place = unsafe { &mut *at };
            match place.checked_sub(1) {
                None => {
                    *place = new?.index() as u32 + 1;
                    return new;
                }
                Some(kind) => {
                    let kind = KindId(kind as u16);
                    if kinds.layout(kind) == Some(layout) {
                        return Some(kind);
                    }
                }
            }
        }
        None
    }

    /// The table's entry for `id`. If there is none, `new` is entered.
    pub(super) fn find(&self, id: TypeId, new: Option<TypeInfo>) -> Option<TypeInfo> {
        let _lock = self.lock.lock();
        let first = bits_of(id) as usize;
        let entries = self.entries.len();
        for step in 0..entries {
            let at = self.entries.at(first.wrapping_add(step) % entries);
            // SAFETY: within the table, under its lock; zeroed memory is an empty entry.
            let entry = unsafe { &mut *at };
            if !entry.used {
                entry.line.write(Line { id, info: new? });
                entry.used = true;
                return new;
            }
            // SAFETY: used, so written.
            let line = unsafe { entry.line.assume_init() };
            if line.id == id {
                return Some(line.info);
            }
        }
        None
    }
}

/// Lines of a cache: an interpreter allocates a few dozen types, and a cache takes 3 KiB.
const LINES: usize = 64;

#[derive(Clone, Copy)]
struct Line {
    id: TypeId,
    info: TypeInfo,
}

/// One mutator's cache of its heap's types.
pub(crate) struct TypeCache([Cell<Line>; LINES]);

impl TypeCache {
    pub(crate) fn new() -> Self {
        /// A type that no mutator allocates, so an empty line never matches.
        struct Nothing;
        let empty = Line {
            id: TypeId::of::<Nothing>(),
            info: TypeInfo {
                kind: KindId(0),
                site: NO_SITE,
            },
        };
        Self([(); LINES].map(|()| Cell::new(empty)))
    }

    #[inline(always)]
    pub(crate) fn get(&self, id: TypeId) -> Option<TypeInfo> {
        let line = self.0[line_of(id)].get();
        (line.id == id).then_some(line.info)
    }

    pub(crate) fn put(&self, id: TypeId, info: TypeInfo) {
        self.0[line_of(id)].set(Line { id, info });
    }
}

/// The cache line of a type: a constant if `id` is one.
#[inline(always)]
fn line_of(id: TypeId) -> usize {
    bits_of(id) as usize % LINES
}

#[inline(always)]
fn bits_of(id: TypeId) -> u64 {
    /// Keeps the bits that a `TypeId` passes: they are a hash already.
    struct Bits(u64);
    impl Hasher for Bits {
        #[inline(always)]
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
            }
        }
        #[inline(always)]
        fn write_u64(&mut self, bits: u64) {
            self.0 = bits;
        }
        #[inline(always)]
        fn finish(&self) -> u64 {
            self.0
        }
    }
    let mut bits = Bits(0);
    id.hash(&mut bits);
    bits.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Heap;
    use crate::raw::{Encoding, Kind};

    fn heap() -> Heap {
        Heap::builder().reserve(1 << 28).build().unwrap()
    }

    /// A type has one kind in a heap, and a site for its size.
    #[test]
    fn a_type_has_one_kind_and_a_site_for_its_size() {
        let heap = heap();
        let shared = heap.shared();
        let get = |id, bytes| {
            shared
                .type_info(id, bytes, Sharing::Own, || Kind::leaf("a"))
                .map(|i| (i.kind, i.site.size()))
                .unwrap()
        };
        let (one, two) = (TypeId::of::<u64>(), TypeId::of::<[u64; 9]>());
        let first = get(one, 8);
        assert_eq!(first.1, 16);
        assert_eq!(get(one, 8), first);
        assert_ne!(get(two, 72).0, first.0);
        assert_eq!(get(one, 8), first);
    }

    macro_rules! ids {
        ($($n:literal)*) => { [$(TypeId::of::<[u8; $n]>()),*] };
    }

    /// The kinds that a heap gives to types of these descriptions, each description with a type of
    /// its own.
    fn kinds<const N: usize>(heap: &Heap, described: [(Sharing, Kind); N]) -> [KindId; N] {
        let shared = heap.shared();
        let mut ids = ids!(1 2 3 4 5 6 7 8 9 10 11 12).into_iter();
        described.map(|(sharing, kind)| {
            let id = ids.next().expect("there is an id for each description");
            shared.type_info(id, 0, sharing, || kind).unwrap().kind
        })
    }

    fn at(name: &str, words: &[u32]) -> Kind {
        Kind::words_at(name, words, Encoding::RAW)
    }

    /// Types of one layout share a kind. Types with other edges, another encoding, `Drop` or
    /// immutable edges do not, nor any types of a heap that verifies.
    #[test]
    fn types_of_one_layout_share_a_kind_and_others_do_not() {
        use Sharing::{Own, Shared};
        let tagged = Encoding::low_bits(3);
        let described = [
            (Shared, Kind::leaf("leaf")),
            (Shared, Kind::leaf("another leaf")),
            (Shared, at("first", &[0])),
            (Shared, at("first of another", &[0])),
            (Shared, at("second", &[1])),
            (Shared, at("both", &[0, 1])),
            (Shared, at("first and far", &[0, 64])),
            (Shared, at("first and farther", &[0, 128])),
            (Shared, at("first and far of another", &[0, 64])),
            (Own, at("first, with Drop", &[0])),
            (Shared, Kind::words_at("tagged", &[0], tagged)),
            (Shared, at("first, immutable", &[0]).immutable()),
        ];
        let [leaf, leaf_2, first, first_2, others @ ..] = kinds(&heap(), described.clone());
        let [second, both, far, farther, far_2, rest @ ..] = others;
        assert_eq!((leaf, first, far), (leaf_2, first_2, far_2));
        let mut all = vec![leaf, first, second, both, far, farther];
        all.extend(rest);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 9, "the others have kinds of their own");

        // A heap that verifies names types by their kinds.
        let heap = Heap::builder()
            .reserve(1 << 28)
            .verify(true)
            .build()
            .unwrap();
        let mut all = kinds(&heap, described).to_vec();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 12);
    }

    /// Threads that use a layout for the first time at once get the same kind.
    #[test]
    fn threads_that_meet_a_layout_at_once_share_its_kind() {
        for _ in 0..20 {
            let heap = heap();
            let barrier = std::sync::Barrier::new(4);
            let ids = ids!(1 2 3 4);
            let kinds: Vec<KindId> = std::thread::scope(|scope| {
                let threads = ids.map(|id| {
                    let (heap, barrier) = (&heap, &barrier);
                    scope.spawn(move || {
                        let _mutator = heap.attach().unwrap();
                        barrier.wait();
                        let shared = heap.shared();
                        let info = shared.type_info(id, 8, Sharing::Shared, || at("node", &[0]));
                        info.unwrap().kind
                    })
                });
                threads.map(|thread| thread.join().unwrap()).to_vec()
            });
            assert_eq!(kinds, [kinds[0]; 4]);
        }
    }
}
