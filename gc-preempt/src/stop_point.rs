//! Decides where a thread may be stopped and how, and parks the thread.
//!
//! # The decision
//! The signal handler, a poll (the end of every `no_preempt` is one) and a thread that is about to
//! wait call [`may_stop`]. It returns how to stop ([`How`]), or the obstacle ([`Obstacle`]). The
//! thread's record keeps the last obstacle, and the watchdog names it.
//!
//! Why a stop there would be wrong:
//! * [`NoPreempt`](Obstacle::NoPreempt): the thread changes what the stopper reads, or holds a lock
//!   that the stopper takes. The end of the section polls.
//! * [`UnsafeCode`](Obstacle::UnsafeCode): no invariant of the code's owner holds there.
//! * [`ForeignStack`](Obstacle::ForeignStack): a walk would not find the frames of the thread,
//!   which runs neither on its own stack nor on a registered one that it was switched to by
//!   `switch.rs`.
//! * [`BehindHandler`](Obstacle::BehindHandler): the thread would go on in the middle of an unsafe
//!   range when the handler returns.
//!
//! For the last three the stopper signals again.
//!
//! A call is injected only if the handler runs on the thread's alternate stack. Elsewhere the
//! signal frame lies below the interrupted SP, and the frame of the call would overwrite it.
//!
//! # Handlers of the host
//! A thread may be in a handler of the host that has interrupted a restart range or an unsafe range
//! (see `walk/signal_frames.rs`). Only a walk of its stack finds that out. A thread that has a
//! signal blocked may be in such a handler. Or it belongs to a pool whose signals are always
//! blocked, and has a deep stack.
//!
//! * Before it acknowledges, the thread walks [`FRAMES`] frames. Most handlers are within so few,
//!   and time to stop does not grow with the depth of the stack.
//! * The frames further out are walked after the acknowledgement, beside the stop
//!   ([`acknowledge_and_park`]). That is early enough for restart ranges: the saved PC has to be
//!   moved before the thread goes on. The walks read the code map, so the stopper keeps the
//!   registry lock until they end.
//! * It would be too late for unsafe ranges. If any is registered, the whole walk comes before the
//!   acknowledgement.

use crate::arch::{self, SignalFrame};
use crate::code::{CODE, PcClass};
use crate::context::{Origin, Registers, Snapshot};
use crate::registry::Record;
use crate::signal_mask::SignalMask;
use crate::stop_number::{resumed, wait_for_resume};
use crate::walk::{self, BehindHandlers};
use crate::{acknowledgements, altstack, clock};
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, compiler_fence};

/// Frames that a thread with a blocked signal walks before it acknowledges a stop. More frames find
/// more handlers early, and make time to stop longer.
const FRAMES: u32 = 8;

/// Why a thread cannot be stopped where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Obstacle {
    /// It is inside `no_preempt`.
    NoPreempt = 1,
    /// Its PC lies in an unsafe range.
    UnsafeCode,
    /// Its SP does not lie on the stack that it is known to run on.
    ForeignStack,
    /// It is in a handler of the host's, which has interrupted an unsafe range.
    BehindHandler,
}

impl Obstacle {
    const ALL: [Self; 4] = [
        Self::NoPreempt,
        Self::UnsafeCode,
        Self::ForeignStack,
        Self::BehindHandler,
    ];

    /// Continues the watchdog's "It was met last".
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::NoPreempt => "inside no_preempt: sections must be short and must not wait",
            Self::UnsafeCode => {
                "in an unsafe code range: such ranges must be short and must not wait"
            }
            Self::ForeignStack => {
                "on a stack that is not its own and not registered (a coroutine's, or an alternate signal stack): \
                 register it, or enter `blocking` before such code runs for long"
            }
            Self::BehindHandler => {
                "in a signal handler that has interrupted an unsafe code range: keep such handlers short"
            }
        }
    }
}

impl Record {
    /// Keeps why the thread could not be stopped for stop `number`.
    pub(crate) fn note_obstacle(&self, number: u64, obstacle: Obstacle) {
        if seam::notes_reasons() {
            // Relaxed: the watchdog prints it, nothing depends on it.
            self.obstacle
                .store(number << 8 | obstacle as u64, Ordering::Relaxed);
        }
    }

    /// The last obstacle in the way of stop `number`.
    pub(crate) fn obstacle(&self, number: u64) -> Option<Obstacle> {
        let noted = self.obstacle.load(Ordering::Relaxed);
        Obstacle::ALL
            .into_iter()
            .find(|o| noted == number << 8 | *o as u64)
    }
}

/// A point at which a thread may stop.
pub(crate) enum StopPoint<'a> {
    /// A signal has interrupted the thread, for the stop of that number.
    Signal(SignalFrame, u64),
    /// The thread has called us, and would stop for the stop of that number.
    Call {
        number: u64,
        snapshot: &'a Snapshot,
        /// The signals that it has blocked.
        mask: u64,
        /// The thread is about to wait. It stops even in a handler that has interrupted an unsafe
        /// range, since it does not leave that handler before it waits.
        waits: bool,
    },
    /// The thread has called us, and would wait in `blocking`.
    Wait { sp: usize },
}

/// How a thread is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    /// It parks where it is.
    Park,
    /// It parks, and walks its own stack after it has acknowledged: see the head of this file.
    ParkAndWalk,
    /// A call to `async_preempt` is injected.
    Inject,
}

/// May the running thread, which is `record`'s, be stopped where it stands, and how?
///
/// If it may, every saved PC inside a restart range has been moved to the range's start, or the
/// walk that [`How::ParkAndWalk`] asks for moves it.
///
/// # Safety
/// On the record's own thread. The stop of the given number is under way, and the thread has not
/// answered it; or the signal mask is empty, and the code map does not change.
pub(crate) unsafe fn may_stop(record: &Record, point: &StopPoint<'_>) -> Result<How, Obstacle> {
    if record.depth.load(Ordering::Relaxed) != 0 {
        return Err(Obstacle::NoPreempt);
    }
    let (sp, place) = match point {
        StopPoint::Signal(frame, _) => {
            // SAFETY: the caller's contract.
            let place = unsafe { CODE.classify(frame.pc()) };
            (frame.sp(), place)
        }
        StopPoint::Call { snapshot, .. } => (snapshot.registers.sp(), PcClass::Native),
        StopPoint::Wait { sp } => (*sp, PcClass::Native),
    };
    if place == PcClass::Unsafe && seam::spares_unsafe_code() {
        return Err(Obstacle::UnsafeCode);
    }
    let on_alternate = match point {
        StopPoint::Signal(frame, _) => frame.alternate_stack().contains(&sp),
        StopPoint::Call { .. } => altstack::setting().ss_flags & libc::SS_ONSTACK != 0,
        StopPoint::Wait { .. } => false,
    };
    if seam::is_foreign(on_alternate, || record.holds(sp)) {
        return Err(Obstacle::ForeignStack);
    }
    match point {
        StopPoint::Signal(frame, number) => {
            if let PcClass::Restart { start } = place {
                seam::restart(*frame, start);
            }
            let mut how = How::Park;
            if frame.mask() != 0 {
                let snapshot = frame_snapshot(*frame);
                // SAFETY: the caller's contract.
                how = unsafe { look_behind_handlers(record, *number, &snapshot, false)? };
            }
            // SAFETY: the caller's contract.
            Ok(match unsafe { wants_injection(record, *frame) } {
                true => How::Inject,
                false => how,
            })
        }
        StopPoint::Call {
            number,
            snapshot,
            mask,
            waits,
        } => match *mask {
            0 => Ok(How::Park),
            // SAFETY: the caller's contract.
            _ => unsafe { look_behind_handlers(record, *number, snapshot, *waits) },
        },
        StopPoint::Wait { .. } => Ok(How::Park),
    }
}

/// Looks for handlers of the host, and says how to stop in view of them.
///
/// # Safety
/// As for [`may_stop`]. The snapshot is the running thread's.
unsafe fn look_behind_handlers(
    record: &Record,
    number: u64,
    snapshot: &Snapshot,
    waits: bool,
) -> Result<How, Obstacle> {
    if seam::ignores_handlers() {
        return Ok(How::Park);
    }
    let walk_first = CODE.any_unsafe() && !waits || seam::walks_all_first();
    let most = if walk_first { u32::MAX } else { FRAMES };
    // SAFETY: the caller's contract.
    match unsafe {
        walk::move_handlers_out_of_restart_ranges(&CODE, number, snapshot, record.frames(), most)
    } {
        BehindHandlers::Moved => Ok(How::Park),
        BehindHandlers::Unsafe if waits => Ok(How::ParkAndWalk),
        BehindHandlers::Unsafe => Err(Obstacle::BehindHandler),
        BehindHandlers::TooDeep => Ok(seam::on_deep_stacks()),
    }
}

/// Does a stop of the thread inject a call?
///
/// # Safety
/// As for [`may_stop`].
unsafe fn wants_injection(record: &Record, frame: SignalFrame) -> bool {
    let wants = record.inject.load(Ordering::Relaxed) != 0
        || record.stop_hook.is_set()
        || wants_preemption(record);
    // SAFETY: the caller's contract.
    wants && unsafe { may_inject(record, frame) }
}

/// Is the thread to be preempted, and has it a hook for that?
pub(crate) fn wants_preemption(record: &Record) -> bool {
    // SeqCst pairs with the requester's, see `preempt.rs`.
    record.preempt_wanted.load(Ordering::SeqCst) && record.preempt_hook.is_set()
}

/// May a call be injected where the signal has interrupted the thread?
///
/// # Safety
/// The code map does not change, as for [`CodeMap::managed`](crate::code::CodeMap::managed).
unsafe fn may_inject(record: &Record, frame: SignalFrame) -> bool {
    // SAFETY: the caller's contract.
    unsafe { CODE.managed(frame.pc()) }.is_some()
        && seam::has_room(record, frame)
        && seam::is_on_alternate(record, frame)
}

/// May the thread, which no stop asks for, be preempted where the signal has interrupted it? If it
/// may, a PC inside a restart range has been moved to the range's start.
///
/// The answer is no while the code map changes. It is no, too, while the thread has any signal
/// blocked: the thread may be in a handler of the host's, which the hook must not leave.
pub(crate) fn may_preempt(record: &Record, frame: SignalFrame) -> bool {
    let Some(_reading) = CODE.read() else {
        return false;
    };
    // With an empty mask `may_stop` walks no frames, and needs no stop's number.
    frame.mask() == 0
        // SAFETY: on the record's own thread. `_reading` keeps the code map as it is.
        && unsafe { may_stop(record, &StopPoint::Signal(frame, 0)).is_ok() }
        // SAFETY: as above.
        && unsafe { may_inject(record, frame) }
}

/// The state of the thread that a signal has interrupted.
pub(crate) fn frame_snapshot(frame: SignalFrame) -> Snapshot {
    Snapshot {
        registers: frame.registers(),
        vectors: seam::vectors(frame),
        origin: Origin::Signal,
    }
}

/// Parks the thread until the stop that it acknowledged, and every later one that took it over, has
/// been resumed. Async-signal-safe.
pub(crate) fn park_stopped(record: &Record) {
    while let Err(number) = record.state.leave_stopped(resumed) {
        wait_for_resume(number);
    }
}

/// Acknowledges stop `number` with that snapshot. False if there was nothing to acknowledge.
///
/// # Safety
/// On the record's own thread, with every signal but the synchronous faults blocked. The snapshot
/// is true until the thread has parked.
unsafe fn acknowledge(record: &Record, number: u64, snapshot: Snapshot) -> bool {
    // SAFETY: the thread has not acknowledged `number` yet, so no stopper reads the snapshot.
    unsafe { record.publish(snapshot) };
    let acknowledged = record.state.acknowledge(number);
    if acknowledged {
        acknowledgements::done();
    }
    acknowledged
}

/// Acknowledges stop `number` with that snapshot, and parks.
///
/// # Safety
/// On the record's own thread, with every signal but the synchronous faults blocked, and `snapshot`
/// true until this returns.
pub(crate) unsafe fn acknowledge_and_park(record: &Record, number: u64, snapshot: Snapshot) {
    // SAFETY: the caller's contract.
    if unsafe { acknowledge(record, number, snapshot) } {
        park_stopped(record);
    }
}

/// Acknowledges stop `number` with that snapshot, moves handlers out of restart ranges on the whole
/// stack while the stop goes on, and parks.
///
/// # Safety
/// As for [`acknowledge_and_park`].
pub(crate) unsafe fn acknowledge_walk_and_park(record: &Record, number: u64, snapshot: Snapshot) {
    acknowledgements::begin_walk();
    // SAFETY: the caller's contract.
    let acknowledged = unsafe { acknowledge(record, number, snapshot) };
    if acknowledged {
        // SAFETY: the thread's own stack. The stopper holds the registry lock until `end_walk`.
        unsafe {
            walk::move_handlers_out_of_restart_ranges(
                &CODE,
                number,
                record.snapshot(),
                record.frames(),
                u32::MAX,
            );
        }
    }
    acknowledgements::end_walk();
    if acknowledged {
        park_stopped(record);
    }
}

/// Stops a thread that polls, for every live stop that asks for it. In a handler that has
/// interrupted an unsafe range the thread goes on.
#[cold]
fn stop_at_poll(record: &'static Record) {
    stop_called(record, false);
}

/// Stops a thread that is about to wait, for every live stop that asks for it.
#[cold]
pub(crate) fn stop_before_waiting(record: &'static Record) {
    stop_called(record, true);
}

fn stop_called(record: &'static Record, waits: bool) {
    struct Call {
        record: &'static Record,
        waits: bool,
    }
    extern "C-unwind" fn at_call(data: *mut (), sp: usize, fp: usize, pc: usize) {
        // SAFETY: `stop_called` passes its own Call, alive until this returns.
        let &Call { record, waits } = unsafe { &*data.cast::<Call>() };
        let mask = SignalMask::all_but_faults();
        loop {
            let word = record.state.load();
            let number = word.number();
            if !word.asked() || resumed() >= number {
                return;
            }
            let from = clock::now();
            let snapshot = at_call_snapshot(sp, fp, pc);
            let point = StopPoint::Call {
                number,
                snapshot: &snapshot,
                mask: mask.before(),
                waits,
            };
            // SAFETY: own thread and stack; the stop that asks is under way, since the word still
            // says so.
            match unsafe { may_stop(record, &point) } {
                // SAFETY: own thread, signals blocked by `mask`; the snapshot names this call's
                // frame, which stays until we return.
                Ok(How::ParkAndWalk) => unsafe {
                    acknowledge_walk_and_park(record, number, snapshot);
                },
                // SAFETY: as above. No call is injected into a thread that has called us.
                Ok(How::Park | How::Inject) => unsafe {
                    acknowledge_and_park(record, number, snapshot);
                },
                Err(obstacle) => {
                    // The stopper signals until the thread has left that place.
                    record.note_obstacle(number, obstacle);
                    record.state.undefer();
                    acknowledgements::retry();
                    return;
                }
            }
            record.note_stall(number, from);
        }
    }
    let call = Call { record, waits };
    arch::call_spilled(at_call, core::ptr::from_ref(&call).cast_mut().cast());
}

/// The snapshot of a thread that has called us, from a frame of `arch::call_spilled`.
pub(crate) fn at_call_snapshot(sp: usize, fp: usize, pc: usize) -> Snapshot {
    Snapshot {
        registers: Registers::at_call(sp, fp, pc),
        vectors: 0..0,
        origin: Origin::Call,
    }
}

/// Stops if a stop asks for it. The end of every `no_preempt`, and `Mutator::poll`.
#[inline]
pub(crate) fn poll(record: &'static Record) {
    if record.state.load().asked() {
        stop_at_poll(record);
    }
}

/// A section in which the thread is not stopped. See
/// [`Mutator::no_preempt_guard`](crate::Mutator::no_preempt_guard).
pub struct NoPreempt<'m> {
    record: &'static Record,
    _of_a_mutator: PhantomData<(&'m (), *mut ())>,
}

impl NoPreempt<'_> {
    /// On the record's own thread.
    #[inline]
    pub(crate) fn on(record: &'static Record) -> Self {
        let depth = record.depth.load(Ordering::Relaxed);
        // Relaxed with a compiler fence: only this thread's own signal handler reads it, and it
        // sees this thread's stores in program order.
        record.depth.store(depth + 1, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        NoPreempt {
            record,
            _of_a_mutator: PhantomData,
        }
    }
}

impl NoPreempt<'_> {
    /// The guard of a section that was begun on this thread and forgotten.
    ///
    /// # Safety
    /// On the record's own thread. The result is the only guard of that section.
    #[inline]
    pub(crate) unsafe fn resumed(record: &'static Record) -> Self {
        NoPreempt {
            record,
            _of_a_mutator: PhantomData,
        }
    }
}

impl Drop for NoPreempt<'_> {
    #[inline]
    fn drop(&mut self) {
        // First the depth, then the poll: a handler that runs between the two stops the thread
        // itself, and a handler before them has set PENDING.
        compiler_fence(Ordering::SeqCst);
        let depth = self.record.depth.load(Ordering::Relaxed) - 1;
        self.record.depth.store(depth, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if depth == 0 {
            poll(self.record);
        }
    }
}

/// What tests may break here.
mod seam {
    use core::ops::Range;

    use super::How;
    use crate::arch::{self, SignalFrame};
    use crate::faults::Fault;
    use crate::registry::Record;

    pub(super) fn notes_reasons() -> bool {
        !Fault::NoReason.planted()
    }

    pub(super) fn spares_unsafe_code() -> bool {
        !Fault::NoUnsafeRanges.planted()
    }

    /// Does the thread stand on its alternate stack, or on another that is not its own?
    pub(super) fn is_foreign(on_alternate: bool, on_its_own: impl FnOnce() -> bool) -> bool {
        let is_foreign = on_alternate && !Fault::NoAlternateCheck.planted() || !on_its_own();
        is_foreign && !Fault::NoStackCheck.planted()
    }

    pub(super) fn restart(frame: SignalFrame, start: usize) {
        if !Fault::NoRestart.planted() {
            frame.set_pc(start);
        }
    }

    pub(super) fn ignores_handlers() -> bool {
        Fault::HandlersUnmoved.planted()
    }

    pub(super) fn walks_all_first() -> bool {
        Fault::WholeWalkFirst.planted()
    }

    pub(super) fn on_deep_stacks() -> How {
        if Fault::DeepHandlersUnmoved.planted() {
            How::Park
        } else {
            How::ParkAndWalk
        }
    }

    /// Is there room for an injected call and its hook below the interrupted frame?
    pub(super) fn has_room(record: &Record, frame: SignalFrame) -> bool {
        record.room_below(frame.sp()) > arch::injection_room() + 32 * 1024
            || Fault::NoRoomCheck.planted()
    }

    /// Does the handler run on the thread's alternate stack? Elsewhere an injected call would be
    /// written over the signal frame.
    pub(super) fn is_on_alternate(record: &Record, frame: SignalFrame) -> bool {
        record.alternate().is_some_and(|s| s.holds(frame.address()))
            || Fault::InjectsAnywhere.planted()
    }

    pub(super) fn vectors(frame: SignalFrame) -> Range<usize> {
        if Fault::NoVectors.planted() {
            0..0
        } else {
            frame.vectors()
        }
    }
}
