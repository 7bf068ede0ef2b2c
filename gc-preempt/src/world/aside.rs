//! Mutators that are set aside: those that wait in `blocking` for long, which stops pass over.
//!
//! A stop requests or holds every mutator of its list, and its owner looks at each one's stack and record. A
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

use super::stopped::Stopped;
use crate::blocking::lock;
use crate::members::World;
use crate::stopped_mutator::StoppedMutator;
use crate::unwind;
use core::sync::atomic::Ordering;

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
            let Ok(mut lock) = lock() else {
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
                } else if !member.awaits_registry() && {
                    // SAFETY: the registry lock is held, and the mutator is aside.
                    may(&unsafe { member.stopped(unwind::NEVER) })
                } {
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
        let mut lock = lock().ok()?;
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
            // SAFETY: the registry lock is held.
            f(&unsafe { member.stopped(unwind::NEVER) });
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
        // SAFETY: as above.
        aside
            .iter()
            .map(|member| unsafe { member.stopped(unwind::NEVER) })
    }
}
