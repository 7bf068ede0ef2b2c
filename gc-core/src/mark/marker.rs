//! One thread that marks.

use super::budget::{Budget, Cells, Unbounded, WAKE_OLD_BYTES};
use super::queue::MarkQueue;
use super::steps::Core;
use super::work_item::WorkItem;
use crate::encoding::Encoding;
use crate::heap::{Cell, Space};
use crate::marked::Marked;
use crate::tracer::Sink;
use crate::verify::Verify;
use crate::weak::WeakWork;

/// A thread's marker. All its memory is mapped beforehand, so a stop may make one and drop it.
///
/// A drop puts the cells that it has not followed into the queue.
#[doc(hidden)]
pub struct Marker<'a> {
    pub(super) core: Core<'a>,
}

impl<'a> Marker<'a> {
    /// A marker of `space` that shares `queue` and `weak`, made for it, with all other markers of
    /// the space. It is made after the last [`Space::end_marking`] and dropped before the next.
    pub fn new(space: &'a Space, queue: &'a MarkQueue, weak: &'a WeakWork) -> Marker<'a> {
        Marker {
            core: Core::new(space, queue, weak),
        }
    }

    /// The same marker, for a stopped world without another marker: no other thread sets mark bits
    /// while it marks.
    pub fn alone(mut self) -> Marker<'a> {
        self.core.alone = true;
        self
    }

    /// From now on the verifier's list `roots` gets each cell that a root's word names; `None` ends
    /// that.
    pub(crate) fn record(&mut self, roots: Option<&'a Verify>) {
        self.core.record = roots;
    }

    /// A precise root or edge: a word that is null, no edge, or leads to an allocated cell's first
    /// byte.
    #[inline]
    pub fn edge(&mut self, word: usize, encoding: Encoding) {
        self.core.edge(word, encoding);
    }

    /// An address that leads anywhere into its cell (a derived pointer). True: the cell was not
    /// marked yet.
    pub fn interior(&mut self, address: usize) -> bool {
        self.core.resolved(address)
    }

    /// A word that may be anything, tried with all of the heap's conservative encodings. True: it
    /// named a cell that was not marked yet.
    pub fn conservative(&mut self, word: usize) -> bool {
        self.core.conservative_word(word)
    }

    /// Marks a cell that [`Space::resolve`] has found. True: it was not marked yet.
    pub fn cell(&mut self, cell: Cell) -> bool {
        self.core.mark(cell.base - self.core.base)
    }

    /// Traces until nothing is left: then every edge of every marked cell has been followed.
    pub fn drain(&mut self) {
        loop {
            self.core.drain(Unbounded);
            if !self.core.follow_flagged() && !self.core.wake_old() {
                return;
            }
        }
    }

    /// As [`Marker::drain`], but follows about `cells` cells at most, one of more than 128 bytes
    /// counting as several. True: nothing is left. For use inside a stop, whose length it bounds:
    /// some ten nanoseconds a cell.
    ///
    /// A queue that overflowed needs a walk over the heap's flags, which only [`Marker::drain`]
    /// does: false then.
    pub fn drain_bounded(&mut self, cells: usize) -> bool {
        let mut budget = Cells(cells);
        loop {
            if !self.core.drain(&mut budget) || self.core.local.queue().has_flags() {
                return false;
            }
            if !self.core.wake_old() {
                return true;
            }
            budget.spend(WAKE_OLD_BYTES);
        }
    }

    /// As [`Marker::drain_bounded`], but leaves flagged pages to the leader.
    pub(super) fn drain_piece(&mut self, cells: usize) -> bool {
        self.core.drain(&mut Cells(cells))
    }

    /// Touches the memory that marking of roots will need, so that the stop does not wait for a
    /// page.
    pub(crate) fn make_ready(&mut self) {
        self.core.local.make_ready();
    }

    /// Puts all cells that it has not followed into the queue, where other markers take them.
    pub(crate) fn publish(&mut self) {
        while let Some(offset) = self.core.edges.pop() {
            self.core.mark_soon(offset);
        }
        self.core.flush();
        while let Some(item) = self.core.cells.pop() {
            self.core.push(WorkItem(item));
        }
        self.core.local.publish();
    }

    /// Gives half of its cells to other markers.
    pub(crate) fn share(&mut self) {
        // In a tree nearly all of its cells are in the cell ring.
        while let Some(item) = self.core.cells.pop() {
            self.core.push(WorkItem(item));
        }
        self.core.local.share();
    }

    /// As [`Marker::share`], if a worker has nothing to do and the queue has no packet.
    pub(super) fn share_with_idle_workers(&mut self) {
        let queue = self.core.local.queue();
        if queue.has_no_packet() && queue.workers.has_idle_worker() {
            self.share();
        }
    }

    /// Adds another marker's count.
    pub(super) fn add(&mut self, marked: Marked) {
        self.core.marked.cells += marked.cells;
        self.core.marked.bytes += marked.bytes;
    }

    /// What this marker has newly marked, up to the last drain.
    pub fn marked(&self) -> Marked {
        self.core.marked
    }
}

impl Drop for Marker<'_> {
    fn drop(&mut self) {
        self.publish();
    }
}
