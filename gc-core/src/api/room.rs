//! An allocation that finds no room: which collections it waits for, and when it fails.

use crate::alloc::REVIEW_PIECE;
use crate::api::mutator::Mutator;
use gc_preempt::KeepErrno;

/// The most collections that an allocation waits for before it fails. More than one, since other
/// mutators may take the freed cells before this one wakes.
const TRIES: u32 = 3;

/// The attempts of one allocation to find room.
#[derive(Default)]
pub(super) struct Attempts {
    tries: u32,
    /// The allocation has waited for a full collection that began after it found no room.
    collected: bool,
}

impl Mutator {
    /// The heap has no room for `bytes`: waits for a collection, and returns whether to try again.
    /// The first attempt waits for the current collection, if there is one, although that keeps
    /// cells that died after it began. `false` if a further attempt is useless: inside
    /// `no_preempt`, where a thread must not wait; if the live cells leave no room; or if such
    /// collections freed too little several times lately (`pacer/vain.rs`).
    ///
    /// The mutator gives its runs back first: all its free cells may be of other sizes.
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
        if !thread.no_preempt(may_collect) && seam::gives_up() {
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

    /// An allocation has found room, after these attempts.
    pub(super) fn found_room(&self, attempts: &Attempts) {
        if attempts.collected {
            self.thread()
                .no_preempt(|| self.heap().state().vain.lock().found_room());
        }
    }

    /// Whether the cells that the last full collection found alive leave room for `bytes` bytes
    /// under the hard limit.
    fn leaves_room(&self, bytes: usize) -> bool {
        let shared = self.heap().state();
        shared
            .space
            .hard_limit()
            .is_none_or(|limit| shared.pace.live().saturating_add(bytes as u64) <= limit)
    }

    /// Gives back the runs that this mutator no longer refills, so that stops do not visit them
    /// (`alloc/review.rs`). Called where the mutator is about to wait.
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

    /// Gives back all runs and spans, a bounded number at a time.
    fn give_runs_back(&self) {
        let (record, thread) = (self.record(), self.thread());
        let space = &self.heap().shared().space;
        let piece = || record.local.retire_sites(space, REVIEW_PIECE);
        while thread.no_preempt(piece) == REVIEW_PIECE {}
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn gives_up() -> bool {
        !Fault::TriesForEver.planted()
    }
}
