//! Stopping the mutators of one world: request, wait, retry.
//!
//! A stop has a number, one more than the last in the process. All of it happens under the registry
//! lock. So stops are one at a time in the process, and two heaps cannot park each other's
//! stoppers.
//!
//! 1. Hold each mutator that is blocked, and ask and signal each that runs
//!    ([`State::request_or_hold`](crate::state::State::request_or_hold)). All are signalled before
//!    any is waited for, so that their latencies overlap.
//! 2. Wait until the count of acknowledgements is zero (`wait.rs`). The stopper spins only if a
//!    core is free for it: otherwise it would keep that core from a thread that has to run its
//!    handler.
//! 3. Resume (`stopped.rs`): one store of the number, one futex wake for all. No thread is
//!    signalled to go on.
//!
//! Before a stop begins, the world runs for as long as its last stop took (`gate.rs`).
//!
//! A thread inside `no_preempt` is not signalled again: the end of the section polls.
//!
//! # The thread that holds a stop
//! It holds the registry lock, so it can do nothing else that needs this lock before the resume. An
//! operation that can fail returns an error ([`lock`] makes each caller handle it): stopping a
//! world, a handshake, attaching, registering code, a new world. An operation that cannot fail is
//! put off until the resume (a dropped [`Mutator`](crate::Mutator) stays a member until then), or
//! touches nothing that a stop reads (dropping the last handle of another world).

use core::marker::PhantomData;
use core::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::gate::Gate;
use super::stopped::{StopReport, Stopped};
use super::wait::{Wait, send};
use crate::acknowledgements;
use crate::blocking::lock;
use crate::code::CODE;
use crate::errors::StopError;
use crate::members::{Member, World};
use crate::registry::{self, MutatorId, Record, RegistryGuard};
use crate::state::Request;
use crate::stop_number::{BEGUN, MAY_SPIN, STOPPER_CORE};
use crate::stopper::{self, holds_a_stop};
use crate::{handler, panics, processors};

/// How many threads the requests of a stop have found in which state.
#[derive(Default)]
struct Found {
    /// Running, and signalled.
    signalled: u32,
    /// Blocked, or still parked from the stop before.
    held: u32,
}

/// Is this the mutator of that number, if there is one?
fn is_wanted(only: Option<MutatorId>, m: &Member) -> bool {
    only.is_none_or(|id| m.record.id() == id)
}

impl World {
    /// Stops all mutators, or `only` one.
    pub(super) fn stop_those(&self, only: Option<MutatorId>) -> Result<Stopped<'_>, StopError> {
        // Relaxed: which of two first stops does it does not matter.
        if !holds_a_stop() && !self.inner.hooked.swap(true, Ordering::Relaxed) {
            panics::put_panic_hook_on_top();
        }
        let mut lock = self.lock_for_stop(only)?;
        // SAFETY: the registry lock is held, and no stop is under way.
        unsafe { CODE.take_dropped() };
        let members = &mut self.inner.members(&mut lock).list;
        let requested = Instant::now();
        let count = members.iter().filter(|m| is_wanted(only, m)).count();
        let number = begin(count);
        let found = self.request(members, only, number);
        let wait = Wait {
            number,
            only,
            // Relaxed: a setting.
            patience: Duration::from_nanos(self.inner.patience.load(Ordering::Relaxed)),
            signals: self.inner.config.signals,
            asked: found.signalled,
        };
        let deferrals = wait.until_all_stopped(members);
        for gone in members.iter().filter(|m| m.dead) {
            // SAFETY: the thread has ended, the registry lock is held, and the end of this stop
            // takes the member away.
            unsafe { gone.tell_gone() };
        }
        let stopped_at = Instant::now();
        seam::in_the_stop();
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
                mutators: found.signalled + found.held,
                signalled: found.signalled,
                held: found.held,
                deferrals,
            },
            _on_its_thread: PhantomData,
        })
    }

    /// Takes the registry lock for a stop, when the world has run for long enough. A mutator that
    /// is to be stopped alone is taken back if it is aside.
    fn lock_for_stop(&self, only: Option<MutatorId>) -> Result<RegistryGuard, StopError> {
        loop {
            let mut lock = lock()?;
            let members = self.inner.members(&mut lock);
            let me = registry::current();
            let is_its = |m: &Member, r: &Record| core::ptr::eq(r, m.record) && is_wanted(only, m);
            if me.is_some_and(|r| members.all().any(|m| is_its(m, r))) {
                return Err(StopError::CallerIsMutator);
            }
            if only.is_some()
                && let Some(aside) = members.aside.iter().find(|m| is_wanted(only, m))
            {
                let record = aside.record;
                members.take_back(record);
            }
            let since = members.resumed;
            let list = &members.list;
            let gate = since.and_then(|(since, took)| Gate::before_stop(list, since, took));
            let Some(gate) = gate else {
                return Ok(lock);
            };
            let kept = seam::kept_over_gate(lock);
            gate.wait();
            if let Some(lock) = kept {
                return Ok(lock);
            }
        }
    }

    /// Asks and signals the running mutators, and holds the others.
    fn request(&self, members: &mut [Member], only: Option<MutatorId>, number: u64) -> Found {
        let signals = self.inner.config.signals;
        let mut found = Found::default();
        acknowledgements::begin();
        for m in members.iter_mut().filter(|m| is_wanted(only, m)) {
            if m.record.lifeline.is_cut() {
                m.dead = true;
                continue;
            }
            // Relaxed: the request's swap publishes it.
            m.record.by_signal.store(signals, Ordering::Relaxed);
            seam::before_request(m.record);
            let state = &m.record.state;
            match state.request_or_hold(number, acknowledgements::add, acknowledgements::done) {
                Request::Held => found.held += 1,
                Request::Asked => {
                    found.signalled += 1;
                    if signals {
                        if found.signalled == 1 {
                            handler::reinstall();
                        }
                        send(m);
                    }
                }
            }
        }
        acknowledgements::done();
        found
    }
}

/// Begins a stop of so many threads, and gives it its number. Under the registry lock.
fn begin(threads: usize) -> u64 {
    // Relaxed, here and below: BEGUN is read under the registry lock only, and threads get the
    // number with their state words; the others are hints.
    let number = BEGUN.load(Ordering::Relaxed) + 1;
    BEGUN.store(number, Ordering::Relaxed);
    stopper::begin();
    MAY_SPIN.store((threads as u32) < processors::count(), Ordering::Relaxed);
    let core = processors::own().unwrap_or(u32::MAX);
    STOPPER_CORE.store(core, Ordering::Relaxed);
    number
}

/// What tests may break here.
mod seam {
    use core::sync::atomic::Ordering;

    use crate::faults::Fault;
    use crate::registry::{Record, RegistryGuard};
    use crate::signal;
    use crate::state::Phase;

    /// The registry lock, which is given back while the world runs.
    pub(super) fn kept_over_gate(lock: RegistryGuard) -> Option<RegistryGuard> {
        Fault::GateLocked.planted().then_some(lock)
    }

    pub(super) fn before_request(record: &Record) {
        if Fault::SignalBlocked.planted() && record.state.load().phase() == Phase::Blocked {
            signal::send(record.tid.load(Ordering::Relaxed));
        }
    }

    pub(super) fn in_the_stop() {
        if Fault::MallocInStop.planted() {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(100_000)));
        }
    }
}
