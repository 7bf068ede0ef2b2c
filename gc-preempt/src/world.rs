//! Stopping and resuming the mutators of one heap: request, wait, retry, resume.
//!
//! A stop has a number, one more than the last in the process. It goes like this, all under the
//! registry lock, which also makes stops one at a time, so that two heaps cannot park each other's
//! stoppers:
//!
//! 1. Turn to every mutator ([`State::turn`](crate::state::State::turn)): hold the blocked ones,
//!    ask the running ones and signal them. All are signalled before any is waited for, so that
//!    their latencies overlap.
//! 2. Wait until the count of acknowledgements is down to zero: spin if there is a core to spare
//!    for it, otherwise sleep, since a spinning stopper would keep a core from a thread that has
//!    yet to run its handler (measured: 77 against 20 us at 2 threads on 2 cores).
//! 3. Resume: one store of the number, one futex wake for all. Nobody is signalled to go on.
//!
//! Before it begins, a stop lets the world run for as long as the stop before has held it, see
//! [`Gate`]: stops back to back would otherwise take over each thread before it has left its park,
//! or signal it on its way out of the handler, so that it never comes to an instruction of its own.
//!
//! Retries: a thread that could not stop where it stood (unsafe code, a foreign stack) is signalled
//! again from 5 us on, doubling to 1 ms. A thread inside `no_preempt` is not: it looks by itself at
//! the section's end. A signal that nobody handled is sent again only after 10 ms, then ever more
//! seldom: signals are not lost in the kernel, but a host's `sigwait` or a handler that it put in
//! our place may eat them.
//!
//! The thread that holds a stop holds the registry lock with it, so whatever else needs that lock
//! cannot be done by this thread before the resume. What can fail gives an error value
//! ([`registry::lock`] makes each caller say what it does): stopping a world, a handshake,
//! attaching, registering code, a new world. What cannot fail is put off until the resume (a
//! dropped [`Mutator`] stays a member until then), or touches nothing that a stop reads (the last
//! handle of another world).

pub(crate) mod aside;
mod errors;
mod wait;

pub(crate) use errors::HOLDS_A_STOP;
pub use errors::{AttachError, HandshakeError, SetupError, StopError};

use crate::acknowledgements;
use crate::config::Config;
use crate::context::Snapshot;
use crate::mutator::{Mutator, MutatorId};
use crate::registry::{self, BEGUN, HoldsAStop, RESUMED, Record, RegistryGuard};
use crate::state::{Phase, Turn};
use crate::stop_point::blocked;
use crate::unwind;
use crate::walk::{self, RootSink, WalkStats};
use crate::{arch, attach, code, faults, park, pin, processors, signal, watchdog};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use wait::{Gate, Wait, send};

/// Thread pointer of the thread that holds a stop, or 0: its panics abort (see
/// [`watchdog::install_panic_hook`]).
pub(crate) static STOPPER: AtomicUsize = AtomicUsize::new(0);

/// What a world's owner does around a fork. See [`World::on_fork`].
#[derive(Clone, Copy)]
pub struct ForkHooks {
    /// In the parent before the fork, on the forking thread, with the registry lock held: no stop
    /// is under way. Take the locks that the child must find free.
    pub prepare: unsafe fn(*mut ()),
    /// In the parent after it, with the registry lock held.
    pub parent: unsafe fn(*mut ()),
    /// In the child, on its only thread, after the registry holds no other. No lock of ours is
    /// held.
    pub child: unsafe fn(*mut ()),
    /// Handed to each.
    pub data: *mut (),
}

/// What is done with a mutator's `data` when its thread ends with its [`Mutator`] not dropped, and
/// when it has been set aside. See [`World::attach_with`].
#[derive(Clone, Copy)]
pub struct MutatorHooks {
    /// On the thread itself, when its thread-local destructors run, before it is detached.
    pub at_exit: unsafe fn(*mut ()),
    /// On another thread, after one that ended without running any destructor (by the `exit` system
    /// call), which a stop has noticed. The registry lock is held, and the world may be stopped: no
    /// malloc, and no lock that a mutator may hold outside of `no_preempt`.
    pub gone: unsafe fn(*mut ()),
    /// When the mutator is taken back that [`World::set_aside`] has set aside: on its thread,
    /// before that goes on, or on one that makes a handshake with it. The registry lock is held, so
    /// no stop of its world is under way. No malloc, and no lock that a mutator may hold outside of
    /// `no_preempt`. `None`: it is never set aside.
    pub back: Option<unsafe fn(*mut (), &StoppedMutator<'_>)>,
}

pub(crate) struct Member {
    pub record: &'static Record,
    pub data: *mut (),
    pub hooks: Option<MutatorHooks>,
    /// The kernel said that the thread no longer exists.
    pub dead: bool,
    /// What [`Record::returns`] said when `World::set_aside` looked last, if the thread was in
    /// `blocking` then.
    blocked_at: Option<u32>,
    /// The thread has dropped its `Mutator` while it held a stop: it leaves after the resume. The
    /// world, which the `Mutator` held.
    left: UnsafeCell<Option<Arc<Inner>>>,
}

impl Member {
    pub(crate) fn new(record: &'static Record, data: *mut (), hooks: Option<MutatorHooks>) -> Self {
        Self {
            record,
            data,
            hooks,
            dead: false,
            blocked_at: None,
            left: UnsafeCell::new(None),
        }
    }

    /// # Safety
    /// The thread has ended, the registry lock is held, and this is the last that is done with the
    /// member.
    pub(crate) unsafe fn tell_gone(&self) {
        if let Some(hooks) = self.hooks {
            // SAFETY: `attach_with`'s caller promised that this may be called here.
            unsafe { (hooks.gone)(self.data) };
        }
    }
}

/// What the registry lock protects of one world.
pub(crate) struct Members {
    /// Those that a stop turns to.
    pub list: Vec<Member>,
    /// Those that it passes over, see `aside.rs`.
    pub aside: Vec<Member>,
    pub fork_hooks: Option<ForkHooks>,
    /// When the last stop of all of them ended, and how long it held them.
    resumed: Option<(Instant, Duration)>,
}

pub(crate) struct Inner {
    pub id: u64,
    pub config: Config,
    members: UnsafeCell<Members>,
    /// Its first stop has seen to the panic hook.
    hooked: AtomicBool,
}

// SAFETY: `members` is touched only with the registry lock held, which `members` asks its guard
// for; the raw pointers in it are data for the embedder, which vouches for them.
unsafe impl Sync for Inner {}
// SAFETY: as above.
unsafe impl Send for Inner {}

impl Inner {
    #[allow(clippy::mut_from_ref)] // the guard is the proof of exclusiveness
    pub(crate) fn members<'a>(&'a self, _lock: &'a mut RegistryGuard) -> &'a mut Members {
        // SAFETY: the registry lock is held for as long as the result lives.
        unsafe { &mut *self.members.get() }
    }

    /// Notes that a member leaves once the stop is over that its own thread, the caller, holds.
    /// Allocates nothing.
    ///
    /// # Safety
    /// The caller holds a stop.
    pub(crate) unsafe fn leave_after_stop(self: &Arc<Self>, record: &'static Record) {
        // SAFETY: the caller's stop holds the registry lock, so the lists do not change; iterators
        // of the stop may borrow them as this does.
        let members = unsafe { &*self.members.get() };
        if let Some(member) = members.all().find(|m| core::ptr::eq(m.record, record)) {
            // SAFETY: touched by the thread that holds the registry lock only, here and in
            // `finish`.
            unsafe { *member.left.get() = Some(self.clone()) };
            // Relaxed: read by this thread only.
            LEFT.store(true, Ordering::Relaxed);
        }
    }
}

/// A `Mutator` was dropped in the stop that its thread holds.
static LEFT: AtomicBool = AtomicBool::new(false);

/// All worlds of the process, for the child of a fork. Under the registry lock.
pub(crate) struct Worlds(UnsafeCell<Vec<Weak<Inner>>>);
// SAFETY: touched only with the registry lock held.
unsafe impl Sync for Worlds {}
static WORLDS: Worlds = Worlds(UnsafeCell::new(Vec::new()));

#[allow(clippy::mut_from_ref)] // the guard is the proof of exclusiveness
pub(crate) fn worlds(_lock: &mut RegistryGuard) -> &mut Vec<Weak<Inner>> {
    // SAFETY: the registry lock is held for as long as the result lives.
    unsafe { &mut *WORLDS.0.get() }
}

/// The mutators of one heap, and the means to stop them. Clones are the same world.
///
/// # What a host's thread notices of stops
///
/// A stop is a signal with `SA_RESTART`, so a mutator that is in a system call then notices what
/// signal(7) says of any signal. In [`blocking`](Mutator::blocking) no signal comes, and a thread
/// notices nothing.
///
/// * **EINTR.** `poll`, `select`, `epoll_wait`, `nanosleep`, `usleep`, `pause`, `sigsuspend`,
///   `sigwaitinfo`, `sigtimedwait`, `msgsnd`, `msgrcv`, `semop`, `semtimedop`, `io_getevents`,
///   `io_uring_enter`, and socket calls with `SO_RCVTIMEO` or `SO_SNDTIMEO` end in EINTR.
/// * **Short transfers.** A `write`, `send`, `read` or `sendfile` that has moved a part of its
///   bytes ends with their number. Loop, as for any signal, or make the call in `blocking`, where
///   it is whole.
/// * **errno** is kept by stops and by every wait of this crate; `blocking` leaves what its closure
///   has left.
/// * **Cancellation.** `pthread_exit` and deferred cancellation (the default type) work in and
///   outside of `blocking`: the thread unwinds, and is detached. A cancellation that comes while
///   the thread is stopped takes effect after the resume. A mutator must not enable *asynchronous*
///   cancellation around calls of this crate, which are no more async-cancel-safe than `malloc`; in
///   loops of its own it may.
/// * **The bare `exit` system call** on a mutator's thread is noticed by the next stop, which
///   leaves the thread out. What the stack held is no root from then on. The stack must not be
///   unmapped before the stop that is under way is over; `pthread_join` on such a thread, which may
///   do so, is to be called while no stop walks, so end threads in another way where that can be.
#[derive(Clone)]
pub struct World {
    pub(crate) inner: Arc<Inner>,
}

impl World {
    /// A world without mutators. The first one in the process installs the SIGURG handler and the
    /// panic hook that keeps a panic in a stopped world from waiting for a lock that a stopped
    /// thread holds.
    ///
    /// # Errors
    /// [`SetupError`] if the processor lacks XSAVE or the system refuses the handler, and on a
    /// thread that holds a stop.
    pub fn new(config: Config) -> Result<Self, SetupError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if holds_a_stop() {
            return Err(SetupError::HoldsAStop);
        }
        faults::read_environment();
        arch::setup().map_err(SetupError::Processor)?;
        // Before the registry lock: they take the loader's and std's locks, under which others may
        // want to attach.
        pin::pin().map_err(SetupError::Library)?;
        unwind::setup();
        processors::setup();
        watchdog::put_panic_hook_on_top();
        let mut lock = registry::lock()?;
        register_own_code(&lock).map_err(SetupError::Code)?;
        attach::install_fork_handlers().map_err(SetupError::Signal)?;
        signal::install().map_err(SetupError::Signal)?;
        let inner = Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            config,
            members: UnsafeCell::new(Members {
                list: Vec::new(),
                aside: Vec::new(),
                fork_hooks: None,
                resumed: None,
            }),
            hooked: AtomicBool::new(false),
        });
        let all = worlds(&mut lock);
        all.retain(|w| w.strong_count() > 0);
        all.push(Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// Attaches the running thread. `data` is the heap's record of it, readable while it is
    /// stopped.
    ///
    /// Unblocks SIGURG on this thread, which the last detach undoes, and gives it an alternate
    /// signal stack that is large enough. The last detach sets the one that the thread had before;
    /// where it had none, Urge's stays until the thread ends. What the host sets meanwhile stays as
    /// it is.
    ///
    /// # Errors
    /// [`AttachError`]: it is attached to this world already, it holds a stop, or the system
    /// refused what it needs.
    pub fn attach(&self, data: *mut ()) -> Result<Mutator, AttachError> {
        attach::attach(self, data, None)
    }

    /// [`attach`](Self::attach), with hooks: one of them is called with `data` should the thread
    /// end with its [`Mutator`] leaked, before it is detached; another where
    /// [`set_aside`](Self::set_aside) has set the mutator aside.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    ///
    /// # Safety
    /// Unless the `Mutator` was dropped before, `hooks.at_exit` may be called with `data` once the
    /// thread runs its thread-local destructors, and `hooks.gone` once the thread has ended
    /// without. `hooks.back` may be called with it until then.
    pub unsafe fn attach_with(
        &self,
        data: *mut (),
        hooks: MutatorHooks,
    ) -> Result<Mutator, AttachError> {
        attach::attach(self, data, Some(hooks))
    }

    pub(crate) fn detach(&self, record: &'static Record, first: impl FnOnce()) {
        attach::detach(self, record, first);
    }

    /// Sets what is done around a fork by any thread of the process.
    ///
    /// # Safety
    /// The hooks must be callable at a fork for as long as this world lives. glibc keeps malloc
    /// usable in all three.
    pub unsafe fn on_fork(&self, hooks: ForkHooks) {
        let lock = registry::lock();
        // SAFETY: the registry lock is held, by `lock` or by the stop of this thread, which does
        // not look at hooks.
        unsafe { (*self.inner.members.get()).fork_hooks = Some(hooks) };
        drop(lock);
    }

    /// Registers code. See [`CodeSpec`](code::CodeSpec).
    ///
    /// # Errors
    /// [`CodeError`](code::CodeError) if the range is empty or overlaps another, and on a thread
    /// that holds a stop.
    ///
    /// # Safety
    /// What `spec` says is true: the range stays mapped until its owner is dropped (for ever
    /// without one); managed code keeps the System V convention, the frame rule and the stack maps;
    /// a restart range may be begun again from everywhere in it. A walk passes over what the maps
    /// do not name, so a wrong map loses objects.
    pub unsafe fn register_code(
        &self,
        spec: code::CodeSpec,
    ) -> Result<code::CodeGuard, code::CodeError> {
        let spec = spec.checked()?;
        let _lock = registry::lock()?;
        // SAFETY: the registry lock is held, and no stop is under way.
        unsafe { code::CODE.register(self.inner.id, spec) }
    }

    /// Stops every mutator of this world and returns once all are stopped. They stay so until the
    /// result is resumed or dropped. Those that [`set_aside`](Self::set_aside) has set aside stand
    /// still already, and the stop does not look at them.
    ///
    /// Before that it lets them run for as long as the last stop has held them (at most 10 ms), so
    /// that stops back to back do not starve them: half of the time is theirs.
    ///
    /// Until then call nothing that takes a lock which a stopped thread may hold: no malloc, no
    /// printing, no `dl_iterate_phdr`; nor attach or register code from this thread, which gives an
    /// error.
    ///
    /// # Errors
    /// [`StopError`] if the caller is itself a mutator of this world, or holds a stop, of any
    /// world.
    pub fn stop(&self) -> Result<Stopped<'_>, StopError> {
        self.stop_those(None)
    }

    /// Brings near this core what walks in the next stop will need, while the mutators run: the
    /// walk of a thread with 15 native frames takes 5 us then instead of 14.
    ///
    /// For who is about to stop the world to walk its stacks, and was busy elsewhere. Nothing
    /// depends on it.
    ///
    /// ```
    /// let world = gc_preempt::World::new(gc_preempt::Config::default())?;
    /// world.rehearse();
    /// let stopped = world.stop()?;
    /// # drop(stopped);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rehearse(&self) {
        let Ok(mut lock) = registry::lock() else {
            return; // a hint that comes too late
        };
        let members = &self.inner.members(&mut lock).list;
        // SAFETY: the registry lock is held.
        unsafe { walk::rehearse(&code::CODE, members.iter().map(|m| m.record)) };
    }

    /// Stops one mutator only, and calls `f` with it.
    ///
    /// # Errors
    /// [`HandshakeError`] if there is no such mutator, if it is the caller, or if the caller holds
    /// a stop.
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

    /// SIGURGs that came without a stop that wanted them, in the whole process so far.
    pub fn stray_signals() -> u64 {
        signal::strays()
    }

    fn stop_those(&self, only: Option<MutatorId>) -> Result<Stopped<'_>, StopError> {
        if !holds_a_stop() && !self.inner.hooked.swap(true, Ordering::Relaxed) {
            watchdog::put_panic_hook_on_top();
        }
        let wanted =
            |m: &Member| only.is_none_or(|id| m.record.tid.load(Ordering::Relaxed) as u32 == id.0);
        let mut lock = loop {
            let mut lock = registry::lock()?;
            let members = self.inner.members(&mut lock);
            let me = registry::current();
            let is_its = |m: &Member, r: &Record| core::ptr::eq(r, m.record) && wanted(m);
            if me.is_some_and(|r| members.all().any(|m| is_its(m, r))) {
                return Err(StopError::CallerIsMutator);
            }
            if only.is_some()
                && let Some(aside) = members.aside.iter().find(|m| wanted(m)).map(|m| m.record)
            {
                members.take_back(aside);
            }
            let since = members.resumed;
            let list = &members.list;
            let gate = since.and_then(|(since, took)| Gate::before_stop(list, since, took));
            let Some(gate) = gate else {
                break lock;
            };
            if faults::planted("gate-locked") {
                gate.wait();
                break lock;
            }
            drop(lock);
            gate.wait();
        };
        // SAFETY: the registry lock is held, and no stop is under way.
        unsafe { code::CODE.take_dropped() };
        let members = &mut self.inner.members(&mut lock).list;
        let requested = Instant::now();
        // Relaxed: only under the registry lock; the threads learn the number from their state
        // words.
        let number = BEGUN.load(Ordering::Relaxed) + 1;
        BEGUN.store(number, Ordering::Relaxed);
        watchdog::stop_begins();
        STOPPER.store(arch::thread_pointer(), Ordering::Relaxed);

        let count = members.iter().filter(|m| wanted(m)).count();
        registry::MAY_SPIN.store((count as u32) < processors::count(), Ordering::Relaxed);
        let core = processors::own().unwrap_or(u32::MAX);
        registry::STOPPER_CORE.store(core, Ordering::Relaxed);

        let (mut signalled, mut held) = (0, 0);
        acknowledgements::begin();
        for m in members.iter_mut().filter(|m| wanted(m)) {
            if m.record.lifeline.is_cut() {
                m.dead = true;
                continue;
            }
            // Relaxed: published by the asking swap.
            m.record
                .by_signal
                .store(self.inner.config.signals, Ordering::Relaxed);
            if faults::planted("signal-blocked") && m.record.state.load().phase() == Phase::Blocked
            {
                signal::send(m.record.tid.load(Ordering::Relaxed));
            }
            match m
                .record
                .state
                .turn(number, acknowledgements::add, acknowledgements::done)
            {
                Turn::Held => held += 1,
                Turn::Asked => {
                    signalled += 1;
                    if self.inner.config.signals {
                        if signalled == 1 {
                            signal::reinstall();
                        }
                        send(m);
                    }
                }
            }
        }
        acknowledgements::done();
        let wait = Wait {
            number,
            only,
            signals: self.inner.config.signals,
            asked: signalled,
        };
        let deferrals = wait.until_all_stopped(members);
        for gone in members.iter().filter(|m| m.dead) {
            // SAFETY: the thread has ended, the registry lock is held, and the end of this stop
            // takes the member away.
            unsafe { gone.tell_gone() };
        }
        let stopped_at = Instant::now();
        if faults::planted("malloc-in-stop") {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(100_000)));
        }
        Ok(Stopped {
            world: self,
            lock: Some(lock),
            only,
            number,
            requested,
            stopped_at,
            report: StopReport {
                number,
                time_to_stop: stopped_at - requested,
                pause: Duration::ZERO,
                mutators: signalled + held,
                signalled,
                held,
                deferrals,
            },
            _on_its_thread: PhantomData,
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let lock = registry::lock();
        // SAFETY: the registry lock is held, by `lock` or by this thread's stop, which is of
        // another world: a stop holds its own.
        unsafe { code::CODE.world_gone(self.id) };
        let unused = match &lock {
            // SAFETY: the registry lock is held, and no stop is under way.
            Ok(_) => unsafe { code::CODE.sweep() },
            Err(HoldsAStop) => Vec::new(), // the end of the stop sweeps
        };
        drop(lock);
        drop(unused);
    }
}

/// Keeps stops out of the trampoline, once a process.
fn register_own_code(_lock: &RegistryGuard) -> Result<(), code::CodeError> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Relaxed) {
        let spec = code::CodeSpec {
            range: arch::trampoline(),
            what: code::CodeWhat::Unsafe,
            owner: None,
        };
        // SAFETY: the registry lock is held. World 0 is no world, so the range stays for ever.
        std::mem::forget(unsafe { code::CODE.register(0, spec.checked()?) }?);
        DONE.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// A world whose mutators all stand still. Resumes when dropped.
pub struct Stopped<'w> {
    world: &'w World,
    lock: Option<RegistryGuard>,
    only: Option<MutatorId>,
    number: u64,
    requested: Instant,
    stopped_at: Instant,
    report: StopReport,
    /// Its thread is the one whose panics abort.
    _on_its_thread: PhantomData<*mut ()>,
}

impl Stopped<'_> {
    /// The number of this stop: unique in the process, growing.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When the stop was asked for.
    pub fn requested_at(&self) -> Instant {
        self.requested
    }

    /// When the last mutator was stopped.
    pub fn stopped_at(&self) -> Instant {
        self.stopped_at
    }

    fn members(&self) -> &[Member] {
        // SAFETY: this value holds the registry lock, and nothing changes the list while `self` is
        // borrowed.
        unsafe { &(*self.world.inner.members.get()).list }
    }

    /// The stopped mutators: all but those that are [aside](Self::aside).
    pub fn mutators(&self) -> impl Iterator<Item = StoppedMutator<'_>> {
        let only = self.only;
        self.members()
            .iter()
            .filter(move |m| {
                !m.dead && only.is_none_or(|id| m.record.tid.load(Ordering::Relaxed) as u32 == id.0)
            })
            .map(|member| StoppedMutator {
                member,
                number: self.number,
            })
    }

    /// Lets all go on, and says what the stop took.
    pub fn resume(mut self) -> StopReport {
        self.finish();
        self.report
    }

    /// Finds out which unregistered code no stack returns into any more. In the stopped world.
    fn reap_code(&self) {
        // SAFETY: this stop holds every mutator.
        let snapshot = |m: &Member| unsafe { m.record.snapshot() };
        let alive = || {
            // SAFETY: as in `members`.
            let all = unsafe { (*self.world.inner.members.get()).all() };
            all.filter(|m| !m.dead && !m.record.lifeline.is_cut())
        };
        let stacks = alive().map(|m| {
            let sp = snapshot(m).registers.sp().saturating_sub(arch::RED_ZONE);
            sp.max(m.record.stack().start)..m.record.stack().end
        });
        let words = alive().flat_map(|m| {
            let registers = snapshot(m).registers;
            registers.gpr.into_iter().chain([registers.pc])
        });
        // SAFETY: the registry lock is held, the world is stopped; stacks are readable from the
        // stack pointer's red zone to their base.
        unsafe { code::CODE.reap(self.world.inner.id, stacks, words) };
    }

    /// Forgets the threads that no longer exist. The records must go too: a new thread may get the
    /// same control block.
    fn bury_the_dead(&self, lock: &mut RegistryGuard) {
        let list = &mut self.world.inner.members(lock).list;
        if !list.iter().any(|m| m.dead) {
            return;
        }
        let dead: Vec<_> = list.extract_if(.., |m| m.dead).map(|m| m.record).collect();
        for record in dead {
            if record.worlds.fetch_sub(1, Ordering::Relaxed) == 1 {
                lock.remove_dead(record);
            }
        }
    }

    fn finish(&mut self) {
        let Some(mut lock) = self.lock.take() else {
            return;
        };
        if self.only.is_none() {
            self.reap_code();
        }
        STOPPER.store(0, Ordering::Relaxed);
        // Release pairs with the Acquire in `registry::resumed`.
        RESUMED.store(self.number, Ordering::Release);
        let now = Instant::now();
        self.report.pause = now - self.requested;
        if self.only.is_none() {
            self.world.inner.members(&mut lock).resumed = Some((now, self.report.pause));
        }
        park::wake(park::low_half(&RESUMED), i32::MAX);
        // Threads that still walk their stacks read the code map, which may change once the lock is
        // free.
        acknowledgements::wait_for_walks();
        self.bury_the_dead(&mut lock);
        let left = take_those_that_left(&mut lock);
        // SAFETY: the registry lock is held, and this stop is over.
        let unused = unsafe { code::CODE.sweep() };
        drop(lock);
        drop(unused); // runs the owners' destructors, which may be anything
        for (world, record) in left {
            attach::detach(&world, record, || ());
        }
    }
}

/// The memberships of this thread whose `Mutator` was dropped in the stop that it held.
fn take_those_that_left(lock: &mut RegistryGuard) -> Vec<(World, &'static Record)> {
    if !LEFT.swap(false, Ordering::Relaxed) {
        return Vec::new();
    }
    let all: Vec<_> = worlds(lock).iter().filter_map(Weak::upgrade).collect();
    let mut left = Vec::new();
    for world in &all {
        for member in world.members(lock).all_mut() {
            if let Some(inner) = member.left.get_mut().take() {
                left.push((World { inner }, member.record));
            }
        }
    }
    left
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// One mutator that stands still: of a [`Stopped`] world, or one that is set aside.
pub struct StoppedMutator<'s> {
    member: &'s Member,
    number: u64,
}

impl<'s> StoppedMutator<'s> {
    /// The thread.
    pub fn id(&self) -> MutatorId {
        MutatorId(self.member.record.tid.load(Ordering::Relaxed) as u32)
    }

    /// What [`World::attach`] was given.
    pub fn data(&self) -> *mut () {
        self.member.data
    }

    /// Was it attached by [`World::attach_with`], whose caller vouches for the data?
    pub fn vouched(&self) -> bool {
        self.member.hooks.is_some()
    }

    /// Is it in a blocking region, and so held without a signal?
    pub fn is_blocked(&self) -> bool {
        self.member.record.state.load().phase() == Phase::Blocked
    }

    /// Where it stands.
    pub fn snapshot(&self) -> &'s Snapshot {
        // SAFETY: the stop that this value borrows holds the thread.
        unsafe { self.member.record.snapshot() }
    }

    /// The addresses of its own stack, in use or not. Of the main thread's, which grows, the part
    /// that is known to be there.
    pub fn stack(&self) -> Range<usize> {
        self.member.record.stack()
    }

    /// What the stop before this one cost the thread by its own clock, from its handler's first
    /// instruction to its last, if it took part in it running.
    pub fn last_stall(&self) -> Option<Duration> {
        // Acquire pairs with the Release in `note_stall`.
        let of = self.member.record.stall_of.load(Ordering::Acquire);
        (of + 1 == self.number)
            .then(|| Duration::from_nanos(self.member.record.stall.load(Ordering::Relaxed)))
    }

    /// Walks its frames from the innermost outwards.
    ///
    /// A thread in `blocking` runs on meanwhile. One that has ended there by the bare `exit` system
    /// call since the stop began has no frames: its stack may be unmapped. One whose stack is
    /// unmapped while this walks it makes this crash: do not unmap a stack on which a mutator ended
    /// without detaching.
    pub fn walk(&self, sink: &mut dyn RootSink) -> WalkStats {
        if self.member.record.lifeline.is_cut() {
            return WalkStats::default();
        }
        self.member.record.note_walk(self.snapshot().registers.sp());
        // SAFETY: the stop that this value borrows holds the thread and the registry lock; its
        // stack is mapped while it lives, and code that a stack returns into stays registered and
        // mapped.
        unsafe {
            walk::walk(
                &code::CODE,
                self.number,
                self.snapshot(),
                self.member.record.frames(),
                sink,
            )
        }
    }
}

/// What a stop took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopReport {
    /// The stop's number.
    pub number: u64,
    /// From the request until the last mutator was stopped.
    pub time_to_stop: Duration,
    /// From the request until the resume was published.
    pub pause: Duration,
    /// Mutators that were stopped: those that are aside are not among them.
    pub mutators: u32,
    /// Of those, the ones that were running and had to be signalled.
    pub signalled: u32,
    /// And the ones that were blocked, or still parked from the stop before.
    pub held: u32,
    /// Signals that had to be sent again, since they met a thread where it could not stop.
    pub deferrals: u32,
}

/// Runs `f` without being stopped in it, if the running thread is attached to any world; otherwise
/// just runs it.
pub fn no_preempt_here<R>(f: impl FnOnce() -> R) -> R {
    match registry::current() {
        Some(record) => {
            let _leaving = attach::Leaving(record);
            let _section = crate::stop_point::NoPreempt::on(record);
            f()
        }
        None => f(),
    }
}

/// Runs `f` in `blocking`, if the running thread is attached to any world; otherwise just runs it.
///
/// # Panics
/// Inside `no_preempt`, and on a stack that is not the thread's own.
#[track_caller]
pub fn blocking_here<R>(f: impl FnOnce() -> R) -> R {
    match registry::current() {
        Some(record) => {
            let _leaving = attach::Leaving(record);
            blocked(record, f)
        }
        None => f(),
    }
}

/// Does the running thread hold a stop: has it stopped a world and not resumed it yet? For
/// allocators that abort on a malloc in a stopped world. Takes no lock and allocates nothing.
pub fn holds_a_stop() -> bool {
    STOPPER.load(Ordering::Relaxed) == arch::thread_pointer()
}

/// Is the running thread attached, and inside `no_preempt`?
pub fn in_no_preempt_here() -> bool {
    registry::current().is_some_and(|record| record.depth.load(Ordering::Relaxed) != 0)
}
