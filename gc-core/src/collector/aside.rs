//! Mutators that wait in `blocking` for long, which stops pass over: the heap's part of
//! `gc-preempt`'s `World::set_aside`.
//!
//! What a stop does for a mutator is this: it takes its counts and its log, blackens the rests of
//! its runs, scans its stack and notes its handles, and writes the marking flag into its record.
//! None of it is needed in the stop where a mutator stands still from one collection to the next:
//!
//! * When it is set aside, after a collection, it has reported its counts, its log is empty, and it
//!   gives back its runs. While it is aside it has none.
//! * Its stack and its handles are scanned beside the mutators that run, before marking can end.
//!   They still hold what they held in stop 1, since it stands still, or a root does that was made
//!   since (`Roots::snapshot`).
//! * When it is taken back, [`back`] writes the flag. If the present cycle has not scanned it yet,
//!   `back` does that first. So by the time it runs it is as if stop 1 had met it.
//!
//! All three happen with the registry lock held, so none of them falls into a stop or meets
//! another.

use core::sync::atomic::Ordering;

use gc_preempt::{Stopped, StoppedMutator};

use crate::fault::{Fault, planted};
use crate::mark::Marker;
use crate::mutator::record::{Context, context_of};
use crate::mutator::shared::Shared;
use crate::roots::{Scanner, Unscanned};
use crate::weak::IDLE;

/// Mutators that are scanned under one registry lock: some ten microseconds, for which attaching
/// and other heaps' stops wait.
const PIECE: usize = 16;

/// Mutators that are looked at for their threads' ends under one lock.
const BURIED: usize = 256;

/// Sites that a mutator may give back when it is set aside: some of them do so under one registry
/// lock. One with more stays where it is until stops have taken them (`alloc/review.rs`).
const SITES: usize = 128;

/// After a collection: sets the mutators aside that were in `blocking` when the last one ended,
/// and have been since. True: memory of their handle tables is to be given back.
pub(super) fn set_aside(shared: &Shared) -> bool {
    // Where those that are aside were scanned in the stop, nothing has told of threads that
    // have ended.
    let mut from = Some(usize::MAX);
    while let Some(at) = from.filter(|_| !planted(Fault::AsideUnburied)) {
        from = shared.world.for_each_aside(at, BURIED, |_| ());
    }
    let mut lowered = false;
    let may = |mutator: &StoppedMutator<'_>| {
        let Some(context) = context_of(mutator) else {
            return false;
        };
        if planted(Fault::IdleSpansKept) {
            return false;
        }
        // Relaxed: its thread stands still. A record without a place is not met by what reads
        // handles beside the mutators.
        let may = !context.is_busy.load(Ordering::Relaxed)
            && context.place.get() != usize::MAX
            && context.local.sites_listed() <= SITES;
        if may {
            context.local.retire(&shared.space);
            lowered |= context.handles.lower();
        }
        may
    };
    // SAFETY: this is between two collections, so what a stop would take of a mutator is its
    // runs, its counts and its claim, which `retire` gives back, and its log is empty. Its
    // stack and handles are scanned by `scan`, and its flag is brought up to date by `back`.
    unsafe { shared.world.set_aside(may) };
    lowered
}

/// Scans some of those that are aside, below place `from`; where to go on. Not in a stop.
pub(super) fn scan_piece(
    shared: &Shared,
    from: usize,
    scanner: &mut Scanner<'_, '_>,
) -> Option<usize> {
    shared.world.for_each_aside(from, PIECE, |mutator| {
        if let Some(context) = context_of(mutator)
            && !planted(Fault::AsideUnscanned)
        {
            scan(shared, context, mutator, scanner);
        }
    })
}

/// Scans all of them, in a stop. `None`, as where a pass ends.
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

/// Scans the stack of one that is aside, and has its handles read with those of all others, unless
/// that was done in this cycle. With the registry lock held.
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
    // Relaxed: changes in stops of the world, so not while the registry lock is held.
    let marking = shared.marking.load(Ordering::Relaxed);
    if !planted(Fault::BackUnmarked) {
        // Relaxed: its own thread goes on after the registry lock was given back.
        context.marking.store(marking, Ordering::Relaxed);
    }
    if marking != IDLE && !planted(Fault::BackUnscanned) {
        let mut marker = Marker::new(&shared.space, &shared.queue, &shared.weak);
        let mut scanner = Scanner::new(&shared.space, &shared.encodings, &mut marker, None);
        scan(shared, context, mutator, &mut scanner);
        scanner.finish();
        marker.publish();
        shared.log.overflow(marker.marked());
    }
    // A unit of the barrier that a handler of the host's has interrupted, and that handler waits:
    // the unit begins anew, for the flag may have changed.
    mutator.walk(&mut Unscanned);
}
