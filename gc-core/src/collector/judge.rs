//! The end of a cycle: words that lead to dead cells are cleared, and dead cells are queued, and
//! kept for their finalizers or their `Drop`.
//!
//! All of this is linear in what dies, so a stop does a bounded part ([`LOOKS`]), and the rest is
//! done beside the mutators. Which cells are dead is decided by then: `Finish` has found nothing
//! grey in the stop before, so a mutator can reach an unmarked cell by a weak word only. From
//! `part_if_long` on weak loads refuse such cells (`weak/`). Nothing that is queued is given to a
//! mutator before the cycle is over. So only the collector changes marks, and it leaves them as
//! they are until all that depends on them is decided:
//!
//! ```text
//!   ClearWeak      short words and pairs                       marks stay
//!   Resurrect      finalizable cells are judged                marks stay
//!                  dead ones are marked, and traced
//!   ClearLong      long words; weak cells found since          marks stay
//!   QueueForDrop   values that need `Drop` are judged          nothing is traced
//!                  dead ones are marked, their edges made null
//! ```
//! In a heap with long weak words, these may be loaded until `ClearLong`, which logs their targets.
//! So another `Finish` comes before `ClearLong`: a stop takes the logs, and their words are traced.
//! Without long weak words the logs hold nothing new.

use core::sync::atomic::Ordering;

use super::cycle::Cycle;
use super::phase::Phase;
use crate::mark::Marker;
use crate::weak::{JUDGING, JUDGING_LONG, Stage};

/// Words, registrations and dead cells that one stop looks at before mutators run beside the rest.
/// They take a third of the shortest stop. With more the stop would be noticeably longer; with
/// fewer a stop that is short anyway would become two.
const LOOKS: usize = 128;

/// Words, registrations and dead cells of one piece, in a stop and beside the mutators, where a
/// thread that registers a cell waits for the lock meanwhile.
const PIECE_STOPPED: usize = 64;
const PIECE_BESIDE: usize = 256;

/// Cells that are traced in one piece, in a stop and beside the mutators.
const CELLS_STOPPED: usize = 64;
const CELLS_BESIDE: usize = 1024;

impl Cycle<'_, '_> {
    pub(super) fn clear_weak(&mut self) -> Phase {
        seam::before_clearing(self);
        self.clear(Stage::Short);
        Phase::Resurrect
    }

    pub(super) fn resurrect(&mut self) -> Phase {
        self.enqueue_dead();
        if self.has_long {
            self.after = Phase::ClearLong;
            return Phase::Finish;
        }
        // If there were no dead cells, no mark has changed.
        self.trace();
        Phase::ClearLong
    }

    pub(super) fn clear_long(&mut self) -> Phase {
        // If the list of weak cells was full while cells were traced beside the mutators, the walk
        // over all weak cells needs a stop.
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
                // SAFETY: the cell was not marked when it was judged, so no mutator can reach it,
                // and mutators are given it by `swap_bitmaps` at the earliest.
                Some(cell) if moved => unsafe { marker.strip(cell) },
                // The queue had no room: the value stays alive, with all cells that it leads to.
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
            cleared.examined
        });
        weak.end_stage();
    }

    /// Enqueues the dead, and marks them.
    fn enqueue_dead(&mut self) {
        let (space, finalizers) = (&self.state.space, &self.state.finalizers);
        // All are judged before the first is marked: see `finalize.rs`.
        self.pieces(|_, most| finalizers.judge_piece(most, |cell| space.is_marked(cell)));
        // Relaxed: see `Shared::is_clearing`.
        self.state.clearing.store(false, Ordering::Relaxed);
        self.pieces(|cycle, most| {
            let marker: &mut Marker<'_> = &mut cycle.marker;
            finalizers.keep_piece(most, |cell, _| {
                if seam::keeps_finalizable()
                    && let Some(cell) = space.resolve(cell)
                {
                    marker.cell(cell);
                }
            })
        });
    }

    /// Calls `piece` with the number of items that it may look at, until it returns that it has
    /// looked at none.
    fn pieces(&mut self, mut piece: impl FnMut(&mut Self, usize) -> usize) {
        loop {
            self.part_if_long();
            let most = match self.stopped {
                Some(_) => PIECE_STOPPED,
                None => PIECE_BESIDE,
            };
            let examined = piece(self, most);
            if examined == 0 {
                return;
            }
            if self.stopped.is_some() {
                self.examined += examined;
                self.stats.examined_in_stops += examined as u64;
            } else {
                self.rest();
            }
        }
    }

    /// Traces the cells that were marked just now, and all that they lead to. Takes no words from
    /// logs.
    fn trace(&mut self) {
        if !self.state.concurrent {
            return self.marker.drain();
        }
        while self.stopped.is_some() {
            if self.marker.drain_bounded(CELLS_STOPPED) {
                return;
            }
            self.examined += CELLS_STOPPED;
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

    /// In a stop that has looked at enough: lets mutators run while the rest of the dead is
    /// cleared, queued and kept.
    fn part_if_long(&mut self) {
        let is_long = self.examined >= LOOKS || self.stress.parts(self.phase);
        // If there were more weak cells than the list has room for, the clearing walks all weak
        // cells, which mutators must not change meanwhile.
        let walks = matches!(self.phase, Phase::ClearWeak | Phase::ClearLong)
            && self.state.weak.clears_in_stops();
        if self.stopped.is_none()
            || !self.state.concurrent
            || !is_long
            || walks
            || !seam::lets_mutators_run()
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
        // The system may run every thread but this one, so the marker's cells go into the
        // queue, where other threads find them.
        self.marker.publish();
        self.resume();
        self.stress.parted();
    }
}

mod seam {
    use super::Cycle;
    use crate::fault::Fault;

    /// Nothing is queued, and nothing is resurrected, before short weak words are cleared.
    pub(super) fn before_clearing(cycle: &mut Cycle<'_, '_>) {
        if Fault::QueuedFirst.planted() {
            cycle.queue_for_drop();
        }
        if Fault::FinalizersFirst.planted() {
            cycle.enqueue_dead();
            cycle.trace();
        }
    }

    pub(super) fn keeps_finalizable() -> bool {
        !Fault::NoResurrection.planted()
    }

    pub(super) fn lets_mutators_run() -> bool {
        !Fault::JudgedInStop.planted()
    }
}
