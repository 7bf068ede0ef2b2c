//! The plan that follows from the cycles so far: the trigger and the goal of the next one.

use super::assist::Marking;

/// The least goal, in bytes. Below it a collection costs more in stops than it gives back.
///
/// 4 MiB is Go's figure. `gc_percent` scales it as in Go, so that a caller who asks for a tight
/// heap gets one.
pub(super) const MINIMUM: u64 = 4 << 20;

/// Bytes by which a heap may grow between collections even at `gc_percent(0)` and at a limit: a few
/// runs a mutator.
pub(super) const LEAST_GROWTH: u64 = 256 << 10;

/// The plan of the next cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bytes in use at which the next cycle begins.
    pub trigger: u64,
    /// Bytes in use at which it should end.
    pub goal: u64,
    /// Bytes in use after the last cycle.
    pub(super) now: u64,
    /// Bytes by which the heap is meant to grow over its live bytes.
    pub(super) growth: u64,
    /// Cells that the next cycle is expected to mark.
    pub(super) work: u64,
    /// Whether the next cycle is a young one, unless a whole one is asked for.
    pub young: bool,
    /// Whether the cycle after it might be a young one, so that allocated black cells are recorded.
    pub notes_allocated_black: bool,
    /// Whether the goal lies beyond the soft limit.
    pub over_limit: bool,
}

impl Plan {
    /// Bytes in use at which mutators wait for a cycle that is late to begin.
    pub(crate) fn hard(&self) -> u64 {
        self.goal.saturating_add(self.growth / 2)
    }

    /// Bytes by which the heap is meant to grow over its live bytes.
    pub(crate) fn growth(&self) -> u64 {
        self.growth
    }

    /// The line that marking keeps to, from a snapshot with `used` bytes in `cells` cells.
    pub(crate) fn marking(&self, used: u64, cells: u64) -> Marking {
        // A forced cycle has the whole distance to the goal; a late cycle has the distance that the
        // latest trigger leaves.
        let least = (self.goal.saturating_sub(self.now) / 16).max(LEAST_GROWTH / 4);
        let goal = self.goal.max(used.saturating_add(least));
        Marking {
            begin: used,
            goal,
            hard: goal.saturating_add((self.growth / 2).max(least)),
            work: self.work.min(cells),
            most: cells,
        }
    }
}
