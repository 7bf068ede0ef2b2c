//! `Mark` and `Finish`: cells are traced beside the mutators, until a stop finds that nothing is
//! grey.

use core::time::Duration;
use std::time::Instant;

use super::cycle::{Accounts, Cycle};
use super::phase::Phase;
use crate::mutator::record::context_of;
use crate::roots;

/// The time for which `Finish` traces before it resumes the mutators. It doubles at each attempt;
/// otherwise mutators that log faster than they are stopped would keep the cycle from its end.
const FINISH: Duration = Duration::from_micros(30);

/// Words that `Finish` takes from mutators' logs into the queue itself. Further words are moved to
/// the heap's log, which takes a tenth of the time.
const FINISH_WORDS: usize = 1024;

/// Cells that `Finish` traces between two readings of the clock: a microsecond or two.
const FINISH_CELLS: usize = 64;

/// Cells that are traced between two readings of the clock while mutators run: about 15 µs.
const PIECE_CELLS: usize = 1024;

/// The time for which `Mark` waits for assists to end. A stop waits for them, too, but holds all
/// other mutators up meanwhile. So the time is long enough for the system to run every thread.
const HANDS: Duration = Duration::from_millis(10);

/// The part of that time in which `Mark` yields and does not sleep.
const HANDS_SOON: Duration = Duration::from_micros(50);

/// Words of one piece of the heap's log, while mutators run.
const LOG_PIECE: usize = 4096;

/// Registrations of one piece: a mutator that registers a cell waits for the lock meanwhile.
const SELECT_PIECE: usize = 256;

/// Cells of one piece that wait to be finalized and are marked: a mutator that fetches one waits
/// for the lock meanwhile.
const READY_PIECE: usize = 256;

impl Cycle<'_, '_> {
    // ---- ... to here; mutators run ... ----------------------------------------------------------

    pub(super) fn mark(&mut self) -> Phase {
        while self.stress.parts_stops() && !self.stress.scans_late() && self.scan_beside() {}
        self.stress.before_tracing();
        self.mark_ready();
        loop {
            if let Some(might) = self.held.take() {
                self.state.pace.restore_assists(might);
            }
            let roots_left = self.scan_beside();
            self.marker.follow_old(&mut self.old, PIECE_CELLS);
            let dry = self.workers.step(&mut self.marker, PIECE_CELLS)
                && !self.old.is_left()
                && !roots_left;
            let pace = &self.state.pace;
            pace.progress(self.marker.marked().cells + self.workers.cells() + self.old.followed());
            if !dry && self.state.queue.has_no_packet() {
                // So that mutators find work for assists, whichever thread the system runs.
                self.marker.share();
            }
            if dry && self.take_log(LOG_PIECE) == 0 {
                self.held = Some(self.state.pace.hold_assists());
                if !self.work_comes_back() && self.workers.close(&mut self.marker) {
                    self.select();
                    self.account();
                    self.stress.after_tracing();
                    return Phase::Finish;
                }
            }
            self.rest();
        }
    }

    /// Finds the words and cells that will have to be cleared, finalized and dropped, as far as
    /// that is visible beside the mutators, so that the stop looks at no others. Called once
    /// marking seems to be over: before that most of what it finds would be alive.
    pub(super) fn select(&self) {
        let space = &self.state.space;
        self.state.weak.select_dying(space);
        for registered in [&self.state.finalizers, &self.state.drops] {
            while registered.select_piece(SELECT_PIECE, |cell| space.is_marked(cell)) {}
        }
    }

    /// Computes the pacer's numbers before the stop that needs them.
    pub(super) fn account(&mut self) {
        let immutable = self.state.space.immutable_bytes();
        self.accounts = Some(Accounts::of(self.state, immutable));
    }

    /// Waits for assists to end. True: the queue has cells. A mutator puts the cells that it has
    /// into the queue within microseconds, and a stop would have to wait for it as well. If it is
    /// not running, it waits for a processor, perhaps for this one, so this thread yields.
    pub(super) fn work_comes_back(&self) -> bool {
        let begun = Instant::now();
        while self.state.pace.assisting() != 0 && self.state.queue.is_empty() {
            match begun.elapsed() {
                soon if soon < HANDS_SOON => std::thread::yield_now(),
                late if late < HANDS => std::thread::sleep(HANDS_SOON),
                _ => break,
            }
        }
        !self.state.queue.is_empty()
    }

    /// Marks the cells that died in an earlier cycle and were not fetched yet, piece by piece. A
    /// cell that is fetched meanwhile is logged.
    pub(super) fn mark_ready(&mut self) {
        if core::mem::replace(&mut self.ready_marked, true) {
            return;
        }
        let (space, marker) = (&self.state.space, &mut self.marker);
        for queue in [&self.state.finalizers, &self.state.drops] {
            let mut from = 0;
            while let Some(next) = queue.ready_piece(from, READY_PIECE, |cell| {
                if let Some(cell) = space.resolve(cell) {
                    marker.cell(cell);
                }
            }) {
                from = next;
            }
        }
    }

    /// Marks the cells that words of the heap's log name, and returns the number of words.
    pub(super) fn take_log(&mut self, most: usize) -> usize {
        let (space, encodings) = (&self.state.space, &self.state.encodings);
        let marker = &mut self.marker;
        self.state
            .log
            .take(most, |word| roots::logged(space, encodings, marker, word))
    }

    // ---- stop 2: the world is stopped again, if it was not ... ----------------------------------

    pub(super) fn finish(&mut self) -> Phase {
        let before = self.marker.marked().cells;
        let next = self.finish_in_the_stop();
        self.stats.cells_in_stops += self.marker.marked().cells - before;
        next
    }

    pub(super) fn finish_in_the_stop(&mut self) -> Phase {
        let bound = FINISH * (1 << self.retries.min(10));
        let mutators_ran = self.stopped.is_none();
        let end = self.stop().stopped_at() + bound;
        // A mutator in an assist had the last cells, which may lead to half of the heap, and has
        // put them into the queue for the stop.
        if mutators_ran && !self.state.queue.is_empty() && seam::lets_mutators_run() {
            self.resume();
            return Phase::Mark;
        }
        if self.state.concurrent && self.state.ready() > READY_PIECE as u64 && !self.ready_marked {
            return self.mark_on();
        }
        self.mark_ready();
        if seam::takes_logs() {
            self.take_logs();
        }
        if !self.state.concurrent {
            // Threads that are no mutators run in a stop, and log the roots that they remove before
            // the stop has scanned them.
            while seam::takes_the_heaps_log() && self.take_log(LOG_PIECE) != 0 {}
            self.marker.drain();
            return self.after;
        }
        loop {
            let words = self.take_log(FINISH_CELLS);
            if self.marker.drain_bounded(FINISH_CELLS) && words == 0 {
                if self.stress.leaves(self.after) {
                    return self.mark_on();
                }
                return self.after;
            }
            if Instant::now() > end {
                return self.mark_on();
            }
        }
    }

    /// More is left than a stop has time for: resumes the mutators, and marks on.
    pub(super) fn mark_on(&mut self) -> Phase {
        self.retries += 1;
        self.resume();
        Phase::Mark
    }

    /// Takes the words that mutators have logged into the queue, or if they are many, into the
    /// heap's log.
    pub(super) fn take_logs(&mut self) {
        let Some(stopped) = &self.stopped else {
            unreachable!("logs taken without a stop")
        };
        let mut left = FINISH_WORDS << self.retries.min(10);
        for mutator in stopped.mutators() {
            let Some(context) = context_of(&mutator) else {
                continue;
            };
            let words = context.logged();
            if words.len() > left {
                context.flush_log();
                continue;
            }
            left -= words.len();
            // The words lead anywhere: all cache lines are fetched at once, not one by one.
            for word in context.logged() {
                roots::prefetch_logged(&self.state.space, &self.state.encodings, word);
            }
            for word in words {
                roots::logged(
                    &self.state.space,
                    &self.state.encodings,
                    &mut self.marker,
                    word,
                );
            }
            context.reset_log();
        }
    }
}

mod seam {
    use crate::fault::Fault;

    /// Lets mutators run again where one of them has put down much work.
    pub(super) fn lets_mutators_run() -> bool {
        !Fault::StopTracesOn.planted()
    }

    pub(super) fn takes_logs() -> bool {
        !Fault::LogsLeft.planted()
    }

    pub(super) fn takes_the_heaps_log() -> bool {
        !Fault::RootsLoggedInVain.planted()
    }
}
