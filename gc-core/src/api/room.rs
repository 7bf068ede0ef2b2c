//! An allocation that finds no room: what it waits for, and when it gives up.

use crate::alloc::REVIEW_PIECE;
use crate::api::mutator::Mutator;
use crate::fault::{Fault, planted};
use gc_preempt::KeepErrno;

/// How often an allocation that finds the heap full collects before it gives up. More than once,
/// since what a collection frees may be taken by other mutators before this one wakes.
const TRIES: u32 = 3;

/// What an allocation has done to find room.
#[derive(Default)]
pub(super) struct Attempts {
    tries: u32,
    /// It has waited for a collection of all cells that began after it had found none.
    collected: bool,
}

impl Mutator {
    /// The heap has no room for `bytes`: waits for what a collection frees. At first the one under
    /// way will do, if there is one, though it keeps what has died since it began. `false`: there
    /// is no use in trying again. Inside `no_preempt` nothing may wait; what was found alive may
    /// leave no room; or collections for room were in vain again and again lately
    /// (`pacer/vain.rs`).
    ///
    /// This mutator's runs are given back first: of its cells that are ready, all may be of other
    /// sizes.
    pub(super) fn make_room(&self, attempts: &mut Attempts, bytes: usize) -> bool {
        let shared = self.heap().state();
        let (requests, thread) = (&shared.requests, self.thread());
        attempts.tries += 1;
        if thread.in_no_preempt() || attempts.tries > TRIES {
            return false;
        }
        if attempts.tries == 1 && thread.blocking(|| requests.wait_for_present()) {
            return true;
        }
        if attempts.collected && !self.leaves_room(bytes) {
            return false;
        }
        let may_collect = || shared.vain.lock().may_collect(shared.pace.now());
        if !thread.no_preempt(may_collect) && !planted(Fault::TriesForEver) {
            return false;
        }
        self.give_runs_back();
        requests.want_spans();
        let begun = shared.pace.now();
        let number = self.heap().collect_now(true);
        let now = shared.pace.now();
        thread.no_preempt(|| shared.vain.lock().collected(now, number, now - begun));
        attempts.collected = true;
        true
    }

    /// An allocation has succeeded after so many attempts to make room.
    pub(super) fn found_room(&self, attempts: &Attempts) {
        if attempts.collected {
            self.thread()
                .no_preempt(|| self.heap().state().vain.lock().found_room());
        }
    }

    /// Does what the last collection of all cells found alive leave room for so many bytes under
    /// the hard limit?
    fn leaves_room(&self, bytes: usize) -> bool {
        let shared = self.heap().state();
        shared
            .space
            .hard_limit()
            .is_none_or(|limit| shared.pace.live().saturating_add(bytes as u64) <= limit)
    }

    /// Where this mutator is about to wait: gives back the runs that it no longer refills, so that
    /// no stop looks at them (`alloc/review.rs`).
    #[inline]
    pub(super) fn review_runs(&self) {
        let space = &self.heap().shared().space;
        if self.record().local.is_review_due(space) {
            self.review_all_runs();
        }
    }

    #[cold]
    fn review_all_runs(&self) {
        let _kept = KeepErrno::new(); // it may wait for a site's lock
        let (record, thread) = (self.record(), self.thread());
        if thread.is_blocking() || thread.in_no_preempt() {
            return;
        }
        let (space, runs) = (&self.heap().shared().space, &record.local);
        // Marking may begin between two pieces.
        let piece = || runs.is_review_due(space) && runs.review_piece(space, REVIEW_PIECE);
        while thread.no_preempt(piece) {}
    }

    /// Gives all runs and spans back, a bounded number at a time.
    fn give_runs_back(&self) {
        let (record, thread) = (self.record(), self.thread());
        let space = &self.heap().shared().space;
        let piece = || record.local.retire_sites(space, REVIEW_PIECE);
        while thread.no_preempt(piece) == REVIEW_PIECE {}
    }
}
