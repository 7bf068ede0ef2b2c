//! What the collector's thread sees to between two collections: memory that is about to be used,
//! and memory that no longer is.

use core::time::Duration;
use std::time::Instant;

use super::state::State;
use crate::fault::{Fault, planted};
use crate::heap::{CHUNK_PAGES, PAGE, ScavengePace};

/// Has memory backed that mutators are about to come to, unless a collection is wanted. Outside of
/// stops.
pub(super) fn back_ahead(state: &State) {
    while state.space.wants_backing() && !state.requests.is_wanted() && back_piece(state) {}
}

/// A piece of that: 0.1 ms, as a rule.
fn back_piece(state: &State) -> bool {
    // A heap ends its cycles about at the goal.
    let goal = state.pace.goal();
    let room = goal.saturating_add(goal / 4).min(state.pace.memory_limit());
    state.space.back_piece(room)
}

/// Gives all free memory back at once, for [`Heap::trim`](crate::Heap::trim); how many bytes.
/// Outside of stops, after a collection.
pub(super) fn give_all_back(state: &State) -> u64 {
    let space = &state.space;
    while space.sweep_piece() {}
    while space.clear_spare_piece() {}
    space.give_up_prefaulted();
    let (used, _) = space.used_lately();
    let keep = space.pre_touched.saturating_sub(used);
    let mut gone = 0;
    loop {
        match space.scavenge_piece(keep, 0, u64::MAX) {
            0 => break,
            bytes => gone += bytes,
        }
    }
    gone + space.allocated_black.trim(0)
}

/// When a heap is collected that asks for nothing: a while after the last collection.
///
/// Each time anew, as Go does it: what dies because the program drops it, without an allocation, is
/// noticed by nothing else.
pub(super) struct Idle {
    /// Of a heap that is never collected for that: none.
    after: Option<Duration>,
    last: Instant,
}

impl Idle {
    pub(super) fn new(state: &State) -> Self {
        Self {
            after: state.idle_after,
            last: Instant::now(),
        }
    }

    /// How long to wait for a request before that is due.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.after
            .map(|after| after.saturating_sub(self.last.elapsed()))
    }

    /// Is it due?
    pub(super) fn is_due(&self) -> bool {
        !planted(Fault::NeverIdle) && self.after.is_some_and(|after| self.last.elapsed() >= after)
    }

    /// There has been a collection.
    pub(super) fn collected(&mut self) {
        self.last = Instant::now();
    }
}

/// Bytes that the system maps as one page.
const CHUNK: u64 = (CHUNK_PAGES * PAGE) as u64;

/// Bytes of the list of cells that were allocated black beyond its present length that stay until
/// [`Heap::trim`](crate::Heap::trim).
const ALLOCATED_BLACK_KEPT: u64 = 1 << 20;

/// How long until it is looked again whether a heap still needs what it keeps.
const LOOK_AGAIN: Duration = Duration::from_millis(256);

/// Free memory on its way back to the system, while no collection is wanted.
pub(super) struct Surplus {
    begun: Instant,
    pace: ScavengePace,
    /// What had been allocated since the last collection when this was looked at last.
    allocated: u64,
    /// How long to wait for a collection before more goes back; none: there is nothing to give
    /// back.
    pub(super) patience: Option<Duration>,
}

impl Default for Surplus {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            pace: ScavengePace::default(),
            allocated: 0,
            patience: None,
        }
    }
}

impl Surplus {
    pub(super) fn give_back(&mut self, state: &State) {
        if planted(Fault::HoardsMemory) {
            return;
        }
        let space = &state.space;
        space.use_huge_pages_again();
        let now = self.begun.elapsed();
        let (used, peak) = space.used_lately();
        // What the pacer lets the heap grow to and a tenth, as far as it does in some seconds, or
        // what it needed lately: below that, what is given back would be asked for again at once.
        let allocated = space.allocated_since();
        let newly = match allocated.checked_sub(self.allocated) {
            Some(newly) => newly,
            // There has been a collection.
            None => allocated,
        };
        self.allocated = allocated;
        let goal = state.pace.goal();
        let growth = self.pace.growth(newly, now);
        let growth = if planted(Fault::GoalKept) {
            goal
        } else {
            growth
        };
        let need = goal
            .saturating_add(goal / 10)
            .min(used.saturating_add(growth));
        // But never more than a memory limit leaves.
        let limit = state.pace.memory_limit();
        let need = need.max(self.pace.need(peak, now)).min(limit);
        let touched = if planted(Fault::TouchedGivenBack) {
            0
        } else {
            space.pre_touched
        };
        let keep = need.max(touched).saturating_sub(used);
        // A heap that needs no more than it has may lose pages that are free in part, until a
        // sixteenth is left: that is not worth their splitting. One that allocates swings by as
        // much from collection to collection: without the margin a steady program would give a page
        // back in each, and take it again.
        let (keep, grain) = if need <= used {
            (keep.max(used / 16), 0)
        } else {
            (keep + need / 16, CHUNK)
        };
        self.pace
            .set_surplus(space.free_backed().saturating_sub(keep));
        let mut most = self.pace.allowance(now);
        // Less is left of what may go back than a page: that is no sign of there being nothing
        // more.
        while most >= CHUNK && !state.requests.is_wanted() {
            let bytes = space.scavenge_piece(keep, grain, most);
            if bytes == 0 {
                space.allocated_black.trim(ALLOCATED_BLACK_KEPT);
                // Nothing more, or nothing that is whole. Time may change that while more is
                // remembered than is used, and else a collection.
                self.patience = (need > used).then_some(LOOK_AGAIN);
                return;
            }
            space.give_up_prefaulted();
            self.pace.spend(bytes);
            // A piece between cells may be longer.
            most = most.saturating_sub(bytes);
        }
        self.patience = Some(self.pace.patience());
    }
}
