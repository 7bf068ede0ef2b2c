//! The handle of an attached thread: blocking regions, sections without stops, polls, stop hooks.

use crate::attach;
use crate::blocking::{blocked, may_wait};
use crate::members::World;
use crate::registry::{MutatorId, Record};
use crate::state::Phase;
use crate::stop_point::{NoPreempt, poll};
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

/// The thread is inside [`Mutator::no_preempt`], where it must not block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InNoPreempt;

impl core::fmt::Display for InNoPreempt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("blocking inside no_preempt: leave the section first, or a stop could wait for this thread for ever")
    }
}

impl std::error::Error for InNoPreempt {}

/// A function that a thread runs after it was stopped, before it goes on.
///
/// It runs on the mutator's own stack as if the interrupted instruction had called it, and only
/// after stops that found the thread in managed code. It may allocate and block, and it may be
/// stopped. A request to preempt the thread runs another hook,
/// [`PreemptHook`](crate::PreemptHook).
#[derive(Clone, Copy)]
pub struct StopHook {
    /// The function. It gets `data`.
    pub f: unsafe extern "C" fn(*mut ()),
    /// The argument of `f`.
    pub data: *mut (),
}

/// The running thread's attachment to a [`World`]. Its drop detaches the thread. It is not
/// [`Send`].
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

    /// The kernel's id of the thread.
    pub fn id(&self) -> MutatorId {
        self.record.id()
    }

    /// The world that the thread is attached to.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Runs `f`, which must not access the heap. Stops do not wait for the thread meanwhile.
    ///
    /// A stopper does not signal the thread: no system call in `f` fails with EINTR because of a
    /// stop, and no transfer is cut short. If `f` ends during a stop, the thread waits for the
    /// resume. `f` may end by a panic, and by the unwinding of `pthread_exit` or of a cancellation.
    /// errno is as `f` has left it. Inside of another `blocking`, this just runs `f`.
    ///
    /// # Panics
    /// Inside [`no_preempt`](Self::no_preempt) (see [`try_blocking`](Self::try_blocking)), and on a
    /// stack that is neither the thread's own nor a [`Stack`](crate::Stack): a stop would not
    /// scan its words.
    #[track_caller]
    pub fn blocking<R>(&self, f: impl FnOnce() -> R) -> R {
        blocked(self.record, f)
    }

    /// Does what [`blocking`](Self::blocking) does, with an error inside
    /// [`no_preempt`](Self::no_preempt).
    ///
    /// # Errors
    /// [`InNoPreempt`]: `f` has not run.
    ///
    /// # Panics
    /// On a stack that is neither the thread's own nor registered.
    pub fn try_blocking<R>(&self, f: impl FnOnce() -> R) -> Result<R, InNoPreempt> {
        if self.in_no_preempt() {
            Err(InNoPreempt)
        } else {
            Ok(blocked(self.record, f))
        }
    }

    /// Runs `f`, in which the thread is not stopped. Keep `f` short, since a stop waits for it. The
    /// end of `f` is a poll.
    pub fn no_preempt<R>(&self, f: impl FnOnce() -> R) -> R {
        let _section = self.no_preempt_guard();
        f()
    }

    /// Begins a section that [`no_preempt`](Self::no_preempt) would run, and returns its guard. The
    /// drop of the guard ends the section.
    #[inline]
    pub fn no_preempt_guard(&self) -> NoPreempt<'_> {
        NoPreempt::on(self.record)
    }

    /// Whether this thread may call [`blocking`](Self::blocking) now. `false` inside
    /// [`no_preempt`](Self::no_preempt), and on a stack that is neither the thread's own
    /// nor registered.
    pub fn may_block(&self) -> bool {
        may_wait(self.record).is_ok()
    }

    /// Whether this thread is in a [`no_preempt`](Self::no_preempt) section.
    pub fn in_no_preempt(&self) -> bool {
        self.record.depth.load(Ordering::Relaxed) != 0
    }

    /// Whether this thread is inside [`blocking`](Self::blocking), where it must not access the
    /// heap.
    #[inline]
    pub fn is_blocking(&self) -> bool {
        self.record.state.load().phase() == Phase::Blocked
    }

    /// Stops here if a stop has asked for the thread. With signals no program needs it. Without
    /// signals ([`Config::signals`](crate::Config::signals)) threads stop only at polls.
    #[inline]
    pub fn poll(&self) {
        if !self.in_no_preempt() {
            poll(self.record);
        }
    }

    /// Sets the hook that this thread runs after stops in managed code, or unsets it. See
    /// [`StopHook`]. A detach unsets it.
    ///
    /// # Safety
    /// `hook.f` may be called with `hook.data` on this thread at any instruction of managed code,
    /// until another hook is set or the thread is detached.
    pub unsafe fn set_stop_hook(&self, hook: Option<StopHook>) {
        let _section = self.no_preempt_guard();
        let hook = hook.map(|h| (h.f, h.data));
        self.record.stop_hook.set(hook, self.world.inner.id);
    }
}

impl Mutator {
    /// Detaches the thread as a drop does, and runs `first` before that, while no other thread
    /// holds a stop. A thread inside [`blocking`](Self::blocking) gives back by this the memory
    /// that a stopper reads.
    ///
    /// `first` must keep the rules of a [`no_preempt`](Self::no_preempt) section.
    pub fn detach_after(self, first: impl FnOnce()) {
        let this = core::mem::ManuallyDrop::new(self);
        attach::detach(&this.world.inner, this.record, first);
        // SAFETY: dropped once: the value around it is never dropped.
        drop(unsafe { core::ptr::read(&raw const this.world) });
    }
}

impl Drop for Mutator {
    fn drop(&mut self) {
        attach::detach(&self.world.inner, self.record, || ());
    }
}
