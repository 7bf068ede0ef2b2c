//! Kinds: where a cell's edges are, described once for all cells of a kind.
//!
//! The descriptors lie in mapped memory and never move or change once published. So a marker reads
//! them in a stopped world and beside running mutators alike, without a lock, by the kind's number
//! in the page table.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use bitvec::prelude::{BitVec, Lsb0};

use crate::encoding::Encoding;
use crate::memory::os::{MapError, Table};
use crate::tracer::Tracer;
use gc_preempt::Mutex;

/// A kind's number in its heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KindId(pub(crate) u16);

impl KindId {
    /// The number itself, for tables beside the heap.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The most kinds a heap can have. A kind's number must fit the 16 bits that the page table has for
/// it.
pub const MAX_KINDS: usize = 1 << 16;

/// Reports every edge of one cell to the tracer.
///
/// The first argument is the cell's first byte, the second its size in bytes (the size class's, not
/// the request's).
///
/// # Safety
/// The tracer runs while mutators are stopped anywhere, also in the middle of initialising this
/// cell, and it runs beside mutators that write the cell: it must accept any state that an
/// interrupted store order can leave, the all-zero cell above all, and read each word once, by
/// [`Tracer::edges`], an atomic or a volatile load. Several threads may run it at once. It must not
/// allocate, lock, panic or call anything that may.
///
/// Where what a word holds decides which other words are edges (a length, a tag), a mutator may
/// make it decide for fewer only after it has stored null to the others through the barrier: a word
/// that merely ceases to be an edge is not logged, and a marker that comes later would miss the
/// cell that it led to.
pub type TraceFn = unsafe fn(cell: *const u8, size: usize, tracer: &mut Tracer<'_>);

/// A description of cells, given to the heap once.
#[derive(Debug, Clone)]
pub struct Kind {
    name: String,
    shape: Shape,
    immutable: bool,
    long: bool,
    /// Words that a trace function leaves out mean nothing.
    spare_words: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Shape {
    Leaf {
        uninit: bool,
    },
    Words {
        slots: BitVec<u64, Lsb0>,
        encoding: Encoding,
    },
    Array {
        first_word: u32,
        encoding: Encoding,
    },
    Traced {
        trace: TraceFn,
        encodings: Vec<Encoding>,
    },
    Conservative,
    Weak {
        first_word: u32,
        encoding: Encoding,
        cleared: usize,
    },
    Ephemeron {
        first_word: u32,
        encoding: Encoding,
        cleared: usize,
    },
}

impl Kind {
    fn of(name: impl Into<String>, shape: Shape) -> Kind {
        Kind {
            name: name.into(),
            shape,
            immutable: false,
            long: false,
            spare_words: false,
        }
    }

    /// Cells without edges: strings, numbers, machine words.
    pub fn leaf(name: impl Into<String>) -> Kind {
        Kind::of(name, Shape::Leaf { uninit: false })
    }

    /// As [`Kind::leaf`], but its cells are not cleared: a new cell often holds what an earlier one
    /// held. For strings and buffers, whose bytes are all written at once (bdwgc's
    /// `GC_malloc_atomic` is the same).
    ///
    /// Reading such a cell before it has been written is what reading any uninitialised memory is.
    /// For the raw tier, which is unsafe; types of the safe tier never have such a kind.
    ///
    /// ```
    /// # use gc_core::raw::Kind;
    /// # use gc_core::Heap;
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let string = heap.kind(Kind::leaf_uninit("string"))?;
    /// let text = "not cleared, but copied at once";
    /// // SAFETY: a leaf; all bytes that will be read are written, and the cell is on this stack meanwhile.
    /// unsafe {
    ///     let cell = mutator.alloc_raw(string, text.len())?;
    ///     cell.as_ptr().copy_from_nonoverlapping(text.as_ptr(), text.len());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn leaf_uninit(name: impl Into<String>) -> Kind {
        Kind::of(name, Shape::Leaf { uninit: true })
    }

    /// Cells whose edges are the words with a set bit in `slots`; words past its end hold none.
    pub(crate) fn words(
        name: impl Into<String>,
        mut slots: BitVec<u64, Lsb0>,
        encoding: Encoding,
    ) -> Kind {
        // A vector cut out of another one may begin inside a word and have stale bits behind its
        // end; markers read whole words.
        slots.force_align();
        slots.set_uninitialized(false);
        Kind::of(name, Shape::Words { slots, encoding })
    }

    /// Cells whose edges are the words with these numbers; all others hold none. A number may stand
    /// more than once, in any order.
    pub fn words_at(name: impl Into<String>, words: &[u32], encoding: Encoding) -> Kind {
        let mut slots = BitVec::new();
        for &word in words {
            if slots.len() <= word as usize {
                slots.resize(word as usize + 1, false);
            }
            slots.set(word as usize, true);
        }
        Kind::words(name, slots, encoding)
    }

    /// Cells whose every word from `first_word` to the cell's end may be an edge. Words never
    /// written are zero, and zero is no edge, so the kind needs no length.
    pub fn array(name: impl Into<String>, first_word: u32, encoding: Encoding) -> Kind {
        Kind::of(
            name,
            Shape::Array {
                first_word,
                encoding,
            },
        )
    }

    /// Cells whose edges a function of the embedder reports: plain addresses, or words reported by
    /// [`Tracer::conservative`].
    ///
    /// # Safety
    /// As for [`traced_with`](Kind::traced_with).
    pub unsafe fn traced(name: impl Into<String>, trace: TraceFn) -> Kind {
        // SAFETY: forwarded.
        unsafe { Kind::traced_with(name, trace, &[Encoding::RAW]) }
    }

    /// Cells whose edges a function of the embedder reports, in one of several encodings: the
    /// barrier logs the words that such edges overwrite, and the collector must know how to read
    /// them.
    ///
    /// # Safety
    /// `trace` must keep the contract of [`TraceFn`] and report every edge of the cell, in one of
    /// `encodings`.
    pub unsafe fn traced_with(
        name: impl Into<String>,
        trace: TraceFn,
        encodings: &[Encoding],
    ) -> Kind {
        Kind::of(
            name,
            Shape::Traced {
                trace,
                encodings: encodings.to_vec(),
            },
        )
    }

    /// Cells whose every word is taken for a pointer if it names a cell, by the heap's conservative
    /// encodings.
    pub fn conservative(name: impl Into<String>) -> Kind {
        Kind::of(name, Shape::Conservative)
    }

    /// Cells whose words from `first_word` on do not keep their targets alive. A word whose target
    /// dies becomes `cleared`; one whose target is queued for its finalizer as well, unless the
    /// kind is [`long`](Self::long).
    ///
    /// A word is loaded by [`Mutator::load_weak`](crate::Mutator::load_weak); a plain load may see
    /// the address of what is dead already. A mutator that stores a word, by a plain store or by
    /// [`Mutator::write`](crate::Mutator::write), holds its target strongly; weak words are copied
    /// by [`Mutator::copy_weak`](crate::Mutator::copy_weak), and never like other memory. All words
    /// that lead to one target are cleared at the same moment, as far as weak loads can tell.
    pub fn weak(
        name: impl Into<String>,
        first_word: u32,
        encoding: Encoding,
        cleared: usize,
    ) -> Kind {
        Kind::of(
            name,
            Shape::Weak {
                first_word,
                encoding,
                cleared,
            },
        )
    }

    /// Cells of pairs, from `first_word` on: a key and a value. While the cell and the key are
    /// alive, the value is; the pair keeps neither its key nor, once the key is dead, its value. A
    /// pair whose key dies becomes `cleared` and 0. Tables with weak keys are made of such cells; a
    /// single ephemeron is a cell of one pair.
    ///
    /// A value may lead back to its key, and to keys of other pairs: chains of any length take time
    /// in proportion. A key that is no edge, or leads out of the heap, never dies. A last word
    /// without a partner is nothing.
    ///
    /// A pair of a published cell is changed by
    /// [`Mutator::write_pair`](crate::Mutator::write_pair), or its value alone, for the same key,
    /// by [`Mutator::write`](crate::Mutator::write). A thread that stores a pair holds both targets
    /// strongly. A thread that holds the key may load the value plainly; a key is loaded by
    /// [`Mutator::load_weak`](crate::Mutator::load_weak), and pairs are copied by
    /// [`Mutator::copy_weak`](crate::Mutator::copy_weak).
    pub fn ephemeron(
        name: impl Into<String>,
        first_word: u32,
        encoding: Encoding,
        cleared: usize,
    ) -> Kind {
        Kind::of(
            name,
            Shape::Ephemeron {
                first_word,
                encoding,
                cleared,
            },
        )
    }

    /// Says that the edges of such a cell never change once they are there: pairs of a list,
    /// closures, the nodes of a tree that is built from its leaves up. A young collection (see
    /// [`HeapBuilder::young_collections`](crate::HeapBuilder::young_collections)) need not look at
    /// such a cell again, for what it leads to is older than itself; all other cells with edges it
    /// looks at each time. Leaves are never looked at anyhow.
    ///
    /// The promise, which `URGE_VERIFY=1` checks in every collection:
    /// - each edge leads to a cell that the thread held before this one was allocated, or to this
    ///   one,
    /// - it is stored before the thread allocates again,
    /// - and never after.
    ///
    /// An edge may stay null. What is no edge may change. Weak words and pairs of ephemerons change
    /// when their targets die, so for those kinds this says nothing.
    ///
    /// ```
    /// # use gc_core::raw::{Encoding, Kind};
    /// # use gc_core::Heap;
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let pair = heap.kind(Kind::words_at("pair", &[0, 1], Encoding::RAW).immutable())?;
    /// // SAFETY: the list is on this stack; a cell's edges are stored at once, and lead to what was there before.
    /// unsafe {
    ///     let mut list = 0;
    ///     for _ in 0..1000 {
    ///         let cell = mutator.alloc_raw(pair, 16)?.cast::<usize>();
    ///         cell.add(1).write(list);
    ///         list = cell.as_ptr() as usize;
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn immutable(mut self) -> Kind {
        self.immutable = true;
        self
    }

    /// Says that the words of such a weak cell are *long*: they are cleared when their target's
    /// memory is about to be freed, and not when it is queued for its finalizer. A word of any
    /// other weak kind, and the key of an ephemeron's pair, is cleared once its target cannot be
    /// reached but by weak words and by finalizers
    /// ([`Mutator::register_finalizer`](crate::Mutator::register_finalizer)), before those cells
    /// are queued: so it never leads to a cell whose finalizer has run. A long word may; it leads
    /// to the cell for as long as the cell is there, be it that the finalizer brings it back for
    /// good. (.NET has both, under these names; Java's `PhantomReference` is a long one that cannot
    /// be loaded.) A value that needs `Drop` is found by neither once it has been queued.
    ///
    /// For kinds that are not [`weak`](Self::weak) this says nothing. A heap that has such a kind
    /// stops once more in a cycle in which much dies.
    ///
    /// ```
    /// # use gc_core::raw::{Encoding, Kind};
    /// # use gc_core::Heap;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let heap = Heap::builder().build()?;
    /// let tracker = heap.kind(Kind::weak("tracker", 0, Encoding::RAW, 0).long())?;
    /// # let _ = tracker;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn long(mut self) -> Kind {
        self.long = true;
        self
    }

    /// Says of a [traced](Self::traced) kind that words which its function does not report may hold
    /// anything, such as the rest of a buffer above its count, where removed edges stay. For other
    /// kinds this says nothing.
    ///
    /// Only [`verify`](crate::HeapBuilder::verify) uses it: it takes a word of a traced cell that
    /// names a dead cell, and was not reported, for an edge that the function leaves out. It does
    /// not look into cells of this kind.
    ///
    /// ```
    /// # use gc_core::raw::{Encoding, Kind, Tracer};
    /// # use gc_core::Heap;
    /// /// A count, and as many edges. What lies above it was popped.
    /// unsafe fn stack(cell: *const u8, size: usize, tracer: &mut Tracer<'_>) {
    ///     // SAFETY: a cell has a word at least; the count is no more than its words.
    ///     let count = unsafe { cell.cast::<usize>().read_volatile() }.min(size / 8 - 1);
    ///     let first = cell as usize + 8;
    ///     // SAFETY: words of the cell.
    ///     unsafe { tracer.edges(first..first + 8 * count, Encoding::RAW) };
    /// }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let heap = Heap::builder().build()?;
    /// // SAFETY: the function reports every edge.
    /// let stack = heap.kind(unsafe { Kind::traced("stack", stack) }.spare_words())?;
    /// # let _ = stack;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn spare_words(mut self) -> Kind {
        self.spare_words = true;
        self
    }

    /// The words that are edges in plain addresses, a bit each and none beyond the last edge; a
    /// leaf has none. `None` for a kind that has other properties: so kinds of one layout differ in
    /// their names alone.
    pub(crate) fn layout(&self) -> Option<&[u64]> {
        match &self.shape {
            _ if self.immutable || self.long => None,
            Shape::Leaf { uninit: false } => Some(&[]),
            Shape::Words {
                slots,
                encoding: Encoding::RAW,
            } => {
                let words = slots.as_raw_slice();
                let used = words.iter().rposition(|word| *word != 0)?;
                Some(&words[..=used])
            }
            _ => None,
        }
    }

    /// The encodings of its edges. Conservative words are read in the heap's.
    pub(crate) fn encodings(&self) -> &[Encoding] {
        match &self.shape {
            Shape::Words { encoding, .. }
            | Shape::Array { encoding, .. }
            | Shape::Weak { encoding, .. }
            | Shape::Ephemeron { encoding, .. } => core::slice::from_ref(encoding),
            Shape::Traced { encodings, .. } => encodings,
            Shape::Leaf { .. } | Shape::Conservative => &[],
        }
    }

    /// The name that reports and error messages use.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Why the heap refused a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KindError {
    /// The heap has as many kinds already as its reserve allows: 65,536 from a reserve of 1
    /// GiB on.
    TooMany,
    /// The system refused memory for the table of kinds.
    System(MapError),
    /// The encoding's `value` has bits outside its `mask`: no word could ever be an edge.
    Encoding(Encoding),
}

impl fmt::Display for KindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KindError::TooMany => write!(
                f,
                "the heap has as many kinds as its reserve allows (at most {MAX_KINDS}); share a kind among types of one layout, or raise the reserve"
            ),
            KindError::System(e) => e.fmt(f),
            KindError::Encoding(e) => write!(
                f,
                "encoding value {:#x} has bits outside its mask {:#x}: no word would be an edge",
                e.value, e.mask
            ),
        }
    }
}

impl std::error::Error for KindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(error) => Some(error),
            _ => None,
        }
    }
}

/// The part of a kind that markers read. One cache line, plain words only.
#[repr(C, align(64))]
pub(crate) struct Descriptor {
    pub(crate) tag: Tag,
    /// Leaf: its cells are not cleared.
    pub(crate) uninit: bool,
    /// Its cells have edges that never change.
    pub(crate) immutable: bool,
    /// Weak: its words are cleared after finalizable cells have been queued.
    pub(crate) long: bool,
    pub(crate) first_word: u32,
    pub(crate) encoding: Encoding,
    /// Words: the slots among the first 64 words; most cells are no larger. Weak, Ephemeron: see
    /// [`Descriptor::cleared`].
    pub(crate) first_slots: u64,
    /// Words: all of the slot bitmap's words and how many there are. It belongs to `Kinds::owned`
    /// and lives as long.
    pub(crate) slots: *const u64,
    pub(crate) slot_words: u32,
    pub(crate) trace: Option<TraceFn>,
}

const _: () = assert!(size_of::<Descriptor>() == 64);

impl Descriptor {
    /// Can a cell that was marked once lead to a cell that was allocated since?
    #[inline(always)]
    pub(crate) fn may_change(&self) -> bool {
        match self.tag {
            Tag::Leaf => false,
            // The collector writes these, whatever the program has promised.
            Tag::Weak | Tag::Ephemeron => true,
            Tag::Words | Tag::Array | Tag::Traced | Tag::Conservative => !self.immutable,
        }
    }

    /// Has it edges that never change?
    pub(crate) fn has_immutable_edges(&self) -> bool {
        self.tag != Tag::Leaf && !self.may_change()
    }

    /// Weak, Ephemeron: what a word becomes whose target dies.
    pub(crate) fn cleared(&self) -> usize {
        self.first_slots as usize
    }
}

/// Which of the shapes a descriptor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    /// Also the tag of a zeroed descriptor: an unpublished kind has no edges.
    Leaf = 0,
    Words,
    Array,
    Traced,
    Conservative,
    Weak,
    Ephemeron,
}

impl Tag {
    /// Do markers look into cells of this shape?
    #[inline(always)]
    pub(crate) fn is_followed(self) -> bool {
        !matches!(self, Tag::Leaf | Tag::Weak)
    }
}

/// A heap's kinds.
pub(crate) struct Kinds {
    table: Table<Descriptor>,
    count: AtomicU32,
    /// The kinds as the embedder gave them, as many as `count` says. Mapped like the descriptors,
    /// since `add` fills it where malloc may not be called.
    owned: Table<Kind>,
    adding: Mutex<()>,
}

// SAFETY: descriptors are written once, before their number is published, and hold only plain
// words, function pointers and pointers into `owned`, which lives as long as the table.
unsafe impl Send for Kinds {}
// SAFETY: as above; writers are serialised by the lock.
unsafe impl Sync for Kinds {}

impl Kinds {
    /// A table of at most `most` kinds, which is no more than [`MAX_KINDS`].
    pub(crate) fn new(most: usize) -> Result<Kinds, MapError> {
        Ok(Kinds {
            // Markers read the descriptor of any number that a page's word may hold.
            table: Table::reserve(MAX_KINDS)?,
            count: AtomicU32::new(0),
            owned: Table::reserve(most)?,
            adding: Mutex::new(()),
        })
    }

    /// Adds a kind. Called outside `no_preempt`, which it enters for as long as it holds the lock:
    /// a kind that is not taken is freed.
    pub(crate) fn add(&self, kind: Kind) -> Result<KindId, KindError> {
        if let Shape::Words { encoding, .. }
        | Shape::Array { encoding, .. }
        | Shape::Weak { encoding, .. }
        | Shape::Ephemeron { encoding, .. } = &kind.shape
            && encoding.value & !encoding.mask != 0
        {
            return Err(KindError::Encoding(*encoding));
        }
        let none = Descriptor {
            tag: Tag::Leaf,
            uninit: false,
            immutable: kind.immutable,
            long: kind.long,
            first_word: 0,
            encoding: Encoding::RAW,
            first_slots: 0,
            slots: std::ptr::null(),
            slot_words: 0,
            trace: None,
        };
        let descriptor = match &kind.shape {
            Shape::Leaf { uninit } => Descriptor {
                uninit: *uninit,
                ..none
            },
            Shape::Words { slots, encoding } => Descriptor {
                tag: Tag::Words,
                encoding: *encoding,
                first_slots: slots.as_raw_slice().first().copied().unwrap_or(0),
                // The vector's heap block stays where it is when the vector itself moves into
                // `owned`.
                slots: slots.as_raw_slice().as_ptr(),
                slot_words: slots.as_raw_slice().len() as u32,
                ..none
            },
            Shape::Array {
                first_word,
                encoding,
            } => Descriptor {
                tag: Tag::Array,
                first_word: *first_word,
                encoding: *encoding,
                ..none
            },
            Shape::Traced { trace, .. } => Descriptor {
                tag: Tag::Traced,
                trace: Some(*trace),
                ..none
            },
            Shape::Conservative => Descriptor {
                tag: Tag::Conservative,
                ..none
            },
            Shape::Weak {
                first_word,
                encoding,
                cleared,
            } => Descriptor {
                tag: Tag::Weak,
                first_word: *first_word,
                encoding: *encoding,
                first_slots: *cleared as u64,
                ..none
            },
            Shape::Ephemeron {
                first_word,
                encoding,
                cleared,
            } => Descriptor {
                tag: Tag::Ephemeron,
                first_word: *first_word,
                encoding: *encoding,
                first_slots: *cleared as u64,
                ..none
            },
        };
        let taken = gc_preempt::no_preempt_here(|| {
            let _adding = self.adding.lock();
            let index = self.count.load(Ordering::Relaxed) as usize;
            if index == self.owned.len() {
                return Err((kind, KindError::TooMany));
            }
            let (table, owned) = (&self.table, &self.owned);
            let room = table.make_writable(index + 1);
            if let Err(e) = room.and_then(|()| owned.make_writable(index + 1)) {
                return Err((kind, KindError::System(e)));
            }
            // SAFETY: `index` is within the tables and not yet published, so no other thread reads
            // or writes the entries.
            unsafe {
                self.table.at(index).write(descriptor);
                self.owned.at(index).write(kind);
            }
            // Ordering: Release, so that a thread that reads the count, or has a `KindId` made from
            // it, sees the descriptor.
            self.count.store(index as u32 + 1, Ordering::Release);
            Ok(KindId(index as u16))
        });
        taken.map_err(|(_kind, error)| error)
    }

    pub(crate) fn lock(&self) -> impl Sized + '_ {
        self.adding.lock()
    }

    /// The kind as the embedder gave it.
    fn given(&self, kind: KindId) -> Option<&Kind> {
        // SAFETY: entries below the count were written before it, never change, and live as long as
        // `self`.
        self.contains(kind)
            .then(|| unsafe { &*self.owned.at(kind.index()) })
    }

    /// See [`Kind::spare_words`].
    pub(crate) fn has_spare_words(&self, kind: KindId) -> bool {
        self.given(kind).is_some_and(|kind| kind.spare_words)
    }

    /// See [`Kind::layout`].
    pub(crate) fn layout(&self, kind: KindId) -> Option<&[u64]> {
        self.given(kind)?.layout()
    }

    /// The descriptor of a kind of this heap.
    #[inline(always)]
    pub(crate) fn get(&self, kind: KindId) -> &Descriptor {
        // SAFETY: every KindId(u16) is within the table; entries are written once before their
        // KindId exists, and a zeroed entry is a valid Leaf descriptor.
        unsafe { &*self.table.at(kind.index()) }
    }

    pub(crate) fn contains(&self, kind: KindId) -> bool {
        // Ordering: Acquire pairs with the Release in `add`.
        kind.index() < self.count.load(Ordering::Acquire) as usize
    }

    /// Is there a weak kind whose words are cleared last?
    pub(crate) fn has_long(&self) -> bool {
        self.of_tag(Tag::Weak).any(|kind| self.get(kind).long)
    }

    /// All kinds of a shape.
    pub(crate) fn of_tag(&self, tag: Tag) -> impl Iterator<Item = KindId> + '_ {
        // Ordering: Acquire pairs with the Release in `add`.
        (0..self.count.load(Ordering::Acquire))
            .map(|index| KindId(index as u16))
            .filter(move |kind| self.get(*kind).tag == tag)
    }

    /// The kind's name, as it lies in the table: for reports in a stop.
    pub(crate) fn borrowed_name(&self, kind: KindId) -> Option<&str> {
        self.given(kind).map(Kind::name)
    }

    /// The encodings of a kind's edges, as they lie in the table: for reports in a stop.
    pub(crate) fn encodings(&self, kind: KindId) -> &[Encoding] {
        self.given(kind).map_or(&[], Kind::encodings)
    }

    /// The kind's name, for reports. Mallocs.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn name(&self, kind: KindId) -> Option<String> {
        self.given(kind).map(|k| k.name.clone())
    }

    /// The bytes that a cell of this kind must have at least for its slots to lie inside.
    pub(crate) fn least_bytes(&self, kind: KindId) -> usize {
        match self.given(kind).map(|k| &k.shape) {
            Some(Shape::Words { slots, .. }) => slots.last_one().map_or(0, |last| (last + 1) * 8),
            _ => 0,
        }
    }
}

impl Drop for Kinds {
    fn drop(&mut self) {
        for index in 0..*self.count.get_mut() as usize {
            // SAFETY: written once, dropped once: no other thread has the table any more.
            unsafe { self.owned.at(index).drop_in_place() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zeroed_descriptor_is_a_leaf() {
        let kinds = Kinds::new(MAX_KINDS).unwrap();
        assert_eq!(kinds.get(KindId(77)).tag, Tag::Leaf);
        assert!(!kinds.contains(KindId(0)));
    }

    #[test]
    fn slots_are_read_back_by_word() {
        let kinds = Kinds::new(MAX_KINDS).unwrap();
        let id = kinds
            .add(Kind::words_at("pair", &[1, 70], Encoding::RAW))
            .unwrap();
        let d = kinds.get(id);
        // SAFETY: the slots belong to `kinds`, which is alive.
        let words = unsafe { std::slice::from_raw_parts(d.slots, d.slot_words as usize) };
        assert_eq!(words, &[1 << 1, 1 << 6]);
        assert_eq!(kinds.least_bytes(id), 71 * 8);
        assert_eq!(kinds.name(id).as_deref(), Some("pair"));
    }

    #[test]
    fn bits_outside_of_a_slot_vector_are_no_slots() {
        let kinds = Kinds::new(MAX_KINDS).unwrap();
        let mut slots: BitVec<u64, Lsb0> = BitVec::repeat(true, 40);
        slots.truncate(3);
        let id = kinds
            .add(Kind::words("three", slots, Encoding::RAW))
            .unwrap();
        assert_eq!(kinds.get(id).first_slots, 0b111);
        let cut = BitVec::<u64, Lsb0>::repeat(true, 40)[7..9].to_bitvec();
        let id = kinds.add(Kind::words("two", cut, Encoding::RAW)).unwrap();
        assert_eq!(kinds.get(id).first_slots, 0b11);
        assert_eq!(kinds.least_bytes(id), 16);
    }

    #[test]
    fn an_encoding_that_matches_nothing_is_refused() {
        let kinds = Kinds::new(MAX_KINDS).unwrap();
        let bad = Encoding {
            mask: 1,
            value: 2,
            keep: !3,
        };
        assert_eq!(
            kinds.add(Kind::array("a", 0, bad)),
            Err(KindError::Encoding(bad))
        );
    }
}
