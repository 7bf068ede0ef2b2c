//! The end of a cycle: what dies is cleared, queued, and kept for its finalizer or its `Drop`.
//!
//! All of it is linear in what dies, so a stop does a bounded part ([`LOOKS`]), and mutators run
//! beside the rest. What is dead has been decided by then: `Finish` has found nothing grey in the
//! stop before, so no mutator can reach a cell that is not marked, but by a weak word. From
//! `part_if_long` on weak loads refuse these (`weak/`), nothing that is queued is handed out before
//! the cycle is over, and so marks change by the collector's hand alone. It leaves them as they are
//! until all that depends on them has been decided:
//!
//! ```text
//!   ClearWeak      short words and pairs                       marks stay
//!   Resurrect      finalizable cells are judged                marks stay
//!                  dead ones are marked, and traced
//!   ClearLong      long words; what was met since              marks stay
//!   QueueForDrop   values that need `Drop` are judged          nothing is traced
//!                  dead ones are marked, their edges made null
//! ```
//! A heap with long weak words has one more thing to see to: until `ClearLong` they may be loaded,
//! which logs what they lead to. So there is a `Finish` before that, as ever: logs are taken in a
//! stop, and what they bring is traced. Without such words there is nothing in them.

use core::sync::atomic::Ordering;

use super::cycle::Cycle;
use super::phase::Phase;
use crate::fault::{Fault, planted};
use crate::mark::Marker;
use crate::weak::{JUDGING, JUDGING_LONG, Stage};

/// Words, registrations and deaths that are looked at in one stop before mutators run beside the
/// rest. At some 20 ns each they take 3 us, a third of what the shortest stop takes: with more the
/// stop would be noticeably longer, with fewer one that is short anyway would become two.
const LOOKS: usize = 128;

/// As many are looked at at a time in a stop, and beside the mutators, where one that registers
/// waits for the lock.
const PIECE_STOPPED: usize = 64;
const PIECE_BESIDE: usize = 256;

/// Cells that are traced at a time in a stop, and beside the mutators.
const CELLS_STOPPED: usize = 64;
const CELLS_BESIDE: usize = 1024;

impl Cycle<'_, '_> {
    pub(super) fn clear_weak(&mut self) -> Phase {
        if planted(Fault::CondemnFirst) {
            self.queue_for_drop();
        }
        if planted(Fault::FinalizersFirst) {
            self.enqueue_dead();
            self.trace();
        }
        self.clear(Stage::Short);
        Phase::Resurrect
    }

    pub(super) fn resurrect(&mut self) -> Phase {
        self.enqueue_dead();
        if self.has_long {
            self.after = Phase::ClearLong;
            return Phase::Finish;
        }
        // Marks have not changed if there were none.
        self.trace();
        Phase::ClearLong
    }

    pub(super) fn clear_long(&mut self) -> Phase {
        // Where words were traced beside the mutators, more were met than fitted.
        if self.state.weak.clears_in_stops() {
            self.stop();
        }
        self.clear(Stage::All);
        Phase::QueueForDrop
    }

    pub(super) fn queue_for_drop(&mut self) -> Phase {
        let (space, drops) = (&self.state.space, &self.state.drops);
        self.pieces(|_, most| drops.judge_piece(most, |cell| space.is_marked(cell)));
        self.pieces(|cycle, most| {
            let marker = &mut cycle.marker;
            drops.keep_piece(most, |cell, moved| match space.resolve(cell) {
                // SAFETY: it was not marked when it was judged, so no mutator can reach it, and it
                // is handed out by `swap_bitmaps`.
                Some(cell) if moved => unsafe { marker.strip(cell) },
                // There was no room: it stays as it is, and what it leads to.
                Some(cell) => {
                    marker.cell(cell);
                }
                None => {}
            })
        });
        self.trace();
        if self.stopped.is_none() {
            self.account();
        }
        Phase::SwapBitmaps
    }

    /// Clears the words of a stage.
    fn clear(&mut self, stage: Stage) {
        let (space, weak) = (&self.state.space, &self.state.weak);
        self.pieces(|cycle, most| {
            let cleared = weak.clear_piece(space, stage, most);
            cycle.stats.weak_cleared += cleared.cleared;
            cleared.looked
        });
        weak.end_stage();
    }

    /// Moves finalizable cells that died to the queue, and marks them.
    fn enqueue_dead(&mut self) {
        let (space, finalizers) = (&self.state.space, &self.state.finalizers);
        // All before the first is marked: see `finalize.rs`.
        self.pieces(|_, most| finalizers.judge_piece(most, |cell| space.is_marked(cell)));
        // Relaxed: see `Shared::is_clearing`.
        self.state.clearing.store(false, Ordering::Relaxed);
        self.pieces(|cycle, most| {
            let marker: &mut Marker<'_> = &mut cycle.marker;
            finalizers.keep_piece(most, |cell, _| {
                if !planted(Fault::NoResurrection)
                    && let Some(cell) = space.resolve(cell)
                {
                    marker.cell(cell);
                }
            })
        });
    }

    /// Does `piece`, told how much it may look at, until it says that it has looked at nothing.
    fn pieces(&mut self, mut piece: impl FnMut(&mut Self, usize) -> usize) {
        loop {
            self.part_if_long();
            let most = match self.stopped {
                Some(_) => PIECE_STOPPED,
                None => PIECE_BESIDE,
            };
            let looked = piece(self, most);
            if looked == 0 {
                return;
            }
            if self.stopped.is_some() {
                self.looked += looked;
                self.stats.looked_in_stops += looked as u64;
            } else {
                self.rest();
            }
        }
    }

    /// Traces what has just been marked, and all that it leads to. Words that are logged are none
    /// of its business.
    fn trace(&mut self) {
        if !self.state.concurrent {
            return self.marker.drain();
        }
        while self.stopped.is_some() {
            if self.marker.drain_bounded(CELLS_STOPPED) {
                return;
            }
            self.looked += CELLS_STOPPED;
            self.part_if_long();
        }
        loop {
            let dry = self.workers.step(&mut self.marker, CELLS_BESIDE);
            if dry && self.workers.close(&mut self.marker) {
                return;
            }
            self.rest();
        }
    }

    /// In a stop: lets mutators run while the rest of the dead is cleared, queued and kept, if the
    /// stop has looked at enough.
    fn part_if_long(&mut self) {
        let is_long = self.looked >= LOOKS || self.stress.parts(self.phase);
        // Where more weak cells were met than could be written down, all are walked, which mutators
        // must not change.
        let walks = matches!(self.phase, Phase::ClearWeak | Phase::ClearLong)
            && self.state.weak.clears_in_stops();
        if self.stopped.is_none()
            || !self.state.concurrent
            || !is_long
            || walks
            || planted(Fault::JudgedInStop)
        {
            return;
        }
        let longs_are_open = self.has_long && self.after == Phase::ClearWeak;
        // Relaxed: see `Shared::is_clearing`.
        self.state.clearing.store(longs_are_open, Ordering::Relaxed);
        self.log_stores(if longs_are_open {
            JUDGING_LONG
        } else {
            JUDGING
        });
        // The system may let everybody run but this thread.
        self.marker.publish();
        self.resume();
        self.stress.parted();
    }
}
