//! Requests to preempt one thread without stopping the world.
//!
//! A scheduler wants a thread to run something else: its [`PreemptHook`] runs, as if the
//! interrupted instruction had called it, and may switch to another stack. [`Preempter::preempt`]
//! marks the thread's record and sends one SIGURG. The handler decides by the rules of a stop
//! (`stop_point.rs`), and injects a call where the thread is in managed code.
//!
//! Invariants:
//! * **A request is a mark.** It stays until the hook runs or the thread takes it
//!   ([`take_preempt_request_here`]). Where the thread cannot be preempted (in native code, in an
//!   unsafe range, in `no_preempt`, in a handler of the host's) nothing else happens. The requester
//!   may ask again, and native code may look at the mark.
//! * **A request acknowledges nothing.** Its injected call has no stop's number. From the injection
//!   until the trampoline has saved all registers the thread counts as inside `no_preempt`. A stop
//!   that asks meanwhile is deferred, and the trampoline polls.
//! * **A stop serves a request.** A stop that meets a marked thread in managed code injects its
//!   call, and the hook runs after the stop.
//! * **The thread is the one that was meant.** The requester holds the registry lock, under which
//!   records change hands, and compares the record's generation. So no stop is under way, and no
//!   stopper signals the thread at the same time.
//! * **A blocked thread gets no signal.** The requester announces its signal (`in_flight`) and then
//!   looks at the phase. A thread that blocks changes its phase and then looks at `in_flight`. In
//!   the total order of these four accesses at least one side sees the other: the requester sends
//!   nothing, or the thread waits for the signal before it runs its embedder's code.
//! * **The code map does not change while the handler reads it** (`code/readers.rs`): the requester
//!   may have given the registry lock back by then.
//! * **A signal in flight serves a request.** The handler clears `in_flight` before it looks at the
//!   mark. The requester marks before it looks at `in_flight`.
//!
//! After a hook that has switched stacks, the frames below it may go on on another thread. So the
//! trampoline touches no record after the hook.

use core::sync::atomic::Ordering;

use crate::blocking::lock;
use crate::hook::HookFn;
use crate::mutator::Mutator;
use crate::registry::{self, Record};
use crate::state::Phase;
use crate::{handler, signal};

/// A function that a thread runs when it is preempted by a [`Preempter`].
///
/// It runs on the mutator's own stack as if the interrupted instruction had called it, and only in
/// managed code. It may allocate and block, it may be stopped, and it may switch to another stack
/// and return on another thread.
#[derive(Clone, Copy)]
pub struct PreemptHook {
    /// The function. It gets `data`.
    pub f: unsafe extern "C" fn(*mut ()),
    /// The argument of `f`.
    pub data: *mut (),
}

/// Asks one thread to run its [`PreemptHook`]. From [`Mutator::preempter`].
///
/// ```
/// # let world = gc_preempt::World::new(gc_preempt::Config::default())?;
/// let mutator = world.attach(core::ptr::null_mut())?;
/// let preempter = mutator.preempter();
/// let asked = std::thread::spawn({
///     let preempter = preempter.clone();
///     move || preempter.preempt()
/// });
/// assert!(asked.join().unwrap()); // this thread is in native code: it only sees the mark
/// assert!(gc_preempt::take_preempt_request_here());
/// drop(mutator);
/// assert!(!preempter.preempt());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Preempter {
    record: &'static Record,
    generation: u64,
    signals: bool,
}

impl core::fmt::Debug for Preempter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Preempter").field(&self.record.id()).finish()
    }
}

impl Preempter {
    /// Asks the thread to run its [`PreemptHook`], and returns at once. False: the thread is
    /// attached to no world any more, and nothing was done.
    ///
    /// The thread is signalled only while it runs: a system call in
    /// [`blocking`](Mutator::blocking) does not end with EINTR. Without signals
    /// ([`Config::signals`](crate::Config::signals)) the request is marked only. The call waits for
    /// a stop that is under way. On a thread that holds a stop it marks the request without a
    /// signal.
    ///
    /// # Panics
    /// On a thread inside [`no_preempt`](Mutator::no_preempt), if it has to wait.
    pub fn preempt(&self) -> bool {
        let record = self.record;
        let Ok(_lock) = lock() else {
            // This thread's stop keeps records from changing hands.
            return self.is_attached() && self.mark();
        };
        if !self.is_attached() {
            return false;
        }
        self.mark();
        let is_self = registry::current().is_some_and(|me| core::ptr::eq(me, record));
        if !self.signals || is_self || !record.preempt_hook.is_set() {
            return true;
        }
        // SeqCst, here and below: see the head of this file.
        if record.in_flight.swap(1, Ordering::SeqCst) == 0 {
            if seam::spares_blocked() && record.state.phase_in_total_order() == Phase::Blocked {
                record.in_flight.store(0, Ordering::SeqCst);
                return true;
            }
            handler::reinstall();
            // The number of a thread that has ended may be another thread's by now.
            if record.lifeline.is_cut() || !signal::send(record.tid.load(Ordering::Relaxed)) {
                return false;
            }
        }
        true
    }

    /// Is the thread the one that the request means? Under the registry lock.
    fn is_attached(&self) -> bool {
        // Relaxed, both: under the registry lock.
        self.record.worlds.load(Ordering::Relaxed) != 0
            && (self.record.generation.load(Ordering::Relaxed) == self.generation
                || seam::mistakes_threads())
    }

    fn mark(&self) -> bool {
        self.record.preempt_wanted.store(true, Ordering::SeqCst);
        true
    }
}

impl Mutator {
    /// A handle by which other threads preempt this one.
    pub fn preempter(&self) -> Preempter {
        Preempter {
            record: self.record,
            // Relaxed: the record is this thread's until it detaches.
            generation: self.record.generation.load(Ordering::Relaxed),
            signals: self.world.inner.config.signals,
        }
    }

    /// Sets the hook that this thread runs when it is preempted, or unsets it. A detach unsets it.
    ///
    /// # Safety
    /// `hook.f` may be called with `hook.data` on this thread at any instruction of managed code,
    /// until another hook is set or the thread is detached.
    pub unsafe fn set_preempt_hook(&self, hook: Option<PreemptHook>) {
        let _section = self.no_preempt_guard();
        let hook = hook.map(|h| (h.f as HookFn, h.data));
        self.record.preempt_hook.set(hook, self.world.inner.id);
    }

    /// Whether this thread is asked to be preempted. For native code, which signals do not preempt.
    #[inline]
    pub fn preempt_wanted(&self) -> bool {
        // Relaxed: a hint; the next look sees a later request.
        self.record.preempt_wanted.load(Ordering::Relaxed)
    }
}

/// Whether the running thread is asked to be preempted, see [`Mutator::preempt_wanted`]. False on a
/// thread that is not attached.
#[inline]
pub fn preempt_wanted_here() -> bool {
    // Relaxed: as in `Mutator::preempt_wanted`.
    registry::current().is_some_and(|record| record.preempt_wanted.load(Ordering::Relaxed))
}

/// Takes the request to preempt the running thread: true if there was one. For native code that
/// yields by itself, and for a scheduler that has just switched.
pub fn take_preempt_request_here() -> bool {
    // SeqCst pairs with the store that marks, as the handler's load does.
    registry::current().is_some_and(|record| {
        record.preempt_wanted.load(Ordering::SeqCst)
            && record.preempt_wanted.swap(false, Ordering::SeqCst)
    })
}

/// The instruction at which the running thread was preempted last. For a [`PreemptHook`] that may
/// switch stacks at some instructions only: it reads this first, since the next preemption of the
/// thread changes it. `None` before the first preemption.
pub fn preempted_at_here() -> Option<usize> {
    // Relaxed: the thread's own.
    let pc = registry::current()?.preempted_at.load(Ordering::Relaxed);
    (pc != 0).then_some(pc)
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn spares_blocked() -> bool {
        !Fault::PreemptsBlocked.planted()
    }

    pub(super) fn mistakes_threads() -> bool {
        Fault::PreemptsSuccessor.planted()
    }
}
