//! The work of the collector's thread between two collections: it prefaults memory, scavenges, and
//! collects a heap that is idle.

use core::time::Duration;
use std::time::Instant;

use super::state::State;
use crate::heap::{CHUNK_PAGES, PAGE, ScavengePace};

/// Prefaults memory that mutators will use soon, unless a collection is wanted. Outside of stops.
pub(super) fn back_ahead(state: &State) {
    while state.space.wants_backing() && !state.requests.is_wanted() && back_piece(state) {}
}

/// Prefaults one piece, which takes about 0.1 ms. `false`: no more is wanted.
fn back_piece(state: &State) -> bool {
    // A cycle of the heap ends about at the goal.
    let goal = state.pace.goal();
    let room = goal.saturating_add(goal / 4).min(state.pace.memory_limit());
    state.space.back_piece(room)
}

/// Gives all free memory back at once, for [`Heap::trim`](crate::Heap::trim), and returns the
/// bytes. Outside of stops, after a collection.
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

/// When an idle heap is collected: a fixed time after its last collection.
///
/// The time starts again with each collection, as in Go. Without such a collection no cell would be
/// freed that dies because the program drops it and allocates nothing afterwards.
pub(super) struct Idle<'a> {
    state: &'a State,
    last: Instant,
}

impl<'a> Idle<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        Self {
            state,
            last: Instant::now(),
        }
    }

    /// The time from the last collection to the next; `None`: an idle heap is not collected.
    fn after(&self) -> Option<Duration> {
        let after = self.state.idle_after.get();
        after.filter(|_| !self.state.pace.is_paused())
    }

    /// The time to wait for a request before a collection is due.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.after()
            .map(|after| after.saturating_sub(self.last.elapsed()))
    }

    /// Is a collection due?
    pub(super) fn is_due(&self) -> bool {
        seam::collects_when_idle()
            && self
                .after()
                .is_some_and(|after| self.last.elapsed() >= after)
    }

    /// A collection has ended.
    pub(super) fn collected(&mut self) {
        self.last = Instant::now();
    }
}

/// Bytes of a chunk, which the system maps as one huge page.
const CHUNK: u64 = (CHUNK_PAGES * PAGE) as u64;

/// Bytes of the allocated-black list beyond its present length that stay until
/// [`Heap::trim`](crate::Heap::trim).
const ALLOCATED_BLACK_KEPT: u64 = 1 << 20;

/// The time until the scavenger checks again whether a heap still needs the memory that it keeps.
const LOOK_AGAIN: Duration = Duration::from_millis(256);

/// The scavenger's state between its pieces of work. It works while no collection is wanted.
pub(super) struct Surplus {
    begun: Instant,
    pace: ScavengePace,
    /// The allocation count at the last call, in bytes.
    allocated: u64,
    /// The time to wait for a collection before more goes back; `None`: there is nothing to give
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
        if !seam::gives_back() {
            return;
        }
        let space = &state.space;
        space.use_huge_pages_again();
        let now = self.begun.elapsed();
        let (used, peak) = space.used_lately();
        // The need is the lesser of two: the pacer's goal and a tenth of it, and what the heap will
        // grow to in some seconds. A recent peak is the least. Memory below the need would be asked
        // for again at once.
        let allocated = space.allocated_since();
        let newly = match allocated.checked_sub(self.allocated) {
            Some(newly) => newly,
            // There has been a collection.
            None => allocated,
        };
        self.allocated = allocated;
        let goal = state.pace.goal();
        let growth = seam::growth(self.pace.growth(newly, now), goal);
        let need = goal
            .saturating_add(goal / 10)
            .min(used.saturating_add(growth));
        // At most what the memory limit leaves.
        let limit = state.pace.memory_limit();
        let need = need.max(self.pace.need(peak, now)).min(limit);
        let touched = seam::kept(space.pre_touched);
        let keep = need.max(touched).saturating_sub(used);
        // A heap that needs no more than it has may lose parts of chunks, down to a reserve of a
        // sixteenth: less than that is not worth splitting chunks. The free memory of a heap that
        // allocates swings by as much from collection to collection. Without the margin a steady
        // program would give a chunk back in each, and take it again.
        let (keep, grain) = if need <= used {
            (keep.max(used / 16), 0)
        } else {
            (keep + need / 16, CHUNK)
        };
        self.pace
            .set_surplus(space.free_backed().saturating_sub(keep));
        let mut most = self.pace.allowance(now);
        // The pace may allow less than a chunk now: that does not mean that nothing is left.
        while most >= CHUNK && !state.requests.is_wanted() {
            let bytes = space.scavenge_piece(keep, grain, most);
            if bytes == 0 {
                space.allocated_black.trim(ALLOCATED_BLACK_KEPT);
                // Nothing is left, or no whole chunk. That changes with time while the remembered
                // peak is above the use, and otherwise with the next collection.
                self.patience = (need > used).then_some(LOOK_AGAIN);
                return;
            }
            space.give_up_prefaulted();
            self.pace.spend(bytes);
            // A piece between cells may be longer than `most`.
            most = most.saturating_sub(bytes);
        }
        self.patience = Some(self.pace.patience());
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn collects_when_idle() -> bool {
        !Fault::NeverIdle.planted()
    }

    pub(super) fn gives_back() -> bool {
        !Fault::HoardsMemory.planted()
    }

    /// Bytes that the heap may grow by: as it has grown lately, whatever its goal is.
    pub(super) fn growth(lately: u64, goal: u64) -> u64 {
        if Fault::GoalKept.planted() {
            goal
        } else {
            lately
        }
    }

    /// Bytes that never go back.
    pub(super) fn kept(pre_touched: u64) -> u64 {
        if Fault::TouchedGivenBack.planted() {
            0
        } else {
            pre_touched
        }
    }
}
