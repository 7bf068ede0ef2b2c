//! Walks over all cells, for oracles, fuzzing and reports. The world is stopped, or has no mutators
//! yet.
//!
//! A stop does not stop the collector's thread, which sweeps and scavenges in pieces beside the
//! mutators. A walk holds the lock that each piece takes, so the walk begins when a piece has
//! ended, and the next piece waits for the walk. Otherwise a free page run could be joined with its
//! neighbours, and its records could go back to the system, while the walk is on its way to it. The
//! walk would then follow older records, and step over live cells.

use super::super::page_runs::State;
use super::super::page_table::Page;
use super::super::size_classes::{self, Class, PAGE};
use super::{Cell, Space};
use crate::kind::KindId;
use crate::limits::POISON;

impl Space {
    /// World stopped, marking finished, the bitmaps not swapped yet: fills the cells that the swap
    /// will free.
    pub(crate) fn poison_dead(&self) {
        self.for_each_cell(&mut |cell| {
            if !self.is_marked(cell.base) {
                // SAFETY: an allocated cell that no edge leads to; whole words of mapped memory.
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

    /// World stopped: calls `f` for every allocated cell, with those in tails of runs, in address
    /// order.
    pub fn for_each_cell(&self, f: &mut dyn FnMut(Cell)) {
        let _rearranging = seam::keeps_the_sweep_out().then(|| self.rearranging.lock());
        let top = self.page_runs.lock().top();
        let mut page = 0;
        while page < top {
            // SAFETY: `page` is the first of its page run, and with the world stopped no page run
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
                    // The pages are taken, and no word of them is published yet.
                    Page::Free => {}
                }
            }
            page += pages.max(1);
            seam::behind_a_page_run(pages);
        }
    }

    /// World stopped: calls `f` for every allocated cell of one kind, and says whether it is
    /// marked. The cost is the spans of that kind, and all large objects.
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

mod seam {
    use core::time::Duration;

    use crate::fault::Fault;
    use crate::heap::CHUNK_PAGES;

    pub(super) fn keeps_the_sweep_out() -> bool {
        !Fault::WalkBesideSweep.planted()
    }

    /// A pause between two page runs, in which the second one may go.
    pub(super) fn behind_a_page_run(pages: usize) {
        if Fault::WalkBesideSweep.planted() && pages >= CHUNK_PAGES / 2 {
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}
