//! Suspended stacks: the heap's part of `gc-preempt`'s `Stack`.
//!
//! A coroutine that is suspended has references on its stack, and no thread runs there. A program
//! has a hundred thousand of them, so a stop must not look at each.
//!
//! # Why a suspended stack may be scanned after stop 1
//! The world has a stack *epoch*, and each stack has the epoch in which it was last scanned. If
//! stop 1 leaves suspended stacks unscanned, it raises the epoch ([`begin`]). From then on:
//!
//! * A stack that a thread runs on, or has left for another one that it resumed, is scanned in
//!   stop 1 with its thread. It counts as scanned in the new epoch when it is suspended.
//! * A stack that was suspended in stop 1 does not run before it is scanned: `gc-preempt` resumes
//!   it only if its epoch is the world's, and otherwise calls [`before_resume`] first, with the
//!   registry lock held. So at its scan it holds the words that it held in stop 1.
//! * The collector scans all others beside the mutators, in pieces under the registry lock
//!   ([`scan_piece`]), before marking can end. [`before_resume`] hands its cells to the queue
//!   before it lets the lock go, so they are there when the last piece is done.
//! * What a stack gets after its scan needs none: it was reachable in stop 1 and is in the
//!   snapshot, or was logged by the barrier, or was allocated black. The same holds for a stack
//!   that is registered or started later.
//!
//! One thing the collector cannot see: another thread that overwrites a reference in the memory of
//! a suspended stack. `Heap::register_stack` forbids it, or asks for the barrier there.
//!
//! A heap that marks in a stop, and a heap with a verifier, scan all suspended stacks in stop 1.
//! Few stacks are scanned in the stop, too (`beside.rs`). Such a stop keeps the epoch. A young
//! collection scans all of them, as a full one does.
//!
//! # Exact heaps
//! In a heap whose stacks are not roots a suspended stack holds no bare cell: no function of the
//! safe tier suspends in a window, and handles name all other cells. The handle table belongs to
//! the mutator, not to the stack, and its scopes may end in any order. A coroutine that is
//! suspended inside of a value's `Drop` holds that value, so while any `Drop` runs, suspended
//! stacks are scanned as roots.
//!
//! # Restart ranges
//! A hook may suspend a stack while a host's handler on it has interrupted a restart range of the
//! barrier. Each scan walks the stack, and so moves the handler's return to the range's first
//! instruction, also where no word is scanned. So the range reads the marking flag again before its
//! stack runs in a new cycle. For an allocation's range that is too late: another coroutine of the
//! mutator has moved the cursor. So `coroutine.rs` forbids handlers that suspend what they have
//! interrupted.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use gc_preempt::{StackHooks, Stopped, SuspendedStack};

use crate::mark::Marker;
use crate::mutator::shared::Shared;
use crate::roots::{Scanner, Unscanned};
use crate::verify::Source;
use crate::weak::MARKING;

/// Stacks that are scanned under one registry lock: some ten microseconds, for which attaching
/// threads and other heaps' stops wait.
const PIECE: usize = 16;

/// In stop 1, which leaves suspended stacks to be scanned later: raises the epoch.
pub(super) fn begin(stopped: &Stopped<'_>) {
    if seam::raises_the_epoch() {
        stopped.begin_stack_epoch();
    }
}

/// Scans some of the suspended stacks that have not been scanned in this cycle, below place `from`.
/// Counts them. Returns the place to go on at. Not in a stop.
pub(super) fn scan_piece(
    shared: &Shared,
    from: usize,
    scanner: &mut Scanner<'_, '_>,
    count: &mut u32,
) -> Option<usize> {
    seam::hold();
    shared.world.for_each_suspended(from, PIECE, |stack| {
        *count += 1;
        if seam::scans() {
            scan(shared, stack, scanner);
        }
    })
}

/// Scans all suspended stacks that have not been scanned in this cycle, in a stop. Counts them.
/// Returns `None`, as at the end of a pass.
pub(super) fn scan_all(
    shared: &Shared,
    stopped: &Stopped<'_>,
    scanner: &mut Scanner<'_, '_>,
    count: &mut u32,
) -> Option<usize> {
    for (number, stack) in stopped.suspended().enumerate() {
        *count += 1;
        scanner.source(Source::Suspended(number));
        if seam::scans() {
            scan(shared, &stack, scanner);
        }
    }
    None
}

/// Scans one suspended stack. In a stop, or with the registry lock held.
fn scan(shared: &Shared, stack: &SuspendedStack<'_>, scanner: &mut Scanner<'_, '_>) {
    let holds_cells = shared.stacks.are_roots() || seam::may_drop(&shared.dying);
    let frames = if holds_cells {
        stack.walk(scanner)
    } else {
        stack.walk(&mut Unscanned)
    };
    scanner.scanned.frames += frames;
}

/// The hooks of a heap's world.
pub(crate) fn hooks(shared: &Arc<Shared>) -> StackHooks {
    StackHooks {
        before_resume,
        data: Arc::as_ptr(shared).cast_mut().cast(),
    }
}

/// Runs before a stack is resumed that has not been scanned in the present epoch.
///
/// # Safety
/// `data` is the heap's [`Shared`], and the registry lock is held.
unsafe fn before_resume(data: *mut (), stack: &SuspendedStack<'_>) {
    // SAFETY: by the contract.
    let shared = unsafe { &*data.cast_const().cast::<Shared>() };
    // Relaxed: it changes in stops of the world only, so not while the registry lock is held. In
    // the later modes every stack has been scanned, and marks must not change.
    if shared.marking.load(Ordering::Relaxed) != MARKING || !seam::scans_at_its_resume() {
        stack.walk(&mut Unscanned);
        return;
    }
    let mut marker = Marker::new(&shared.space, &shared.queue, &shared.weak);
    let mut scanner = Scanner::new(&shared.space, &shared.encodings, &mut marker, None);
    scan(shared, stack, &mut scanner);
    scanner.finish();
    marker.publish();
    shared.log.overflow(marker.marked());
    // Relaxed: a count.
    shared.stacks_resumed.fetch_add(1, Ordering::Relaxed);
}

mod seam {
    use crate::dying::Dying;
    use crate::fault::Fault;

    /// May a suspended stack be inside of a value's `Drop`?
    pub(super) fn may_drop(dying: &Dying) -> bool {
        !dying.is_empty() && !Fault::SuspendedDropUnscanned.planted()
    }

    pub(super) fn raises_the_epoch() -> bool {
        !Fault::EpochKept.planted()
    }

    pub(super) fn scans() -> bool {
        !Fault::SuspendedUnscanned.planted()
    }

    pub(super) fn scans_at_its_resume() -> bool {
        !Fault::ResumeUnscanned.planted()
    }

    /// Not a planted fault: stacks are resumed before the collector comes to them.
    pub(super) fn hold() {
        if Fault::HeldSuspended.planted() {
            gc_preempt::faults::hold();
        }
    }
}
