//! The operations of a world: making it, attaching, registering code, stopping.

mod aside;
mod backoff;
mod gate;
mod stacks;
mod stop;
mod stopped;
mod wait;

pub use stopped::{StopReport, Stopped};

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::blocking::lock;
use crate::code::{CODE, CodeError, CodeGuard, CodeSpec, CodeWhat};
use crate::config::Config;
use crate::errors::{AttachError, HandshakeError, SetupError, StopError};
use crate::members::{ForkHooks, Inner, Members, MutatorHooks, World, worlds};
use crate::mutator::Mutator;
use crate::registry::{MutatorId, RegistryGuard};
use crate::stopped_mutator::StoppedMutator;
use crate::stopper::{HoldsAStop, holds_a_stop};
use crate::{
    arch, attach, faults, fork, handler, panics, pin, processors, stack, unwind, walk, watchdog,
};

impl World {
    /// Makes a world without mutators.
    ///
    /// The first world in the process installs the SIGURG handler, and a panic hook that ends the
    /// process at a panic in a stopped world.
    ///
    /// # Errors
    /// [`SetupError`]: the processor lacks XSAVE, the system refuses the handler, or the calling
    /// thread holds a stop.
    pub fn new(config: Config) -> Result<Self, SetupError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if holds_a_stop() {
            return Err(SetupError::HoldsAStop);
        }
        faults::read_environment();
        arch::setup().map_err(SetupError::Processor)?;
        // Before the registry lock: these take locks of the loader and of std, under which other
        // threads may attach.
        pin::pin().map_err(SetupError::Library)?;
        unwind::setup();
        processors::setup();
        panics::put_panic_hook_on_top();
        let mut lock = lock()?;
        register_own_code(&lock).map_err(SetupError::Code)?;
        fork::install_handlers().map_err(SetupError::Signal)?;
        handler::install().map_err(SetupError::Signal)?;
        let inner = Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            config,
            members: UnsafeCell::new(Members {
                list: Vec::new(),
                aside: Vec::new(),
                fork_hooks: None,
                stacks: Vec::new(),
                stack_hooks: None,
                resumed: None,
            }),
            epoch: AtomicU64::new(0),
            patience: AtomicU64::new(watchdog::FIRST.as_nanos() as u64),
            hooked: AtomicBool::new(false),
        });
        let all = worlds(&mut lock);
        all.retain(|w| w.strong_count() > 0);
        all.push(Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// Attaches the running thread. [`StoppedMutator::data`] returns `data` to a stopper.
    ///
    /// The first attach unblocks SIGURG on this thread, and gives the thread an alternate signal
    /// stack that is large enough. The last detach restores the signal mask and the former
    /// alternate stack. If the thread had none, Urge's stack stays until the thread ends. A stack
    /// that the host sets meanwhile stays set.
    ///
    /// # Errors
    /// [`AttachError`]: the thread is attached to this world already or holds a stop, or the system
    /// refuses a resource.
    pub fn attach(&self, data: *mut ()) -> Result<Mutator, AttachError> {
        attach::attach(&self.inner, data, None).map(|record| Mutator::new(record, self.clone()))
    }

    /// Attaches the running thread with hooks: for the end of a thread whose [`Mutator`] was
    /// leaked, and for the return of a mutator that was [set aside](Self::set_aside).
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    /// # Safety
    /// Until the `Mutator` is dropped, these functions may be called with `data`: `hooks.at_exit`
    /// when the thread runs its thread-local destructors, `hooks.gone` after the thread has ended
    /// without running them, and `hooks.back` at any time before that.
    pub unsafe fn attach_with(
        &self,
        data: *mut (),
        hooks: MutatorHooks,
    ) -> Result<Mutator, AttachError> {
        attach::attach(&self.inner, data, Some(hooks))
            .map(|record| Mutator::new(record, self.clone()))
    }

    /// Sets the hooks that run around a fork by any thread of the process.
    /// # Safety
    /// The hooks may be called at any fork while this world lives. glibc allows malloc in all
    /// three.
    pub unsafe fn on_fork(&self, hooks: ForkHooks) {
        let lock = lock();
        // SAFETY: the registry lock is held, by `lock` or by the stop of this thread, which does
        // not look at hooks.
        unsafe { (*self.inner.members.get()).fork_hooks = Some(hooks) };
        drop(lock);
    }

    /// Registers a range of code, described by `spec`.
    ///
    /// # Errors
    /// [`CodeError`]: the range is empty or overlaps another, or the calling thread holds a stop.
    ///
    /// # Safety
    /// * The range stays mapped until its owner is dropped; without an owner, as long as the
    ///   process lives.
    /// * Managed code follows the System V convention and its frame rule.
    /// * Its stack maps name every reference: a walk does not report other words, so a wrong map
    ///   loses objects.
    /// * A restart range may begin again after any of its instructions.
    pub unsafe fn register_code(&self, spec: CodeSpec) -> Result<CodeGuard, CodeError> {
        let spec = spec.checked()?;
        let _lock = lock()?;
        // SAFETY: the registry lock is held, and no stop is under way.
        unsafe { CODE.register(self.inner.id, spec) }
    }

    /// Stops every mutator of this world, and returns when all are stopped. They stay stopped until
    /// the result is resumed or dropped. Mutators that [`set_aside`](Self::set_aside) has set aside
    /// count as stopped already: the stop passes over them.
    ///
    /// Before the stop begins, the mutators run for as long as the last stop held them, at most 10
    /// ms. So consecutive stops leave them half of the time.
    ///
    /// Until the resume the calling thread must not take a lock that a stopped thread may hold: no
    /// malloc, no printing, no `dl_iterate_phdr`. An attach and a registration of code return an
    /// error.
    ///
    /// # Errors
    /// [`StopError`]: the caller is a mutator of this world, or holds a stop of any world.
    pub fn stop(&self) -> Result<Stopped<'_>, StopError> {
        self.stop_those(None)
    }

    /// Sets for how long a stop waits before a line on stderr names a thread that has not stopped,
    /// and why. The line comes again after twice that time, and so on. It is one second by default.
    ///
    /// For a world whose threads are known to stop late.
    ///
    /// ```
    /// # use std::time::Duration;
    /// let world = gc_preempt::World::new(gc_preempt::Config::default())?;
    /// world.set_watchdog(Duration::from_secs(60));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_watchdog(&self, first: Duration) {
        let nanos = u64::try_from(first.as_nanos()).unwrap_or(u64::MAX);
        // Relaxed: the next stop that sees it.
        self.inner.patience.store(nanos, Ordering::Relaxed);
    }

    /// Loads data that the walks of the next stop need into this core's caches, while the mutators
    /// run. It makes the next pause shorter, and changes nothing else.
    ///
    /// For a thread that is about to stop the world and to walk stacks, after it has worked on
    /// other data.
    ///
    /// ```
    /// let world = gc_preempt::World::new(gc_preempt::Config::default())?;
    /// world.warm_up_walks();
    /// let stopped = world.stop()?;
    /// # drop(stopped);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn warm_up_walks(&self) {
        let Ok(mut lock) = lock() else {
            return; // too late: the stop has begun
        };
        let members = &self.inner.members(&mut lock).list;
        // SAFETY: the registry lock is held.
        unsafe { walk::warm_up_walks(&CODE, members.iter().map(|m| m.record)) };
    }

    /// Stops one mutator, calls `f` with it, and resumes it.
    ///
    /// # Errors
    /// [`HandshakeError`]: there is no such mutator, it is the caller, or the caller holds a stop.
    pub fn handshake<R>(
        &self,
        id: MutatorId,
        f: impl FnOnce(&StoppedMutator<'_>) -> R,
    ) -> Result<R, HandshakeError> {
        let stopped = self.stop_those(Some(id)).map_err(|error| match error {
            StopError::CallerIsMutator => HandshakeError::IsCaller(id),
            StopError::HoldsAStop => HandshakeError::HoldsAStop,
        })?;
        let result = stopped.mutators().next().map(|m| f(&m));
        drop(stopped);
        result.ok_or(HandshakeError::NoSuchMutator(id))
    }

    /// The number of SIGURGs that this process has received without a stop's request.
    pub fn stray_signals() -> u64 {
        handler::strays()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let lock = lock();
        // SAFETY: the registry lock is held, by `lock` or by this thread's stop, which is of
        // another world: a stop holds its own.
        unsafe { CODE.world_gone(self.id) };
        let unused = match &lock {
            // SAFETY: the registry lock is held, and no stop is under way.
            Ok(_) => unsafe { CODE.sweep() },
            Err(HoldsAStop) => Vec::new(), // the end of the stop calls `sweep`
        };
        drop(lock);
        drop(unused);
        stack::end_all(self);
    }
}

/// Registers the trampoline as an unsafe range, once a process.
fn register_own_code(_lock: &RegistryGuard) -> Result<(), CodeError> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Relaxed) {
        let spec = CodeSpec {
            range: arch::trampoline(),
            what: CodeWhat::Unsafe,
            owner: None,
        };
        // SAFETY: the registry lock is held. World 0 is no world, so the range stays for ever.
        std::mem::forget(unsafe { CODE.register(0, spec.checked()?) }?);
        DONE.store(true, Ordering::Relaxed);
    }
    Ok(())
}
