//! The wait before a stop: the world runs for a while between two stops.
//!
//! Stops back to back would take over each thread before it has left its park, or signal it on its
//! way out of the handler, and the thread would never run an instruction of its own. So a stop
//! begins when the world has run for as long as the last stop took, and its threads have left their
//! parks, both within bounds.
//!
//! The registry lock is free during this wait: a thread that attaches waits for stops only.

use std::time::{Duration, Instant};

use crate::members::Member;
use crate::quiet::NoCancel;
use crate::state::Phase;

/// The world runs for no longer than this before it is stopped again, however long the last stop
/// took.
const RUN_MOST: Duration = Duration::from_millis(10);
/// The stopper waits no longer than this for threads to leave their parks: twice what it takes to
/// wake one.
const LEAVE_MOST: Duration = Duration::from_micros(100);

/// The stopper's next wait. After it, the stopper asks again whether a stop may begin.
#[derive(Clone, Copy)]
pub(super) enum Gate {
    Sleep(Duration),
    Yield,
}

impl Gate {
    /// The wait that is left, for a world that runs since `since` and whose last stop `took` so
    /// long. `None`: the stop may begin.
    ///
    /// The stopper does not wait until every thread has left its park: with more threads than
    /// processors that would take time slices. Half of the time belongs to the world, so a thread
    /// that is scheduled late still runs between two stops in most cases.
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

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn has_no_gate() -> bool {
        Fault::NoGate.planted()
    }
}
