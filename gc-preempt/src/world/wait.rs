//! The stopper's two waits: before a stop until the world has run for long enough, and in it until
//! every thread has stopped.
//!
//! The first is no part of a stop, so the registry lock is free meanwhile: a thread that attaches
//! waits for stops only.

use crate::acknowledgements;
use crate::members::Member;
use crate::quiet::NoCancel;
use crate::registry::{MutatorId, Record};
use crate::state::Phase;
use crate::{handler, park, processors, signal, watchdog};
use core::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The first retry of a deferred stop: about what a short unsafe range or a handler on another
/// stack takes.
const RETRY_FIRST: Duration = Duration::from_micros(5);
/// No retry is later than this: a host's handler may run long, but the stop should not wait much
/// longer than it.
const RETRY_MAX: Duration = Duration::from_millis(1);
/// How long an unhandled signal counts as still on its way.
const RESEND: Duration = Duration::from_millis(10);
/// It doubles up to this. A thousand threads on two processors take longer than 10 ms to have their
/// turn, and sending them all another signal keeps a processor from them.
const RESEND_MAX: Duration = Duration::from_millis(80);
/// How long the stopper spins when it has a core to spare: about what it costs to be woken, since
/// then a stop takes at most twice what the better choice would have (Karlin et al. 1990,
/// "Competitive randomized algorithms for nonuniform problems"). On virtual machines that is long:
/// the core has halted, and its host has to get it back. Of 620 stops beside one mutator 8 took
/// more than 22 us when 30 were spun for; in six of them the handler had begun after 15 to 37, and
/// they ended after 95 to 764.
const SPIN: Duration = Duration::from_micros(100);
/// When a stop is late enough to ask whether a thread that it waits for is on the stopper's own
/// core, and has to be given it.
const LATE: Duration = Duration::from_micros(15);

/// The world runs for as long as it was stopped before it is stopped again, but for no longer than
/// this: what a long stop cannot be made up for.
const RUN_MOST: Duration = Duration::from_millis(10);
/// And for so long if threads are parked still: twice what it takes to be woken.
const LEAVE_MOST: Duration = Duration::from_micros(100);

/// What a stopper does before it asks again whether a stop may begin.
#[derive(Clone, Copy)]
pub(super) enum Gate {
    Sleep(Duration),
    Yield,
}

impl Gate {
    /// What is left to wait for: the world runs from `since` on for as long as its last stop
    /// `took`, and its threads leave their parks, each within bounds.
    ///
    /// The wait does not last until every thread has left its park at any cost: with more threads
    /// than processors that takes time slices. A thread that is scheduled at last finds its stop
    /// over half of the time.
    pub(super) fn before_stop(members: &[Member], since: Instant, took: Duration) -> Option<Self> {
        /// A sleep has 50 us of slack by default, so shorter waits only give the core away.
        const SLEEP: Duration = Duration::from_micros(100);
        if seam::has_no_gate() {
            return None;
        }
        let parked = |m: &Member| m.record.state.load().phase() == Phase::Stopped;
        let ran = since.elapsed();
        let left = took.min(RUN_MOST).saturating_sub(ran);
        if left > SLEEP {
            Some(Self::Sleep(left - SLEEP / 2))
        } else if !left.is_zero() || ran < LEAVE_MOST && members.iter().any(parked) {
            Some(Self::Yield)
        } else {
            None
        }
    }

    /// Not under the registry lock.
    pub(super) fn wait(self) {
        let _no_cancel = NoCancel::new();
        match self {
            Self::Sleep(time) => std::thread::sleep(time),
            Self::Yield => std::thread::yield_now(),
        }
    }
}

/// Sends the signal, and takes a thread that no longer exists out of the count.
pub(super) fn send(m: &mut Member) {
    m.record.in_flight.store(1, Ordering::Relaxed);
    // Its number may be another thread's by now.
    let is_gone = m.record.lifeline.is_cut() || !signal::send(m.record.tid.load(Ordering::Relaxed));
    if is_gone && !m.dead && seam::notes_the_dead() {
        m.dead = true;
        acknowledgements::done();
    }
}

/// The stopper's wait.
pub(super) struct Wait {
    pub(super) number: u64,
    pub(super) only: Option<MutatorId>,
    pub(super) signals: bool,
    pub(super) asked: u32,
}

impl Wait {
    pub(super) fn until_all_stopped(&self, members: &mut [Member]) -> u32 {
        let begun = Instant::now();
        // A thread that was last on this core is most likely to run there once the stopper sleeps:
        // other programs may have all the others.
        let may_spin = self.asked < processors::count() && !self.is_on_own_core(members);
        let (mut retries, mut retry_gap, mut retry_at) = (0, RETRY_FIRST, None::<Instant>);
        let (mut resend_at, mut resend_gap) = (begun + RESEND, RESEND);
        let mut watchdog = watchdog::Watchdog::new(begun);
        let mut spin = if may_spin { SPIN } else { Duration::ZERO };
        let mut has_looked = false;
        let mut spins = 0u32;
        while !acknowledgements::none_left() {
            spins += 1;
            if may_spin && retry_at.is_none() && !spins.is_multiple_of(64) {
                if acknowledgements::take_retry() {
                    retry_at = Some(Instant::now() + retry_gap);
                }
                park::spin_hint();
                continue;
            }
            let now = Instant::now();
            if acknowledgements::take_retry() && retry_at.is_none() {
                retry_at = Some(now + retry_gap);
            }
            if retry_at.is_some_and(|t| t <= now) {
                retry_at = None;
                retry_gap = (retry_gap * 2).min(RETRY_MAX);
                retries += self.send_again(members, |r| r.in_flight.load(Ordering::Relaxed) == 0);
            }
            if now >= resend_at && seam::sends_again() {
                resend_gap = (resend_gap * 2).min(RESEND_MAX);
                resend_at = now + resend_gap;
                if self.signals {
                    handler::reinstall();
                }
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
                // A sleep has 50 us of slack by default: too coarse for the first retries. Give the
                // core to whom we wait for instead.
                // SAFETY: no arguments, no memory.
                unsafe { libc::sched_yield() };
            } else {
                acknowledgements::sleep(until);
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

    /// Signals again those that are asked, have not promised to look by themselves, and that
    /// `which` picks.
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

    pub(super) fn has_no_gate() -> bool {
        Fault::NoGate.planted()
    }

    pub(super) fn notes_the_dead() -> bool {
        !Fault::NoDeadCheck.planted()
    }

    pub(super) fn sends_again() -> bool {
        !Fault::NoResend.planted()
    }
}
