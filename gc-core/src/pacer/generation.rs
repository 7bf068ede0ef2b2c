//! The decision which cycles are young ones.
//!
//! A young cycle frees the dead cells among those that were allocated since the last cycle. It
//! takes old cells for alive, and does not mark them (`heap/space/sticky.rs`). So its cost is the
//! young cells that live, and the old cells that may have changed. It pays
//!
//! * if most cells with edges cannot have changed: half of the heap, by the bytes of their spans;
//! * while most of what is allocated dies young. Young cells that live become old, and use up the
//!   room between the last whole cycle's live bytes and its goal. When less than half of that room
//!   is left, a whole cycle follows and finds the old cells that have died since;
//! * if old cells live on. A whole cycle shows that by finding about as much alive as the one
//!   before. Then four young cycles may follow, and after each further whole cycle that shows the
//!   same, twice as many, up to [`MOST_IN_A_ROW`]: no young cycle notices an old cell that dies. A
//!   heap that has grown or shrunk by more than a quarter has no young cycle at first.
//!
//! For a program whose data live for a while and then die in the order of their allocation, young
//! cycles are only a cost. In such a program the first young cycle after a whole one uses up the
//! room. Then there is none after the next whole cycle, none after the next two, three and so on,
//! up to [`MOST_SHUNNED`]. A young cycle that frees enough ends that.

use super::cycle::Cycle;
use crate::config::Young;

/// The least live bytes of a heap that has young cycles. A smaller heap is marked very fast.
const LEAST: u64 = 1 << 20;

/// The number of young cycles in a row, at first and at most. One whole cycle after so many costs a
/// small part of what they save.
const FIRST_ROW: u32 = 4;
const MOST_IN_A_ROW: u32 = 32;

/// The most whole cycles in a row without a young one while these do not pay.
const MOST_SHUNNED: u32 = 15;

/// The history of young cycles.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation {
    /// Bytes between the last whole cycle's live bytes and its goal.
    pub(super) room: u64,
    /// Bytes that the last whole cycle found alive.
    live: u64,
    /// Young cycles since then, and the most that there may be.
    since: u32,
    row: u32,
    /// Cells that the last young cycle marked.
    marked: Option<u64>,
    /// Whole cycles that are still to pass without a young one, and the number of the last time.
    shun: u32,
    shunned: u32,
}

impl Generation {
    /// A whole cycle has ended: may the next be young?
    pub(super) fn begins(&mut self, policy: Young, cycle: &Cycle) -> bool {
        let last = core::mem::replace(&mut self.live, cycle.live);
        let is_steady = cycle.live.abs_diff(last) <= last / 4;
        self.row = if is_steady {
            (2 * self.row).clamp(FIRST_ROW, MOST_IN_A_ROW)
        } else {
            0
        };
        self.since = 0;
        match policy {
            Young::Never => false,
            Young::Always => true,
            Young::WherePays => {
                let waits = self.shun != 0;
                self.shun = self.shun.saturating_sub(1);
                !waits && self.row != 0 && pays(cycle)
            }
        }
    }

    /// A young cycle has ended, with `left` bytes between the old cells and the goal: may the next
    /// be young, too?
    pub(super) fn goes_on(&mut self, policy: Young, cycle: &Cycle, left: u64) -> bool {
        self.since += 1;
        self.marked = Some(cycle.marked);
        let enough = left >= self.room / 2;
        if enough {
            self.shunned = 0;
        } else if self.since == 1 {
            self.shunned = (self.shunned + 1).min(MOST_SHUNNED);
            self.shun = self.shunned;
        }
        match policy {
            Young::Never => false,
            // Every fourth cycle is a whole one, since only those free old cells.
            Young::Always => self.since < 3,
            Young::WherePays => enough && self.since < self.row && pays(cycle),
        }
    }

    /// Cells that the next cycle marks, if it is young.
    pub(super) fn work(&self, whole: &Cycle) -> u64 {
        self.marked.unwrap_or(whole.marked / 4)
    }
}

/// Might a cycle after the next one be young?
pub(super) fn might_be(policy: Young, cycle: &Cycle) -> bool {
    match policy {
        Young::Never => false,
        Young::Always => true,
        Young::WherePays => pays(cycle),
    }
}

/// Can most old cells not have changed?
fn pays(cycle: &Cycle) -> bool {
    cycle.live >= LEAST && cycle.immutable >= cycle.live.saturating_add(cycle.allocated_black) / 2
}

#[cfg(test)]
mod tests;
