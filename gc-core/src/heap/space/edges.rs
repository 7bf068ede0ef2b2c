//! The methods of [`Space`] on one cell: its edges, its kind, its size.

use super::super::page_table::Page;
use super::super::size_classes::{PAGE, TABLE as CLASS_TABLE};
use super::{Cell, Space};
use crate::encoding::Encoding;
use crate::follow::follow;
use crate::kind::KindId;
use crate::tracer::{Sink, WORD, load};

/// Reports the targets of edges instead of marking them.
struct Look<'a> {
    space: &'a Space,
    f: &'a mut dyn FnMut(Cell),
}

impl Look<'_> {
    fn address(&mut self, address: usize) {
        if let Some(cell) = self.space.resolve(address) {
            (self.f)(cell);
        }
    }
}

impl Sink for Look<'_> {
    fn edge(&mut self, word: usize, encoding: Encoding) {
        if let Some(address) = encoding.decode(word) {
            self.address(address);
        }
    }

    fn conservative(&mut self, word: usize) {
        for encoding in self.space.encodings() {
            if let Some(address) = encoding.decode(word) {
                self.address(address);
            }
        }
    }

    /// Reports the value of a pair as an edge of the pair's cell. The key is alive; otherwise the
    /// pair would have been cleared.
    fn pair(&mut self, slot: usize, encoding: Encoding) {
        // SAFETY: `follow` passes slots of the cell's pairs.
        self.edge(unsafe { load(slot + WORD) }, encoding);
    }

    fn key_ahead(&mut self, _: usize, _: Encoding) {}
}

impl Space {
    /// World stopped: calls `f` with the target of every edge of an allocated cell, for oracles and
    /// heap snapshots.
    pub fn for_each_edge(&self, cell: Cell, f: &mut dyn FnMut(Cell)) {
        let descriptor = self.kinds.get(cell.kind);
        // SAFETY: `cell` names an allocated cell, and with the world stopped it stays allocated.
        unsafe {
            follow(
                descriptor,
                cell.base,
                cell.size,
                cell.base..cell.base + cell.size,
                &mut Look { space: self, f },
            )
        };
    }

    /// Whether a cell can begin at `offset` of the address range.
    pub(crate) fn is_first_byte(&self, offset: usize) -> bool {
        match self.page_table().get(offset / PAGE) {
            Page::Small {
                class, distance, ..
            } => (distance * PAGE + offset % PAGE).is_multiple_of(CLASS_TABLE[class].size as usize),
            Page::Large { distance } => distance == 0 && offset.is_multiple_of(PAGE),
            Page::Free => false,
        }
    }

    /// Kind and size of the cell that begins at `offset` of the address range; `None` where no cell
    /// can begin.
    #[inline(always)]
    pub(crate) fn kind_and_size(&self, offset: usize) -> Option<(KindId, usize)> {
        match self.page_table().get(offset / PAGE) {
            Page::Small { class, kind, .. } => Some((kind, CLASS_TABLE[class].size as usize)),
            Page::Large { distance: 0 } => {
                let (pages, kind) = self.large_record(offset / PAGE);
                Some((kind, pages * PAGE))
            }
            _ => None,
        }
    }
}
