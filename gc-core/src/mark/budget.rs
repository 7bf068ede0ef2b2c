//! How much work a marker may do in one call.

use crate::marked::BYTES_A_CELL;

/// The bytes that a piece of `Core::wake_old` counts as: its thousand pairs, each looked up in two
/// places, cost as much as two thousand cells.
pub(super) const WAKE_OLD_BYTES: usize = 2048 * BYTES_A_CELL;

/// Says whether a drain goes on.
pub(super) trait Budget {
    fn is_left(&self) -> bool;
    /// The marker has followed a cell, or a part of one, of so many bytes.
    fn spend(&mut self, bytes: usize);
}

/// No bound.
pub(super) struct Unbounded;

impl Budget for Unbounded {
    #[inline(always)]
    fn is_left(&self) -> bool {
        true
    }

    #[inline(always)]
    fn spend(&mut self, _bytes: usize) {}
}

/// So many cells.
pub(super) struct Cells(pub(super) usize);

impl Budget for Cells {
    #[inline(always)]
    fn is_left(&self) -> bool {
        self.0 > 0
    }

    #[inline(always)]
    fn spend(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(1 + bytes / BYTES_A_CELL);
    }
}

impl<B: Budget> Budget for &mut B {
    #[inline(always)]
    fn is_left(&self) -> bool {
        (**self).is_left()
    }

    #[inline(always)]
    fn spend(&mut self, bytes: usize) {
        (**self).spend(bytes);
    }
}
