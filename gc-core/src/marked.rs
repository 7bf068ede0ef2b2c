//! Counts of cells and of their bytes.

use std::ops::Add;

/// Bytes of a followed cell that count as the work of one more cell. Otherwise a large array, each
/// word of which may be an edge, would count as one cell.
pub(crate) const BYTES_A_CELL: usize = 128;

/// A number of cells, and of their bytes: marked cells, or cells that mutators were given.
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
    /// Subtracts `other`; 0 where `other` is more.
    pub(crate) fn less(self, other: Marked) -> Marked {
        Marked {
            cells: self.cells.saturating_sub(other.cells),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}
