//! Values that need `Drop` and are dead: a marker marks them, so that their memory stays until they
//! have been dropped, and does not follow them.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::marker::Marker;
use crate::follow::fixed_edges;
use crate::heap::{Bitmap, Cell};
use crate::tracer::WORD;

impl Marker<'_> {
    /// Marks a dead value's cell and makes its edges null: no marker follows them, so the cells
    /// that they led to may be freed before the value is dropped. The cell's kind has its edges at
    /// places that its content does not change, or none: no other value needs `Drop`.
    ///
    /// # Safety
    /// `cell` is allocated and not marked; no mutator can reach it before the cycle is over.
    pub(crate) unsafe fn strip(&mut self, cell: Cell) {
        if !seam::makes_edges_null() {
            self.cell(cell);
            return;
        }
        let core = &mut self.core;
        // The bits that the marker keeps back come first.
        core.flush();
        let (index, bit) = Bitmap::place(cell.base - core.base);
        // No pair waits for this cell: the pairs of a dead key have been cleared.
        if core.marks.set_word(index, bit) != 0 {
            core.marked.cells += 1;
            core.marked.bytes += cell.size as u64;
        }
        let descriptor = core.space.kinds.get(cell.kind);
        for word in fixed_edges(descriptor, cell.size) {
            // SAFETY: a slot of the cell's kind, and the caller says that the cell is ours.
            let word = unsafe { &*((cell.base + word * WORD) as *const AtomicUsize) };
            // Relaxed: the stop that ends the cycle orders it. The plain data of a dynamic value
            // stays.
            if descriptor
                .encoding
                .decode(word.load(Ordering::Relaxed))
                .is_some()
            {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn makes_edges_null() -> bool {
        !Fault::DropWithEdges.planted()
    }
}
