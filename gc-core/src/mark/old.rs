//! Old cells that may have changed: a young collection follows them as if it had just marked them.
//!
//! An old cell was made before the last collection's stop 1 and found alive by it, and it is marked
//! when a young collection begins (`heap/sticky.rs`): markers do not look into it. What it leads to
//! is old as well, unless somebody has changed it since stop 1. So
//!
//! * all old cells of kinds that may change are followed here, whether they have changed or not.
//!   There is no write barrier that would tell (stores cost nothing while nothing is marked), and
//!   no table of cards; so young collections pay only where most of the heap cannot change, and are
//!   only tried there;
//! * old cells of an immutable kind are left alone. Such a cell leads to nothing but itself and
//!   cells that its thread held when it was allocated, which was before stop 1: so they were made
//!   before stop 1, and found alive, for it leads to them. Should its thread have stood between its
//!   allocation and its first stores when the roots were scanned, it held these cells then, and
//!   found they were, too.
//!
//! Weak cells and ephemerons always belong to those that may change: met here, their words are
//! cleared if what they lead to dies young.
//!
//! This runs beside the mutators, like all marking: what they overwrite meanwhile is logged.

use super::budget::{Budget, Cells};
use super::marker::Marker;
use super::steps::Core;
use crate::fault::planted;
use crate::heap::{GRANULE, PAGE, Page};
use crate::kind::Tag;

/// What is left of the heap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Old {
    next: usize,
    end: usize,
    /// Cells that were followed.
    followed: u64,
}

impl Old {
    /// All units before `end`.
    pub(crate) fn before(end: usize) -> Old {
        Old {
            end,
            ..Old::default()
        }
    }

    /// Is there any?
    pub(crate) fn is_left(&self) -> bool {
        self.next < self.end
    }

    /// How many cells were followed so far: work like that of marking as many.
    pub(crate) fn followed(&self) -> u64 {
        self.followed
    }
}

impl Marker<'_> {
    /// Follows about `cells` old cells that may have changed, and what leads on from them is traced
    /// as ever.
    pub(crate) fn follow_old(&mut self, old: &mut Old, cells: usize) {
        if planted("old-unfollowed") {
            old.next = old.end;
        }
        let mut budget = Cells(cells);
        while old.is_left() && budget.is_left() {
            old.followed += self.core.follow_old_in(old.next, &mut budget);
            old.next += 1;
            // A unit that is passed over costs something, too.
            budget.spend(0);
        }
    }
}

impl Core<'_> {
    /// Follows the marked cells of a unit that may change; how many.
    #[inline]
    fn follow_old_in(&mut self, unit: usize, budget: &mut Cells) -> u64 {
        let kind = match self.space.page_table().get(unit) {
            Page::Small { kind, .. } => kind,
            Page::Large { distance: 0 } => self.space.large_record(unit).1,
            Page::Large { .. } | Page::Free => return 0,
        };
        let descriptor = self.space.kinds.get(kind);
        if !descriptor.may_change() {
            return 0;
        }
        let is_weak = descriptor.tag == Tag::Weak;
        let marks = self.marks;
        let mut followed = 0;
        for (first, mut bits) in marks.words_of(unit) {
            while bits != 0 {
                let offset = unit * PAGE + (first + bits.trailing_zeros() as usize) * GRANULE;
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
