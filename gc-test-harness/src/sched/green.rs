//! One green thread: its stack, and how it waits.
//!
//! # Waiting
//! A green thread that has to wait (for a message, for a time) parks. The thread that makes the
//! wait unnecessary unparks it. `permit` makes the two meet:
//!
//! ```text
//! EMPTY    --the worker, after the stack was suspended-->  PARKED   in no queue
//! EMPTY    --unpark-->                                     NOTIFIED the next park returns at once
//! PARKED   --unpark-->                                     EMPTY    back in a queue
//! ```
//!
//! The worker makes the step to PARKED when the stack has been left, so no worker resumes a stack
//! that is still in use. A park may return without reason: callers look again in a loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use gc_preempt::{Resumed, Stack, StackError};

const EMPTY: u32 = 0;
const PARKED: u32 = 1;
const NOTIFIED: u32 = 2;

/// A green thread.
pub struct Green {
    stack: Stack,
    permit: AtomicU32,
    /// It waits for an unpark. Written by the green thread before it suspends itself, read by its
    /// worker after that.
    parks: AtomicBool,
    /// How often it was preempted. Written by itself.
    preemptions: AtomicU64,
    /// The worker that runs it. Written by the worker, read by the green thread on it.
    worker: AtomicPtr<()>,
}

impl Green {
    /// A green thread on a stack that [`Stack::start`] has prepared.
    pub(super) fn new(stack: Stack) -> Arc<Green> {
        let green = Arc::new(Green {
            stack,
            permit: AtomicU32::new(EMPTY),
            parks: AtomicBool::new(false),
            preemptions: AtomicU64::new(0),
            worker: AtomicPtr::new(std::ptr::null_mut()),
        });
        green.stack.set_data(Arc::as_ptr(&green).cast_mut().cast());
        green
    }

    /// The green thread that the calling code runs on.
    pub(super) fn here() -> Option<Arc<Green>> {
        let green = gc_preempt::data_here()?.cast::<Green>().cast_const();
        if green.is_null() {
            return None;
        }
        // SAFETY: `new` has set the data of its own stack, and the worker that runs the stack holds
        // a count.
        unsafe {
            Arc::increment_strong_count(green);
            Some(Arc::from_raw(green))
        }
    }

    /// Calls `f` with the running green thread and the worker that runs it.
    pub(super) fn with_here<R>(f: impl FnOnce(&Green, *mut ()) -> R) -> Option<R> {
        let green = gc_preempt::data_here()?.cast::<Green>().cast_const();
        // SAFETY: as in `here`; the worker holds its count while this code runs on it.
        let green = unsafe { green.as_ref()? };
        Some(f(green, green.worker.load(Ordering::Relaxed)))
    }

    /// How often it was preempted so far.
    pub fn preemptions(&self) -> u64 {
        // Relaxed, here and below: a count.
        self.preemptions.load(Ordering::Relaxed)
    }

    /// It is preempted. On the green thread.
    pub(super) fn is_preempted(&self) {
        self.preemptions.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that it suspends itself next to wait for an unpark. On the green thread.
    pub(super) fn parks(&self) {
        // Relaxed, here and below: its worker reads it, which is this thread.
        self.parks.store(true, Ordering::Relaxed);
    }

    /// Has it suspended itself to wait for an unpark? Otherwise it has yielded, or was preempted.
    /// On its worker, once after each suspension.
    pub(super) fn has_parked(&self) -> bool {
        let parks = self.parks.load(Ordering::Relaxed);
        if parks {
            self.parks.store(false, Ordering::Relaxed);
        }
        parks
    }

    /// Runs it on that worker until it suspends itself or ends.
    #[inline]
    pub(super) fn resume(&self, worker: *mut ()) -> Result<Resumed, StackError> {
        self.worker.store(worker, Ordering::Relaxed);
        self.stack.resume()
    }

    /// Takes it out of the queues, after it has suspended itself to park. False: it has been
    /// unparked meanwhile, and is to run.
    pub(super) fn parked(&self) -> bool {
        // Acquire and Release pair with `unparked`'s: what was done before an unpark is seen after
        // the park, and the stack's state by the worker that resumes it.
        let parked =
            self.permit
                .compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire);
        if parked.is_err() {
            self.permit.store(EMPTY, Ordering::Relaxed);
        }
        parked.is_ok()
    }

    /// Gives it a permit. True: it was parked, and the caller puts it into a queue.
    pub(super) fn unparked(&self) -> bool {
        // See `parked`.
        let step = self
            .permit
            .try_update(Ordering::AcqRel, Ordering::Acquire, |permit| {
                Some(if permit == PARKED { EMPTY } else { NOTIFIED })
            });
        step == Ok(PARKED)
    }
}
