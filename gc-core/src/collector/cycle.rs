//! One collection: its state, and what each phase needs (stops, resumptions, the collector's share
//! of the processors). `scan.rs`, `tracing.rs`, `judge.rs` and `swap_bitmaps.rs` have the phases.

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

/// How long it is believed how many mutators run.
const SHARE_FOR: Duration = Duration::from_millis(1);

/// One collection.
pub(super) struct Cycle<'h, 'c> {
    pub(super) state: &'h State,
    pub(super) marker: Marker<'h>,
    /// Threads that mark, too.
    pub(super) workers: &'c mut Workers<'h>,
    pub(super) stopped: Option<Stopped<'h>>,
    pub(super) phase: Phase,
    /// Where the cycle goes on once nothing is grey any more.
    pub(super) after: Phase,
    /// Weak words, registrations and deaths that have been looked at in this stop.
    pub(super) looked: usize,
    /// There are weak words that are cleared after finalizable cells have been queued.
    pub(super) has_long: bool,
    /// How often `Finish` has failed.
    pub(super) retries: u32,
    /// Mutators are kept from helping, since marking seems to be over; whether they would be
    /// otherwise.
    pub(super) held: Option<bool>,
    /// What waited to be finalized or dropped has been marked.
    pub(super) ready_marked: bool,
    pub(super) stress: Stress,
    pub(super) scanned: Scanned,
    /// Roots that are still to be scanned.
    pub(super) beside: Option<Beside>,
    /// Memory of handle tables is to be given back.
    pub(super) trim_handles: bool,
    pub(super) stats: CollectionStats,
    /// When the roots had been scanned.
    pub(super) marking_since: Instant,
    /// When it began, by the clock and by the thread's processor time in nanoseconds.
    pub(super) since: Instant,
    pub(super) cpu_since: u64,
    /// When mutators were resumed last.
    pub(super) resumed_at: Instant,
    /// What it may have of the processors, until when that is believed, and the mutators that
    /// wanted to run then.
    pub(super) share: Share,
    pub(super) share_until: Instant,
    pub(super) running: u32,
    /// It was asked for; it was not due.
    pub(super) forced: bool,
    /// Cells allocated before this collection.
    pub(super) cells: u64,
    /// What had been handed out at stop 1 since the last collection.
    pub(super) handed: Marked,
    /// What the unallocated rests of runs held then.
    pub(super) tails: Marked,
    /// What a young collection takes for alive, and those of it that it has not looked at yet.
    pub(super) kept: Marked,
    pub(super) old: Old,
    /// As they were when marking seemed to be over.
    pub(super) accounts: Option<Accounts>,
    /// Of these, what is linear in sites, as it was before the first stop: for a cycle that does
    /// all in that.
    pub(super) immutable: u64,
}

/// What the pacer is told in the second stop, and can be found out before it: locks, one for each
/// site, and system calls.
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
        // Mutators are counted when there is more to do than a piece.
        workers.set_helpers(0, 1000);
        let marker = Marker::new(&state.space, &state.queue, &state.weak);
        let now = Instant::now();
        Self {
            state,
            // Mutators that run mark the runs they are given.
            marker: if state.concurrent {
                marker
            } else {
                marker.alone()
            },
            workers,
            stopped: None,
            phase: Phase::Prepare,
            after: Phase::ClearWeak,
            looked: 0,
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
            handed: Marked::default(),
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
            // Relaxed: for a debugger that looks at a hung process.
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
        self.stats.number = number;
        self.stats.young = space.keeps_marks() && !whole && space.allocated_black.are_known();
        if self.stats.young {
            space.unmark_allocated_black();
        } else {
            space.forget_marks();
        }
        while space.clear_spare_piece() {}
        self.state.weak.begin(space);
        // A kind that is made later has no cell whose words lead to what was there before.
        self.has_long = space.kinds.has_long();
        if let Some(verify) = &self.state.verify {
            verify.begin();
        }
        self.state.finalizers.begin();
        self.state.drops.begin();
        self.state.queue.take_large_work();
        self.marker.make_ready();
        self.immutable = space.immutable_bytes();
        let lingers = self.state.requests.linger() && self.state.concurrent;
        self.stress = Stress::new(lingers, self.stats.number);
        Phase::Scan
    }

    /// Stops the world, unless it stands already.
    pub(super) fn stop(&mut self) -> &Stopped<'h> {
        if self.stopped.is_none() {
            self.stats.stops_on_assists += u32::from(self.state.pace.assisting() != 0);
            match self.state.world.stop() {
                Ok(stopped) => {
                    self.looked = 0;
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

    /// Lets the mutators go on. What is noted of the stop is noted afterwards.
    pub(super) fn resume(&mut self) {
        let Some(stopped) = self.stopped.take() else {
            return;
        };
        let report = stopped.resume();
        self.resumed_at = Instant::now();
        self.stats.stopped(&report);
        self.state.ledger.stopped(report.time_to_stop, report.pause);
    }

    /// Rests if the collector has had more of the processors than its share. While mutators run.
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
            // Mutators that are behind find it meanwhile.
            self.marker.publish();
            std::thread::sleep(Duration::from_nanos(rest));
        }
    }
}
