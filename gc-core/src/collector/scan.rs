//! `Scan`: stop 1. It leaves some of the roots to be scanned beside the mutators.

use core::sync::atomic::Ordering;
use std::time::Instant;

use gc_preempt::StoppedMutator;

use super::beside::Beside;
use super::cycle::Cycle;
use super::phase::Phase;
use super::{aside, suspended};
use crate::mark::old::Old;
use crate::mutator::record::context_of;
use crate::roots::{Scanner, Unscanned};
use crate::verify::Source;
use crate::weak::{IDLE, MARKING};

/// The most roots and handles that stop 1 scans itself, which takes some microseconds.
const FEW_ROOTS: usize = 256;

/// The live bytes below which a heap is small: it is likely to be marked before a resume of the
/// mutators would be done.
const SMALL: u64 = 64 << 10;

impl Cycle<'_, '_> {
    // ---- stop 1: the world is stopped ... -------------------------------------------------------

    pub(super) fn scan(&mut self) -> Phase {
        self.state.roots.rehearse();
        self.state.world.warm_up_walks();
        self.stop();
        let begun = Instant::now();
        seam::in_the_stop();
        let state = self.state;
        if state.requests.take_spans_wanted() || state.space.is_short() {
            self.take_idle_spans();
        }
        self.review_idle();
        self.given = state.given();
        // Relaxed: the collector's own.
        let before = state.cells.load(Ordering::Relaxed);
        self.cells = before.saturating_add_signed(state.space.cells_since());
        self.stats.trigger_bytes = state.pace.trigger();
        self.stats.goal_bytes = state.pace.goal();
        self.stats.begin_bytes = state.pace.used(self.given.bytes);
        if self.stats.young {
            self.kept = state.old.get();
            self.old = Old::before(state.space.top());
        }
        let unmarked = self.cells.saturating_sub(self.kept.cells) + state.space.large_work();
        self.forced = !state.pace.begun(self.stats.begin_bytes, unmarked);
        state
            .space
            .begin_marking_and(state.pace.notes_allocated_black());
        // Relaxed: read with the registry lock held, which this stop holds.
        state.scan.fetch_add(1, Ordering::Relaxed);
        if state.concurrent {
            self.log_stores(MARKING);
        }
        let Some(stopped) = &self.stopped else {
            unreachable!("scanned without a stop")
        };
        let verify = state.verify.as_ref();
        let mut scanner = Scanner::new(&state.space, &state.encodings, &mut self.marker, verify);
        // All tails come before the first word: a word that names a free cell then finds it black,
        // and neither counts nor follows it.
        for mutator in stopped.mutators() {
            if let Some(context) = context_of(&mutator)
                && seam::blackens_tails()
            {
                // SAFETY: the runs are those of a stopped mutator of this heap.
                let tails = unsafe { context.local.blacken_tails(&state.space) };
                self.tails = self.tails + tails;
                self.stats.sites_in_stops += context.local.sites_listed() as u64;
            }
        }
        let mut beside = Beside::default();
        let exact = !state.stacks.are_roots();
        for (number, mutator) in stopped.mutators().enumerate() {
            scanner.source(Source::Stack(number));
            let context = context_of(&mutator);
            let frames = match context {
                Some(context) if exact && context.is_exact() => mutator.walk(&mut Unscanned),
                _ => mutator.walk(&mut scanner),
            };
            scanner.scanned.frames += frames;
            if let Some(context) = context
                && seam::scans_handles()
            {
                beside.snapshot(context, number, &mut scanner, verify);
            }
        }
        let aside = stopped.aside().len();
        self.stats.aside = aside as u32;
        beside.snapshot_stacks(aside, stopped.stacks());
        scanner.source(Source::Tables);
        scanner.tables(&state.roots);
        beside.words += state
            .roots
            .snapshot(aside != 0 && seam::scans_later_roots());
        seam::hold();
        if let Some(verify) = verify {
            for (number, mutator) in stopped.aside().enumerate() {
                scanner.source(Source::Aside(number));
                if let Some(context) = context_of(&mutator) {
                    aside::scan(state, context, &mutator, &mut scanner);
                    let handles = &context.handles;
                    handles.for_each(|word| verify.root_word(&state.space, word));
                }
            }
            beside.scan_suspended(state, stopped, &mut scanner);
            state
                .roots
                .for_each(|word| verify.root_word(&state.space, word));
        }
        self.scanned = scanner.finish();
        self.stats.stacks_in_stops = beside.stacks[1];
        self.beside = Some(beside);
        let are_few =
            beside.words <= FEW_ROOTS && !self.stress.scans_late() && seam::scans_few_in_the_stop();
        if !state.concurrent || are_few {
            while self.scan_beside() {}
        }
        if let (Some(beside), Some(stopped)) = (&self.beside, &self.stopped)
            && beside.has_suspended()
        {
            suspended::begin(stopped);
        }
        self.marking_since = Instant::now();
        self.stats.scan = self.marking_since - begun;
        let is_small = state.pace.kept() <= SMALL && !self.stats.young;
        if state.concurrent && (!is_small || self.stress.parts_stops() || self.beside.is_some()) {
            state.pace.beside();
            // The system may run every thread but this one, so the marker's cells go into the
            // queue, where other threads find them.
            self.marker.publish();
            self.resume();
            return Phase::Mark;
        }
        Phase::Finish
    }

    /// In the stop, before anything is marked: the spans of mutators inside `blocking` go back, and
    /// the sweep finds their free cells. Otherwise an idle thread would keep a span for each site
    /// that it ever used.
    pub(super) fn take_idle_spans(&mut self) {
        let state = self.state;
        if !seam::takes_idle_spans() {
            return;
        }
        let blocked = self.stop().mutators().filter(StoppedMutator::is_blocked);
        for mutator in blocked {
            if let Some(context) = context_of(&mutator) {
                context.local.retire_sites(&state.space, usize::MAX);
            }
        }
    }

    /// In the stop, before anything is marked: runs that mutators inside `blocking` no longer
    /// refill go back (`alloc/review.rs`).
    pub(super) fn review_idle(&mut self) {
        if !seam::takes_idle_spans() {
            return;
        }
        let space = &self.state.space;
        let stopped = self.stop();
        let blocked = stopped.mutators().filter(StoppedMutator::is_blocked);
        let looks = |mutator| {
            context_of(&mutator).map_or(0, |context| context.local.review_idle(space) as u64)
        };
        let sites: u64 = blocked.map(looks).sum();
        self.stats.sites_in_stops += sites;
    }

    /// Scans some more of the roots that stop 1 has left; `false`: all have been scanned.
    /// `roots.rs` and `handles.rs` say what is logged meanwhile.
    pub(super) fn scan_beside(&mut self) -> bool {
        if self.stopped.is_none() {
            seam::hold_beside();
        }
        let Some(mut beside) = self.beside.take() else {
            return false;
        };
        let mut scanner = Scanner::new(
            &self.state.space,
            &self.state.encodings,
            &mut self.marker,
            None,
        );
        let stopped = self.stopped.as_ref();
        let is_left = beside.scan_piece(self.state, stopped, &mut scanner);
        self.scanned += scanner.finish();
        [self.stats.stacks_beside, self.stats.stacks_in_stops] = beside.stacks;
        self.beside = is_left.then_some(beside);
        is_left
    }

    /// In the stop: writes to all records whether stores are logged, and whether the dead cells are
    /// decided (`weak/`).
    pub(super) fn log_stores(&mut self, mode: u32) {
        // SeqCst, the heap's before the records': pairs with the second load of a thread that
        // attaches meanwhile (`Mutator::attach`). All other threads see it through their resume.
        self.state.marking.store(mode, Ordering::SeqCst);
        if !seam::tells_mutators(mode) {
            return;
        }
        for mutator in self.stop().mutators() {
            if let Some(context) = context_of(&mutator) {
                if mode == IDLE {
                    // Since the dead cells were decided, stores have overwritten only edges to
                    // marked cells.
                    context.reset_log();
                }
                context.marking.store(mode, Ordering::SeqCst);
            }
        }
    }
}

mod seam {
    use crate::fault::Fault;
    use crate::weak::IDLE;

    pub(super) fn in_the_stop() {
        if Fault::PrintInStop.planted() {
            drop(std::io::stdout().lock());
        }
    }

    pub(super) fn blackens_tails() -> bool {
        !Fault::WhiteTails.planted()
    }

    pub(super) fn scans_handles() -> bool {
        !Fault::HandlesUnscanned.planted()
    }

    /// Scans the roots that are made while stacks are still to be scanned.
    pub(super) fn scans_later_roots() -> bool {
        !Fault::RootsEndEarly.planted()
    }

    /// Not a planted fault: threads that are no mutators change roots meanwhile.
    pub(super) fn hold() {
        if Fault::HeldRoots.planted() {
            gc_preempt::faults::hold();
        }
    }

    /// Not a planted fault: mutators that are aside come back before they are scanned, however few
    /// they are.
    pub(super) fn hold_beside() {
        if Fault::HeldAside.planted() {
            gc_preempt::faults::hold();
        }
    }

    /// Few roots are scanned in the stop.
    pub(super) fn scans_few_in_the_stop() -> bool {
        !Fault::HeldAside.planted()
    }

    pub(super) fn takes_idle_spans() -> bool {
        !Fault::IdleSpansKept.planted()
    }

    pub(super) fn tells_mutators(mode: u32) -> bool {
        mode == IDLE || !Fault::StoresUnlogged.planted()
    }
}
