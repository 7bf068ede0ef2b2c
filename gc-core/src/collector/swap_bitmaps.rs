//! `SwapBitmaps` and `Sweep`: the bitmaps swap, the mutators are resumed, and dead cells are swept.

use core::sync::atomic::Ordering;
use core::time::Duration;

use super::aside;
use super::cycle::{Accounts, Cycle};
use super::phase::Phase;
use crate::mutator::record::context_of;
use crate::pacer;
use crate::weak::IDLE;

impl Cycle<'_, '_> {
    pub(super) fn swap_bitmaps(&mut self) -> Phase {
        let state = self.state;
        self.stop();
        if let Some(verify) = &state.verify {
            verify.check(&state.space, self.stats.number);
        }
        if state.concurrent {
            self.log_stores(IDLE);
        }
        self.stats.finalizable = state.finalizers.publish();
        state.drops.publish();
        let given = state.given();
        // Cells that mutators were given during marking are black, whether they are allocated yet
        // or not.
        let allocated_black = given.less(self.given);
        let assists = state.pace.take_assists();
        let logged = state.log.overflowed_marks();
        let by_mutators = assists.marked + logged;
        let marked = self.marker.marked() + by_mutators;
        let found = self.kept + marked;
        let stats = &mut self.stats;
        stats.cells_live = found.cells + allocated_black.cells;
        stats.bytes_live = found.bytes + allocated_black.bytes;
        let allocated = found + self.tails + allocated_black;
        stats.cells_freed = (self.cells + allocated_black.cells).saturating_sub(allocated.cells);
        state.cells.store(allocated.cells, Ordering::Relaxed);
        stats.mark = self.marking_since.elapsed();
        stats.end_bytes = state.pace.used(given.bytes);
        stats.assist = Duration::from_nanos(assists.nanos);
        stats.assist_cells = assists.marked.cells;
        stats.bytes_allocated_black = allocated_black.bytes;
        let helpers = self.workers.take_work();
        stats.markers = 1 + helpers.helpers;
        stats.collector_cpu = Duration::from_nanos(helpers.cpu);
        let external = state.pace.external();
        let accounts = self.accounts.take();
        let Accounts {
            immutable,
            interval,
            cpu,
        } = accounts.unwrap_or_else(|| Accounts::of(state, self.immutable));
        let pauses = (stats.pause_sum + stats.scan).as_nanos() as u64;
        let young_next = state.pace.ended(&pacer::Cycle {
            young: stats.young,
            immutable,
            begin: stats.begin_bytes,
            live: stats.bytes_live - allocated_black.bytes,
            allocated_black: allocated_black.bytes,
            roots: self.scanned.bytes(),
            external,
            overhead: state
                .space
                .used_bytes()
                .saturating_sub(stats.end_bytes.saturating_sub(external)),
            marked: marked.cells + self.old.followed() + state.queue.take_large_work(),
            assisted: by_mutators.cells,
            beside: stats.mark_concurrent.as_nanos() as u64,
            running: self.running,
            assist: assists.nanos,
            cost: cpu + helpers.cpu + pauses * u64::from(self.running),
            interval,
            forced: self.forced,
        });
        if state.poison && seam::poisons() {
            state.space.poison_dead();
        }
        state.space.swap(self.stats.young, young_next);
        let mutators = self.settle_owned(young_next);
        state.space.set_mutators(mutators);
        state.old.set(found);
        self.resume();
        // ---- ... to here ------------------------------------------------------------------------
        let stats = &mut self.stats;
        // Relaxed: a count. Every stack has been scanned.
        stats.stacks_resumed = state.stacks_resumed.swap(0, Ordering::Relaxed);
        stats.frames_precise = self.scanned.frames.precise;
        stats.frames_conservative = self.scanned.frames.conservative;
        stats.unknown_sites = self.scanned.frames.unknown_sites;
        stats.conservative_words = self.scanned.conservative_words;
        stats.exact_words = self.scanned.exact_words;
        stats.conservative_marked = self.scanned.conservative_marked;
        stats.exact_marked = self.scanned.exact_marked;
        stats.over_memory_limit = state.pace.is_over_limit();
        state.ledger.enter(self.stats, given.bytes);
        // Before mutators that wait for memory try again.
        state.give_back_reserve();
        state.requests.end(self.stats.number);
        Phase::Sweep
    }

    /// In the stop in which the bitmaps have swapped: updates the spans and handle tables of all
    /// mutators. Returns the number of mutators.
    pub(super) fn settle_owned(&mut self, young_next: bool) -> usize {
        let state = self.state;
        let Some(stopped) = &self.stopped else {
            unreachable!("the bitmaps swap without a stop")
        };
        // The mutators that are aside count, too: all of them may come back before the next stop,
        // and reserve and allocate as much as any other.
        let mut mutators = stopped.aside().len();
        for mutator in stopped.mutators() {
            let Some(context) = context_of(&mutator) else {
                continue;
            };
            mutators += 1;
            self.trim_handles |= context.handles.lower();
            seam::leave_runs(context, &state.space);
            if young_next {
                // SAFETY: the runs are those of a stopped mutator of this heap.
                unsafe { context.local.keep_owned(&state.space) };
                self.stats.sites_in_stops += context.local.sites_listed() as u64;
            }
        }
        mutators
    }

    /// Sweeps in the background; mutators sweep as well, when they refill. Stops as soon as the
    /// next collection is wanted; its `Prepare` sweeps the rest.
    pub(super) fn sweep(&mut self) -> Phase {
        let state = self.state;
        let space = &state.space;
        self.trim_handles |= aside::set_aside(state);
        state.trim_tables(self.trim_handles);
        seam::leave_to_mutators(&state.requests);
        for table in [&state.finalizers, &state.drops] {
            table.trim();
        }
        while !state.requests.is_wanted() && space.sweep_piece_aside() {
            self.rest();
        }
        while !state.requests.is_wanted() && space.clear_spare_piece() {
            self.rest();
        }
        Phase::Idle
    }
}

mod seam {
    use core::time::Duration;

    use crate::collector::requests::Requests;
    use crate::fault::Fault;
    use crate::heap::Space;
    use crate::mutator::record::Context;

    pub(super) fn poisons() -> bool {
        !Fault::Unpoisoned.planted()
    }

    /// Leaves a stopped mutator's runs alone.
    pub(super) fn leave_runs(context: &Context, space: &Space) {
        if Fault::RunsTakenBack.planted() {
            context.local.retire(space);
        }
    }

    /// Not a planted fault: leaves the sweeping to mutators, until the next collection is wanted.
    pub(super) fn leave_to_mutators(requests: &Requests) {
        while Fault::LateSweep.planted() && !requests.is_wanted() {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
