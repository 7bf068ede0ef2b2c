//! Mutators that are set aside: they wait in `blocking` for long, and stops pass over them.
//!
//! A stop requests or holds every mutator of its list, and its owner scans the stack of each. A
//! program with a thousand threads that wait for requests would pay for all of them in each stop.
//! So the owner of a world may set such mutators aside between stops ([`World::set_aside`]): they
//! leave the list.
//!
//! # Invariant
//! A mutator that is aside stands still until it is taken back. It is set aside and taken back with
//! the registry lock held. So a thread that holds this lock, as every stop does, may look at it as
//! at a stopped mutator ([`World::for_each_aside`], [`Stopped::aside`]).
//!
//! The state word ensures it: a thread cannot leave BLOCKED while ASIDE is set, and takes the
//! registry lock to have ASIDE removed (`members::come_back`). Before the thread goes on, its
//! `back` hook applies to the mutator's record what stops have changed in all other records
//! meanwhile.
//!
//! # Taking back
//! A mutator is taken back by its thread, when `blocking` ends or when the thread detaches in it,
//! and by a handshake with it. If the thread has ended by the bare `exit` system call,
//! [`World::for_each_aside`] removes the mutator.
//!
//! A mutator is set aside only if it belongs to one world and has a `back` hook. A mutator that
//! waits for the registry lock is not set aside: it would leave `blocking` with the lock held that
//! it needs to be taken back.

use super::stopped::Stopped;
use crate::blocking::lock;
use crate::members::World;
use crate::stopped_mutator::StoppedMutator;
use crate::unwind;
use core::sync::atomic::Ordering;

impl World {
    /// Sets mutators aside that have been in `blocking` since the last call, and returns their
    /// number. Later stops pass over them.
    ///
    /// `may` is called for each of them. If it returns `false`, the mutator is not set aside. The
    /// registry lock is held then, and the thread cannot leave `blocking`. Changes of the mutator's
    /// record by `may` happen before everything that the thread does after `blocking`. Attaches and
    /// stops wait for the lock, so `may` must be short. It must not take a lock that a mutator may
    /// hold outside of `no_preempt`.
    ///
    /// Only mutators that were attached with a [`back`](crate::MutatorHooks::back) hook, and that
    /// belong to no other world, are set aside. On a thread that holds a stop this does nothing.
    ///
    /// # Safety
    /// The caller owns the world, and no other part of the program calls this. For each mutator
    /// that `may` accepts, the caller does the work of its stops in
    /// [`for_each_aside`](Self::for_each_aside), [`Stopped::aside`] or the `back` hook.
    pub unsafe fn set_aside(&self, mut may: impl FnMut(&StoppedMutator<'_>) -> bool) -> usize {
        /// Mutators that are set aside, and that are looked at, under one lock.
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

    /// Calls `f` with `most` mutators that are aside, at places below `from`, under the registry
    /// lock. Returns the place at which to continue, or `None` if no mutator is left. The first
    /// call passes `usize::MAX`.
    ///
    /// A pass goes from the highest place down, so it reaches every mutator that is aside from its
    /// beginning to its end. When a mutator is taken back, its place goes to one from a higher
    /// place, which the pass has reached, and may reach again.
    ///
    /// Mutators whose threads have ended by the bare `exit` system call are removed, and their
    /// `gone` hook is called. On a thread that holds a stop this returns `None`: use
    /// [`Stopped::aside`] there.
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
                members.lose_stacks_of(gone.record);
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
    /// The mutators that are aside. They are held in `blocking`, but not by this stop.
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
