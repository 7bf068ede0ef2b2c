//! Mutators that are set aside: those that wait in `blocking` for long, which stops pass over.
//!
//! A stop turns to every mutator of its list, and its owner looks at each one's stack and record. A
//! program with a thousand threads that wait for requests would pay for all of them in each stop.
//! So the owner of a world may set such mutators aside, between stops ([`World::set_aside`]): they
//! leave the list, and no stop touches them.
//!
//! # Invariant
//! A mutator that is aside stands still from the moment at which it was set aside until it is taken
//! back, and both happen with the registry lock held. So whoever holds that lock, as every stop
//! does, may look at it as at a stopped mutator ([`World::for_each_aside`], [`Stopped::aside`]).
//!
//! It holds by the state word: a thread cannot leave BLOCKED while ASIDE is set, and takes the
//! registry lock to have it unset ([`come_back`]). Before it goes on, its `back` hook brings the
//! mutator's record up to what stops have changed in the records of all others meanwhile.
//!
//! # Who takes a mutator back
//! Its thread, when `blocking` ends or when it detaches there; a handshake with it; and nobody once
//! the thread has ended unseen: then [`World::for_each_aside`] forgets it.
//!
//! Only a mutator of one world that has a `back` hook is set aside, and none that waits for the
//! registry lock: it would leave `blocking` with the lock that it needs to be taken back.

use super::{Inner, Member, Members, MutatorHooks, Stopped, StoppedMutator, World};
use crate::faults;
use crate::registry::{self, Record, RegistryGuard};
use crate::state::Phase;
use crate::unwind;
use core::sync::atomic::Ordering;

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

impl World {
    /// Sets mutators aside that have been in `blocking` since the call before this one: from now on
    /// no stop looks at them. How many that were.
    ///
    /// `may` is called for each of them, with the registry lock held and the thread standing still.
    /// `false`: it is not set aside. What it does to the mutator's record comes before all that the
    /// thread does after `blocking`. It may be called for some mutators under one lock, for which
    /// attaching and stops wait, so it is to be short; and it must not take a lock that a mutator
    /// may hold outside of `no_preempt`.
    ///
    /// Only mutators that were attached with a [`back`](MutatorHooks::back) hook are set aside, and
    /// only where they belong to no other world. Does nothing on a thread that holds a stop.
    ///
    /// # Safety
    /// The caller looks after the world: no stop of it needs to look at a mutator that `may`
    /// accepts, as long as [`for_each_aside`](Self::for_each_aside), [`Stopped::aside`] or its
    /// `back` hook do. No other part of the program calls this.
    pub unsafe fn set_aside(&self, mut may: impl FnMut(&StoppedMutator<'_>) -> bool) -> usize {
        /// Mutators that are set aside under one lock, and those that are looked at.
        const PIECE: usize = 16;
        const LOOKS: usize = 256;
        let (mut at, mut sum) = (0, 0);
        loop {
            let Ok(mut lock) = registry::lock() else {
                return sum;
            };
            let members = self.inner.members(&mut lock);
            members.aside.reserve(PIECE);
            let (mut looks, mut aside) = (0, 0);
            while looks < LOOKS && aside < PIECE {
                looks += 1;
                let Some(member) = members.list.get_mut(at) else {
                    return sum + aside;
                };
                if !member.waits_for_long() || !member.record.state.set_aside() {
                    at += 1;
                } else if !member.awaits_registry() && may(&StoppedMutator::aside(member)) {
                    members.put_aside(at, &self.inner);
                    aside += 1;
                } else {
                    member.record.state.take_back();
                    at += 1;
                }
            }
            sum += aside;
        }
    }

    /// Calls `f` with some mutators that are aside, under the registry lock, which keeps them
    /// there: `most` of them, in places below `from`. Where to go on; `None`: there are no more
    /// below. The first call passes `usize::MAX`.
    ///
    /// Places are counted downwards, so that a pass meets every mutator that was aside when it
    /// began and still is: those that are taken back leave their place to one from further up,
    /// which the pass has met. It may meet that one twice.
    ///
    /// Mutators whose threads have ended unseen are forgotten; their `gone` hook is called. Gives
    /// `None` on a thread that holds a stop: see [`Stopped::aside`].
    pub fn for_each_aside(
        &self,
        from: usize,
        most: usize,
        mut f: impl FnMut(&StoppedMutator<'_>),
    ) -> Option<usize> {
        let mut lock = registry::lock().ok()?;
        let mut at = from.min(self.inner.members(&mut lock).aside.len());
        for _ in 0..most {
            at = at.checked_sub(1)?;
            let members = self.inner.members(&mut lock);
            let Some(member) = members.aside.get(at) else {
                continue;
            };
            if member.record.lifeline.is_cut() {
                let gone = members.take_aside(at);
                // SAFETY: the thread has ended, the registry lock is held, and the member was taken
                // away.
                unsafe { gone.tell_gone() };
                if gone.record.worlds.fetch_sub(1, Ordering::Relaxed) == 1 {
                    lock.remove_dead(gone.record);
                }
                continue;
            }
            f(&StoppedMutator::aside(member));
        }
        (at > 0).then_some(at)
    }
}

impl Stopped<'_> {
    /// The mutators that are aside: they stand still as the stopped ones do, and no stop has looked
    /// at them.
    pub fn aside(&self) -> impl ExactSizeIterator<Item = StoppedMutator<'_>> {
        // SAFETY: this value holds the registry lock, and nothing changes the list while `self` is
        // borrowed.
        let aside = unsafe { &(*self.world.inner.members.get()).aside };
        aside.iter().map(StoppedMutator::aside)
    }
}

impl<'s> StoppedMutator<'s> {
    /// The registry lock is held for `'s`, and the member is aside.
    fn aside(member: &'s Member) -> Self {
        Self {
            member,
            number: unwind::NEVER,
        }
    }
}

impl Member {
    /// Is it blocked, and was it so at the last look and ever since?
    fn waits_for_long(&mut self) -> bool {
        let returns = self.record.returns.load(Ordering::Relaxed);
        let blocked = self.record.state.load().phase() == Phase::Blocked;
        let before = core::mem::replace(&mut self.blocked_at, blocked.then_some(returns));
        blocked
            && before == Some(returns)
            && !self.dead
            && self.hooks.is_some_and(|hooks| hooks.back.is_some())
            && self.record.worlds.load(Ordering::Relaxed) == 1
    }

    /// Asked once it is aside, when it can neither leave nor enter a wait. With the lock in hand it
    /// could not be taken back.
    fn awaits_registry(&self) -> bool {
        self.record.awaits_registry.load(Ordering::Relaxed) && !faults::planted("waiter-aside")
    }
}

impl Members {
    /// All of them, those that are aside last.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Member> {
        self.list.iter().chain(&self.aside)
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.list.iter_mut().chain(&mut self.aside)
    }

    /// Adds a member. The list has room for those that are aside, too: they come back where malloc
    /// may not be called.
    pub(crate) fn add(&mut self, member: Member) {
        self.list.reserve(1 + self.aside.len());
        self.list.push(member);
    }

    /// Takes all memberships of a record out: one, at most.
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

    /// Forgets all but the mutator of `keep`: in the child of a fork.
    pub(crate) fn keep_only(&mut self, keep: Option<&'static Record>) {
        let keeps = |m: &Member| keep.is_some_and(|r| core::ptr::eq(r, m.record));
        self.list.retain(keeps);
        self.aside.retain(keeps);
        for (at, member) in self.aside.iter().enumerate() {
            member.record.aside_at.store(at, Ordering::Relaxed);
        }
    }

    fn put_aside(&mut self, at: usize, inner: &Inner) {
        let member = self.list.swap_remove(at);
        let record = member.record;
        // Relaxed, here and below: under the registry lock.
        record.aside_at.store(self.aside.len(), Ordering::Relaxed);
        let inner = core::ptr::from_ref(inner).cast_mut();
        record.aside.store(inner, Ordering::Relaxed);
        self.aside.push(member);
    }

    /// Takes a member out of those that are aside. Allocates and frees nothing.
    fn take_aside(&mut self, at: usize) -> Member {
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

    /// Makes a mutator that is aside a member like others. Allocates nothing.
    pub(crate) fn take_back(&mut self, record: &'static Record) {
        let at = record.aside_at.load(Ordering::Relaxed);
        let mut member = self.take_aside(at);
        member.blocked_at = None;
        if let Some(back) = member.hooks.and_then(|hooks| hooks.back) {
            // SAFETY: `attach_with`'s caller promised that this may be called here.
            unsafe { back(member.data, &StoppedMutator::aside(&member)) };
        }
        // There is room: see `add`.
        self.list.push(member);
        record.state.take_back();
    }
}

/// Takes the running thread back, which is aside, in whichever world.
#[cold]
pub(crate) fn come_back(record: &'static Record) {
    // Where this thread holds a stop, it holds the registry lock by that.
    let lock: Option<RegistryGuard> = if faults::planted("back-unlocked") {
        None
    } else {
        registry::lock_blocked().ok()
    };
    let inner = record.aside.load(Ordering::Relaxed);
    // SAFETY: null, since a handshake was faster, or a world of which this thread is a mutator, so
    // it is alive.
    if let Some(inner) = unsafe { inner.as_ref() } {
        // SAFETY: the registry lock is held.
        unsafe { (*inner.members.get()).take_back(record) };
    }
    drop(lock);
}

impl Record {
    /// Is it aside in that world? Under the registry lock.
    pub(crate) fn is_aside_in(&self, inner: &Inner) -> bool {
        core::ptr::eq(self.aside.load(Ordering::Relaxed), inner)
    }
}
