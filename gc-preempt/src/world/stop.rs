//! Stopping the mutators of one world: request, wait, retry.
//!
//! A stop has a number, one more than the last in the process. It goes like this, all under the
//! registry lock, which also makes stops one at a time, so that two heaps cannot park each other's
//! stoppers:
//!
//! 1. Request to every mutator ([`State::turn`](crate::state::State::turn)): hold the blocked ones,
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
//! ([`lock`] makes each caller say what it does): stopping a world, a handshake,
//! attaching, registering code, a new world. What cannot fail is put off until the resume (a
//! dropped [`Mutator`](crate::Mutator) stays a member until then), or touches nothing that a stop reads (the last
//! handle of another world).

use core::marker::PhantomData;
use core::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::stopped::{StopReport, Stopped};
use super::wait::{Gate, Wait, send};
use crate::acknowledgements;
use crate::blocking::lock;
use crate::code::CODE;
use crate::errors::StopError;
use crate::members::{Member, World};
use crate::registry::{self, MutatorId, Record};
use crate::state::Request;
use crate::stop_number::{BEGUN, MAY_SPIN, STOPPER_CORE};
use crate::stopper::{self, holds_a_stop};
use crate::{handler, panics, processors};

impl World {
    pub(super) fn stop_those(&self, only: Option<MutatorId>) -> Result<Stopped<'_>, StopError> {
        if !holds_a_stop() && !self.inner.hooked.swap(true, Ordering::Relaxed) {
            panics::put_panic_hook_on_top();
        }
        let wanted =
            |m: &Member| only.is_none_or(|id| m.record.tid.load(Ordering::Relaxed) as u32 == id.0);
        let mut lock = loop {
            let mut lock = lock()?;
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
            let kept = seam::kept_over_gate(lock);
            gate.wait();
            if let Some(lock) = kept {
                break lock;
            }
        };
        // SAFETY: the registry lock is held, and no stop is under way.
        unsafe { CODE.take_dropped() };
        let members = &mut self.inner.members(&mut lock).list;
        let requested = Instant::now();
        // Relaxed: only under the registry lock; the threads learn the number from their state
        // words.
        let number = BEGUN.load(Ordering::Relaxed) + 1;
        BEGUN.store(number, Ordering::Relaxed);
        stopper::begin();

        let count = members.iter().filter(|m| wanted(m)).count();
        MAY_SPIN.store((count as u32) < processors::count(), Ordering::Relaxed);
        let core = processors::own().unwrap_or(u32::MAX);
        STOPPER_CORE.store(core, Ordering::Relaxed);

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
            seam::before_request(m.record);
            match m.record.state.request_or_hold(
                number,
                acknowledgements::add,
                acknowledgements::done,
            ) {
                Request::Held => held += 1,
                Request::Asked => {
                    signalled += 1;
                    if self.inner.config.signals {
                        if signalled == 1 {
                            handler::reinstall();
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
                mutators: signalled + held,
                signalled,
                held,
                deferrals,
            },
            _on_its_thread: PhantomData,
        })
    }
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
