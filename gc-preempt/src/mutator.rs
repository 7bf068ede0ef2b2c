//! One attached thread, as its owner sees it: blocking regions, sections that may not be stopped,
//! voluntary stops, stop hooks.

use crate::attach;
use crate::blocking::{blocked, may_wait};
use crate::members::World;
use crate::registry::{MutatorId, Record};
use crate::state::Phase;
use crate::stop_point::{NoPreempt, poll};
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

/// [`Mutator::try_blocking`] inside [`Mutator::no_preempt`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InNoPreempt;

impl core::fmt::Display for InNoPreempt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("blocking inside no_preempt: leave the section first, or a stop could wait for this thread for ever")
    }
}

impl std::error::Error for InNoPreempt {}

/// A function that a stop runs on the stopped thread itself, after the resume.
///
/// It runs on the mutator's own stack as if the interrupted instruction had called it, and only
/// after stops that found the thread in managed code. It may allocate, block, and be stopped in
/// turn.
#[derive(Clone, Copy)]
pub struct StopHook {
    /// Called with `data`.
    pub f: unsafe extern "C" fn(*mut ()),
    /// Handed to `f`.
    pub data: *mut (),
}

/// The running thread's attachment to a [`World`]. Detaches when dropped; stays on its thread.
///
/// ```
/// use gc_preempt::{Config, World};
/// let world = World::new(Config::default())?;
/// let mutator = world.attach(core::ptr::null_mut())?;
/// let n = mutator.blocking(|| 6 * 7); // a stop does not wait for this closure
/// assert_eq!(n, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mutator {
    pub(crate) record: &'static Record,
    pub(crate) world: World,
    _on_its_thread: PhantomData<*mut ()>,
}

impl Mutator {
    pub(crate) fn new(record: &'static Record, world: World) -> Self {
        Self {
            record,
            world,
            _on_its_thread: PhantomData,
        }
    }

    /// The thread.
    pub fn id(&self) -> MutatorId {
        self.record.id()
    }

    /// The world that it is attached to.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Runs `f`, which promises not to touch the heap. The stopper neither waits for it nor sends
    /// it a signal, so no system call in it ends in EINTR because of a stop, and no transfer is cut
    /// short. When `f` ends during a stop, the thread waits for the resume. It may end by a panic,
    /// and by the unwinding of `pthread_exit` or a cancellation. errno is what `f` left.
    ///
    /// # Panics
    /// Inside [`no_preempt`](Self::no_preempt): see [`try_blocking`](Self::try_blocking). And on a
    /// stack that is not the thread's own, a coroutine's say: what it holds would not be scanned.
    #[track_caller]
    pub fn blocking<R>(&self, f: impl FnOnce() -> R) -> R {
        blocked(self.record, f)
    }

    /// [`blocking`](Self::blocking), with an error where that panics.
    ///
    /// # Errors
    /// [`InNoPreempt`], and `f` has not run.
    pub fn try_blocking<R>(&self, f: impl FnOnce() -> R) -> Result<R, InNoPreempt> {
        if self.in_no_preempt() {
            Err(InNoPreempt)
        } else {
            Ok(blocked(self.record, f))
        }
    }

    /// Runs `f` without being stopped in it. Keep it short: a stop waits. Its end is a poll.
    pub fn no_preempt<R>(&self, f: impl FnOnce() -> R) -> R {
        let _section = self.no_preempt_guard();
        f()
    }

    /// [`no_preempt`](Self::no_preempt) as a guard.
    #[inline]
    pub fn no_preempt_guard(&self) -> NoPreempt<'_> {
        NoPreempt::on(self.record)
    }

    /// Could this thread wait in [`blocking`](Self::blocking) now? Not inside
    /// [`no_preempt`](Self::no_preempt), nor on a stack that is not its own.
    pub fn may_block(&self) -> bool {
        may_wait(self.record).is_ok()
    }

    /// Is this thread in a [`no_preempt`](Self::no_preempt) section?
    pub fn in_no_preempt(&self) -> bool {
        self.record.depth.load(Ordering::Relaxed) != 0
    }

    /// Is this thread inside [`blocking`](Self::blocking)? There it must not touch the heap.
    #[inline]
    pub fn is_blocking(&self) -> bool {
        self.record.state.load().phase() == Phase::Blocked
    }

    /// Stops here if a stop asks for it. Never needed with signals on; without them
    /// (`URGE_ASYNC=0`) this is where threads stop.
    #[inline]
    pub fn poll(&self) {
        if !self.in_no_preempt() {
            poll(self.record);
        }
    }

    /// Sets what a stop runs on this thread, or nothing. See [`StopHook`]. Detaching unsets it.
    ///
    /// # Safety
    /// `hook.f` may be called with `hook.data` on this thread at any instruction of managed code,
    /// until another hook is set or the thread is detached.
    pub unsafe fn set_stop_hook(&self, hook: Option<StopHook>) {
        let _section = self.no_preempt_guard();
        let (f, data) = hook.map_or((core::ptr::null_mut(), core::ptr::null_mut()), |h| {
            (h.f as *mut (), h.data)
        });
        // Relaxed: read by this thread alone, in its handler and trampoline, which the section
        // keeps out.
        self.record.hook_data.store(data, Ordering::Relaxed);
        self.record.hook.store(f, Ordering::Relaxed);
        self.record
            .hook_world
            .store(self.world.inner.id, Ordering::Relaxed);
    }
}

impl Mutator {
    /// Detaches as a drop does, and runs `first` before, while no world is stopped but by this
    /// thread itself, nor can be. For a thread inside [`blocking`](Self::blocking) that gives back
    /// what a stopper reads.
    ///
    /// `first` keeps to what is allowed in a [`no_preempt`](Self::no_preempt) section.
    pub fn detach_after(self, first: impl FnOnce()) {
        let this = core::mem::ManuallyDrop::new(self);
        attach::detach(&this.world.inner, this.record, first);
        // SAFETY: dropped once: the value around it never is.
        drop(unsafe { core::ptr::read(&raw const this.world) });
    }
}

impl Drop for Mutator {
    fn drop(&mut self) {
        attach::detach(&self.world.inner, self.record, || ());
    }
}
