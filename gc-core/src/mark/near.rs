//! Cells that lie close together are followed without detours.
//!
//! What a program makes in one go it links together: in a tree that has just been built, half of all edges lead to the cell beside. Such a
//! cell is of the same kind, for a unit's cells are; its mark bit and its words lie in lines that are here already, so there is nothing to
//! wait for in a ring, and nothing to look up. So when a cell of a words kind is followed, edges within its unit go onto a
//! small stack of their own, and the new mark bits of the unit are kept in four words until that is empty. Only edges that lead out of the
//! unit go the usual way.
//!
//! In binary trees of 16-byte cells, as gclab builds them, that makes marking three times as fast.

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use super::{Core, GRANULE, UNIT, WORD, load, prefetch};
use crate::encoding::Encoding;
use crate::heap::{Bitmap, Unit, WORDS_PER_UNIT};
use crate::kind::Descriptor;

const GRANULES: usize = UNIT / GRANULE;

/// A cell that was made after the cells it leads to lies above them, and the last that was found is followed first; so the way leads down
/// through memory, and the line that comes in so many bytes is asked for. (A sixth of the time, in trees. A program that builds from the
/// root down gets nothing from it, and the processor's own prefetching.)
const AHEAD: usize = 256;

// A place in the unit fits a byte.
const _: () = assert!(GRANULES == 256);

/// What is known of a unit while its cells are followed.
struct Visit {
    /// The address of the unit's first byte.
    start: usize,
    /// Its mark bits as they were in the beginning, and those that are to be set.
    seen: [u64; WORDS_PER_UNIT],
    /// Granules of cells that are to be followed. Each has got its bit in `seen` when it was put here, so there are no more of them than
    /// granules.
    stack: [MaybeUninit<u8>; GRANULES],
    top: usize,
}

impl Core<'_> {
    /// Follows the cell at `offset`, of a words kind without slots beyond the 64th word, and what it leads to within its unit. How many cells
    /// that were.
    ///
    /// # Safety
    /// A marked cell of this descriptor's kind begins there.
    #[inline(always)]
    pub(super) unsafe fn follow_near(&mut self, descriptor: &Descriptor, offset: usize) -> usize {
        let encoding = descriptor.encoding;
        let cell = self.base + offset;
        let mut slots = descriptor.first_slots;
        while slots != 0 {
            // SAFETY: the kind's slots were checked against the cell's class when the site was made.
            let word = unsafe { load(cell + slots.trailing_zeros() as usize * WORD) };
            if word & encoding.mask == encoding.value {
                let target = (word & encoding.keep).wrapping_sub(self.base);
                if target / UNIT == offset / UNIT && self.is_white(target) {
                    // SAFETY: forwarded; the slots are those of the descriptor that are left.
                    return unsafe {
                        if encoding == Encoding::RAW {
                            self.visit::<true>(descriptor, offset, slots)
                        } else {
                            self.visit::<false>(descriptor, offset, slots)
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

    /// As [`Core::follow_near`], from these slots of the cell on: one of them leads to a cell of its unit.
    ///
    /// # Safety
    /// As for [`Core::follow_near`]; `slots` are the descriptor's last ones. `RAW`: its encoding is [`Encoding::RAW`].
    #[inline(never)]
    unsafe fn visit<const RAW: bool>(
        &mut self,
        descriptor: &Descriptor,
        offset: usize,
        mut slots: u64,
    ) -> usize {
        let encoding = if RAW {
            Encoding::RAW
        } else {
            descriptor.encoding
        };
        let unit = offset / UNIT;
        let before = self.marks_of(unit);
        let mut visit = Visit {
            start: self.base + unit * UNIT,
            seen: before,
            stack: [MaybeUninit::uninit(); GRANULES],
            top: 0,
        };
        let mut cell = self.base + offset;
        let mut cells = 0;
        loop {
            // SAFETY: the caller's cell, or one that an edge of the unit leads to; all cells of a unit are of one kind.
            unsafe { self.follow_one(encoding, slots, cell, &mut visit) };
            cells += 1;
            if visit.top == 0 {
                break;
            }
            slots = descriptor.first_slots;
            visit.top -= 1;
            // SAFETY: places below `top` were written.
            let granule = unsafe { visit.stack[visit.top].assume_init() } as usize;
            cell = visit.start + granule * GRANULE;
            prefetch(cell.wrapping_sub(AHEAD));
        }
        self.leave(unit, before, visit.seen);
        cells
    }

    /// The mark bits of a unit.
    #[inline(always)]
    fn marks_of(&self, unit: usize) -> [u64; WORDS_PER_UNIT] {
        // Ordering: Relaxed, as in `mark_soon`. Bits that others set meanwhile have their cells followed twice.
        core::array::from_fn(|index| {
            let word = self.marks.word(unit * WORDS_PER_UNIT + index);
            word.load(Ordering::Relaxed)
        })
    }

    /// # Safety
    /// The cell lies in the unit and has these slots.
    #[inline(always)]
    unsafe fn follow_one(
        &mut self,
        encoding: Encoding,
        mut slots: u64,
        cell: usize,
        visit: &mut Visit,
    ) {
        while slots != 0 {
            let place = cell + slots.trailing_zeros() as usize * WORD;
            slots &= slots - 1;
            // SAFETY: the kind's slots were checked against the cell's class when the site was made.
            let word = unsafe { load(place) };
            if word & encoding.mask != encoding.value {
                continue;
            }
            let target = word & encoding.keep;
            let near = target.wrapping_sub(visit.start);
            if near >= UNIT {
                self.found(target);
                continue;
            }
            let granule = near / GRANULE;
            let (seen, bit) = (&mut visit.seen[granule / 64], 1u64 << (granule % 64));
            if *seen & bit == 0 {
                debug_assert!(
                    self.space.is_first_byte(target - self.base),
                    "a precise edge leads to {target:#x}, inside a cell"
                );
                *seen |= bit;
                // SAFETY: `top` counts the bits that were set before this one, less those whose cells were followed.
                unsafe { visit.stack.get_unchecked_mut(visit.top) }.write(granule as u8);
                visit.top += 1;
            }
        }
    }

    /// Leaves the new bits to [`Core::flush`], a word at a time.
    #[inline]
    fn leave(&mut self, unit: usize, before: [u64; WORDS_PER_UNIT], after: [u64; WORDS_PER_UNIT]) {
        let Unit::Small { class, kind, .. } = self.space.units().get(unit) else {
            // Cells were followed there, and marked cells stay.
            return;
        };
        for index in 0..WORDS_PER_UNIT {
            let new = after[index] & !before[index];
            if new != 0 {
                self.flush();
                self.grey = new;
                self.grey_word = unit * WORDS_PER_UNIT + index;
                (self.grey_class, self.grey_kind) = (class, kind);
            }
        }
    }
}
