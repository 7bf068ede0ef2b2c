//! Page-local tracing: a marker follows cells that lie close together without queue and rings.
//!
//! A program links together what it makes in one go: in a tree that has just been built, half of
//! all edges lead to the neighbouring cell. Such a cell is of the same kind, because all cells of a
//! page are. Its mark bit and its words lie in cache lines that have arrived already, so it need
//! not wait in a ring, and the page table need not be asked. So when a marker follows a cell of a
//! words kind, edges within the cell's page go onto a small stack, and four words keep the new mark
//! bits of the page until that stack is empty. Edges that lead out of the page take the usual way.
//!
//! In trees of small cells the processor waits for no memory but for the cell that was just put on
//! the stack. So the cell found last stays in a register, and both words of a pair are read at
//! once. A byte for each granule instead of its bit lost: docs/experiments.md.

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use super::steps::Core;
use crate::encoding::Encoding;
use crate::heap::{Bitmap, GRANULE, PAGE, Page, WORDS_PER_PAGE};
use crate::kind::Descriptor;
use crate::memory::prefetch::prefetch;
use crate::tracer::{WORD, load};

const GRANULES: usize = PAGE / GRANULE;

/// The slots of a cons cell, and of a node with two children.
const PAIR: u64 = 0b11;

/// Bytes below the cell that is followed at which a line is prefetched. A cell that was made after
/// the cells it leads to lies above them, and the last one found is followed first, so the way
/// leads down through memory. A program that builds from the root down has the processor's own
/// prefetching.
const AHEAD: usize = 256;

// A granule's number in the page fits a byte.
const _: () = assert!(GRANULES == 256);

/// A page's state while a marker follows its cells.
struct Visit {
    /// The address of the page's first byte.
    start: usize,
    /// The page's mark bits: as they were in the beginning, and the new ones.
    seen: [u64; WORDS_PER_PAGE],
    /// Granules of cells to follow. A cell's bit is set in `seen` before the cell is pushed, once,
    /// so there are no more of them than granules.
    stack: [MaybeUninit<u8>; GRANULES],
    top: usize,
}

impl Core<'_> {
    /// Follows the cell at `offset`, of a words kind without slots beyond the 64th word, and the
    /// cells of its page that it leads to. Returns their number.
    ///
    /// # Safety
    /// A marked cell of this descriptor's kind begins there.
    #[inline(always)]
    pub(super) unsafe fn follow_local(&mut self, descriptor: &Descriptor, offset: usize) -> usize {
        let encoding = descriptor.encoding;
        let cell = self.base + offset;
        let mut slots = descriptor.first_slots;
        while slots != 0 {
            // SAFETY: the kind's slots were checked against the cell's class when the site was
            // made.
            let word = unsafe { load(cell + slots.trailing_zeros() as usize * WORD) };
            if word & encoding.mask == encoding.value {
                let target = (word & encoding.keep).wrapping_sub(self.base);
                if target / PAGE == offset / PAGE && self.is_white(target) {
                    // SAFETY: forwarded; the slots are the descriptor's last ones.
                    return unsafe {
                        match (encoding == Encoding::RAW, descriptor.first_slots) {
                            (true, PAIR) => self.visit::<true, true>(descriptor, offset, slots),
                            (true, _) => self.visit::<true, false>(descriptor, offset, slots),
                            _ => self.visit::<false, false>(descriptor, offset, slots),
                        }
                    };
                }
                self.found_at(target);
            }
            slots &= slots - 1;
        }
        1
    }

    /// Not marked, as the bitmap says.
    #[inline(always)]
    fn is_white(&self, offset: usize) -> bool {
        let (index, bit) = Bitmap::place(offset);
        // Ordering: Relaxed, as in `mark_soon`.
        self.marks.word(index).load(Ordering::Relaxed) & bit == 0
    }

    /// As [`Core::follow_local`], from the cell's slots `slots` on, one of which leads to a cell of
    /// its page.
    ///
    /// # Safety
    /// As for [`Core::follow_local`]; `slots` are the descriptor's last ones. `RAW`: its encoding
    /// is [`Encoding::RAW`]. `TWO`: so it is, and its slots are a [`PAIR`]'s.
    #[inline(never)]
    unsafe fn visit<const RAW: bool, const TWO: bool>(
        &mut self,
        descriptor: &Descriptor,
        offset: usize,
        slots: u64,
    ) -> usize {
        let encoding = if RAW {
            Encoding::RAW
        } else {
            descriptor.encoding
        };
        let page = offset / PAGE;
        let before = self.marks_of(page);
        let mut visit = Visit {
            start: self.base + page * PAGE,
            seen: before,
            stack: [MaybeUninit::uninit(); GRANULES],
            top: 0,
        };
        // SAFETY: the caller says so.
        let mut last = unsafe { self.follow_one(encoding, slots, self.base + offset, &mut visit) };
        let mut cells = 1;
        while let Some(granule) = last.or_else(|| visit.pop()) {
            let cell = visit.start + granule * GRANULE;
            prefetch(cell.wrapping_sub(AHEAD));
            // SAFETY: an edge of the page leads to the cell; all cells of a page are of one kind.
            last = unsafe {
                if TWO {
                    self.follow_two(cell, &mut visit)
                } else {
                    self.follow_one(encoding, descriptor.first_slots, cell, &mut visit)
                }
            };
            cells += 1;
        }
        self.leave(page, before, visit.seen);
        cells
    }

    /// The mark bits of a page.
    #[inline(always)]
    fn marks_of(&self, page: usize) -> [u64; WORDS_PER_PAGE] {
        // Ordering: Relaxed, as in `mark_soon`. Where another marker sets a bit meanwhile, both
        // follow the cell.
        core::array::from_fn(|index| {
            let word = self.marks.word(page * WORDS_PER_PAGE + index);
            word.load(Ordering::Relaxed)
        })
    }

    /// Returns the granule of the cell of the page that was found last; earlier ones are on the
    /// stack. The last one stays in a register, since through the stack it would arrive later than
    /// its own words do.
    ///
    /// # Safety
    /// The cell lies in the page and has these slots.
    #[inline(always)]
    unsafe fn follow_one(
        &mut self,
        encoding: Encoding,
        mut slots: u64,
        cell: usize,
        visit: &mut Visit,
    ) -> Option<usize> {
        let mut last = None;
        while slots != 0 {
            let place = cell + slots.trailing_zeros() as usize * WORD;
            slots &= slots - 1;
            // SAFETY: the kind's slots were checked against the cell's class when the site was
            // made.
            let word = unsafe { load(place) };
            if word & encoding.mask == encoding.value {
                last = self.edge_of(visit, word & encoding.keep, last);
            }
        }
        last
    }

    /// The same for a raw [`PAIR`], half of which have no edges in a perfect tree.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn follow_two(&mut self, cell: usize, visit: &mut Visit) -> Option<usize> {
        // SAFETY: as there.
        let (first, second) = unsafe { (load(cell), load(cell + WORD)) };
        if first | second == 0 {
            return None;
        }
        let last = self.edge_of(visit, first, None);
        self.edge_of(visit, second, last)
    }

    /// Follows an edge of a cell of the page. `last` is the cell found last, which is not on the
    /// stack; returns the one found last now.
    #[inline(always)]
    fn edge_of(&mut self, visit: &mut Visit, target: usize, last: Option<usize>) -> Option<usize> {
        let distance = target.wrapping_sub(visit.start);
        if distance >= PAGE {
            self.found_far(target.wrapping_sub(self.base));
            return last;
        }
        let granule = distance / GRANULE;
        let (seen, bit) = (&mut visit.seen[granule / 64], 1u64 << (granule % 64));
        if *seen & bit != 0 {
            return last;
        }
        debug_assert!(
            self.space.is_first_byte(target - self.base),
            "a precise edge leads to {target:#x}, inside a cell"
        );
        *seen |= bit;
        if let Some(earlier) = last {
            // SAFETY: it has got its bit, and is pushed for the first time.
            unsafe { visit.push(earlier) };
        }
        Some(granule)
    }

    /// [`Core::found_at`], not inlined, since it is long.
    #[inline(always)]
    fn found_far(&mut self, offset: usize) {
        #[inline(never)]
        fn found(core: &mut Core<'_>, offset: usize) {
            core.found_at(offset);
        }
        if offset < self.len {
            found(self, offset);
        }
    }

    /// Hands the new bits to [`Core::flush`], a word at a time.
    #[inline]
    fn leave(&mut self, page: usize, before: [u64; WORDS_PER_PAGE], after: [u64; WORDS_PER_PAGE]) {
        let Page::Small { class, kind, .. } = self.space.page_table().get(page) else {
            // The page has marked cells, and marked cells stay.
            return;
        };
        for index in 0..WORDS_PER_PAGE {
            let new = after[index] & !before[index];
            if new != 0 {
                self.flush();
                self.grey = new;
                self.grey_word = page * WORDS_PER_PAGE + index;
                (self.grey_class, self.grey_kind) = (class, kind);
            }
        }
    }
}

impl Visit {
    /// # Safety
    /// The granule's bit has been set on this visit, and it has not been pushed before.
    #[inline(always)]
    unsafe fn push(&mut self, granule: usize) {
        // SAFETY: `top` counts granules whose bits were set, and this one is not among them.
        unsafe { self.stack.get_unchecked_mut(self.top) }.write(granule as u8);
        self.top += 1;
    }

    #[inline(always)]
    fn pop(&mut self) -> Option<usize> {
        self.top = self.top.checked_sub(1)?;
        // SAFETY: places below `top` were written.
        Some(unsafe { self.stack.get_unchecked(self.top).assume_init() }.into())
    }
}
