//! A stopped world: its mutators, and the resume.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::code::CODE;
use crate::members::{Inner, MUTATOR_DROPPED, Member, World, worlds};
use crate::registry::{MutatorId, Record, RegistryGuard};
use crate::stop_number::RESUMED;
use crate::stopped_mutator::StoppedMutator;
use crate::{acknowledgements, arch, attach, park, stopper};

/// A world whose mutators all stand still. Resumes when dropped.
pub struct Stopped<'w> {
    pub(super) world: &'w World,
    pub(super) lock: Option<RegistryGuard>,
    pub(super) only: Option<MutatorId>,
    pub(super) number: u64,
    pub(super) requested: Instant,
    pub(super) stopped_at: Instant,
    pub(super) report: StopReport,
    /// Its thread is the one whose panics abort.
    pub(super) _on_its_thread: PhantomData<*mut ()>,
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
            // SAFETY: this value, which is borrowed, is the stop.
            .map(|member| unsafe { member.stopped(self.number) })
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
        unsafe { CODE.reap(self.world.inner.id, stacks, words) };
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
        stopper::end();
        // Release pairs with the Acquire in `stop_number::resumed`.
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
        let unused = unsafe { CODE.sweep() };
        drop(lock);
        drop(unused); // runs the owners' destructors, which may be anything
        for (inner, record) in left {
            attach::detach(&inner, record, || ());
        }
    }
}

/// The memberships of this thread whose `Mutator` was dropped in the stop that it held.
fn take_those_that_left(lock: &mut RegistryGuard) -> Vec<(Arc<Inner>, &'static Record)> {
    if !MUTATOR_DROPPED.swap(false, Ordering::Relaxed) {
        return Vec::new();
    }
    let all: Vec<_> = worlds(lock).iter().filter_map(Weak::upgrade).collect();
    let mut left = Vec::new();
    for world in &all {
        for member in world.members(lock).all_mut() {
            if let Some(inner) = member.left.get_mut().take() {
                left.push((inner, member.record));
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
