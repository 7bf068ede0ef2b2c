//! Words of the barrier's log: whether a word names an unmarked cell, and the marking of that cell.
//!
//! A log holds words of cells of any kind, and of roots. It does not say how a word is encoded, so
//! each word is decoded in all encodings of its heap.

use crate::encoding::Encodings;
use crate::heap::{Cell, Space};
use crate::mark::Marker;

/// Prefetches the mark bits of the cells that a word of the barrier's log may name.
pub(crate) fn prefetch_logged(space: &Space, encodings: &Encodings, word: usize) {
    for offset in encodings
        .all()
        .filter_map(|encoding| encoding.decode(word))
        .filter_map(|address| space.offset(address))
    {
        space.marked_bits().prefetch(offset);
    }
}

/// Prefetches the other tables that [`names_unmarked`] reads for a word that names an unmarked
/// cell. The mark bits have arrived.
pub(crate) fn prefetch_unmarked(space: &Space, encodings: &Encodings, word: usize) {
    for address in encodings.all().filter_map(|encoding| encoding.decode(word)) {
        if space.contains(address) && !names_marked(space, address) {
            space.prefetch_cell(address);
        }
    }
}

/// Whether an address names a marked cell by its first granule, as most logged words do. This reads
/// the heap's tables once, and [`Space::resolve`] three times.
fn names_marked(space: &Space, address: usize) -> bool {
    space.is_marked(address)
}

/// Marks the cells that one word of the barrier's log names: an edge in an encoding of some kind,
/// or a word of a conservative cell.
pub(crate) fn logged(space: &Space, encodings: &Encodings, marker: &mut Marker<'_>, word: usize) {
    for address in encodings.all().filter_map(|encoding| encoding.decode(word)) {
        if !names_marked(space, address)
            && let Some(cell) = space.resolve(address)
        {
            marker.cell(cell);
        }
    }
    let any = space
        .encodings()
        .iter()
        .filter_map(|encoding| encoding.decode(word))
        .any(|address| !names_marked(space, address));
    if any && seam::decodes_as_stacks() {
        marker.conservative(word);
    }
}

/// Whether a word of the barrier's log names an unmarked cell, in any encoding in which [`logged`]
/// decodes it.
pub(crate) fn names_unmarked(space: &Space, encodings: &Encodings, word: usize) -> bool {
    let unmarked = |cell: Cell| !space.is_marked(cell.base);
    let exact = encodings
        .all()
        .filter_map(|encoding| encoding.decode(word))
        .filter(|address| !names_marked(space, *address))
        .any(|address| space.resolve(address).is_some_and(unmarked));
    let conservative = || {
        space
            .encodings()
            .iter()
            .filter_map(|encoding| encoding.decode(word))
            .filter(|address| !names_marked(space, *address))
            .any(|address| space.resolve(address).is_some_and(unmarked))
    };
    exact || (seam::decodes_as_stacks() && conservative())
}

mod seam {
    use crate::fault::Fault;

    /// Decodes a word by the encodings of conservative words, too.
    #[inline(always)]
    pub(super) fn decodes_as_stacks() -> bool {
        !Fault::LogExactOnly.planted()
    }
}
