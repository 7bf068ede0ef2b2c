//! The state of each world under the registry lock: its members, the members aside, its hooks.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::registry::{self, Record, RegistryGuard};
use crate::stack_record::{StackRecord, StackState};
use crate::state::Phase;
use crate::stopped_mutator::StoppedMutator;
use crate::stopper::holds_a_stop;
use crate::suspended_stack::SuspendedStack;
use crate::unwind;

/// The mutators of one heap, and the means to stop them. A clone is another handle on the same
/// world.
#[derive(Clone)]
pub struct World {
    pub(crate) inner: Arc<Inner>,
}

/// Functions that run around a fork. See [`World::on_fork`].
#[derive(Clone, Copy)]
pub struct ForkHooks {
    /// Runs in the parent before the fork, on the forking thread, with the registry lock held: no
    /// stop is under way. It takes the locks that the child must find free.
    pub prepare: unsafe fn(*mut ()),
    /// Runs in the parent after the fork, with the registry lock held.
    pub parent: unsafe fn(*mut ()),
    /// Runs in the child, on its only thread, when no other thread is in the registry. This crate
    /// holds no lock then.
    pub child: unsafe fn(*mut ()),
    /// The argument of each hook.
    pub data: *mut (),
}

/// Functions for a mutator's `data`: for a thread that ends with its [`Mutator`](crate::Mutator)
/// not dropped, and for a mutator that was set aside. See [`World::attach_with`].
#[derive(Clone, Copy)]
pub struct MutatorHooks {
    /// Runs on the thread itself, among its thread-local destructors, before it is detached.
    pub at_exit: unsafe fn(*mut ()),
    /// Runs on another thread, after a stop has found that the mutator's thread ended without
    /// destructors (by the bare `exit` system call). The registry lock is held, and the world may
    /// be stopped: the function must not call malloc, nor take a lock that a mutator may hold
    /// outside of `no_preempt`.
    pub gone: unsafe fn(*mut ()),
    /// Runs when a mutator that [`World::set_aside`] has set aside is taken back: on its thread
    /// before it leaves `blocking`, or on a thread that makes a handshake with it. The registry
    /// lock is held, so no other thread holds a stop. The function must not call malloc, nor take a
    /// lock that a mutator may hold outside of `no_preempt`. With `None` the mutator is never set
    /// aside.
    pub back: Option<unsafe fn(*mut (), &StoppedMutator<'_>)>,
}

/// Functions for the stacks of a world. See [`World::set_stack_hooks`].
#[derive(Clone, Copy)]
pub struct StackHooks {
    /// Runs on a thread that is about to resume a stack which was suspended when the last stack
    /// epoch began, and which no walk has reported since. The registry lock is held. The function
    /// must not call malloc, nor take a lock that a mutator may hold outside of `no_preempt`.
    pub before_resume: unsafe fn(*mut (), &SuspendedStack<'_>),
    /// The argument of `before_resume`.
    pub data: *mut (),
}

impl MutatorHooks {
    /// Hooks for a mutator that is never set aside.
    #[must_use]
    pub const fn at_end(at_exit: unsafe fn(*mut ()), gone: unsafe fn(*mut ())) -> Self {
        Self {
            at_exit,
            gone,
            back: None,
        }
    }
}

/// One thread's membership in a world.
pub(crate) struct Member {
    pub record: &'static Record,
    pub data: *mut (),
    pub hooks: Option<MutatorHooks>,
    /// The thread no longer exists.
    pub dead: bool,
    /// [`Record::returns`] at the last look of `World::set_aside`, if the thread was in `blocking`.
    blocked_at: Option<u32>,
    /// `Some`: the thread has dropped its `Mutator` while it held a stop, and is detached after the
    /// resume. The world, which the `Mutator` has kept alive.
    pub left: UnsafeCell<Option<Arc<Inner>>>,
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

    /// The mutator, which stop `number` holds, or which is aside and `number` is
    /// [`NEVER`](unwind::NEVER).
    ///
    /// # Safety
    /// That stop, or the registry lock, is held for `'s`.
    pub(crate) unsafe fn stopped<'s>(&'s self, number: u64) -> StoppedMutator<'s> {
        StoppedMutator {
            record: self.record,
            data: self.data,
            vouched: self.hooks.is_some(),
            number,
            _held: PhantomData,
        }
    }

    /// Calls the `gone` hook.
    ///
    /// # Safety
    /// The thread has ended, the registry lock is held, and the member is not used afterwards.
    pub(crate) unsafe fn tell_gone(&self) {
        if let Some(hooks) = self.hooks {
            // SAFETY: `attach_with`'s caller promised that this may be called here.
            unsafe { (hooks.gone)(self.data) };
        }
    }
}

/// What the registry lock protects of one world.
pub(crate) struct Members {
    /// Members that a stop requests or holds.
    pub list: Vec<Member>,
    /// Members that a stop passes over, see `world/aside.rs`.
    pub aside: Vec<Member>,
    pub fork_hooks: Option<ForkHooks>,
    /// The registered stacks. Each is a box, which the end of its registration frees.
    pub stacks: Vec<&'static StackRecord>,
    pub stack_hooks: Option<StackHooks>,
    /// When the last stop of all members ended, and how long it held them.
    pub resumed: Option<(Instant, Duration)>,
}

/// The state of one world, which all of its handles share. Its `Drop` is in `world/mod.rs`, on the
/// floor that takes the registry lock.
pub(crate) struct Inner {
    pub id: u64,
    pub config: Config,
    pub members: UnsafeCell<Members>,
    /// The stack epoch, see `stack_record.rs`. Changes in stops of this world only.
    pub epoch: AtomicU64,
    /// After how many nanoseconds the watchdog names a thread that keeps a stop waiting.
    pub patience: AtomicU64,
    /// Its first stop has put the panic hook on top.
    pub hooked: AtomicBool,
}

// SAFETY: `members` is touched only with the registry lock held, which `members` asks its guard
// for; the raw pointers in it are data for the embedder, which vouches for them.
unsafe impl Sync for Inner {}
// SAFETY: as above.
unsafe impl Send for Inner {}

impl Inner {
    /// The members. The guard proves that the registry lock is held.
    #[allow(clippy::mut_from_ref)] // the guard is the proof of exclusiveness
    pub(crate) fn members<'a>(&'a self, _lock: &'a mut RegistryGuard) -> &'a mut Members {
        // SAFETY: the registry lock is held for as long as the result lives.
        unsafe { &mut *self.members.get() }
    }

    /// Notes that the calling thread, which holds a stop, is detached after the resume. Does not
    /// allocate.
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
            MUTATOR_DROPPED.store(true, Ordering::Relaxed);
        }
    }
}

impl Member {
    /// Has it been blocked since the last look?
    pub(crate) fn waits_for_long(&mut self) -> bool {
        let returns = self.record.returns.load(Ordering::Relaxed);
        let blocked = self.record.state.load().phase() == Phase::Blocked;
        let before = core::mem::replace(&mut self.blocked_at, blocked.then_some(returns));
        blocked
            && before == Some(returns)
            && !self.dead
            && self.hooks.is_some_and(|hooks| hooks.back.is_some())
            && self.record.worlds.load(Ordering::Relaxed) == 1
    }

    /// Does its thread wait for the registry lock? It leaves `blocking` with the lock held, and
    /// could not take it to be taken back. Asked while ASIDE is set, so the answer does not change.
    pub(crate) fn awaits_registry(&self) -> bool {
        self.record.awaits_registry.load(Ordering::Relaxed) && seam::spares_waiters()
    }
}

impl Members {
    /// All members, the members aside last.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Member> {
        self.list.iter().chain(&self.aside)
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.list.iter_mut().chain(&mut self.aside)
    }

    /// Adds a member. The list keeps room for the members aside, since they are taken back where
    /// malloc must not be called.
    pub(crate) fn add(&mut self, member: Member) {
        self.list.reserve(1 + self.aside.len());
        self.list.push(member);
    }

    /// Takes the member of a record out: one at most.
    pub(crate) fn take_all(&mut self, record: &'static Record) -> Vec<Member> {
        let is_its = |m: &mut Member| core::ptr::eq(m.record, record);
        let mut taken: Vec<_> = self.list.extract_if(.., is_its).collect();
        if let Some(at) = self
            .aside
            .iter()
            .position(|m| core::ptr::eq(m.record, record))
        {
            taken.push(self.take_aside(at));
        }
        taken
    }

    /// Removes all members except that of `keep`: in the child of a fork.
    pub(crate) fn keep_only(&mut self, keep: Option<&'static Record>) {
        let keeps = |m: &Member| keep.is_some_and(|r| core::ptr::eq(r, m.record));
        self.list.retain(keeps);
        self.aside.retain(keeps);
        for (at, member) in self.aside.iter().enumerate() {
            member.record.aside_at.store(at, Ordering::Relaxed);
        }
    }

    pub(crate) fn put_aside(&mut self, at: usize, inner: &Inner) {
        let member = self.list.swap_remove(at);
        let record = member.record;
        // Relaxed, here and below: under the registry lock.
        record.aside_at.store(self.aside.len(), Ordering::Relaxed);
        let inner = core::ptr::from_ref(inner).cast_mut().cast();
        record.aside.store(inner, Ordering::Relaxed);
        self.aside.push(member);
    }

    /// Takes a member out of the list of members aside. Does not allocate or free.
    pub(crate) fn take_aside(&mut self, at: usize) -> Member {
        let member = self.aside.swap_remove(at);
        member
            .record
            .aside
            .store(core::ptr::null_mut(), Ordering::Relaxed);
        if let Some(moved) = self.aside.get(at) {
            moved.record.aside_at.store(at, Ordering::Relaxed);
        }
        member
    }

    /// Moves a mutator that is aside back to the list. Does not allocate.
    pub(crate) fn take_back(&mut self, record: &'static Record) {
        let at = record.aside_at.load(Ordering::Relaxed);
        let mut member = self.take_aside(at);
        member.blocked_at = None;
        if let Some(back) = member.hooks.and_then(|hooks| hooks.back) {
            // SAFETY: `attach_with`'s caller promised that this may be called here. The registry
            // lock is held.
            unsafe { back(member.data, &member.stopped(unwind::NEVER)) };
        }
        // There is room: see `add`.
        self.list.push(member);
        record.state.take_back();
    }
}

impl Members {
    /// Adds a stack to the list.
    pub(crate) fn add_stack(&mut self, stack: &'static StackRecord) {
        // Relaxed, here and below: under the registry lock.
        stack.at.store(self.stacks.len(), Ordering::Relaxed);
        self.stacks.push(stack);
    }

    /// Takes a stack out of the list. Does not allocate or free.
    pub(crate) fn remove_stack(&mut self, stack: &'static StackRecord) {
        let at = stack.at.load(Ordering::Relaxed);
        debug_assert!(core::ptr::eq(self.stacks[at], stack));
        self.stacks.swap_remove(at);
        if let Some(moved) = self.stacks.get(at) {
            moved.at.store(at, Ordering::Relaxed);
        }
    }

    /// Gives up the stacks of a thread that has ended.
    pub(crate) fn lose_stacks_of(&mut self, record: &'static Record) {
        let gone = core::ptr::from_ref(record) as usize;
        // A lost stack may be released.
        record
            .current
            .store(core::ptr::null_mut(), Ordering::Relaxed);
        self.lose_stacks(|runner| runner == gone);
    }

    /// Gives the stacks of a thread up that does not exist in this process: it has ended, or was
    /// not forked. A stack that it was about to resume is suspended still.
    pub(crate) fn lose_stacks(&mut self, is_gone: impl Fn(usize) -> bool) {
        if seam::loses_nothing() {
            return;
        }
        for stack in &self.stacks {
            let is_its = is_gone(stack.runner.load(Ordering::Relaxed));
            match stack.state() {
                StackState::Claimed if is_its => stack.give_back(StackState::Suspended),
                StackState::Running if is_its => stack.give_back(StackState::Lost),
                _ => {}
            }
        }
    }
}

impl StackRecord {
    /// Its view for the owner of its world.
    ///
    /// # Safety
    /// Its frames do not change for `'s`: see the head of `stack_record.rs`.
    pub(crate) unsafe fn suspended<'s>(&'static self, number: u64) -> SuspendedStack<'s> {
        SuspendedStack {
            stack: self,
            number,
            _held: PhantomData,
        }
    }
}

impl Inner {
    /// The stack epoch.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        // Relaxed: it changes in a stop, and the resume publishes it.
        self.epoch.load(Ordering::Relaxed)
    }

    /// Has the `before_resume` hook report a suspended stack that is due.
    pub(crate) fn report_before_resume(
        &self,
        lock: &mut RegistryGuard,
        stack: &'static StackRecord,
    ) {
        let epoch = self.epoch();
        if !stack.is_due(epoch) {
            return;
        }
        if let Some(hooks) = self.members(lock).stack_hooks {
            // SAFETY: `set_stack_hooks`'s caller promised that this may be called here. The
            // stack is due and the registry lock is held, so its frames stand still.
            unsafe { (hooks.before_resume)(hooks.data, &stack.suspended(unwind::NEVER)) };
        }
        stack.reported(epoch);
    }
}

/// A `Mutator` was dropped in the stop that its thread holds.
pub(crate) static MUTATOR_DROPPED: AtomicBool = AtomicBool::new(false);

/// All worlds of the process. Under the registry lock.
pub(crate) struct Worlds(UnsafeCell<Vec<Weak<Inner>>>);
// SAFETY: touched only with the registry lock held.
unsafe impl Sync for Worlds {}
static WORLDS: Worlds = Worlds(UnsafeCell::new(Vec::new()));

#[allow(clippy::mut_from_ref)] // the guard is the proof of exclusiveness
pub(crate) fn worlds(_lock: &mut RegistryGuard) -> &mut Vec<Weak<Inner>> {
    // SAFETY: the registry lock is held for as long as the result lives.
    unsafe { &mut *WORLDS.0.get() }
}

/// Takes the running thread back, which is aside in its world.
#[cold]
pub(crate) fn come_back(record: &'static Record) {
    // A thread that holds a stop holds the registry lock already.
    let lock = (!holds_a_stop() && seam::takes_the_lock()).then(registry::lock_blocked);
    let inner = record.aside.load(Ordering::Relaxed).cast::<Inner>();
    // SAFETY: null, if a handshake has taken the thread back; otherwise a world of which this
    // thread is a mutator, so it is alive.
    if let Some(inner) = unsafe { inner.as_ref() } {
        // SAFETY: the registry lock is held.
        unsafe { (*inner.members.get()).take_back(record) };
    }
    drop(lock);
}

impl Record {
    /// Is it aside in that world? Under the registry lock.
    pub(crate) fn is_aside_in(&self, inner: &Inner) -> bool {
        core::ptr::addr_eq(self.aside.load(Ordering::Relaxed), inner)
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn spares_waiters() -> bool {
        !Fault::WaiterAside.planted()
    }

    pub(super) fn loses_nothing() -> bool {
        Fault::NothingLost.planted()
    }

    pub(super) fn takes_the_lock() -> bool {
        !Fault::BackUnlocked.planted()
    }
}
