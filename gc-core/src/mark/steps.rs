//! A marker's loop: what happens to an edge from where it is found until its cell is followed.

use std::sync::atomic::Ordering;

use super::bits::Bits;
use super::budget::Budget;
use super::queue::{LocalQueue, MarkQueue};
use super::work_item::{PART, WorkItem};
use crate::encoding::Encoding;
use crate::follow::follow;
use crate::heap::{Bitmap, CLASS_TABLE, GRANULE, PAGE, Page, Space};
use crate::kind::{KindId, Tag};
use crate::marked::{BYTES_A_CELL, Marked};
use crate::memory::prefetch::{Ring, prefetch};
use crate::tracer::{Sink, WORD};
use crate::verify::Verify;
use crate::weak::WeakWork;

/// Edges on the way to their mark words: enough for the second-level cache's misses to overlap.
/// Twice as many mark no faster: docs/experiments.md.
pub(super) const EDGES: usize = 32;

/// Cells on the way to their first lines.
pub(super) const CELLS: usize = 32;

/// A marker's state, shared with the tracers that it lends to traced kinds.
///
/// It keeps the addresses of the tables that each edge needs. They stay the same in a cycle,
/// because the bitmaps swap their roles after the last marker is dropped.
pub(crate) struct Core<'a> {
    pub(super) space: &'a Space,
    pub(super) weak: &'a WeakWork,
    pub(super) base: usize,
    pub(super) len: usize,
    pub(super) marks: Bits<'a>,
    pub(super) local: LocalQueue<'a>,
    pub(super) edges: Ring<EDGES>,
    pub(super) cells: Ring<CELLS>,
    /// Mark bits of one word of the bitmap that `flush` will set, and that word's index.
    pub(super) grey: u64,
    pub(super) grey_word: usize,
    /// The size class and the kind of these cells.
    pub(super) grey_class: usize,
    pub(super) grey_kind: KindId,
    pub(super) marked: Marked,
    /// No other thread sets mark bits while this marker exists, so it sets them without a locked
    /// instruction.
    pub(super) alone: bool,
    /// The verifier's list of the cells that roots name, which `mark` fills in stop 1.
    pub(super) record: Option<&'a Verify>,
}

impl<'a> Core<'a> {
    pub(super) fn new(space: &'a Space, queue: &'a MarkQueue, weak: &'a WeakWork) -> Core<'a> {
        Core {
            space,
            weak,
            base: space.base(),
            len: space.len(),
            marks: Bits::new(space.marked_bits()),
            local: LocalQueue::new(queue),
            edges: Ring::new(),
            cells: Ring::new(),
            grey: 0,
            grey_word: 0,
            grey_class: 0,
            grey_kind: KindId(0),
            marked: Marked::default(),
            alone: false,
            record: None,
        }
    }

    /// Step 1: an edge to a cell's first byte. A word that leads out of the heap is no edge.
    #[inline(always)]
    pub(super) fn found(&mut self, address: usize) {
        self.found_at(address.wrapping_sub(self.base));
    }

    /// The same, for a distance from the heap's first byte.
    #[inline(always)]
    pub(super) fn found_at(&mut self, offset: usize) {
        if offset >= self.len {
            return;
        }
        self.marks.prefetch(offset);
        if let Some(oldest) = self.edges.exchange(offset) {
            self.mark_soon(oldest);
        }
    }

    /// Step 2 for an edge. [`Core::flush`] sets the bit, together with the bits of other cells in
    /// the same bitmap word.
    #[inline(always)]
    pub(super) fn mark_soon(&mut self, offset: usize) {
        let (index, bit) = Bitmap::place(offset);
        // Ordering: Relaxed. A bit that another marker has just set may be missed: then both follow
        // the cell, and `flush` counts it once.
        if self.marks.word(index).load(Ordering::Relaxed) & bit != 0 {
            return;
        }
        if index == self.grey_word && self.grey != 0 {
            if self.grey & bit != 0 {
                return;
            }
        } else {
            self.flush();
            let Page::Small { class, kind, .. } = self.space.page_table().get(offset / PAGE) else {
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
        if self.space.kinds.get(kind).tag.is_followed() && !self.weak.checking() {
            self.push(WorkItem::small(offset, kind));
        }
    }

    /// Sets the bits that [`Core::mark_soon`] has kept back. Where two markers met a cell
    /// meanwhile, one of them counts it and both follow it: that costs a little and harms nothing.
    #[inline]
    pub(super) fn flush(&mut self) {
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
        if self.space.kinds.get(kind).tag == Tag::Weak || self.weak.checking() {
            self.met(kind, newly);
        }
    }

    #[inline(always)]
    pub(super) fn push(&mut self, item: WorkItem) {
        if !self.local.push(item.0) {
            self.overflow(item);
        }
    }

    #[cold]
    #[inline(never)]
    fn overflow(&mut self, item: WorkItem) {
        // The bits come first: the marker that takes the flag looks for them.
        if seam::sets_bits_first() {
            self.flush();
        }
        self.local.queue().flag(item.offset() / PAGE);
    }

    /// Step 2 for an edge that leads to no small cell.
    #[cold]
    fn mark_other(&mut self, offset: usize) {
        // A large object's bit is set at once, so that no two markers follow a long array.
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
    pub(super) fn mark(&mut self, offset: usize) -> bool {
        self.flush();
        // Whether it is marked or not: a young collection finds old roots marked.
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
                self.weak.meet(self.base + offset);
            }
            if tag.is_followed() || self.weak.checking() {
                self.push(self.item_at(offset));
            }
        }
        true
    }

    /// Steps 3 and 4, until nothing is left (true) or `budget` is used up. All mark bits are set
    /// afterwards.
    #[inline(always)]
    pub(super) fn drain(&mut self, budget: impl Budget) -> bool {
        let done = self.drain_rings(budget);
        self.flush();
        done
    }

    #[inline(always)]
    fn drain_rings(&mut self, mut budget: impl Budget) -> bool {
        while budget.is_left() {
            let ready = match self.local.pop() {
                Some(item) => {
                    prefetch(match WorkItem(item).small_cell() {
                        Some((_, offset)) => self.base + offset,
                        None => self.base + WorkItem(item).offset() + WorkItem(item).start(),
                    });
                    self.cells.exchange(item)
                }
                // The queue has nothing to overlap with, so the marker takes what the rings hold:
                // cells first, for they bring new edges.
                None => match self.cells.pop() {
                    Some(item) => Some(item),
                    None => match self.edges.pop() {
                        Some(offset) => {
                            self.mark_soon(offset);
                            None
                        }
                        // A flush may bring cells to the queue.
                        None if self.grey != 0 => {
                            self.flush();
                            None
                        }
                        None => return true,
                    },
                },
            };
            if let Some(item) = ready {
                budget.spend(self.follow(WorkItem(item)));
            }
        }
        false
    }

    /// Step 4; the bytes that it read, or may have read.
    #[inline(always)]
    pub(super) fn follow(&mut self, item: WorkItem) -> usize {
        // While ephemerons wait for keys, each cell must pass the queue.
        if let Some((kind, offset)) = item.small_cell()
            && !self.weak.checking()
        {
            let descriptor = self.space.kinds.get(kind);
            if descriptor.tag == Tag::Words && descriptor.slot_words <= 1 {
                // SAFETY: only offsets that `mark` found a cell of this kind at get here, and
                // marked cells stay.
                return unsafe { self.follow_local(descriptor, offset) } * BYTES_A_CELL;
            }
        }
        self.follow_other(item)
    }

    /// Step 4 for a cell whose size matters, or for which an ephemeron's pair may wait.
    #[inline(never)]
    fn follow_other(&mut self, item: WorkItem) -> usize {
        let offset = item.offset();
        if self.weak.checking() {
            self.wake(item);
        }
        let Some((kind, size)) = self.space.kind_and_size(offset) else {
            return 0;
        };
        let descriptor = self.space.kinds.get(kind);
        let cell = self.base + offset;
        let start = cell + item.start();
        let mut end = cell + size;
        if end - start > PART * WORD
            && item.has_parts()
            && match descriptor.tag {
                Tag::Array | Tag::Elements | Tag::Conservative | Tag::Ephemeron => true,
                Tag::Words => seam::parts_words(),
                Tag::Leaf | Tag::Traced | Tag::Weak => false,
            }
        {
            end = start + PART * WORD;
            self.push(item.next_part());
        }
        if item.has_parts() {
            self.local.queue().followed_large(end - start);
        }
        // SAFETY: only offsets that `mark` found a cell at get here, marked cells stay, and a part
        // is pushed only if it begins inside.
        unsafe { follow(descriptor, cell, size, start..end, self) };
        end - start
    }

    /// The item of the cell that begins at `offset`.
    pub(super) fn item_at(&self, offset: usize) -> WorkItem {
        match self.space.page_table().get(offset / PAGE) {
            Page::Small { kind, .. } => WorkItem::small(offset, kind),
            _ => WorkItem::large(offset),
        }
    }

    /// After the queue has overflowed: follows the marked cells of the flagged pages. True: there
    /// were such pages.
    #[cold]
    pub(super) fn follow_flagged(&mut self) -> bool {
        if !seam::follows_flagged() {
            return false;
        }
        let queue = self.local.queue();
        queue.take_flags(|page| {
            for granule in 0..PAGE / GRANULE {
                let offset = page * PAGE + granule * GRANULE;
                // A cell that is allocated black is marked before it is written: a marker that sees
                // the mark sees the zeroes.
                if self.marks.test_now(offset) {
                    self.follow(self.item_at(offset));
                }
            }
        })
    }

    pub(super) fn resolved(&mut self, address: usize) -> bool {
        seam::at_an_end(self, address);
        self.space
            .resolve(address)
            .is_some_and(|cell| self.mark(cell.base - self.base))
    }

    pub(super) fn conservative_word(&mut self, word: usize) -> bool {
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
}

mod seam {
    use super::Core;
    use crate::fault::Fault;

    /// Sets the bits before the page is flagged.
    pub(super) fn sets_bits_first() -> bool {
        !Fault::FlagBeforeBits.planted()
    }

    /// Follows large cells of this tag in parts.
    #[inline(always)]
    pub(super) fn parts_words() -> bool {
        !Fault::WordsWhole.planted()
    }

    pub(super) fn follows_flagged() -> bool {
        !Fault::NoSecondLook.planted()
    }

    /// The address of a cell's end does not name that cell.
    #[inline(always)]
    pub(super) fn at_an_end(core: &mut Core<'_>, address: usize) {
        if Fault::EndsAreBeginnings.planted()
            && let Some(before) = core.space.resolve(address.wrapping_sub(1))
            && before.base + before.size == address
        {
            core.mark(before.base - core.base);
        }
    }
}
