//! The phase BLOCKED: a stop does not wait for a thread in it. Mutators wait for the registry lock
//! so.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::arch;
use crate::members;
use crate::registry::{self, Record, RegistryGuard};
use crate::signal_mask::SignalMask;
use crate::state::{Kept, Phase};
use crate::stop_number::{resumed, wait_for_resume};
use crate::stop_point::{Obstacle, StopPoint, at_call_snapshot, may_stop, stop_before_waiting};
use crate::stopper::{HoldsAStop, holds_a_stop};

/// Waits until no signal of ours is on its way to this thread: it would interrupt a system call of
/// the embedder (H5).
///
/// The signal arrives at the latest when the thread next returns from the kernel. The loop is
/// bounded for a thread that blocks SIGURG. False: one is on its way all the same.
fn drain_signals(record: &Record) -> bool {
    for _ in 0..1000 {
        if record.in_flight.load(Ordering::Relaxed) == 0 {
            return true;
        }
        // SAFETY: no arguments, no memory.
        unsafe { libc::sched_yield() };
    }
    false
}

/// Could the running thread wait in [`blocked`] here?
#[inline]
pub(crate) fn may_wait(record: &Record) -> Result<(), Obstacle> {
    let here = 0u8;
    let point = StopPoint::Wait {
        sp: &raw const here as usize,
    };
    // SAFETY: on the record's own thread, by the callers. `Wait` names no stop.
    unsafe { may_stop(record, &point) }.map(drop)
}

/// Runs `f` in BLOCKED, with the registers spilled and the stack pointer published. A stopper does
/// not wait for the thread, and does not signal it.
///
/// # Panics
/// Inside `no_preempt`, and on a stack that is neither the thread's own nor
/// registered.
#[track_caller]
pub(crate) fn blocked<R>(record: &'static Record, f: impl FnOnce() -> R) -> R {
    if record.state.load().phase() == Phase::Blocked && record.depth.load(Ordering::Relaxed) == 0 {
        return f();
    }
    match may_wait(record) {
        Ok(()) => {}
        Err(Obstacle::NoPreempt) => {
            panic!("blocking inside no_preempt: a stop could wait for this thread for ever")
        }
        Err(_) => {
            panic!(
                "blocking on a stack that is neither the thread's own nor registered: it would not be scanned"
            )
        }
    }
    struct Call<F, R> {
        record: &'static Record,
        f: Option<F>,
        result: Option<R>,
    }
    /// Leaves BLOCKED however the closure ends: by a return, by a panic, or by an unwinding that is
    /// not Rust's and must not be caught, such as `pthread_exit`'s.
    struct Leave(&'static Record);
    impl Drop for Leave {
        fn drop(&mut self) {
            let record = self.0;
            if record.state.leave_blocked(resumed).is_err() {
                let _mask = SignalMask::all_but_faults();
                while let Err(kept) = record.state.leave_blocked(resumed) {
                    match kept {
                        Kept::Stop(number) => wait_for_resume(number),
                        Kept::Aside => members::come_back(record),
                    }
                }
            }
            // Relaxed: only this thread writes it, and the swap that enters BLOCKED publishes it.
            let returns = record.returns.load(Ordering::Relaxed);
            record
                .returns
                .store(returns.wrapping_add(1), Ordering::Relaxed);
        }
    }
    extern "C-unwind" fn enter<F: FnOnce() -> R, R>(
        data: *mut (),
        sp: usize,
        fp: usize,
        pc: usize,
    ) {
        // SAFETY: `blocked` passes its own Call of these very types, alive until it returns.
        let call = unsafe { &mut *data.cast::<Call<F, R>>() };
        let record = call.record;
        // A walk reads from this SP on, which may lie on a lower page than the address that
        // `may_wait` has checked.
        record.holds(sp);
        loop {
            let drained = drain_signals(record);
            // As inside no_preempt: a handler that parked between `publish` and `enter_blocked`
            // would overwrite the snapshot.
            record.depth.store(seam::depth(), Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            // SAFETY: own thread, RUNNING and not acknowledged: no stopper reads the snapshot.
            unsafe { record.publish(at_call_snapshot(sp, fp, pc)) };
            seam::delay();
            let entered = record.state.enter_blocked(resumed);
            compiler_fence(Ordering::SeqCst);
            record.depth.store(0, Ordering::Relaxed);
            if entered.is_ok() {
                // A request to preempt the thread may have been sent before the thread was BLOCKED.
                // SeqCst pairs with the requester's: one of the two sees the other's store.
                if !drained || record.in_flight.load(Ordering::SeqCst) == 0 {
                    break;
                }
                drop(Leave(record));
                continue;
            }
            compiler_fence(Ordering::SeqCst);
            stop_before_waiting(record);
        }
        let _leave = Leave(record);
        if let Some(f) = call.f.take() {
            call.result = Some(seam::run(f));
        }
    }
    fn entry<F: FnOnce() -> R, R>(
        _: &Call<F, R>,
    ) -> extern "C-unwind" fn(*mut (), usize, usize, usize) {
        enter::<F, R>
    }
    let mut call = Call {
        record,
        f: Some(f),
        result: None,
    };
    arch::call_spilled(entry(&call), (&raw mut call).cast());
    match call.result {
        Some(result) => result,
        None => unreachable!("enter runs f"),
    }
}

/// Takes the registry lock. A mutator waits for it in BLOCKED, so that a stop that holds the lock
/// can complete.
///
/// # Errors
/// [`HoldsAStop`]: the thread holds the lock with its stop.
///
/// # Panics
/// Inside `no_preempt`, if the lock is not free: waiting there could deadlock with a stop.
pub(crate) fn lock() -> Result<RegistryGuard, HoldsAStop> {
    // A mutator is not stopped while it holds the lock: a stopper needs the lock to ask.
    if let Some(guard) = registry::try_lock() {
        return Ok(guard);
    }
    if holds_a_stop() && seam::knows_the_stopper() {
        return Err(HoldsAStop);
    }
    Ok(match registry::current() {
        Some(record) => {
            let _awaits = Awaits::new(record);
            blocked(record, registry::lock_blocked)
        }
        None => registry::lock_blocked(),
    })
}

/// Says in the record that the thread waits for the registry lock, until it is dropped.
struct Awaits(&'static Record);

impl Awaits {
    fn new(record: &'static Record) -> Self {
        // Relaxed: the Release of the swap that enters BLOCKED publishes it.
        record.awaits_registry.store(true, Ordering::Relaxed);
        Self(record)
    }
}

impl Drop for Awaits {
    fn drop(&mut self) {
        self.0.awaits_registry.store(false, Ordering::Relaxed);
    }
}

/// What tests may break here.
mod seam {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use crate::faults::{Delay, Fault};
    use crate::park;

    /// The depth of `no_preempt` while the thread enters BLOCKED.
    pub(super) fn depth() -> u32 {
        u32::from(!Fault::NoBlockingSection.planted())
    }

    pub(super) fn delay() {
        if Delay::SlowBlocking.planted() {
            for _ in 0..2_000 {
                park::spin_hint();
            }
        }
    }

    /// Runs `f`, whose unwinding nothing catches.
    #[inline(always)]
    pub(super) fn run<R>(f: impl FnOnce() -> R) -> R {
        if !Fault::Caught.planted() {
            return f();
        }
        match catch_unwind(AssertUnwindSafe(f)) {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }

    pub(super) fn knows_the_stopper() -> bool {
        !Fault::WaitsForItself.planted()
    }
}
