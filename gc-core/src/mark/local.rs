//! Cells that lie close together are followed without detours.
//!
//! What a program makes in one go it links together: in a tree that has just been built, half of
//! all edges lead to the cell beside. Such a cell is of the same kind, for a unit's cells are; its
//! mark bit and its words lie in lines that are here already, so there is nothing to wait for in a
//! ring, and nothing to look up. So when a cell of a words kind is followed, edges within its unit
//! go onto a small stack of their own, and the new mark bits of the unit are kept in four words
//! until that is empty. Only edges that lead out of the unit go the usual way.
//!
//! In binary trees of 16-byte cells, as gclab builds them, that makes marking three times as fast.
//! There the processor waits for no memory but for itself, for the cell that was just put on the
//! stack. So the cell found last goes on in a register; both words of a pair are read at once, and
//! one comparison tells a leaf: 4.73 to 3.31 ns a cell. (`URGE_STW=1 URGE_MARKERS=1 URGE_TRACE=1
//! gclab trees 20`, the median of 133 cycles' `mark` over their cells, four runs in alternation.
//! Asking for memory 512 or 1024 bytes ahead instead of 256 changed nothing.) A byte for each
//! granule instead of its bit, so that no edge waits for the word that the edge before has changed,
//! came to 0.93 of that, but cost each visit of a unit 10 to 15 ns more: groups of two cells that
//! lie close together took 25 ns a cell instead of 20 (`heap_speed`'s groups).

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

/// A cell that was made after the cells it leads to lies above them, and the last that was found is
/// followed first; so the way leads down through memory, and the line that comes in so many bytes
/// is asked for. (A sixth of the time, in trees. A program that builds from the root down gets
/// nothing from it, and the processor's own prefetching.)
const AHEAD: usize = 256;

// A place in the unit fits a byte.
const _: () = assert!(GRANULES == 256);

/// What is known of a unit while its cells are followed.
struct Visit {
    /// The address of the unit's first byte.
    start: usize,
    /// Its mark bits as they were in the beginning, and those that are to be set.
    seen: [u64; WORDS_PER_PAGE],
    /// Granules of cells that are to be followed. Each has got its bit in `seen` before it was put
    /// here, once, so there are no more of them than granules.
    stack: [MaybeUninit<u8>; GRANULES],
    top: usize,
}

impl Core<'_> {
    /// Follows the cell at `offset`, of a words kind without slots beyond the 64th word, and what
    /// it leads to within its unit. How many cells that were.
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
                    // SAFETY: forwarded; the slots are those of the descriptor that are left.
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

    /// Not marked, as far as this marker knows from the bitmap.
    #[inline(always)]
    fn is_white(&self, offset: usize) -> bool {
        let (index, bit) = Bitmap::place(offset);
        // Ordering: Relaxed, as in `mark_soon`.
        self.marks.word(index).load(Ordering::Relaxed) & bit == 0
    }

    /// As [`Core::follow_local`], from these slots of the cell on: one of them leads to a cell of
    /// its unit.
    ///
    /// # Safety
    /// As for [`Core::follow_local`]; `slots` are the descriptor's last ones. `RAW`: its encoding is
    /// [`Encoding::RAW`]. `TWO`: so it is, and its slots are a [`PAIR`]'s.
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
        let unit = offset / PAGE;
        let before = self.marks_of(unit);
        let mut visit = Visit {
            start: self.base + unit * PAGE,
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
            // SAFETY: an edge of the unit leads to the cell; all cells of a unit are of one kind.
            last = unsafe {
                if TWO {
                    self.follow_two(cell, &mut visit)
                } else {
                    self.follow_one(encoding, descriptor.first_slots, cell, &mut visit)
                }
            };
            cells += 1;
        }
        self.leave(unit, before, visit.seen);
        cells
    }

    /// The mark bits of a unit.
    #[inline(always)]
    fn marks_of(&self, unit: usize) -> [u64; WORDS_PER_PAGE] {
        // Ordering: Relaxed, as in `mark_soon`. Bits that others set meanwhile have their cells
        // followed twice.
        core::array::from_fn(|index| {
            let word = self.marks.word(unit * WORDS_PER_PAGE + index);
            word.load(Ordering::Relaxed)
        })
    }

    /// The last cell that was found in the unit, by its granule; those before it are on the stack.
    /// It is on its way in a register, since through the stack it would come later than its own
    /// words do.
    ///
    /// # Safety
    /// The cell lies in the unit and has these slots.
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

    /// An edge of the unit's, when `last` was found last and is not on the stack; what is then.
    #[inline(always)]
    fn edge_of(&mut self, visit: &mut Visit, target: usize, last: Option<usize>) -> Option<usize> {
        let near = target.wrapping_sub(visit.start);
        if near >= PAGE {
            self.found_far(target.wrapping_sub(self.base));
            return last;
        }
        let granule = near / GRANULE;
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

    /// As [`Core::found_at`], which is long.
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

    /// Leaves the new bits to [`Core::flush`], a word at a time.
    #[inline]
    fn leave(&mut self, unit: usize, before: [u64; WORDS_PER_PAGE], after: [u64; WORDS_PER_PAGE]) {
        let Page::Small { class, kind, .. } = self.space.page_table().get(unit) else {
            // Cells were followed there, and marked cells stay.
            return;
        };
        for index in 0..WORDS_PER_PAGE {
            let new = after[index] & !before[index];
            if new != 0 {
                self.flush();
                self.grey = new;
                self.grey_word = unit * WORDS_PER_PAGE + index;
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
