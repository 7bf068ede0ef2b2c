//! A stopped world: its mutators, and the resume.

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::code::CODE;
use crate::members::{Inner, MUTATOR_DROPPED, Member, World, worlds};
use crate::registry::{MutatorId, Record, RegistryGuard};
use crate::stop_number::RESUMED;
use crate::stopped_mutator::StoppedMutator;
use crate::{acknowledgements, arch, attach, park, stopper};

/// A world whose mutators are all stopped. Its drop resumes them.
///
/// ```
/// let world = gc_preempt::World::new(gc_preempt::Config::default())?;
/// let stopped = world.stop()?;
/// for mutator in stopped.mutators() {
///     let _at = mutator.snapshot().registers.pc;
/// }
/// let report = stopped.resume();
/// assert_eq!(report.mutators, 0); // no thread is attached here
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Stopped<'w> {
    pub(super) world: &'w World,
    pub(super) lock: Option<RegistryGuard>,
    pub(super) only: Option<MutatorId>,
    pub(super) number: u64,
    pub(super) requested: Instant,
    pub(super) stopped_at: Instant,
    pub(super) report: StopReport,
    /// Not `Send`, since the registry records the thread as the stopper.
    pub(super) _on_its_thread: PhantomData<*mut ()>,
}

impl Stopped<'_> {
    /// The number of this stop. Numbers grow, and are unique in the process.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When the stop was requested.
    pub fn requested_at(&self) -> Instant {
        self.requested
    }

    /// When the last mutator had stopped.
    pub fn stopped_at(&self) -> Instant {
        self.stopped_at
    }

    fn members(&self) -> &[Member] {
        // SAFETY: this value holds the registry lock, and nothing changes the list while `self` is
        // borrowed.
        unsafe { &(*self.world.inner.members.get()).list }
    }

    /// The stopped mutators: all except the mutators [aside](Self::aside).
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

    /// Resumes all mutators, and returns the times of the stop.
    pub fn resume(mut self) -> StopReport {
        self.finish();
        self.report
    }

    /// Looks for unregistered code to which no stack returns any more. In the stopped world.
    fn reap_code(&self) {
        // SAFETY: this stop holds every mutator.
        let snapshot = |m: &Member| unsafe { m.record.snapshot() };
        let alive = || {
            // SAFETY: as in `members`.
            let all = unsafe { (*self.world.inner.members.get()).all() };
            all.filter(|m| !m.dead && !m.record.lifeline.is_cut())
        };
        let part = |sp: usize, stack: Range<usize>| sp.max(stack.start)..stack.end;
        let stacks = alive().flat_map(|m| {
            let sp = snapshot(m).registers.sp().saturating_sub(arch::RED_ZONE);
            let left = m.record.left_stacks();
            left.map(move |(left, bounds)| part(left.sp(), bounds.stack))
                .chain([part(sp, m.record.frames().stack)])
        });
        let suspended = self.suspended().filter(|_| seam::looks_at_suspended());
        let stacks = stacks.chain(suspended.map(|s| part(s.sp(), s.memory())));
        let words = alive().flat_map(|m| {
            let registers = snapshot(m).registers;
            registers.gpr.into_iter().chain([registers.pc])
        });
        // SAFETY: the registry lock is held, the world is stopped; stacks are readable from the
        // stack pointer's red zone to their base.
        unsafe { CODE.reap(self.world.inner.id, stacks, words) };
    }

    /// Removes the members whose threads no longer exist, and their records: a new thread may get
    /// the same control block.
    fn remove_dead_members(&self, lock: &mut RegistryGuard) {
        let list = &mut self.world.inner.members(lock).list;
        if !list.iter().any(|m| m.dead) {
            return;
        }
        let dead: Vec<_> = list.extract_if(.., |m| m.dead).map(|m| m.record).collect();
        for record in dead {
            self.world.inner.members(lock).lose_stacks_of(record);
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
        // Threads that still walk their stacks read the code map, which may change when the lock is
        // free.
        acknowledgements::wait_for_walks();
        self.remove_dead_members(&mut lock);
        let left = take_dropped_mutators(&mut lock);
        // SAFETY: the registry lock is held, and this stop is over.
        let unused = unsafe { CODE.sweep() };
        drop(lock);
        drop(unused); // runs the owners' destructors, which may do anything
        for (inner, record) in left {
            attach::detach(&inner, record, || ());
        }
    }
}

/// The memberships of this thread whose `Mutator` was dropped while it held the stop.
fn take_dropped_mutators(lock: &mut RegistryGuard) -> Vec<(Arc<Inner>, &'static Record)> {
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

/// The times and counts of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// The stop's number.
    pub number: u64,
    /// From the request until the last mutator was stopped.
    pub time_to_stop: Duration,
    /// From the request until the resume was published.
    pub pause: Duration,
    /// Mutators that were stopped, without those aside.
    pub mutators: u32,
    /// Of these, the mutators that were running and were signalled.
    pub signalled: u32,
    /// Of these, the mutators that were blocked, or still parked from the stop before.
    pub held: u32,
    /// Signals that were sent again, since a thread could not be stopped where the first one found
    /// it.
    pub deferrals: u32,
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn looks_at_suspended() -> bool {
        !Fault::ReapsBehindSuspended.planted()
    }
}
