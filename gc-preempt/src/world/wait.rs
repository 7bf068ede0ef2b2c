//! The stopper's wait until every thread has stopped.

use super::backoff::{Backoff, Pause};
use crate::acknowledgements;
use crate::members::Member;
use crate::registry::{MutatorId, Record};
use crate::watchdog::Watchdog;
use crate::{handler, park, processors, signal};
use core::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Signals a thread that was asked. A thread that no longer exists counts as stopped.
pub(super) fn send(m: &mut Member) {
    // Relaxed: the thread reads it after the signal, which orders the two.
    m.record.in_flight.store(1, Ordering::Relaxed);
    // The number of a thread that has ended may be another thread's by now: hence the lifeline.
    let is_gone = m.record.lifeline.is_cut() || !signal::send(m.record.tid.load(Ordering::Relaxed));
    if is_gone && !m.dead && seam::notes_the_dead() {
        m.dead = true;
        acknowledgements::done();
    }
}

/// One stop's wait.
pub(super) struct Wait {
    /// The stop's number.
    pub(super) number: u64,
    /// The one mutator that it stops; `None`: all.
    pub(super) only: Option<MutatorId>,
    /// When the watchdog speaks first.
    pub(super) patience: Duration,
    /// Are threads signalled?
    pub(super) signals: bool,
    /// How many were asked.
    pub(super) asked: u32,
}

impl Wait {
    /// Waits until every thread that was asked has acknowledged, and signals again where that is
    /// needed. How many signals were sent again since threads could not stop where they stood.
    pub(super) fn until_all_stopped(&self, members: &mut [Member]) -> u32 {
        // A thread that was last on this core runs there again if the stopper sleeps: other
        // programs may use all other cores.
        let may_spin = self.asked < processors::count() && !self.is_on_own_core(members);
        let begun = Instant::now();
        let mut backoff = Backoff::new(begun, may_spin);
        let mut watchdog = Watchdog::new(begun, self.patience);
        let mut retries = 0;
        while !acknowledgements::none_left() {
            if acknowledgements::take_retry() {
                backoff.retry_later();
            }
            if backoff.spins() {
                park::spin_hint();
                continue;
            }
            let now = Instant::now();
            if backoff.retry_is_due(now) {
                // Relaxed: a signal too many is a stray.
                retries += self.send_again(members, |r| r.in_flight.load(Ordering::Relaxed) == 0);
            }
            if seam::sends_again() && backoff.resend_is_due(now) {
                if self.signals {
                    handler::reinstall();
                }
                self.send_again(members, |_| true);
            }
            watchdog.look(now, || {
                let mut records = members.iter().map(|m| m.record);
                records.find(|r| self.wants(r) && r.state.load().asked())
            });
            if backoff.is_late(now) && self.is_on_own_core(members) {
                backoff.stop_spinning();
            }
            match backoff.pause(now) {
                Pause::Spin => {}
                // SAFETY: no arguments, no memory.
                Pause::Yield => drop(unsafe { libc::sched_yield() }),
                Pause::Sleep(at_most) => acknowledgements::sleep(at_most),
            }
        }
        retries
    }

    /// Was a thread that has not stopped yet last on the stopper's core?
    fn is_on_own_core(&self, members: &[Member]) -> bool {
        processors::own().is_some_and(|own| {
            members.iter().map(|m| m.record).any(|r| {
                let pointer = r.thread_pointer.load(Ordering::Relaxed);
                self.wants(r) && r.state.load().asked() && processors::was_last_on(pointer, own)
            })
        })
    }

    /// Does this stop stop that thread?
    fn wants(&self, r: &Record) -> bool {
        self.only.is_none_or(|id| r.id() == id)
    }

    /// Signals again each thread that is asked and will not stop by itself, if `which` picks it.
    /// How many that were.
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

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn notes_the_dead() -> bool {
        !Fault::NoDeadCheck.planted()
    }

    pub(super) fn sends_again() -> bool {
        !Fault::NoResend.planted()
    }
}
