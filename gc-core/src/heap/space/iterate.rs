//! Walks all cells, for oracles, fuzzing and reports. The world is stopped, or has no mutators yet.
//!
//! A stop does not stop the collector, which sweeps and gives memory back beside the mutators, in
//! pieces. A walk holds the lock that each piece takes, so it begins when a piece has ended, and
//! the next one waits for its end. Otherwise a free stretch could be joined with its neighbours and
//! its records go back to the system while the walk is on its way to one of them: it would then
//! step through what is left of older records, and past cells that live.

use super::super::page_runs::{CHUNK_PAGES, State};
use super::super::page_table::Page;
use super::super::size_classes::{self, Class, PAGE};
use super::{Cell, Space};
use crate::fault::planted;
use crate::kind::KindId;

/// What the words of a freed cell are where [`HeapBuilder::poison`](crate::HeapBuilder::poison) is
/// on. No address of the heap, nor one that a program may read.
pub const POISON: usize = 0xdead_ce11_dead_ce11;

impl Space {
    /// World stopped, all marked, the bitmaps not swapped yet: fills the cells that the swap will
    /// free.
    pub(crate) fn poison_dead(&self) {
        self.for_each_cell(&mut |cell| {
            if !self.is_marked(cell.base) {
                // SAFETY: an allocated cell that nothing leads to; whole words of mapped memory.
                let words = unsafe {
                    core::slice::from_raw_parts_mut(
                        cell.base as *mut usize,
                        cell.size / size_of::<usize>(),
                    )
                };
                words.fill(POISON);
            }
        });
    }

    /// World stopped: calls `f` for every allocated cell (run tails too), in address order.
    pub fn for_each_cell(&self, f: &mut dyn FnMut(Cell)) {
        let _rearranging = (!planted("walk-beside-sweep")).then(|| self.rearranging.lock());
        let top = self.spans.lock().top();
        let mut page = 0;
        while page < top {
            // SAFETY: `page` is the first of its stretch, and with the world stopped no stretch
            // changes.
            let (pages, state) = unsafe {
                (
                    (*self.records().at(page)).pages as usize,
                    (*self.records().at(page)).state,
                )
            };
            if state == State::InUse {
                match self.page_table().get(page) {
                    Page::Small { class, kind, .. } => {
                        self.cells_of_span(page, &size_classes::TABLE[class], kind, f)
                    }
                    Page::Large { .. } => {
                        if let Some(cell) = self.large_cell(page) {
                            f(cell);
                        }
                    }
                    // Taken, but not published yet.
                    Page::Free => {}
                }
            }
            page += pages.max(1);
            if planted("walk-beside-sweep") && pages >= CHUNK_PAGES / 2 {
                // Between two stretches, where the second may go.
                std::thread::sleep(std::time::Duration::from_millis(500));
            }
        }
    }

    /// World stopped: calls `f` for every allocated cell of one kind, and whether it is marked.
    /// Costs the spans of that kind, not the whole heap; except large objects, which are asked one
    /// by one.
    pub fn for_each_cell_of(&self, kind: KindId, f: &mut dyn FnMut(Cell, bool)) {
        for entry in self.sites.of_kind(kind) {
            let mut link = self.lists(entry).all;
            while link != 0 {
                let span = link as usize - 1;
                self.cells_of_span(span, entry.class(), kind, &mut |cell| {
                    f(cell, self.is_marked(cell.base))
                });
                // SAFETY: the chain changes only when mutators or the sweep run, and neither does.
                link = unsafe { (*self.records().at(span)).all_next };
            }
        }
        self.for_each_large(&mut |cell| {
            if cell.kind == kind {
                f(cell, self.is_marked(cell.base));
            }
        });
    }

    fn cells_of_span(&self, span: usize, class: &Class, kind: KindId, f: &mut dyn FnMut(Cell)) {
        let bits = self.allocated_bits().span(span, class);
        let cells = class.cells as usize;
        let mut index = bits.next_set(0, cells);
        while index < cells {
            let size = class.size as usize;
            f(Cell {
                base: self.base() + span * PAGE + index * size,
                size,
                kind,
            });
            index = bits.next_set(index + 1, cells);
        }
    }
}
