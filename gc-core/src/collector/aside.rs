//! Mutators that are aside: the heap's part of `gc-preempt`'s `World::set_aside`.
//!
//! A stop does this for a mutator: it takes its log, blackens the tails of its runs,
//! scans its stack and notes its handles, and writes the marking flag into its record. A mutator
//! that stands still from one collection to the next needs none of that in the stop:
//!
//! * [`set_aside`] runs after a collection. The mutator's log is empty, and it gives back its
//!   runs. While it is aside it has none.
//! * Its stack and its handles are scanned beside the running mutators, before marking can end.
//!   They still hold the words that they held in stop 1, since the mutator stands still; or a root
//!   that was made since holds them (`Roots::snapshot`).
//! * When it is taken back, [`back`] writes the flag. If the present cycle has not scanned the
//!   mutator yet, `back` also scans it. So when the mutator runs, its state is as if stop 1 had
//!   processed it.
//!
//! All three happen with the registry lock held, so none of them overlaps a stop or one of the
//! others.

use core::sync::atomic::Ordering;

use gc_preempt::{Stopped, StoppedMutator};

use crate::mark::Marker;
use crate::mutator::record::{Context, context_of};
use crate::mutator::shared::Shared;
use crate::roots::{Scanner, Unscanned};
use crate::weak::IDLE;

/// Mutators that are scanned under one registry lock: some ten microseconds, for which attaching
/// threads and other heaps' stops wait.
const PIECE: usize = 16;

/// Mutators that are checked for the ends of their threads under one registry lock.
const ASIDE_A_PIECE: usize = 256;

/// The most sites of a mutator that is set aside, since it gives them back under the registry lock.
/// A mutator with more sites waits until stops have taken them (`alloc/review.rs`).
const SITES: usize = 128;

/// After a collection: sets aside the mutators that have been in `blocking` since the collection
/// before ended. True: memory of their handle tables is to be given back.
pub(super) fn set_aside(shared: &Shared) -> bool {
    // If the mutators that are aside were scanned in a stop, no pass beside the mutators has found
    // threads that have ended.
    let mut from = Some(usize::MAX);
    while let Some(at) = from.filter(|_| seam::forgets_the_ended()) {
        from = shared.world.for_each_aside(at, ASIDE_A_PIECE, |_| ());
    }
    let mut lowered = false;
    let may = |mutator: &StoppedMutator<'_>| {
        let Some(context) = context_of(mutator) else {
            return false;
        };
        if !seam::gives_runs_back() {
            return false;
        }
        // Relaxed: its thread stands still. A record without a place in the heap's list is not
        // found by the scan of handles beside the mutators.
        let may = !context.is_busy.load(Ordering::Relaxed)
            && context.place.get() != usize::MAX
            && context.local.sites_listed() <= SITES;
        if may {
            context.local.retire(&shared.space);
            lowered |= context.handles.lower();
        }
        may
    };
    // SAFETY: this is between two collections. A stop would take the mutator's runs and span
    // reserve, which `retire` gives back, and its log, which is empty. `scan` scans its stack
    // and handles, and `back` brings its flag up to date.
    unsafe { shared.world.set_aside(may) };
    lowered
}

/// Scans some of the mutators that are aside, below place `from`. Returns the place to go on at.
/// Not in a stop.
pub(super) fn scan_piece(
    shared: &Shared,
    from: usize,
    scanner: &mut Scanner<'_, '_>,
) -> Option<usize> {
    shared.world.for_each_aside(from, PIECE, |mutator| {
        if let Some(context) = context_of(mutator)
            && seam::scans()
        {
            scan(shared, context, mutator, scanner);
        }
    })
}

/// Scans all mutators that are aside, in a stop. Returns `None`, as at the end of a pass.
pub(super) fn scan_all(
    shared: &Shared,
    stopped: &Stopped<'_>,
    scanner: &mut Scanner<'_, '_>,
) -> Option<usize> {
    for mutator in stopped.aside() {
        if let Some(context) = context_of(&mutator) {
            scan(shared, context, &mutator, scanner);
        }
    }
    None
}

/// Scans the stack of a mutator that is aside, and has its handles read with those of all others,
/// unless this cycle has done so. With the registry lock held.
pub(super) fn scan(
    shared: &Shared,
    context: &Context,
    mutator: &StoppedMutator<'_>,
    scanner: &mut Scanner<'_, '_>,
) {
    // Relaxed: both change with the registry lock held.
    let cycle = shared.scan.load(Ordering::Relaxed);
    if context.scanned_in.load(Ordering::Relaxed) == cycle {
        return;
    }
    context.scanned_in.store(cycle, Ordering::Relaxed);
    if shared.stacks.are_roots() || !context.is_exact() {
        let frames = mutator.walk(scanner);
        scanner.scanned.frames += frames;
    }
    context.handles.begin_reading();
}

/// See `gc_preempt::MutatorHooks::back`.
///
/// # Safety
/// `data` is the context of the mutator, which is aside, with the registry lock held.
pub(crate) unsafe fn back(data: *mut (), mutator: &StoppedMutator<'_>) {
    // SAFETY: by the contract.
    let context = unsafe { &*data.cast::<Context>() };
    let shared = &*context.shared;
    // Relaxed: it changes in stops of the world only, so not while the registry lock is held.
    let marking = shared.marking.load(Ordering::Relaxed);
    if seam::writes_the_flag() {
        // Relaxed: the mutator's thread goes on after the registry lock is released.
        context.marking.store(marking, Ordering::Relaxed);
    }
    if marking != IDLE && seam::scans_at_its_return() {
        let mut marker = Marker::new(&shared.space, &shared.queue, &shared.weak);
        let mut scanner = Scanner::new(&shared.space, &shared.encodings, &mut marker, None);
        scan(shared, context, mutator, &mut scanner);
        scanner.finish();
        marker.publish();
        shared.log.overflow(marker.marked());
    }
    // A signal handler of the host may wait inside `blocking` that has interrupted a restart range
    // of the barrier. The range begins anew, since the flag may have changed.
    mutator.walk(&mut Unscanned);
}

mod seam {
    use crate::fault::Fault;

    /// Forgets the mutators whose threads have ended.
    pub(super) fn forgets_the_ended() -> bool {
        !Fault::AsideDeadKept.planted()
    }

    /// A mutator that is set aside gives its runs back.
    pub(super) fn gives_runs_back() -> bool {
        !Fault::IdleSpansKept.planted()
    }

    pub(super) fn scans() -> bool {
        !Fault::AsideUnscanned.planted()
    }

    pub(super) fn writes_the_flag() -> bool {
        !Fault::BackUnmarked.planted()
    }

    pub(super) fn scans_at_its_return() -> bool {
        !Fault::BackUnscanned.planted()
    }
}
