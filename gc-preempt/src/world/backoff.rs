//! When a stopper that waits signals again, and whether it spins, yields or sleeps until then.
//!
//! * A thread that could not stop where it stood (unsafe code, a foreign stack) is signalled again
//!   soon, at doubling intervals.
//! * A signal that no handler has taken is sent again later, at doubling intervals: the kernel
//!   loses no signal, but a host's `sigwait`, or a handler that it has installed over ours, may
//!   take it.
//! * The stopper spins for about as long as it costs to be woken, if a core is free for it. Then a
//!   stop takes at most twice as long as with the better of the two choices (Karlin et al. 1990,
//!   "Competitive randomized algorithms for nonuniform problems").

use std::time::{Duration, Instant};

/// The first retry: about what a short unsafe range or a handler on another stack takes.
const RETRY_FIRST: Duration = Duration::from_micros(5);
/// The longest interval between retries. A host's handler may run for long, but the stop should not
/// wait much longer than the handler.
const RETRY_MOST: Duration = Duration::from_millis(1);
/// For so long a signal counts as on its way.
const RESEND_FIRST: Duration = Duration::from_millis(10);
/// The longest interval between two signals. A thousand threads on two processors take longer than
/// 10 ms to be scheduled, and signals to all of them take processor time from them.
const RESEND_MOST: Duration = Duration::from_millis(80);
/// How long the stopper spins: about what it costs to be woken on a virtual machine, where a core
/// that has halted comes back late.
const SPIN: Duration = Duration::from_micros(100);
/// A stop that takes longer than this asks once whether a thread that it waits for was last on the
/// stopper's core, and needs it.
const LATE: Duration = Duration::from_micros(15);
/// One iteration of so many reads the clock; the others only spin.
const SPINS: u32 = 64;

/// What the stopper does until it looks again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pause {
    /// Nothing: it spins.
    Spin,
    /// It gives its core to another thread: for times that are shorter than a sleep's slack.
    Yield,
    /// It sleeps, at most for so long.
    Sleep(Duration),
}

/// The times of one stopper's wait.
pub(super) struct Backoff {
    begun: Instant,
    /// When threads that could not stop are signalled again. `None`: there are none.
    retry_at: Option<Instant>,
    retry_gap: Duration,
    resend_at: Instant,
    resend_gap: Duration,
    /// Spins until then. `None`: it does not spin.
    spin_until: Option<Instant>,
    spins: u32,
    has_asked_late: bool,
}

impl Backoff {
    /// For a wait that begins now.
    pub(super) fn new(now: Instant, may_spin: bool) -> Self {
        Self {
            begun: now,
            retry_at: None,
            retry_gap: RETRY_FIRST,
            resend_at: now + RESEND_FIRST,
            resend_gap: RESEND_FIRST,
            spin_until: may_spin.then(|| now + SPIN),
            spins: 0,
            has_asked_late: false,
        }
    }

    /// A thread could not stop: it is to be signalled again.
    pub(super) fn retry_later(&mut self) {
        if self.retry_at.is_none() {
            self.retry_at = Some(Instant::now() + self.retry_gap);
        }
    }

    /// Spins in this iteration, without a look at the clock?
    pub(super) fn spins(&mut self) -> bool {
        self.spins = self.spins.wrapping_add(1);
        self.spin_until.is_some() && self.retry_at.is_none() && !self.spins.is_multiple_of(SPINS)
    }

    /// Is it time to signal the threads that could not stop? Once for each time.
    pub(super) fn retry_is_due(&mut self, now: Instant) -> bool {
        let is_due = self.retry_at.is_some_and(|at| at <= now);
        if is_due {
            self.retry_at = None;
            self.retry_gap = (self.retry_gap * 2).min(RETRY_MOST);
        }
        is_due
    }

    /// Is it time to signal all threads again? Once for each time.
    pub(super) fn resend_is_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.resend_at;
        if is_due {
            self.resend_gap = (self.resend_gap * 2).min(RESEND_MOST);
            self.resend_at = now + self.resend_gap;
        }
        is_due
    }

    /// Does the stop take long for a stopper that spins? True once.
    pub(super) fn is_late(&mut self, now: Instant) -> bool {
        let is_late = self.spin_until.is_some() && !self.has_asked_late && now - self.begun >= LATE;
        self.has_asked_late |= is_late;
        is_late
    }

    /// A thread that is waited for needs the stopper's core.
    pub(super) fn stop_spinning(&mut self) {
        self.spin_until = None;
    }

    /// What to do until the next look.
    pub(super) fn pause(&self, now: Instant) -> Pause {
        if self.spin_until.is_some_and(|until| now < until) {
            Pause::Spin
        } else if self.retry_at.is_some() {
            Pause::Yield
        } else {
            Pause::Sleep(self.resend_at.saturating_duration_since(now))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_double_up_to_their_bounds() {
        let begun = Instant::now();
        let mut backoff = Backoff::new(begun, false);
        let mut now = begun + RESEND_FIRST;
        for gap in [20, 40, 80, 80] {
            assert!(backoff.resend_is_due(now) && !backoff.resend_is_due(now));
            assert_eq!(backoff.pause(now), Pause::Sleep(Duration::from_millis(gap)));
            now += Duration::from_millis(gap);
        }
        for _ in 0..12 {
            assert!(!backoff.retry_is_due(now));
            backoff.retry_later();
            assert_eq!(backoff.pause(now), Pause::Yield);
            assert!(backoff.retry_is_due(Instant::now() + backoff.retry_gap));
        }
        assert_eq!(backoff.retry_gap, RETRY_MOST);
    }

    #[test]
    fn it_spins_only_at_first_and_asks_once_whether_it_should() {
        let begun = Instant::now();
        let mut backoff = Backoff::new(begun, true);
        assert_eq!((0..SPINS).filter(|_| backoff.spins()).count(), 63);
        assert_eq!(backoff.pause(begun), Pause::Spin);
        assert!(!backoff.is_late(begun));
        assert!(backoff.is_late(begun + LATE) && !backoff.is_late(begun + LATE));
        assert_ne!(backoff.pause(begun + SPIN), Pause::Spin);
        backoff.stop_spinning();
        assert!(!backoff.spins());
        assert_ne!(backoff.pause(begun), Pause::Spin);
    }
}
