//! What markers do with weak cells and with ephemerons' pairs; `weak/` says why it is right.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::steps::Core;
use super::work_item::WorkItem;
use crate::encoding::Encoding;
use crate::heap::GRANULE;
use crate::kind::{KindId, Tag};
use crate::tracer::WORD;
use crate::weak::{Wait, WeakSlot};

/// As `load`, for a word that may name a cell which was allocated while marking is on, before a
/// look at its mark.
///
/// # Safety
/// As `load`.
#[inline(always)]
unsafe fn load_published(address: usize) -> usize {
    // SAFETY: forwarded. Ordering: Acquire pairs with the store that published the cell (a release,
    // as every store is on this architecture): this marker sees its mark, which was set before.
    unsafe { (*(address as *const AtomicUsize)).load(Ordering::Acquire) }
}

impl Core<'_> {
    /// The marker has set bits of cells that are weak, or for which pairs may wait. Not before: a
    /// marker with a pair tests the bit after it has linked the pair, and a marker that sets the
    /// bit looks for pairs afterwards (the argument is in `weak/waiting.rs`).
    #[cold]
    #[inline(never)]
    pub(super) fn met(&mut self, kind: KindId, mut newly: u64) {
        while newly != 0 {
            let offset = (self.grey_word * 64 + newly.trailing_zeros() as usize) * GRANULE;
            newly &= newly - 1;
            if self.space.kinds.get(kind).tag == Tag::Weak {
                self.weak.meet(self.base + offset);
            }
            // Leaves and weak cells, too: following such a cell means looking for pairs that wait
            // for it.
            if self.weak.checking() {
                self.push(WorkItem::small(offset, kind));
            }
        }
    }

    /// While pairs wait for keys, a marker follows a marked cell: follows the values of the pairs
    /// that waited for it.
    #[cold]
    #[inline(never)]
    pub(super) fn wake(&mut self, item: WorkItem) {
        if item.start() != 0 {
            return;
        }
        let (space, weak, key) = (self.space, self.weak, self.base + item.offset());
        weak.wake(item.offset(), |weak_slot| {
            let encoding = space.kinds.get(weak_slot.kind()).encoding;
            // SAFETY: weak slots are made of pairs of marked cells.
            unsafe {
                if encoding.decode(load_published(weak_slot.address())) == Some(key) {
                    self.value(weak_slot.address(), encoding);
                }
            }
        });
    }

    /// Nothing is left to follow. Pairs may wait whose keys were marked before markers began to
    /// look: follows some of them. False: there are none.
    pub(super) fn wake_old(&mut self) -> bool {
        let (space, weak) = (self.space, self.weak);
        weak.wake_old(|weak_slot| {
            let encoding = space.kinds.get(weak_slot.kind()).encoding;
            // SAFETY: as in `wake`.
            unsafe {
                if !self.waits(weak_slot.address(), encoding) {
                    self.value(weak_slot.address(), encoding);
                }
            }
        })
    }

    /// Is a pair's key a cell that is not marked?
    ///
    /// # Safety
    /// `slot` is a pair of a marked cell.
    #[inline(always)]
    unsafe fn waits(&self, slot: usize, encoding: Encoding) -> bool {
        // SAFETY: the caller says so.
        encoding
            .decode(unsafe { load_published(slot) })
            .is_some_and(|key| {
                let offset = key.wrapping_sub(self.base);
                offset < self.len && !self.marks.test_now(offset)
            })
    }

    /// Follows a pair's value.
    ///
    /// # Safety
    /// As [`Core::waits`].
    #[inline(always)]
    unsafe fn value(&mut self, slot: usize, encoding: Encoding) {
        // SAFETY: the caller says so.
        if let Some(value) = encoding.decode(unsafe { load_published(slot + WORD) }) {
            self.found(value);
        }
    }

    /// A pair's key is not marked: it waits, or is strong where there is no room.
    #[cold]
    #[inline(never)]
    fn defer(&mut self, slot: usize, encoding: Encoding) {
        // SAFETY: a pair of a marked cell.
        let key = encoding.decode(unsafe { load_published(slot) });
        let Some((key, cell)) = key.zip(self.space.resolve(slot)) else {
            // A mutator has just removed it, and logged its value.
            return;
        };
        match self
            .weak
            .wait(WeakSlot::new(slot, cell.kind), key.wrapping_sub(self.base))
        {
            Wait::Entered => {
                // SAFETY: as above.
                let waits = unsafe { self.waits(slot, encoding) };
                if waits && seam::lets_pairs_wait() {
                    return;
                }
            }
            Wait::NoRoom => self.found(key),
        }
        // SAFETY: as above.
        unsafe { self.value(slot, encoding) };
    }

    /// A pair of a marked cell: its value is followed if its key is marked, and waits otherwise.
    #[inline(always)]
    pub(super) fn follow_pair(&mut self, slot: usize, encoding: Encoding) {
        // SAFETY: `follow` names pairs of the cell, which is marked.
        unsafe {
            if self.waits(slot, encoding) {
                self.defer(slot, encoding);
            } else {
                self.value(slot, encoding);
            }
        }
    }

    /// A key whose mark `waits` will test soon.
    #[inline(always)]
    pub(super) fn prefetch_key(&mut self, word: usize, encoding: Encoding) {
        let offset = (word & encoding.keep).wrapping_sub(self.base);
        if offset < self.len {
            self.marks.prefetch(offset);
        }
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn lets_pairs_wait() -> bool {
        !Fault::StrongPairs.planted()
    }
}
