//! Tracing: from roots to marked cells, without malloc and without recursion.
//!
//! An edge goes through two rings, each long enough for a cache line to arrive meanwhile
//! (prefetching on the way from a FIFO behind the mark stack: Cher, Hosking and Vitek 2004; OCaml's
//! `prefetch_buffer`):
//!
//! 1. *found*: its mark word is prefetched (in a heap of some GiB its unit's word, too), and it
//!    waits in the edge ring;
//! 2. *marked*: its bit is tested and set; if it was clear and the kind has edges, the cell goes to
//!    the queue;
//! 3. *followed*: taken from the queue, the cell's first line is prefetched, and it waits in the
//!    cell ring;
//! 4. its words are read, and each edge begins at 1.
//!
//! So the queue holds marked cells only, at most one entry a cell, and a leaf is never touched.
//! Weak cells are noted, and pairs of ephemerons whose keys are not marked wait for them (`weak/`).
//! Everything here may run while the world is stopped: no malloc, no lock, no panic.
//!
//! A locked instruction costs as much as the rest of a cell's marking (5.4 ns of 10 to 15). Cells
//! that are met one after another often lie close together, so a marker holds the new bits of one
//! word of the bitmap back until it comes to another word, and sets them with one instruction.
//! Others may come upon such a cell meanwhile and follow it too; its bit, and its count, are one
//! marker's all the same.
//!
//! # What was tried and lost
//!
//! Testing a batch of edges at a time, without a branch, and setting the bits of the unmarked ones
//! in a second loop: 13.0 against 9.8 ns a cell without locked instructions, 17.2 against 15.6 ns
//! with them.
//!
//! Marking by block, as Go's Green Tea does: blocks of 8 KiB in a FIFO, and of the block at its
//! head all cells that are marked and not scanned yet, with edges prefetched as here. As bare loops
//! over cells of 32 bytes, in alternation, in nanoseconds a cell:
//!
//! | graph | 64 MiB: stack | blocks | 512 MiB: stack | blocks | cells a block's visit |
//! |---|---|---|---|---|---|
//! | random edges to older cells, a table of all | 35 | 43 | 43 | 49 | 256 |
//! | the same, from the youngest thousand | 17 | 108 | 48 | 65 | 6 |
//! | random edges to any cell | 50 | 76 | 50 | 75 | 26 |
//! | a binary tree as it was built | 24 | 45 | 20 | 35 | 28 |
//! | a binary tree, its cells scattered | 39 | 53 | 54 | 74 | 37 |
//! | small trees, one in eight alive | 40 | 30 | 33 | 54 | 13 |
//!
//! A second bitmap, a queue's flag a block and the visits of blocks with a few cells cost more than
//! order in memory saves, for prefetching has hidden most of what there was to save.

mod bits;
mod budget;
mod dead;
mod ephemerons;
mod local;
mod marked;
pub(crate) mod old;
mod queue;
mod termination;
mod work_item;
pub(crate) mod workers;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::encoding::Encoding;
use crate::fault::planted;
use crate::heap::{Bitmap, CLASS_TABLE, Cell, GRANULE, Space, UNIT, Unit};
use crate::kind::{Descriptor, KindId, Tag};
use crate::verify::Verify;

use crate::memory::prefetch::{Ring, prefetch};
use bits::Bits;
pub(crate) use budget::BYTES_A_CELL;
use budget::{Budget, Cells, Unbounded};
#[doc(hidden)]
pub use marked::Marked;
use queue::Hand;
#[doc(hidden)]
pub use queue::MarkQueue;
pub(crate) use queue::kept_bytes;
use work_item::Entry;

/// Edges on the way to their mark words: enough for the second-level cache's misses to overlap. Of
/// a random graph of 512 MiB, marked in random order, 32 in both rings mark 15 % faster than 16 (41
/// against 49 ns a cell on a virtual machine with two levels of page tables), and 64 no faster.
const EDGES: usize = 32;

/// Cells on the way to their first lines.
const CELLS: usize = 32;

/// Where edges go: the one difference between marking and looking.
trait Sink {
    /// A word that may be an edge: it then leads to a cell's first byte, if to anything in the
    /// heap.
    fn edge(&mut self, word: usize, encoding: Encoding);
    /// A word that may be anything.
    fn conservative(&mut self, word: usize);
    /// A pair of an ephemeron cell, by its first word's address.
    fn pair(&mut self, slot: usize, encoding: Encoding);
    /// A key that will be asked for soon.
    fn key_ahead(&mut self, word: usize, encoding: Encoding);
    /// This sink, for a function of the embedder.
    fn tracer(&mut self) -> Tracer<'_>;
}

/// What a traced kind's function reports its edges to.
pub struct Tracer<'a> {
    to: To<'a>,
}

enum To<'a> {
    Mark(&'a mut Core<'a>),
    Look(&'a mut Look<'a>),
}

impl Tracer<'_> {
    /// One word of the cell: an edge if `encoding` says so.
    #[inline]
    pub fn edge(&mut self, word: usize, encoding: Encoding) {
        match &mut self.to {
            To::Mark(core) => core.edge(word, encoding),
            To::Look(look) => look.edge(word, encoding),
        }
    }

    /// Every word of a range of **addresses**, in bytes, from the first word's to one past the last
    /// word's: edges where `encoding` says so. (Not numbers of words, as
    /// [`Kind::words_at`](crate::Kind::words_at) takes them.)
    ///
    /// # Safety
    /// The range is readable and word-aligned: part of the traced cell, or memory that nobody frees
    /// while it is marked.
    pub unsafe fn edges(&mut self, words: Range<usize>, encoding: Encoding) {
        for word in words.step_by(WORD) {
            // SAFETY: the caller says so.
            self.edge(unsafe { load(word) }, encoding);
        }
    }

    /// A word that may be anything: the cell it names, if it names one, is an edge.
    pub fn conservative(&mut self, word: usize) {
        match &mut self.to {
            To::Mark(core) => core.conservative(word),
            To::Look(look) => look.conservative(word),
        }
    }
}

/// Reads a word that a mutator may be writing.
///
/// # Safety
/// `address` is word-aligned and readable.
#[inline(always)]
unsafe fn load(address: usize) -> usize {
    // SAFETY: forwarded. Ordering: Relaxed; what a snapshot at the beginning must see is ordered by
    // the stop, and later values lead to cells that were born black.
    unsafe { (*(address as *const AtomicUsize)).load(Ordering::Relaxed) }
}

const WORD: usize = size_of::<usize>();

/// Reports the edges of a cell. The only place that knows how kinds hold their edges. Of cells
/// whose words are independent of each other, only those in `part`.
///
/// # Safety
/// `cell` is an allocated cell of `size` bytes and of this descriptor's kind; `part` lies in it.
#[inline(always)]
unsafe fn follow<S: Sink>(
    descriptor: &Descriptor,
    cell: usize,
    size: usize,
    part: Range<usize>,
    sink: &mut S,
) {
    let encoding = descriptor.encoding;
    // SAFETY: all words that are read lie in the cell; a words kind's slots were checked against
    // the class when the site was made.
    unsafe {
        match descriptor.tag {
            Tag::Leaf | Tag::Weak => {}
            Tag::Words => follow_words(descriptor, cell, part, sink),
            Tag::Array => {
                let first = (cell + descriptor.first_word as usize * WORD).max(part.start);
                for word in (first..part.end).step_by(WORD) {
                    sink.edge(load(word), encoding);
                }
            }
            Tag::Conservative => {
                for word in part.step_by(WORD) {
                    sink.conservative(load(word));
                }
            }
            Tag::Ephemeron => ephemerons::follow(descriptor, cell, size, part, sink),
            Tag::Traced => {
                if let Some(trace) = descriptor.trace {
                    trace(cell as *const u8, size, &mut sink.tracer());
                }
            }
        }
    }
}

/// Reports the edges of a cell of a words kind that lie in `part`.
///
/// # Safety
/// `cell` is an allocated cell of this descriptor's kind, which is a words kind; `part` lies in it,
/// and begins where a word of the slot bitmap does.
#[inline(always)]
unsafe fn follow_words<S: Sink>(
    descriptor: &Descriptor,
    cell: usize,
    part: Range<usize>,
    sink: &mut S,
) {
    /// Bytes of a cell that a word of the slot bitmap tells of.
    const BYTES: usize = 64 * WORD;
    let encoding = descriptor.encoding;
    let mut words = part.start;
    let mut index = (words - cell) / BYTES;
    let end = (descriptor.slot_words as usize).min((part.end - cell).div_ceil(BYTES));
    let mut slots = match index {
        0 => descriptor.first_slots,
        // SAFETY: so many words has the bitmap.
        _ if index < end => unsafe { *descriptor.slots.add(index) },
        _ => return,
    };
    loop {
        while slots != 0 {
            let word = words + slots.trailing_zeros() as usize * WORD;
            slots &= slots - 1;
            // SAFETY: the kind's slots were checked against the cell's class when the site was
            // made.
            sink.edge(unsafe { load(word) }, encoding);
        }
        index += 1;
        if index >= end {
            break;
        }
        // SAFETY: so many words has the bitmap.
        slots = unsafe { *descriptor.slots.add(index) };
        words += BYTES;
    }
}

/// Words of an array that are followed at once. The rest goes back to the queue, below the edges
/// that these words lead to, so that a table of a million cells does not put them all into the
/// queue (and other markers can help).
const PART: usize = 2048;
const _: () = assert!(
    PART.is_multiple_of(64),
    "a part begins with a word of the slot bitmap"
);

/// A marker's state, shared with the tracers that it lends to traced kinds.
///
/// It keeps the addresses of the tables that each edge needs. They do not change in a cycle: the
/// bitmaps' roles swap after the last marker is gone.
struct Core<'a> {
    space: &'a Space,
    base: usize,
    len: usize,
    marks: Bits<'a>,
    hand: Hand<'a>,
    edges: Ring<EDGES>,
    cells: Ring<CELLS>,
    /// Bits of one word of the bitmap that are to be set, and which word it is.
    grey: u64,
    grey_word: usize,
    /// What its cells are.
    grey_class: usize,
    grey_kind: KindId,
    marked: Marked,
    /// See [`Space::is_far`].
    far: bool,
    /// No other thread sets mark bits meanwhile, so an atomic `or` would be wasted.
    alone: bool,
    /// Where the cells are written down that are marked at once: in stop 1, those that roots name.
    record: Option<&'a Verify>,
}

impl<'a> Core<'a> {
    /// Step 1: an edge to a cell's first byte. Words that lead out of the heap are no edges.
    #[inline(always)]
    fn found(&mut self, address: usize) {
        self.found_at(address.wrapping_sub(self.base));
    }

    /// The same, for a distance from the heap's first byte.
    #[inline(always)]
    fn found_at(&mut self, offset: usize) {
        if offset >= self.len {
            return;
        }
        self.marks.prefetch(offset);
        if self.far {
            core::hint::cold_path(); // memory is what such a heap waits for; a small one falls through
            self.space.units().prefetch(offset / UNIT);
        }
        if let Some(oldest) = self.edges.exchange(offset) {
            self.mark_soon(oldest);
        }
    }

    /// Step 2 for an edge. The bit is set together with those of other cells in the same bitmap
    /// word, by [`Core::flush`].
    #[inline(always)]
    fn mark_soon(&mut self, offset: usize) {
        let (index, bit) = Bitmap::place(offset);
        // Ordering: Relaxed. Only what this marker, or one that it got the edge from, did is sure
        // to be seen; that is enough.
        if self.marks.word(index).load(Ordering::Relaxed) & bit != 0 {
            return;
        }
        if index == self.grey_word && self.grey != 0 {
            if self.grey & bit != 0 {
                return;
            }
        } else {
            self.flush();
            let Unit::Small { class, kind, .. } = self.space.units().get(offset / UNIT) else {
                self.mark_other(offset);
                return;
            };
            (self.grey_word, self.grey_class, self.grey_kind) = (index, class, kind);
        }
        let kind = self.grey_kind;
        debug_assert!(
            self.space.is_first_byte(offset),
            "a precise edge leads to {:#x}, inside a cell",
            self.base + offset
        );
        self.grey |= bit;
        // While ephemerons wait for keys, a cell goes to the queue once its bit is set: see `met`.
        if self.space.kinds.get(kind).tag.is_followed() && !self.space.weak.checking() {
            self.push(Entry::small(offset, kind));
        }
    }

    /// Sets the bits that [`Core::mark_soon`] has left. A cell that two markers came upon meanwhile
    /// is counted by one of them, and followed by both, which costs a little and harms nothing: a
    /// word's 64 granules at a time.
    #[inline]
    fn flush(&mut self) {
        let grey = core::mem::take(&mut self.grey);
        if grey == 0 {
            return;
        }
        let newly = if self.alone {
            self.marks.set_word_alone(self.grey_word, grey)
        } else {
            self.marks.set_word(self.grey_word, grey)
        };
        let (kind, size) = (self.grey_kind, u64::from(CLASS_TABLE[self.grey_class].size));
        let cells = if newly.is_power_of_two() {
            1
        } else {
            u64::from(newly.count_ones())
        };
        self.marked.cells += cells;
        self.marked.bytes += cells * size;
        if self.space.kinds.get(kind).tag == Tag::Weak || self.space.weak.checking() {
            self.met(kind, newly);
        }
    }

    #[inline(always)]
    fn push(&mut self, entry: Entry) {
        if !self.hand.push(entry.0) {
            self.overflow(entry);
        }
    }

    #[cold]
    #[inline(never)]
    fn overflow(&mut self, entry: Entry) {
        // First the bits: whoever takes the flag looks for them.
        if !planted("flag-before-bits") {
            self.flush();
        }
        self.hand.queue().flag(entry.offset() / UNIT);
    }

    /// Step 2 for what is no small cell.
    #[cold]
    fn mark_other(&mut self, offset: usize) {
        // A large object is marked at once, so that no two markers follow a long array.
        if self.space.kind_and_size(offset).is_some() {
            self.mark(offset);
        } else {
            // No cell begins there: a precise edge that dangles.
            debug_assert!(
                false,
                "an edge leads to {:#x}, where no cell is",
                self.base + offset
            );
        }
    }

    /// Step 2, at once, for a cell that exists. True: it was not marked before.
    fn mark(&mut self, offset: usize) -> bool {
        self.flush();
        // Marked or not: a young collection finds its old roots marked.
        if let Some(verify) = self.record {
            verify.root(offset);
        }
        let (index, bit) = Bitmap::place(offset);
        // Ordering: Relaxed, as above. Tested first, for a locked instruction costs as much as a
        // cache miss.
        if self.marks.word(index).load(Ordering::Relaxed) & bit != 0
            || self.marks.set_word(index, bit) == 0
        {
            return false;
        }
        if let Some((kind, size)) = self.space.kind_and_size(offset) {
            self.marked.cells += 1;
            self.marked.bytes += size as u64;
            let tag = self.space.kinds.get(kind).tag;
            if tag == Tag::Weak {
                self.space.weak.meet(self.base + offset);
            }
            if tag.is_followed() || self.space.weak.checking() {
                self.push(self.entry(offset));
            }
        }
        true
    }

    /// Steps 3 and 4, until nothing is left (true) or `budget` is used up. No bit is left to be
    /// set.
    #[inline(always)]
    fn drain(&mut self, budget: impl Budget) -> bool {
        let done = self.drain_rings(budget);
        self.flush();
        done
    }

    #[inline(always)]
    fn drain_rings(&mut self, mut budget: impl Budget) -> bool {
        while budget.is_left() {
            let ready = match self.hand.pop() {
                Some(entry) => {
                    prefetch(match Entry(entry).small_cell() {
                        Some((_, offset)) => self.base + offset,
                        None => self.base + Entry(entry).offset() + Entry(entry).start(),
                    });
                    self.cells.exchange(entry)
                }
                // Nothing to overlap with: what is on the way is taken as it is, cells first, for
                // they bring new edges.
                None => match self.cells.pop() {
                    Some(entry) => Some(entry),
                    None => match self.edges.pop() {
                        Some(offset) => {
                            self.mark_soon(offset);
                            None
                        }
                        // What a flush may bring to the queue is not nothing.
                        None if self.grey != 0 => {
                            self.flush();
                            None
                        }
                        None => return true,
                    },
                },
            };
            if let Some(entry) = ready {
                budget.spend(self.follow(Entry(entry)));
            }
        }
        false
    }

    /// Step 4; the bytes that it read, or may have read.
    #[inline(always)]
    fn follow(&mut self, entry: Entry) -> usize {
        // While ephemerons wait for keys, each cell must pass the queue.
        if let Some((kind, offset)) = entry.small_cell()
            && !self.space.weak.checking()
        {
            let descriptor = self.space.kinds.get(kind);
            if descriptor.tag == Tag::Words && descriptor.slot_words <= 1 {
                // SAFETY: only offsets that `mark` found a cell of this kind at get here, and
                // marked cells stay.
                return unsafe { self.follow_near(descriptor, offset) } * BYTES_A_CELL;
            }
        }
        self.follow_other(entry)
    }

    /// Step 4 for a cell whose size matters, or that somebody may wait for.
    #[inline(never)]
    fn follow_other(&mut self, entry: Entry) -> usize {
        let offset = entry.offset();
        if self.space.weak.checking() {
            self.wake(entry);
        }
        let Some((kind, size)) = self.space.kind_and_size(offset) else {
            return 0;
        };
        let descriptor = self.space.kinds.get(kind);
        let cell = self.base + offset;
        let start = cell + entry.start();
        let mut end = cell + size;
        if end - start > PART * WORD
            && entry.has_parts()
            && match descriptor.tag {
                Tag::Array | Tag::Conservative | Tag::Ephemeron => true,
                Tag::Words => !planted("words-whole"),
                Tag::Leaf | Tag::Traced | Tag::Weak => false,
            }
        {
            end = start + PART * WORD;
            self.push(entry.next_part());
        }
        if entry.has_parts() {
            self.hand.queue().followed_large(end - start);
        }
        // SAFETY: only offsets that `mark` found a cell at get here, marked cells stay, and a part
        // is pushed only if it begins inside.
        unsafe { follow(descriptor, cell, size, start..end, self) };
        end - start
    }

    /// The entry of the cell that begins at `offset`.
    fn entry(&self, offset: usize) -> Entry {
        match self.space.units().get(offset / UNIT) {
            Unit::Small { kind, .. } => Entry::small(offset, kind),
            _ => Entry::large(offset),
        }
    }

    /// The queue overflowed: follows the marked cells of the flagged units. True: there were some.
    #[cold]
    fn follow_flagged(&mut self) -> bool {
        if planted("no-second-look") {
            return false;
        }
        let queue = self.hand.queue();
        queue.take_flags(|unit| {
            for granule in 0..UNIT / GRANULE {
                let offset = unit * UNIT + granule * GRANULE;
                // Born cells are marked before they are written: who sees the mark sees the zeroes.
                if self.marks.test_now(offset) {
                    self.follow(self.entry(offset));
                }
            }
        })
    }

    fn resolved(&mut self, address: usize) -> bool {
        if planted("ends-are-beginnings")
            && let Some(before) = self.space.resolve(address.wrapping_sub(1))
            && before.base + before.size == address
        {
            self.mark(before.base - self.base);
        }
        self.space
            .resolve(address)
            .is_some_and(|cell| self.mark(cell.base - self.base))
    }

    fn conservative_word(&mut self, word: usize) -> bool {
        let mut newly = false;
        for encoding in self.space.encodings() {
            if let Some(address) = encoding.decode(word) {
                newly |= self.resolved(address);
            }
        }
        newly
    }
}

impl Sink for Core<'_> {
    #[inline(always)]
    fn edge(&mut self, word: usize, encoding: Encoding) {
        // Null is out of the heap's range, too.
        if word & encoding.mask == encoding.value {
            self.found(word & encoding.keep);
        }
    }

    fn conservative(&mut self, word: usize) {
        self.conservative_word(word);
    }

    #[inline(always)]
    fn pair(&mut self, slot: usize, encoding: Encoding) {
        self.follow_pair(slot, encoding);
    }

    #[inline(always)]
    fn key_ahead(&mut self, word: usize, encoding: Encoding) {
        self.prefetch_key(word, encoding);
    }

    fn tracer(&mut self) -> Tracer<'_> {
        let core: *mut Core<'_> = self;
        // SAFETY: the tracer borrows this core for as long as it lives. Only the lifetime of what
        // the core itself borrows is shortened, and the tracer stores nothing into the core.
        let core = unsafe { &mut *core.cast() };
        Tracer { to: To::Mark(core) }
    }
}

/// One thread that marks. All its memory is mapped before; make it and drop it wherever that is
/// true of its stack.
///
/// Dropping it leaves what it has not followed in the queue, for the others.
#[doc(hidden)]
pub struct Marker<'a> {
    core: Core<'a>,
}

impl<'a> Marker<'a> {
    /// A marker of `space` that shares `queue`, made for it, with its fellows. It is made after the
    /// last [`Space::end_marking`] and dropped before the next.
    pub fn new(space: &'a Space, queue: &'a MarkQueue) -> Marker<'a> {
        Marker {
            core: Core {
                space,
                base: space.base(),
                len: space.len(),
                marks: Bits::new(space.marked_bits()),
                hand: Hand::new(queue),
                edges: Ring::new(),
                cells: Ring::new(),
                grey: 0,
                grey_word: 0,
                grey_class: 0,
                grey_kind: KindId(0),
                marked: Marked::default(),
                // Relaxed: the stop orders it, and a late look costs time only.
                far: space.far.load(Ordering::Relaxed),
                alone: false,
                record: None,
            },
        }
    }

    /// Says that while this marker marks no other thread sets mark bits: the world is stopped, and
    /// there is no other marker.
    pub fn alone(mut self) -> Marker<'a> {
        self.core.alone = true;
        self
    }

    /// Has each cell that is marked from now on, by a root's word, written down; or not any more.
    pub(crate) fn record(&mut self, roots: Option<&'a Verify>) {
        self.core.record = roots;
    }

    /// A precise root or edge: a word that is null, no edge, or leads to an allocated cell's first
    /// byte.
    #[inline]
    pub fn edge(&mut self, word: usize, encoding: Encoding) {
        self.core.edge(word, encoding);
    }

    /// An address that leads anywhere into its cell (a derived pointer). True: the cell was not
    /// marked yet.
    pub fn interior(&mut self, address: usize) -> bool {
        self.core.resolved(address)
    }

    /// A word that may be anything, tried with all of the heap's conservative encodings. True: it
    /// named a cell that was not marked yet.
    pub fn conservative(&mut self, word: usize) -> bool {
        self.core.conservative_word(word)
    }

    /// Marks a cell that [`Space::resolve`] has found. True: it was not marked yet.
    pub fn cell(&mut self, cell: Cell) -> bool {
        self.core.mark(cell.base - self.core.base)
    }

    /// Traces until nothing is left: all edges from everything marked have then been followed.
    pub fn drain(&mut self) {
        loop {
            self.core.drain(Unbounded);
            if !self.core.follow_flagged() && !self.core.wake_old() {
                return;
            }
        }
    }

    /// As [`Marker::drain`], but follows about `cells` cells at most, one of more than 128 bytes
    /// counting as several. True: nothing is left. For use inside a stop, whose length it bounds:
    /// some ten nanoseconds a cell.
    ///
    /// A queue that overflowed needs a walk over the heap's flags, which only [`Marker::drain`]
    /// does: false then.
    pub fn drain_bounded(&mut self, cells: usize) -> bool {
        let mut budget = Cells(cells);
        loop {
            if !self.core.drain(&mut budget) || self.core.hand.queue().has_flags() {
                return false;
            }
            if !self.core.wake_old() {
                return true;
            }
            budget.spend(ephemerons::WAKE_OLD_BYTES);
        }
    }

    /// As [`Marker::drain_bounded`], but what did not fit into the queue is left to the crew's
    /// captain.
    fn drain_piece(&mut self, cells: usize) -> bool {
        self.core.drain(&mut Cells(cells))
    }

    /// Touches what marking of roots will need, so that the stop does not wait for a page.
    pub(crate) fn make_ready(&mut self) {
        self.core.hand.make_ready();
    }

    /// Puts all that it has not followed into the queue, for whoever marks next.
    pub(crate) fn lay_down(&mut self) {
        while let Some(offset) = self.core.edges.pop() {
            self.core.mark_soon(offset);
        }
        self.core.flush();
        while let Some(entry) = self.core.cells.pop() {
            self.core.push(Entry(entry));
        }
        self.core.hand.lay_down();
    }

    /// Leaves half of what it has to whoever else marks.
    pub(crate) fn share(&mut self) {
        // In a tree nearly all of it is on its way to the first line.
        while let Some(entry) = self.core.cells.pop() {
            self.core.push(Entry(entry));
        }
        self.core.hand.share();
    }

    /// The same, if a helper has nothing to do and finds nothing.
    fn share_with_the_hungry(&mut self) {
        let queue = self.core.hand.queue();
        if queue.has_no_packet() && queue.board.is_hungry() {
            self.share();
        }
    }

    /// Adds to the count what another marker has marked.
    fn add(&mut self, marked: Marked) {
        self.core.marked.cells += marked.cells;
        self.core.marked.bytes += marked.bytes;
    }

    /// What this marker has newly marked, up to the last drain.
    pub fn marked(&self) -> Marked {
        self.core.marked
    }
}

impl Drop for Marker<'_> {
    fn drop(&mut self) {
        self.lay_down();
    }
}

/// Looks at edges instead of marking them.
struct Look<'a> {
    space: &'a Space,
    f: &'a mut dyn FnMut(Cell),
}

impl Look<'_> {
    fn address(&mut self, address: usize) {
        if let Some(cell) = self.space.resolve(address) {
            (self.f)(cell);
        }
    }
}

impl Sink for Look<'_> {
    fn edge(&mut self, word: usize, encoding: Encoding) {
        if let Some(address) = encoding.decode(word) {
            self.address(address);
        }
    }

    fn conservative(&mut self, word: usize) {
        for encoding in self.space.encodings() {
            if let Some(address) = encoding.decode(word) {
                self.address(address);
            }
        }
    }

    /// A value is an edge of its pair's cell, as long as the key lives; it does, or the pair would
    /// have been cleared.
    fn pair(&mut self, slot: usize, encoding: Encoding) {
        // SAFETY: `follow` names pairs of the cell.
        self.edge(unsafe { load(slot + WORD) }, encoding);
    }

    fn key_ahead(&mut self, _: usize, _: Encoding) {}

    fn tracer(&mut self) -> Tracer<'_> {
        let look: *mut Look<'_> = self;
        // SAFETY: as for `Core`.
        let look = unsafe { &mut *look.cast() };
        Tracer { to: To::Look(look) }
    }
}

impl Space {
    /// World stopped: calls `f` with the target of every edge of an allocated cell, for oracles and
    /// heap snapshots.
    pub fn for_each_edge(&self, cell: Cell, f: &mut dyn FnMut(Cell)) {
        let descriptor = self.kinds.get(cell.kind);
        // SAFETY: `cell` says what is allocated, and the caller that it still is.
        unsafe {
            follow(
                descriptor,
                cell.base,
                cell.size,
                cell.base..cell.base + cell.size,
                &mut Look { space: self, f },
            )
        };
    }

    /// Can a cell begin at `offset` of the address range?
    fn is_first_byte(&self, offset: usize) -> bool {
        match self.units().get(offset / UNIT) {
            Unit::Small {
                class, distance, ..
            } => (distance * UNIT + offset % UNIT).is_multiple_of(CLASS_TABLE[class].size as usize),
            Unit::Large { distance } => distance == 0 && offset.is_multiple_of(UNIT),
            Unit::Free => false,
        }
    }

    /// Kind and size of the cell that begins at `offset` of the address range; `None` where no cell
    /// can begin.
    #[inline(always)]
    fn kind_and_size(&self, offset: usize) -> Option<(KindId, usize)> {
        match self.units().get(offset / UNIT) {
            Unit::Small { class, kind, .. } => Some((kind, CLASS_TABLE[class].size as usize)),
            Unit::Large { distance: 0 } => {
                let (units, kind) = self.large_record(offset / UNIT);
                Some((kind, units * UNIT))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
