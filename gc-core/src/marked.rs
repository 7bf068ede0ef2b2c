//! Cells and bytes: what was marked, or handed out, as numbers that add up.

use std::ops::Add;

/// Bytes whose following counts as the work of one cell more, so that the parts of a large array,
/// each word of which may be an edge, are not one cell each.
pub(crate) const BYTES_A_CELL: usize = 128;

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
