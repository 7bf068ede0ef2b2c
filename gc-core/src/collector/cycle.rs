//! One collection: its state, and what all phases need (stops, resumes, the collector's share of
//! the processors). The phases are in `scan.rs`, `tracing.rs`, `judge.rs` and `swap_bitmaps.rs`.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::time::Instant;

use gc_preempt::Stopped;

use super::beside::Beside;
use super::phase::Phase;
use super::state::State;
use super::stress::Stress;
use crate::mark::Marker;
use crate::mark::old::Old;
use crate::mark::workers::Workers;
use crate::marked::Marked;
use crate::pacer::{self, Share};
use crate::roots::Scanned;
use crate::stats::CollectionStats;
use crate::thread::thread_cpu;

/// The time for which a count of the running mutators is used before they are counted again.
const SHARE_FOR: Duration = Duration::from_millis(1);

/// One collection.
pub(super) struct Cycle<'h, 'c> {
    pub(super) state: &'h State,
    pub(super) marker: Marker<'h>,
    /// The helpers: other threads that mark.
    pub(super) workers: &'c mut Workers<'h>,
    pub(super) stopped: Option<Stopped<'h>>,
    pub(super) phase: Phase,
    /// The phase that follows `Finish` once nothing is grey.
    pub(super) after: Phase,
    /// Weak words, registrations and dead cells that the present stop has looked at.
    pub(super) examined: usize,
    /// Whether there are weak words that are cleared after the dead were enqueued.
    pub(super) has_long: bool,
    /// The number of times that `Finish` has failed.
    pub(super) retries: u32,
    /// Set while assists are held, since marking seems to be over: whether they were allowed
    /// before.
    pub(super) held: Option<bool>,
    /// Whether the cells that wait to be finalized or dropped have been marked.
    pub(super) ready_marked: bool,
    pub(super) stress: Stress,
    pub(super) scanned: Scanned,
    /// The roots that stop 1 has left to be scanned; `None`: all have been scanned.
    pub(super) beside: Option<Beside>,
    /// Whether memory of handle tables is to be given back.
    pub(super) trim_handles: bool,
    pub(super) stats: CollectionStats,
    /// The time at which the roots had been scanned.
    pub(super) marking_since: Instant,
    /// The cycle's begin, by the clock and by the thread's processor time in nanoseconds.
    pub(super) since: Instant,
    pub(super) cpu_since: u64,
    /// The time of the last resume.
    pub(super) resumed_at: Instant,
    /// The collector's share of the processors, the time until which it is used, and the number of
    /// mutators that wanted a processor when it was computed.
    pub(super) share: Share,
    pub(super) share_until: Instant,
    pub(super) running: u32,
    /// Whether a request began the cycle, not the trigger.
    pub(super) forced: bool,
    /// Cells that were allocated at stop 1.
    pub(super) cells: u64,
    /// The allocation count at stop 1.
    pub(super) given: Marked,
    /// The tails of runs at stop 1.
    pub(super) tails: Marked,
    /// The old cells, which a young collection keeps, and the part of the heap whose old cells it
    /// has still to follow.
    pub(super) kept: Marked,
    pub(super) old: Old,
    /// The accounts as of the time when marking seemed to be over.
    pub(super) accounts: Option<Accounts>,
    /// `Accounts::immutable` as of the time before stop 1, for a cycle that needs no other stop.
    pub(super) immutable: u64,
}

/// Numbers for the pacer that the collector computes before the second stop, since they take system
/// calls and a lock for each site.
pub(super) struct Accounts {
    /// See [`Space::immutable_bytes`](crate::heap::Space::immutable_bytes).
    pub(super) immutable: u64,
    /// See [`Ledger::since_last`](crate::stats::Ledger::since_last).
    pub(super) interval: u64,
    pub(super) cpu: u64,
}

impl Accounts {
    pub(super) fn of(state: &State, immutable: u64) -> Self {
        let (interval, cpu) = state.ledger.since_last();
        Self {
            immutable,
            interval,
            cpu,
        }
    }
}

impl<'h, 'c> Cycle<'h, 'c> {
    pub(super) fn new(state: &'h State, workers: &'c mut Workers<'h>) -> Self {
        // The mutators are counted once there is more than a piece of work.
        workers.set_helpers(0, 1000);
        let marker = Marker::new(&state.space, &state.queue, &state.weak);
        let now = Instant::now();
        Self {
            state,
            // While mutators run, they mark the runs that they are given.
            marker: if state.concurrent {
                marker
            } else {
                marker.alone()
            },
            workers,
            stopped: None,
            phase: Phase::Prepare,
            after: Phase::ClearWeak,
            examined: 0,
            has_long: false,
            retries: 0,
            held: None,
            ready_marked: false,
            stress: Stress::default(),
            scanned: Scanned::default(),
            beside: None,
            trim_handles: false,
            stats: CollectionStats::default(),
            marking_since: now,
            since: now,
            cpu_since: thread_cpu(),
            resumed_at: now,
            share: pacer::share(1, 0),
            share_until: now,
            running: 0,
            forced: false,
            cells: 0,
            given: Marked::default(),
            tails: Marked::default(),
            kept: Marked::default(),
            old: Old::default(),
            accounts: None,
            immutable: 0,
        }
    }

    pub(super) fn run(mut self) {
        let mut phase = Phase::Prepare;
        while phase != Phase::Idle {
            self.phase = phase;
            // Relaxed: for a debugger that examines a process that hangs.
            self.state.phase.store(phase as u8, Ordering::Relaxed);
            phase = match phase {
                Phase::Idle => break,
                Phase::Prepare => self.prepare(),
                Phase::Scan => self.scan(),
                Phase::Mark => self.mark(),
                Phase::Finish => self.finish(),
                Phase::ClearWeak => self.clear_weak(),
                Phase::Resurrect => self.resurrect(),
                Phase::ClearLong => self.clear_long(),
                Phase::QueueForDrop => self.queue_for_drop(),
                Phase::SwapBitmaps => self.swap_bitmaps(),
                Phase::Sweep => self.sweep(),
            };
        }
        self.state.phase.store(Phase::Idle as u8, Ordering::Relaxed);
    }

    pub(super) fn prepare(&mut self) -> Phase {
        let space = &self.state.space;
        while space.sweep_piece_aside() {}
        let (number, whole) = self.state.requests.begin();
        if !whole {
            seam::is_late();
        }
        self.stats.number = number;
        self.stats.young = space.keeps_marks() && !whole && space.allocated_black.are_known();
        if self.stats.young {
            space.unmark_allocated_black();
        } else {
            space.forget_marks();
        }
        while space.clear_spare_piece() {}
        self.state.weak.begin(space);
        // A kind that is made later has no cell whose words lead to cells of the snapshot.
        self.has_long = space.kinds.has_long();
        if let Some(verify) = &self.state.verify {
            verify.begin();
        }
        self.state.finalizers.begin();
        self.state.drops.begin();
        self.state.queue.take_large_work();
        self.marker.make_ready();
        self.immutable = space.immutable_bytes();
        let stress_phases = self.state.requests.stress_phases() && self.state.concurrent;
        self.stress = Stress::new(stress_phases, self.stats.number);
        Phase::Scan
    }

    /// Stops the world, unless it is stopped already.
    pub(super) fn stop(&mut self) -> &Stopped<'h> {
        if self.stopped.is_none() {
            self.stats.stops_on_assists += u32::from(self.state.pace.assisting() != 0);
            match self.state.world.stop() {
                Ok(stopped) => {
                    self.examined = 0;
                    if self.stats.stops != 0 {
                        self.stats.mark_concurrent += stopped.requested_at() - self.resumed_at;
                    }
                    self.stopped = Some(stopped);
                }
                Err(error) => unreachable!("the collector is never a mutator: {error}"),
            }
        }
        match &self.stopped {
            Some(stopped) => stopped,
            None => unreachable!("stopped above"),
        }
    }

    /// Resumes the mutators, and counts the stop afterwards.
    pub(super) fn resume(&mut self) {
        let Some(stopped) = self.stopped.take() else {
            return;
        };
        let report = stopped.resume();
        self.resumed_at = Instant::now();
        self.stats.stopped(&report);
        self.state.ledger.stopped(report.time_to_stop, report.pause);
    }

    /// Sleeps if the collector has had more of the processors than its share. Not in a stop.
    pub(super) fn rest(&mut self) {
        let now = Instant::now();
        if now >= self.share_until {
            let cores = self.state.ledger.cores();
            self.running = self.state.running(cores);
            self.share = pacer::share(cores, self.running);
            self.share_until = now + SHARE_FOR;
            let markers = self.state.markers.unwrap_or(self.share.markers);
            self.workers.set_helpers(markers - 1, self.share.permille);
        }
        if self.share.permille >= 1000 {
            return;
        }
        let busy = thread_cpu().saturating_sub(self.cpu_since);
        let elapsed = (now - self.since).as_nanos() as u64;
        let rest = pacer::rest(busy, elapsed, self.share.permille);
        if rest != 0 {
            // So that mutators which have to assist find the marked cells meanwhile.
            self.marker.publish();
            std::thread::sleep(Duration::from_nanos(rest));
        }
    }
}

mod seam {
    /// Lets a cycle that allocation made due wait up to `URGE_LATE_CYCLES` milliseconds before its
    /// first stop, as on a machine where other processes run instead. The tests must pass so.
    #[cfg(feature = "faults")]
    pub(super) fn is_late() {
        use std::sync::OnceLock;
        use std::time::{Duration, SystemTime, UNIX_EPOCH};
        static MOST: OnceLock<u64> = OnceLock::new();
        let most = *MOST.get_or_init(|| {
            std::env::var("URGE_LATE_CYCLES").map_or(0, |most| {
                most.parse()
                    .expect("URGE_LATE_CYCLES is a number of milliseconds")
            })
        });
        if most > 0 {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let micros = u64::from(now.subsec_nanos() / 100) % (most * 1000);
            std::thread::sleep(Duration::from_micros(micros));
        }
    }

    #[cfg(not(feature = "faults"))]
    #[inline(always)]
    pub(super) fn is_late() {}
}
