//! Stopping and resuming the mutators of one heap: request, wait, retry, resume.
//!
//! A stop has a number, one more than the last in the process. It goes like this, all under the registry lock, which also makes stops one at a
//! time, so that two heaps cannot park each other's stoppers:
//!
//! 1. Turn to every mutator ([`State::turn`](crate::state::State::turn)): hold the blocked ones, ask the running ones and signal them.
//!    All are signalled before any is waited for, so that their latencies overlap.
//! 2. Wait until the count of acknowledgements is down to zero: spin if there is a core to spare for it, otherwise sleep, since a spinning
//!    stopper would keep a core from a thread that has yet to run its handler (measured: 77 against 20 us at 2 threads on 2 cores).
//! 3. Resume: one store of the number, one futex wake for all. Nobody is signalled to go on.
//!
//! Before it begins, a stop lets the world run for as long as the stop before has held it, see [`let_run`]: stops back to back would otherwise take over each thread before
//! it has left its park, or signal it on its way out of the handler, so that it never comes to an instruction of its own.
//!
//! Retries: a thread that could not stop where it stood (unsafe code, a foreign stack) is signalled again from [`RETRY_FIRST`] on, doubling to
//! [`RETRY_MAX`]. A thread inside `no_preempt` is not: it looks by itself at the section's end. A signal that nobody handled is sent again only
//! after [`RESEND`], then ever more seldom: signals are not lost in the kernel, but a host's `sigwait` or a handler that it put in our place may eat them.

mod errors;

pub use errors::{AttachError, HandshakeError, SetupError, StopError};

use crate::config::Config;
use crate::context::Snapshot;
use crate::mutator::{Mutator, MutatorId, blocked, outstanding};
use crate::registry::{self, BEGUN, RESUMED, Record, RegistryGuard};
use crate::state::{Phase, Turn};
use crate::unwind;
use crate::walk::{self, RootSink, WalkStats};
use crate::{arch, attach, code, faults, park, pin, processors, signal, watchdog};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The first retry of a deferred stop: about what a short unsafe range or a handler on another stack takes.
const RETRY_FIRST: Duration = Duration::from_micros(5);
/// No retry is later than this: a host's handler may run long, but the stop should not wait much longer than it.
const RETRY_MAX: Duration = Duration::from_millis(1);
/// How long an unhandled signal counts as still on its way.
const RESEND: Duration = Duration::from_millis(10);
/// It doubles up to this. A thousand threads on two processors take longer than 10 ms to have their turn, and sending them all another signal keeps a processor from them.
const RESEND_MAX: Duration = Duration::from_millis(80);
/// How long the stopper spins when it has a core to spare: about what it costs to be woken, since then a stop takes at most twice what the
/// better choice would have (Karlin et al. 1990, "Competitive randomized algorithms for nonuniform problems"). On virtual machines that is long: the core
/// has halted, and its host has to get it back. Of 620 stops beside one mutator 8 took more than 22 us when 30
/// were spun for; in six of them the handler had begun after 15 to 37, and they ended after 95 to 764.
const SPIN: Duration = Duration::from_micros(100);
/// When a stop is late enough to ask whether a thread that it waits for is on the stopper's own core, and has to be given it.
const LATE: Duration = Duration::from_micros(15);

/// The world runs for as long as it was stopped before it is stopped again, but for no longer than this: what a long stop cannot be made up for.
const RUN_MOST: Duration = Duration::from_millis(10);
/// And for so long if threads are parked still: twice what it takes to be woken.
const LEAVE_MOST: Duration = Duration::from_micros(100);

/// Thread pointer of the thread that holds a stop, or 0: its panics abort (see [`watchdog::install_panic_hook`]).
pub(crate) static STOPPER: AtomicUsize = AtomicUsize::new(0);

/// What a world's owner does around a fork. See [`World::on_fork`].
#[derive(Clone, Copy)]
pub struct ForkHooks {
    /// In the parent before the fork, on the forking thread, with the registry lock held: no stop is under way. Take the locks that the
    /// child must find free.
    pub prepare: unsafe fn(*mut ()),
    /// In the parent after it, with the registry lock held.
    pub parent: unsafe fn(*mut ()),
    /// In the child, on its only thread, after the registry holds no other. No lock of ours is held.
    pub child: unsafe fn(*mut ()),
    /// Handed to each.
    pub data: *mut (),
}

pub(crate) struct Member {
    pub record: &'static Record,
    pub data: *mut (),
    pub at_exit: Option<unsafe fn(*mut ())>,
    /// The kernel said that the thread no longer exists.
    pub dead: bool,
}

/// What the registry lock protects of one world.
pub(crate) struct Members {
    pub list: Vec<Member>,
    pub fork_hooks: Option<ForkHooks>,
    /// When the last stop of all of them ended, and how long it held them.
    resumed: Option<(Instant, Duration)>,
}

pub(crate) struct Inner {
    pub id: u64,
    pub config: Config,
    members: UnsafeCell<Members>,
}

// SAFETY: `members` is touched only with the registry lock held, which `members` asks its guard for; the raw pointers in it are data for
// the embedder, which vouches for them.
unsafe impl Sync for Inner {}
// SAFETY: as above.
unsafe impl Send for Inner {}

impl Inner {
    #[allow(clippy::mut_from_ref)] // the guard is the proof of exclusiveness
    pub(crate) fn members<'a>(&'a self, _lock: &'a mut RegistryGuard) -> &'a mut Members {
        // SAFETY: the registry lock is held for as long as the result lives.
        unsafe { &mut *self.members.get() }
    }
}

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
#[derive(Clone)]
pub struct World {
    pub(crate) inner: Arc<Inner>,
}

impl World {
    /// A world without mutators. The first one in the process installs the SIGURG handler and the panic hook that keeps a panic in a
    /// stopped world from waiting for a lock that a stopped thread holds.
    ///
    /// # Errors
    /// [`SetupError`] if the processor lacks XSAVE or the system refuses the handler.
    pub fn new(config: Config) -> Result<Self, SetupError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        faults::read_environment();
        arch::setup().map_err(SetupError::Processor)?;
        // Before the registry lock: they take the loader's and std's locks, under which others may want to attach.
        pin::pin().map_err(SetupError::Library)?;
        unwind::setup();
        processors::setup();
        watchdog::install_panic_hook();
        let mut lock = registry::lock();
        register_own_code(&lock).map_err(SetupError::Code)?;
        attach::install_fork_handlers().map_err(SetupError::Signal)?;
        signal::install().map_err(SetupError::Signal)?;
        let inner = Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            config,
            members: UnsafeCell::new(Members {
                list: Vec::new(),
                fork_hooks: None,
                resumed: None,
            }),
        });
        let all = worlds(&mut lock);
        all.retain(|w| w.strong_count() > 0);
        all.push(Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// Attaches the running thread. `data` is the heap's record of it, readable while it is stopped.
    ///
    /// Unblocks SIGURG on this thread and gives it an alternate signal stack that is large enough; both are undone by the last detach.
    ///
    /// # Errors
    /// [`AttachError`]: it is attached to this world already, or the system refused what it needs.
    pub fn attach(&self, data: *mut ()) -> Result<Mutator, AttachError> {
        attach::attach(self, data, None)
    }

    /// [`attach`](Self::attach), and `at_exit(data)` runs on the thread itself should it end with its [`Mutator`] leaked, before it is
    /// detached.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    ///
    /// # Safety
    /// `at_exit` may be called with `data` once the thread runs its thread-local destructors, unless the `Mutator` was dropped before.
    pub unsafe fn attach_with(
        &self,
        data: *mut (),
        at_exit: unsafe fn(*mut ()),
    ) -> Result<Mutator, AttachError> {
        attach::attach(self, data, Some(at_exit))
    }

    pub(crate) fn detach(&self, record: &'static Record) {
        attach::detach(self, record);
    }

    /// Sets what is done around a fork by any thread of the process.
    ///
    /// # Safety
    /// The hooks must be callable at a fork for as long as this world lives. glibc keeps malloc usable in all three.
    pub unsafe fn on_fork(&self, hooks: ForkHooks) {
        let mut lock = registry::lock();
        self.inner.members(&mut lock).fork_hooks = Some(hooks);
    }

    /// Registers code. See [`CodeSpec`](code::CodeSpec).
    ///
    /// # Errors
    /// [`CodeError`](code::CodeError) if the range is empty or overlaps another.
    ///
    /// # Safety
    /// What `spec` says is true: the range stays mapped until its owner is dropped (for ever without one); managed code keeps the System V
    /// convention, the frame rule and the stack maps; a restart range may be begun again from everywhere in it. A walk passes over what
    /// the maps do not name, so a wrong map loses objects.
    pub unsafe fn register_code(
        &self,
        spec: code::CodeSpec,
    ) -> Result<code::CodeGuard, code::CodeError> {
        let _lock = registry::lock();
        // SAFETY: the registry lock is held.
        unsafe { code::CODE.register(self.inner.id, spec) }
    }

    /// Stops every mutator of this world and returns once all are stopped. They stay so until the result is resumed or dropped.
    ///
    /// Before that it lets them run for as long as the last stop has held them (at most 10 ms), so that stops back to back do not starve them: half of the time is theirs.
    ///
    /// Until then call nothing that takes a lock which a stopped thread may hold: no malloc, no printing, no `dl_iterate_phdr`; nor
    /// attach, detach, or register code from this thread.
    ///
    /// # Errors
    /// [`StopError`] if the caller is itself a mutator of this world.
    pub fn stop(&self) -> Result<Stopped<'_>, StopError> {
        self.stop_those(None)
    }

    /// Brings near this core what walks in the next stop will need, while the mutators run: the walk of a thread with 15 native frames takes 5 us then instead of 14.
    ///
    /// For who is about to stop the world to walk its stacks, and was busy elsewhere. Nothing depends on it.
    ///
    /// ```
    /// let world = gc_preempt::World::new(gc_preempt::Config::default())?;
    /// world.rehearse();
    /// let stopped = world.stop()?;
    /// # drop(stopped);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rehearse(&self) {
        let mut lock = registry::lock();
        let members = &self.inner.members(&mut lock).list;
        // SAFETY: the registry lock is held.
        unsafe { walk::rehearse(&code::CODE, members.iter().map(|m| m.record)) };
    }

    /// Stops one mutator only, and calls `f` with it.
    ///
    /// # Errors
    /// [`HandshakeError`] if there is no such mutator, or if it is the caller.
    pub fn handshake<R>(
        &self,
        id: MutatorId,
        f: impl FnOnce(&StoppedMutator<'_>) -> R,
    ) -> Result<R, HandshakeError> {
        let stopped = self
            .stop_those(Some(id))
            .map_err(|_| HandshakeError::IsCaller(id))?;
        let result = stopped.mutators().next().map(|m| f(&m));
        drop(stopped);
        result.ok_or(HandshakeError::NoSuchMutator(id))
    }

    /// SIGURGs that came without a stop that wanted them, in the whole process so far.
    pub fn stray_signals() -> u64 {
        signal::strays()
    }

    fn stop_those(&self, only: Option<MutatorId>) -> Result<Stopped<'_>, StopError> {
        let mut lock = registry::lock();
        let me = registry::current();
        let Members { list, resumed, .. } = self.inner.members(&mut lock);
        let members = list;
        let wanted =
            |m: &Member| only.is_none_or(|id| m.record.tid.load(Ordering::Relaxed) as u32 == id.0);
        if members
            .iter()
            .any(|m| wanted(m) && me.is_some_and(|r| core::ptr::eq(r, m.record)))
        {
            return Err(StopError::CallerIsMutator);
        }
        if let Some((since, took)) = resumed.take() {
            let_run(members, since, took);
        }
        let requested = Instant::now();
        // Relaxed: only under the registry lock; the threads learn the number from their state words.
        let number = BEGUN.load(Ordering::Relaxed) + 1;
        BEGUN.store(number, Ordering::Relaxed);
        STOPPER.store(arch::thread_pointer(), Ordering::Relaxed);

        let count = members.iter().filter(|m| wanted(m)).count();
        registry::MAY_SPIN.store((count as u32) < processors::count(), Ordering::Relaxed);
        let core = processors::own().unwrap_or(u32::MAX);
        registry::STOPPER_CORE.store(core, Ordering::Relaxed);

        let (mut signalled, mut held) = (0, 0);
        outstanding::begin();
        for m in members.iter_mut().filter(|m| wanted(m)) {
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
                .turn(number, outstanding::add, outstanding::done)
            {
                Turn::Held => held += 1,
                Turn::Asked => {
                    signalled += 1;
                    if self.inner.config.signals {
                        send(m);
                    }
                }
            }
        }
        outstanding::done();
        let wait = Wait {
            number,
            only,
            signals: self.inner.config.signals,
            asked: signalled,
        };
        let deferrals = wait.until_all_stopped(members);
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
        // SAFETY: the registry lock is held, and no stop is under way: a stop holds the world.
        let unused = unsafe {
            code::CODE.world_gone(self.id);
            code::CODE.sweep()
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
        std::mem::forget(unsafe { code::CODE.register(0, spec) }?);
        DONE.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Waits until the world has run since then for as long as its last stop took, and no thread is parked from it still, each within bounds.
///
/// Nobody is stopped meanwhile, so this is no part of the stop; whoever wants the registry waits a little longer for it. It does not wait for every thread to leave its park
/// at any cost: with more threads than processors that takes time slices. A thread that is scheduled at last finds its stop over half of the time.
fn let_run(members: &[Member], since: Instant, took: Duration) {
    /// A sleep has 50 us of slack by default, so shorter waits only give the core away.
    const SLEEP: Duration = Duration::from_micros(100);
    if faults::planted("no-gate") {
        return;
    }
    let took = took.min(RUN_MOST);
    let parked = |m: &Member| m.record.state.load().phase() == Phase::Stopped;
    loop {
        let ran = since.elapsed();
        let left = took.saturating_sub(ran);
        if left.is_zero() && (ran >= LEAVE_MOST || !members.iter().any(parked)) {
            return;
        }
        if left > SLEEP {
            std::thread::sleep(left - SLEEP / 2);
        } else {
            // SAFETY: no arguments, no memory.
            unsafe { libc::sched_yield() };
        }
    }
}

/// Sends the signal, and takes a thread that no longer exists out of the count.
fn send(m: &mut Member) {
    m.record.in_flight.store(1, Ordering::Relaxed);
    if !signal::send(m.record.tid.load(Ordering::Relaxed))
        && !m.dead
        && !faults::planted("no-dead-check")
    {
        m.dead = true;
        outstanding::done();
    }
}

/// The stopper's wait.
struct Wait {
    number: u64,
    only: Option<MutatorId>,
    signals: bool,
    asked: u32,
}

impl Wait {
    fn until_all_stopped(&self, members: &mut [Member]) -> u32 {
        let begun = Instant::now();
        let may_spin = self.asked < processors::count();
        let (mut retries, mut retry_gap, mut retry_at) = (0, RETRY_FIRST, None::<Instant>);
        let (mut resend_at, mut resend_gap) = (begun + RESEND, RESEND);
        let mut watchdog = watchdog::Watchdog::new(begun);
        let mut spin = if may_spin { SPIN } else { Duration::ZERO };
        let mut has_looked = false;
        let mut spins = 0u32;
        while !outstanding::none_left() {
            spins += 1;
            if may_spin && retry_at.is_none() && !spins.is_multiple_of(64) {
                if outstanding::take_retry() {
                    retry_at = Some(Instant::now() + retry_gap);
                }
                park::spin_hint();
                continue;
            }
            let now = Instant::now();
            if outstanding::take_retry() && retry_at.is_none() {
                retry_at = Some(now + retry_gap);
            }
            if retry_at.is_some_and(|t| t <= now) {
                retry_at = None;
                retry_gap = (retry_gap * 2).min(RETRY_MAX);
                retries += self.send_again(members, |r| r.in_flight.load(Ordering::Relaxed) == 0);
            }
            if now >= resend_at && !faults::planted("no-resend") {
                resend_gap = (resend_gap * 2).min(RESEND_MAX);
                resend_at = now + resend_gap;
                self.send_again(members, |_| true);
            }
            watchdog.look(now, || {
                members
                    .iter()
                    .map(|m| m.record)
                    .find(|r| self.wants(r) && r.state.load().asked())
            });
            if now - begun < spin {
                if now - begun >= LATE && !has_looked {
                    has_looked = true;
                    if self.is_on_own_core(members) {
                        spin = Duration::ZERO;
                    }
                }
                continue;
            }
            let until = retry_at.unwrap_or(resend_at).saturating_duration_since(now);
            if retry_at.is_some() {
                // A sleep has 50 us of slack by default: too coarse for the first retries. Give the core to whom we wait for instead.
                // SAFETY: no arguments, no memory.
                unsafe { libc::sched_yield() };
            } else {
                outstanding::sleep(until);
            }
        }
        retries
    }

    /// Does a thread that is still waited for seem to be on the core that this one spins on?
    fn is_on_own_core(&self, members: &[Member]) -> bool {
        processors::own().is_some_and(|own| {
            members.iter().map(|m| m.record).any(|r| {
                let pointer = r.thread_pointer.load(Ordering::Relaxed);
                self.wants(r) && r.state.load().asked() && processors::was_last_on(pointer, own)
            })
        })
    }

    fn wants(&self, r: &Record) -> bool {
        self.only
            .is_none_or(|id| r.tid.load(Ordering::Relaxed) as u32 == id.0)
    }

    /// Signals again those that are asked, have not promised to look by themselves, and that `which` picks.
    fn send_again(&self, members: &mut [Member], which: impl Fn(&Record) -> bool) -> u32 {
        let mut sent = 0;
        for m in members
            .iter_mut()
            .filter(|m| self.signals && !m.dead && self.wants(m.record))
        {
            let word = m.record.state.load();
            if word.asked() && word.number() == self.number && !word.pending() && which(m.record) {
                send(m);
                sent += 1;
            }
        }
        sent
    }
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
        // SAFETY: this value holds the registry lock, and nothing changes the list while `self` is borrowed.
        unsafe { &(*self.world.inner.members.get()).list }
    }

    /// The stopped mutators.
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
        let alive = || self.members().iter().filter(|m| !m.dead);
        let stacks = alive().map(|m| {
            let sp = snapshot(m).registers.sp().saturating_sub(arch::RED_ZONE);
            sp.max(m.record.stack().start)..m.record.stack().end
        });
        let words = alive().flat_map(|m| {
            let registers = snapshot(m).registers;
            registers.gpr.into_iter().chain([registers.pc])
        });
        // SAFETY: the registry lock is held, the world is stopped; stacks are readable from the stack pointer's red zone to their base.
        unsafe { code::CODE.reap(self.world.inner.id, stacks, words) };
    }

    /// Forgets the threads that no longer exist. The records must go too: a new thread may get the same control block.
    fn bury_the_dead(&self, lock: &mut RegistryGuard) {
        let list = &mut self.world.inner.members(lock).list;
        if !list.iter().any(|m| m.dead) {
            return;
        }
        let dead: Vec<_> = list.extract_if(.., |m| m.dead).map(|m| m.record).collect();
        for record in dead {
            if record.worlds.fetch_sub(1, Ordering::Relaxed) == 1 {
                lock.remove(record);
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
        self.bury_the_dead(&mut lock);
        // SAFETY: the registry lock is held, and this stop is over.
        let unused = unsafe { code::CODE.sweep() };
        drop(lock);
        drop(unused); // runs the owners' destructors, which may be anything
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// One mutator of a [`Stopped`] world.
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
        self.member.at_exit.is_some()
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

    /// The addresses of its stack, in use or not.
    pub fn stack(&self) -> Range<usize> {
        self.member.record.stack()
    }

    /// What the stop before this one cost the thread by its own clock, from its handler's first instruction to its last, if it took part
    /// in it running.
    pub fn last_stall(&self) -> Option<Duration> {
        // Acquire pairs with the Release in `note_stall`.
        let of = self.member.record.stall_of.load(Ordering::Acquire);
        (of + 1 == self.number)
            .then(|| Duration::from_nanos(self.member.record.stall.load(Ordering::Relaxed)))
    }

    /// Walks its frames from the innermost outwards.
    pub fn walk(&self, sink: &mut dyn RootSink) -> WalkStats {
        self.member.record.note_walk(self.snapshot().registers.sp());
        // SAFETY: the stop that this value borrows holds the thread and the registry lock; its stack is mapped while it lives, and code that a stack returns into
        // stays registered and mapped.
        unsafe {
            walk::walk(
                &code::CODE,
                self.number,
                self.snapshot(),
                self.stack(),
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
    /// Mutators that were stopped.
    pub mutators: u32,
    /// Of those, the ones that were running and had to be signalled.
    pub signalled: u32,
    /// And the ones that were blocked, or still parked from the stop before.
    pub held: u32,
    /// Signals that had to be sent again, since they met a thread where it could not stop.
    pub deferrals: u32,
}

/// Runs `f` without being stopped in it, if the running thread is attached to any world; otherwise just runs it.
pub fn no_preempt_here<R>(f: impl FnOnce() -> R) -> R {
    match registry::current() {
        Some(record) => {
            let _leaving = attach::Leaving(record);
            let _section = crate::mutator::NoPreempt::on(record);
            f()
        }
        None => f(),
    }
}

/// Runs `f` in `blocking`, if the running thread is attached to any world; otherwise just runs it.
///
/// # Panics
/// Inside `no_preempt`, and on a stack that is not the thread's own.
pub fn blocking_here<R>(f: impl FnOnce() -> R) -> R {
    match registry::current() {
        Some(record) => {
            let _leaving = attach::Leaving(record);
            blocked(record, f)
        }
        None => f(),
    }
}

/// Does the running thread hold a stop: has it stopped a world and not resumed it yet? For allocators that abort on a malloc in a stopped
/// world. Takes no lock and allocates nothing.
pub fn holds_a_stop() -> bool {
    STOPPER.load(Ordering::Relaxed) == arch::thread_pointer()
}

/// Is the running thread attached, and inside `no_preempt`?
pub fn in_no_preempt_here() -> bool {
    registry::current().is_some_and(|record| record.depth.load(Ordering::Relaxed) != 0)
}
