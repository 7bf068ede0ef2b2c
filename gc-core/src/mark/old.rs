//! Old cells that may have changed: a young collection follows them as if it had just marked them.
//!
//! An old cell was allocated before the last collection's stop 1, and that collection found it
//! alive. It is marked when a young collection begins (`heap/space/sticky.rs`), so markers do not
//! look into it. It leads to old cells only, unless a mutator has changed it since stop 1. So
//!
//! * this file follows all old cells of kinds that may change, whether they have changed or not. No
//!   write barrier records changes (stores cost nothing while nothing is marked), and there is no
//!   card table. So young collections pay only where most of the heap cannot change, and the pacer
//!   tries them only there;
//! * old cells of an immutable kind are left alone. Such a cell leads to itself, or to cells that
//!   its thread held when it allocated the cell. It was allocated before stop 1, so these cells
//!   were, too, and the collection found them alive, for the cell leads to them. If its thread
//!   stood between the allocation and its first stores when the roots were scanned, the thread held
//!   these cells, and the scan found them.
//!
//! Weak cells and ephemerons always belong to the kinds that may change: markers note them here,
//! and their words are cleared if their targets die young.
//!
//! This runs beside the mutators, like all marking: the barrier logs the edges that they overwrite.

use super::budget::{Budget, Cells};
use super::marker::Marker;
use super::steps::Core;
use crate::heap::{GRANULE, PAGE, Page};
use crate::kind::Tag;

/// The part of the heap whose old cells are still to be followed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Old {
    next: usize,
    end: usize,
    /// Cells that have been followed.
    followed: u64,
}

impl Old {
    /// All pages before `end`.
    pub(crate) fn before(end: usize) -> Old {
        Old {
            end,
            ..Old::default()
        }
    }

    /// Is a page left?
    pub(crate) fn is_left(&self) -> bool {
        self.next < self.end
    }

    /// Cells that have been followed so far: as much work as marking them.
    pub(crate) fn followed(&self) -> u64 {
        self.followed
    }
}

impl Marker<'_> {
    /// Follows about `cells` old cells that may have changed. A drain traces what they lead to.
    pub(crate) fn follow_old(&mut self, old: &mut Old, cells: usize) {
        seam::before_following(old);
        let mut budget = Cells(cells);
        while old.is_left() && budget.is_left() {
            old.followed += self.core.follow_old_in(old.next, &mut budget);
            old.next += 1;
            // A page that is passed over counts as a cell.
            budget.spend(0);
        }
    }
}

impl Core<'_> {
    /// Follows the marked cells of a page whose kind may change; their number.
    #[inline]
    fn follow_old_in(&mut self, page: usize, budget: &mut Cells) -> u64 {
        let kind = match self.space.page_table().get(page) {
            Page::Small { kind, .. } => kind,
            Page::Large { distance: 0 } => self.space.large_record(page).1,
            Page::Large { .. } | Page::Free => return 0,
        };
        let descriptor = self.space.kinds.get(kind);
        if !descriptor.may_change() {
            return 0;
        }
        let is_weak = descriptor.tag == Tag::Weak;
        let marks = self.marks;
        let mut followed = 0;
        for (first, mut bits) in marks.words_of(page) {
            while bits != 0 {
                let offset = page * PAGE + (first + bits.trailing_zeros() as usize) * GRANULE;
                bits &= bits - 1;
                followed += 1;
                if is_weak {
                    self.weak.meet(self.base + offset);
                    budget.spend(0);
                } else {
                    budget.spend(self.follow(self.item_at(offset)));
                }
            }
        }
        followed
    }
}

mod seam {
    use super::Old;
    use crate::fault::Fault;

    /// Leaves out none of the old cells.
    pub(super) fn before_following(old: &mut Old) {
        if Fault::OldUnfollowed.planted() {
            old.next = old.end;
        }
    }
}
