//! What has been marked, as numbers that add up.

use std::ops::Add;

/// What has been marked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marked {
    /// Cells.
    pub cells: u64,
    /// Their bytes, as the heap counts them.
    pub bytes: u64,
}

impl Add for Marked {
    type Output = Marked;

    fn add(self, other: Marked) -> Marked {
        Marked {
            cells: self.cells + other.cells,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Marked {
    /// Without `other`; nothing where that is more.
    pub(crate) fn less(self, other: Marked) -> Marked {
        Marked {
            cells: self.cells.saturating_sub(other.cells),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}
