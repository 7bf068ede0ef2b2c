//! Kinds: where the edges of cells are, described once for all cells of a kind.
//!
//! A descriptor lies in mapped memory, and neither moves nor changes after it was published. So
//! markers read it by the kind's number from the page table without a lock, in stops and beside
//! mutators.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use bitvec::prelude::{BitVec, Lsb0};

use crate::encoding::Encoding;
use crate::memory::os::{MapError, Table};
use crate::tracer::Tracer;
use gc_preempt::Mutex;

/// The number of a kind in its heap. [`Heap::kind`](crate::Heap::kind) returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KindId(pub(crate) u16);

impl KindId {
    /// The number as an index, for an embedder's own tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The most kinds of a heap: the page table has 16 bits for a kind's number.
pub const MAX_KINDS: usize = 1 << 16;

/// A function that reports every edge of one cell to the tracer.
///
/// The first argument is the address of the cell, the second the cell's size in bytes: that of its
/// size class, not the requested size.
///
/// # Safety
/// The function runs on the collector's threads, and on mutators that assist; several threads may
/// run it at once. It runs while mutators are stopped at any instruction, also while they
/// initialise this cell, and beside mutators that write the cell. So:
///
/// * It accepts every state that an interrupted sequence of stores can leave, the all-zero cell in
///   particular.
/// * It reads each word once, by [`Tracer::edges`], an atomic load or a volatile load.
/// * It does not allocate, lock or panic, nor call anything that may.
///
/// If one word of a cell (a length, a tag) decides which other words are edges, a mutator must
/// store null to a word through the barrier before that word ceases to be an edge. Otherwise no log
/// has the old edge, and a later marker would miss the cell that it led to.
pub type TraceFn = unsafe fn(cell: *const u8, size: usize, tracer: &mut Tracer<'_>);

/// A description of cells. [`Heap::kind`](crate::Heap::kind) registers it.
#[derive(Debug, Clone)]
pub struct Kind {
    name: String,
    shape: Shape,
    immutable: bool,
    long: bool,
    /// Words that the trace function does not report may hold anything.
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
    Elements {
        first_word: u32,
        stride: u32,
        slots: BitVec<u64, Lsb0>,
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

    /// Cells without edges that are not zeroed: a new cell may hold the content of a dead one. For
    /// strings and buffers whose bytes are all written at once, like `GC_malloc_atomic` of Boehm's
    /// collector. For the raw tier only.
    ///
    /// To read such a cell before it was written is to read uninitialised memory.
    ///
    /// ```
    /// # use gc_core::raw::Kind;
    /// # use gc_core::Heap;
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let string = heap.kind(Kind::leaf_uninit("string"))?;
    /// let text = "not zeroed, but copied at once";
    /// // SAFETY: a leaf; all bytes are written, and the cell is on this stack meanwhile.
    /// unsafe {
    ///     let cell = mutator.alloc_raw(string, text.len())?;
    ///     cell.as_ptr().copy_from_nonoverlapping(text.as_ptr(), text.len());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn leaf_uninit(name: impl Into<String>) -> Kind {
        Kind::of(name, Shape::Leaf { uninit: true })
    }

    /// Cells whose edges are the words with a set bit in `slots`; words beyond its end are no
    /// edges.
    pub(crate) fn words(
        name: impl Into<String>,
        mut slots: BitVec<u64, Lsb0>,
        encoding: Encoding,
    ) -> Kind {
        // Markers read whole words of the bit vector. A vector that was cut out of another one may
        // begin inside a word, and may have stale bits behind its end.
        slots.force_align();
        slots.set_uninitialized(false);
        Kind::of(name, Shape::Words { slots, encoding })
    }

    /// Cells whose edges are the words with the numbers `words`, counted from 0 at the cell's first
    /// byte; other words are no edges. A number may occur more than once, in any order.
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

    /// Cells in which every word from number `first_word` to the cell's end may be an edge. The
    /// kind needs no length: words that were never written are zero, and zero is no edge.
    pub fn array(name: impl Into<String>, first_word: u32, encoding: Encoding) -> Kind {
        Kind::of(
            name,
            Shape::Array {
                first_word,
                encoding,
            },
        )
    }

    /// Cells of elements of `stride` words each, from word number `first_word` to the cell's end.
    /// The edges of each element are its words with a set bit in `slots`. As for
    /// [`array`](Self::array), words that were never written are zero.
    pub(crate) fn elements(
        name: impl Into<String>,
        first_word: u32,
        stride: u32,
        mut slots: BitVec<u64, Lsb0>,
        encoding: Encoding,
    ) -> Kind {
        debug_assert!(slots.len() <= stride as usize && slots.any());
        // As in `words`.
        slots.force_align();
        slots.set_uninitialized(false);
        Kind::of(
            name,
            Shape::Elements {
                first_word,
                stride,
                slots,
                encoding,
            },
        )
    }

    /// Cells whose edges `trace` reports: plain addresses, or words reported by
    /// [`Tracer::conservative`].
    ///
    /// # Safety
    /// As for [`traced_with`](Kind::traced_with).
    pub unsafe fn traced(name: impl Into<String>, trace: TraceFn) -> Kind {
        // SAFETY: forwarded.
        unsafe { Kind::traced_with(name, trace, &[Encoding::RAW]) }
    }

    /// Cells whose edges `trace` reports in several encodings. The collector decodes logged words
    /// by all encodings of the heap, so it must have those that `trace` uses.
    ///
    /// # Safety
    /// `trace` keeps the contract of [`TraceFn`], and reports every edge of the cell in one of
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

    /// Cells in which every word is treated conservatively: it is an edge if it names a cell in one
    /// of the heap's conservative encodings
    /// ([`HeapBuilder::conservative`](crate::HeapBuilder::conservative)).
    pub fn conservative(name: impl Into<String>) -> Kind {
        Kind::of(name, Shape::Conservative)
    }

    /// Cells whose words from number `first_word` on do not keep their targets alive. When a target
    /// dies, the collector sets the word to `cleared`. It does so as well when the target is queued
    /// for its finalizer, unless the kind is [`long`](Self::long). A weak load finds either all
    /// words that name one target cleared, or none.
    ///
    /// [`Mutator::load_weak`](crate::Mutator::load_weak) loads such a word; a plain load may give
    /// the address of a dead cell. A mutator stores a word by a plain store or by
    /// [`Mutator::write`](crate::Mutator::write), while it holds the target strongly.
    /// [`Mutator::copy_weak`](crate::Mutator::copy_weak) copies weak words; plain copies are not
    /// allowed.
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

    /// Cells of pairs, from word number `first_word` on: a key and a value. While the cell and the
    /// key are alive, the value is alive. The pair keeps neither its key alive, nor its value after
    /// the key has died. When the key dies, the collector sets the pair to `cleared` and 0. A table
    /// with weak keys is such a cell; a single ephemeron is a cell of one pair.
    ///
    /// A value may lead back to its key, and to the keys of other pairs: marking takes time in
    /// proportion to the pairs, for chains of any length. A key that is no edge, or leads out of
    /// the heap, never dies. A last word without a partner is ignored.
    ///
    /// * [`Mutator::write_pair`](crate::Mutator::write_pair) changes a pair of a published cell.
    ///   [`Mutator::write`](crate::Mutator::write) may change the value alone, for the same key.
    ///   The thread holds both targets strongly.
    /// * [`Mutator::load_weak`](crate::Mutator::load_weak) loads a key. A thread that holds the key
    ///   may load the value plainly.
    /// * [`Mutator::copy_weak`](crate::Mutator::copy_weak) copies pairs.
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

    /// Declares the edges of such a cell immutable, as in the pairs of a list, closures, and the
    /// nodes of a tree that is built from its leaves up. A young collection does not trace an old
    /// cell of such a kind again, because the cell leads to older cells only. It traces old cells
    /// of other kinds with edges each time (see
    /// [`HeapBuilder::young_collections`](crate::HeapBuilder::young_collections)). Leaves are never
    /// traced.
    ///
    /// The embedder promises three things, which `URGE_VERIFY=1` checks in every collection:
    ///
    /// * Each edge leads to a cell that the thread held before it allocated this cell, or to this
    ///   cell itself.
    /// * The thread stores each edge before it allocates again.
    /// * The edge does not change after that.
    ///
    /// An edge may stay null, and words that are no edges may change. For weak kinds and ephemerons
    /// the declaration has no effect, since their words change when targets die.
    ///
    /// ```
    /// # use gc_core::raw::{Encoding, Kind};
    /// # use gc_core::Heap;
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let pair = heap.kind(Kind::words_at("pair", &[0, 1], Encoding::RAW).immutable())?;
    /// // SAFETY: the list is on this stack. Edges are stored at once, and lead to older cells.
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

    /// Makes the words of a weak kind *long*: the collector clears such a word when its target is
    /// freed, not when the target is queued for its finalizer.
    ///
    /// A short weak word, and the key of an ephemeron's pair, is cleared once only weak words and
    /// finalizers ([`Mutator::register_finalizer`](crate::Mutator::register_finalizer)) lead to its
    /// target, before the target is queued. So it never leads to a cell whose finalizer has run. A
    /// long word may: it leads to the cell as long as the cell exists, also if the finalizer makes
    /// the cell reachable again. .NET has both under these names; Java's `PhantomReference` is a
    /// long one that cannot be loaded. Neither leads to a value that needs `Drop` once the value is
    /// queued for drop.
    ///
    /// For other kinds than [`weak`](Self::weak) it has no effect. A heap with such a kind stops
    /// once more in a collection in which many cells die.
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

    /// Declares that words which a [traced](Self::traced) kind's function does not report may hold
    /// anything, as in a buffer above its count, where removed edges stay. For other kinds it has
    /// no effect.
    ///
    /// Only [`verify`](crate::HeapBuilder::verify) uses this. In a traced cell it takes an
    /// unreported word that names a dead cell for an edge that the function leaves out. It does not
    /// check cells of this kind.
    ///
    /// ```
    /// # use gc_core::raw::{Encoding, Kind, Tracer};
    /// # use gc_core::Heap;
    /// /// A count, and that many edges. The words above them were popped.
    /// unsafe fn stack(cell: *const u8, size: usize, tracer: &mut Tracer<'_>) {
    ///     // SAFETY: a cell has at least one word, and the count is less than its words.
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

    /// A bit for each word, set if the word is an edge in plain addresses, without words beyond the
    /// last edge; empty for a leaf. `None` if the kind has other properties. Kinds with equal
    /// layouts differ in their names only.
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

    /// The encodings of the kind's edges. Conservative words have the heap's encodings.
    pub(crate) fn encodings(&self) -> &[Encoding] {
        match &self.shape {
            Shape::Words { encoding, .. }
            | Shape::Array { encoding, .. }
            | Shape::Elements { encoding, .. }
            | Shape::Weak { encoding, .. }
            | Shape::Ephemeron { encoding, .. } => core::slice::from_ref(encoding),
            Shape::Traced { encodings, .. } => encodings,
            Shape::Leaf { .. } | Shape::Conservative => &[],
        }
    }

    /// The name, for reports and error messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The heap could not register a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KindError {
    /// The heap has as many kinds as its reserve allows: 65,536 with a reserve of 1 GiB or more.
    TooMany,
    /// The heap has as many encodings as it can have (1024).
    TooManyEncodings,
    /// The system refused memory for the table of kinds.
    System(MapError),
    /// The encoding's `value` has bits outside its `mask`, so no word would be an edge.
    Encoding(Encoding),
}

impl fmt::Display for KindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KindError::TooMany => write!(
                f,
                "the heap has as many kinds as its reserve allows (at most {MAX_KINDS}); share a kind among types of one layout, or raise the reserve"
            ),
            KindError::TooManyEncodings => {
                f.write_str("the heap has 1024 encodings already: describe edges by fewer of them")
            }
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

/// The part of a kind that markers read: one cache line of plain words.
#[repr(C, align(64))]
pub(crate) struct Descriptor {
    pub(crate) tag: Tag,
    /// Leaf: whether the kind's cells are not zeroed.
    pub(crate) uninit: bool,
    /// Whether the cells' edges never change.
    pub(crate) immutable: bool,
    /// Weak: whether the words are long, that is, cleared after finalizers have been queued.
    pub(crate) long: bool,
    pub(crate) first_word: u32,
    pub(crate) encoding: Encoding,
    /// Words: the edges among the first 64 words, a bit for each word; most cells have no more.
    /// Elements: those of an element.
    /// Weak, Ephemeron: see [`Descriptor::cleared`].
    pub(crate) first_slots: u64,
    /// Words, Elements: the address of all words of the bit vector, which `Kinds::owned` owns.
    pub(crate) slots: *const u64,
    pub(crate) slot_words: u32,
    /// Elements: the words of an element.
    pub(crate) stride: u32,
    pub(crate) trace: Option<TraceFn>,
}

const _: () = assert!(size_of::<Descriptor>() == 64);

impl Descriptor {
    /// Whether an old cell can lead to a cell that was allocated later.
    #[inline(always)]
    pub(crate) fn may_change(&self) -> bool {
        match self.tag {
            Tag::Leaf => false,
            // The collector writes these words, whatever the embedder has declared.
            Tag::Weak | Tag::Ephemeron => true,
            Tag::Words | Tag::Array | Tag::Elements | Tag::Traced | Tag::Conservative => {
                !self.immutable
            }
        }
    }

    /// Whether the kind has edges, and they never change.
    pub(crate) fn has_immutable_edges(&self) -> bool {
        self.tag != Tag::Leaf && !self.may_change()
    }

    /// Weak, Ephemeron: the value of a word whose target has died.
    pub(crate) fn cleared(&self) -> usize {
        self.first_slots as usize
    }
}

/// The shape of a descriptor's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    /// Also the tag of a zeroed descriptor: a kind that is not published has no edges.
    Leaf = 0,
    Words,
    Array,
    Elements,
    Traced,
    Conservative,
    Weak,
    Ephemeron,
}

impl Tag {
    /// Whether markers trace the edges of such a cell.
    #[inline(always)]
    pub(crate) fn is_followed(self) -> bool {
        !matches!(self, Tag::Leaf | Tag::Weak)
    }
}

/// A heap's kinds.
pub(crate) struct Kinds {
    table: Table<Descriptor>,
    count: AtomicU32,
    /// The kinds as the embedder gave them; `count` is their number. In mapped memory, since `add`
    /// writes it where it must not call malloc.
    owned: Table<Kind>,
    adding: Mutex<()>,
}

// SAFETY: a descriptor is written once, before its number is published. It holds plain words,
// function pointers, and pointers into `owned`, which lives as long as the table.
unsafe impl Send for Kinds {}
// SAFETY: as above; the lock allows one writer at a time.
unsafe impl Sync for Kinds {}

impl Kinds {
    /// Makes a table of at most `most` kinds, which is at most [`MAX_KINDS`].
    pub(crate) fn new(most: usize) -> Result<Kinds, MapError> {
        Ok(Kinds {
            // Markers read the descriptor of any number that a word of the page table may hold.
            table: Table::reserve(MAX_KINDS)?,
            count: AtomicU32::new(0),
            owned: Table::reserve(most)?,
            adding: Mutex::new(()),
        })
    }

    /// Adds a kind. Call it outside of `no_preempt`, because a kind that is not added is freed; it
    /// enters `no_preempt` while it holds the lock.
    #[allow(
        clippy::result_large_err,
        reason = "the closure hands the kind back, since it must not be freed inside"
    )]
    pub(crate) fn add(&self, kind: Kind) -> Result<KindId, KindError> {
        let is_wrong = |encoding: &&Encoding| encoding.value & !encoding.mask != 0;
        if let Some(encoding) = kind.encodings().iter().find(is_wrong) {
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
            stride: 0,
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
                // The vector's memory does not move when the vector itself moves into `owned`.
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
            Shape::Elements {
                first_word,
                stride,
                slots,
                encoding,
            } => Descriptor {
                tag: Tag::Elements,
                first_word: *first_word,
                stride: *stride,
                encoding: *encoding,
                first_slots: slots.as_raw_slice().first().copied().unwrap_or(0),
                slots: slots.as_raw_slice().as_ptr(),
                slot_words: slots.as_raw_slice().len() as u32,
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
            // SAFETY: `index` lies within the tables and is not published yet, so no other thread
            // reads or writes the entries.
            unsafe {
                self.table.at(index).write(descriptor);
                self.owned.at(index).write(kind);
            }
            // Release pairs with the Acquire in `contains` and `of_tag`: a thread that reads the
            // count, or has a `KindId` made from it, sees the descriptor.
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
        // SAFETY: entries below the count were written before the count, never change, and live as
        // long as `self`.
        self.contains(kind)
            .then(|| unsafe { &*self.owned.at(kind.index()) })
    }

    /// Whether [`Kind::spare_words`] was declared.
    pub(crate) fn has_spare_words(&self, kind: KindId) -> bool {
        self.given(kind).is_some_and(|kind| kind.spare_words)
    }

    /// The kind's [`Kind::layout`].
    pub(crate) fn layout(&self, kind: KindId) -> Option<&[u64]> {
        self.given(kind)?.layout()
    }

    /// The descriptor of a kind of this heap.
    #[inline(always)]
    pub(crate) fn get(&self, kind: KindId) -> &Descriptor {
        // SAFETY: every `u16` is an index of the table. An entry is written once, before its
        // `KindId` exists, and a zeroed entry is a valid descriptor of a leaf.
        unsafe { &*self.table.at(kind.index()) }
    }

    pub(crate) fn contains(&self, kind: KindId) -> bool {
        // Acquire pairs with the Release in `add`.
        kind.index() < self.count.load(Ordering::Acquire) as usize
    }

    /// Whether the heap has a weak kind with long words.
    pub(crate) fn has_long(&self) -> bool {
        self.of_tag(Tag::Weak).any(|kind| self.get(kind).long)
    }

    /// The numbers of all kinds of a shape.
    pub(crate) fn of_tag(&self, tag: Tag) -> impl Iterator<Item = KindId> + '_ {
        // Acquire pairs with the Release in `add`.
        (0..self.count.load(Ordering::Acquire))
            .map(|index| KindId(index as u16))
            .filter(move |kind| self.get(*kind).tag == tag)
    }

    /// The kind's name, borrowed from the table, for reports in a stop.
    pub(crate) fn borrowed_name(&self, kind: KindId) -> Option<&str> {
        self.given(kind).map(Kind::name)
    }

    /// The encodings of the kind's edges, borrowed from the table, for reports in a stop.
    pub(crate) fn encodings(&self, kind: KindId) -> &[Encoding] {
        self.given(kind).map_or(&[], Kind::encodings)
    }

    /// A copy of the kind's name, for reports outside of stops: it calls malloc.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn name(&self, kind: KindId) -> Option<String> {
        self.given(kind).map(|k| k.name.clone())
    }

    /// The least bytes of a cell of this kind: up to its last edge.
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
            // SAFETY: written once and dropped once; no other thread has the table any more.
            unsafe { self.owned.at(index).drop_in_place() };
        }
    }
}

#[cfg(test)]
mod tests;
