//! A collection, from the request to the last swept span: the phases as a state machine.
//!
//! ```text
//!            request                 resume            stop 2
//!     Idle ---------> Prepare ==> Scan ---> Mark -----------> Finish ==> ClearWeak ==> Resurrect ==> ClearLong ==> Condemn ==> Flip ---> Sweep --> Idle
//!                           stop 1           ^                 |  ^                        |                                       resume
//!                                            '-----------------'  '------------------------'
//!                                             too much is left:    long weak words may have been loaded
//!                                             resume, mark on
//! ```
//! Mutators run where the arrow is single; `==>` stays in the stop. Where much has died, the stop
//! is left anywhere from `ClearWeak` to `Condemn`, and `Flip` stops the world again (`judge.rs`).
//! Marking takes a snapshot of the heap as it was in stop 1 (Yuasa 1990, "Real-time garbage
//! collection on general-purpose machines"): what was reachable then is marked, and so is what was
//! allocated since. These things see to that:
//!
//! * all stacks and ranges are scanned in stop 1, so nobody needs a barrier to change them; those
//!   of mutators that wait for long stand still, and are scanned later (`aside.rs`);
//! * roots and handles are scanned beside the mutators, and who ends one that has not been scanned
//!   yet logs what it held;
//! * whoever overwrites an edge logs the old one (`barrier.rs`), and whoever loads a weak word logs
//!   what it got;
//! * cells allocated from stop 1 on are black from birth: the rests of runs are marked in stop 1,
//!   new runs when they are installed;
//! * what leaves a table of the collector's for a mutator (the cell of a finalizer, a value to be
//!   dropped) is logged as it leaves.
//!
//! `Finish` makes sure, with all mutators stopped, that no log holds a word and no marker a cell.
//! Whatever it finds is traced right there if that takes some ten microseconds, otherwise beside
//! the mutators again; each such round marks something that the snapshot had, so there is an end to
//! them. With `URGE_STW=1` mutators stay stopped from `Scan` to `Flip`; so they do while the heap
//! is so small that `Finish` succeeds at once, and little dies that has to be looked at.
//!
//! # What each phase leaves behind
//! | after | it holds that |
//! |---|---|
//! | Prepare | every span is swept; the spare bitmap is zero, or in a young collection has the marks of all old cells and no others: marking can begin at any time |
//! | Scan | every cell that a stack or a range names is marked, and so is what mutators will allocate from their present runs; stores are logged |
//! | Mark | every cell that a root named in stop 1 is marked or logged; nobody knows of a grey cell, but a mutator may, in its log; old cells that may have changed have been followed |
//! | Finish | mutators are stopped, and no edge leads from a marked cell to an unmarked one |
//! | ClearWeak | no short weak word of a marked cell leads to an unmarked cell, and no ephemeron's key is unmarked |
//! | Resurrect | every unmarked cell is without a finalizer; what leads to it is unmarked, or a long weak word |
//! | ClearLong | no weak word at all leads from a marked cell to an unmarked one |
//! | Condemn | values that need `Drop` and died are queued for it, and marked, with null edges. Nothing leads to them: weak words have been cleared before, so a value that is about to be dropped cannot be found |
//! | Flip | allocated cells are exactly those that were marked; the others are free, though nobody has found them yet; stores are not logged |
//! | Sweep | whoever allocates finds them |
//!
//! The collector is a thread of its own and never a mutator, so it can be neither stopped nor
//! waited for by a stop. Between a stop and its resume it calls nothing that takes a lock of the
//! process's: no malloc, no printing. All it writes was mapped beforehand.

pub(crate) mod aside;
mod background;
mod beside;
pub(crate) mod fork;
mod judge;
mod pace;
mod requests;
mod state;
mod stress;

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::time::Instant;

use gc_preempt::{Stopped, StoppedMutator};

use crate::fault::planted;
use crate::mark::old::Old;
use crate::mark::workers::Crew;
use crate::mark::{Marker, kept_bytes};
use crate::marked::Marked;
use crate::mutator::record::Context;
use crate::pacer::{self, Share};
use crate::roots::{self, Scanned, Scanner, Unscanned};
use crate::stats::{CollectionStats, thread_cpu};

use crate::verify::Source;
use crate::weak::{IDLE, MARKING};

use background::{Idle, Surplus, back_ahead, give_all_back};
use beside::Beside;
pub(crate) use pace::Pace;
use requests::Next;
pub(crate) use requests::Requests;
pub(crate) use state::{Attached, OldMarks, OverFork, Phase, Shared};
use stress::Stress;

/// How long `Finish` traces before it lets the mutators run again. Doubled at each attempt, so that
/// mutators which log faster than they let themselves be stopped do not keep a cycle from its end.
const FINISH: Duration = Duration::from_micros(30);

/// Words that `Finish` takes from mutators' logs into the queue itself. More are moved to the
/// heap's log, which costs a tenth.
const FINISH_WORDS: usize = 1024;

/// Roots and handles that stop 1 scans itself, if there are no more: some microseconds.
const FEW_ROOTS: usize = 256;

/// Cells that `Finish` traces between two looks at the clock: a microsecond or two.
const FINISH_CELLS: usize = 64;

/// A heap that has less alive than this, in bytes, is likely to be marked before the stop that
/// began it would have ended otherwise.
const SMALL: u64 = 64 << 10;

/// Cells that are traced between two looks at the clock while mutators run: 15 us or so.
const PIECE_CELLS: usize = 1024;

/// How long `Mark` waits for what mutators have in hand. A stop waits for them, too, but holds the
/// others up meanwhile; so this is as long as it takes until the system has let everybody run.
const HANDS: Duration = Duration::from_millis(10);

/// Of that, how long it looks without sleeping.
const HANDS_SOON: Duration = Duration::from_micros(50);

/// How long it is believed how many mutators run.
const SHARE_FOR: Duration = Duration::from_millis(1);

/// Words that are taken from the heap's log at a time while mutators run.
const LOG_PIECE: usize = 4096;

/// Registrations that are looked at at a time: mutators that register wait for the lock.
const SELECT_PIECE: usize = 256;

/// Cells that wait to be finalized and are marked at a time: mutators that want one wait for the
/// lock.
const READY_PIECE: usize = 256;

/// Runs collections until the heap's last handle is dropped. The body of the collector's thread.
pub(crate) fn run(shared: &Shared) {
    // SAFETY: no arguments, no memory. Relaxed: compared by this thread only, to tell itself from
    // others.
    shared
        .collector
        .store(unsafe { libc::pthread_self() } as usize, Ordering::Relaxed);
    // SAFETY: this is the heap's collector, of which there is one at a time; the crew is dropped at
    // the end.
    let mut crew = unsafe { Crew::new(&shared.space, &shared.queue, &shared.weak) };
    let mut surplus = Surplus::default();
    let mut idle = Idle::new(shared);
    loop {
        let patience = [surplus.patience, idle.patience()]
            .into_iter()
            .flatten()
            .min();
        match shared.requests.next(patience) {
            Next::End => return,
            Next::Nothing if idle.is_due() => {
                shared.requests.want_spans();
                shared.requests.ask(true);
                continue;
            }
            Next::Nothing => {}
            Next::Collection => {
                Cycle::new(shared, &mut crew).run();
                idle.collected();
                // SAFETY: the cycle's marker is gone, mutators have theirs while marking only, and
                // there is one cycle at a time.
                unsafe { shared.queue.trim(kept_bytes(shared.space.used_bytes())) };
            }
        }
        if shared.requests.is_trim_due() {
            // SAFETY: as above.
            unsafe { shared.queue.trim(0) };
            shared.requests.trimmed(give_all_back(shared));
        }
        back_ahead(shared);
        surplus.give_back(shared);
    }
}

/// One collection.
struct Cycle<'h, 'c> {
    shared: &'h Shared,
    marker: Marker<'h>,
    /// Threads that mark, too.
    crew: &'c mut Crew<'h>,
    stopped: Option<Stopped<'h>>,
    phase: Phase,
    /// Where the cycle goes on once nothing is grey any more.
    after: Phase,
    /// Weak words, registrations and deaths that have been looked at in this stop.
    looked: usize,
    /// There are weak words that are cleared after finalizable cells have been queued.
    has_long: bool,
    /// How often `Finish` has failed.
    retries: u32,
    /// Mutators are kept from helping, since marking seems to be over; whether they would be
    /// otherwise.
    held: Option<bool>,
    /// What waited to be finalized or dropped has been marked.
    ready_marked: bool,
    stress: Stress,
    scanned: Scanned,
    /// Roots that are still to be scanned.
    beside: Option<Beside>,
    /// Memory of handle tables is to be given back.
    trim_handles: bool,
    stats: CollectionStats,
    /// When the roots had been scanned.
    marking_since: Instant,
    /// When it began, by the clock and by the thread's processor time in nanoseconds.
    since: Instant,
    cpu_since: u64,
    /// When mutators were resumed last.
    resumed_at: Instant,
    /// What it may have of the processors, until when that is believed, and the mutators that
    /// wanted to run then.
    share: Share,
    share_until: Instant,
    running: u32,
    /// Somebody asked for it; it was not due.
    forced: bool,
    /// Cells allocated before this collection.
    cells: u64,
    /// What had been handed out at stop 1 since the last collection.
    handed: Marked,
    /// What the unallocated rests of runs held then.
    tails: Marked,
    /// What a young collection takes for alive, and those of it that it has not looked at yet.
    kept: Marked,
    old: Old,
    /// As they were when marking seemed to be over.
    accounts: Option<Accounts>,
    /// Of these, what is linear in sites, as it was before the first stop: for a cycle that does
    /// all in that.
    settled: u64,
}

/// What the pacer is told in the second stop, and can be found out before it: locks, one for each
/// site, and system calls.
struct Accounts {
    /// See [`Space::immutable_bytes`](crate::heap::Space::immutable_bytes).
    settled: u64,
    /// See [`Ledger::since_last`](crate::stats::Ledger::since_last).
    interval: u64,
    cpu: u64,
}

impl Accounts {
    fn of(shared: &Shared, settled: u64) -> Self {
        let (interval, cpu) = shared.ledger.since_last();
        Self {
            settled,
            interval,
            cpu,
        }
    }
}

impl<'h, 'c> Cycle<'h, 'c> {
    fn new(shared: &'h Shared, crew: &'c mut Crew<'h>) -> Self {
        // Mutators are counted when there is more to do than a piece.
        crew.set_helpers(0, 1000);
        let marker = Marker::new(&shared.space, &shared.queue, &shared.weak);
        let now = Instant::now();
        Self {
            shared,
            // Mutators that run mark the runs they are given.
            marker: if shared.concurrent {
                marker
            } else {
                marker.alone()
            },
            crew,
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
            settled: 0,
        }
    }

    fn run(mut self) {
        let mut phase = Phase::Prepare;
        while phase != Phase::Idle {
            self.phase = phase;
            // Relaxed: for those who look at a hung process.
            self.shared.phase.store(phase as u8, Ordering::Relaxed);
            phase = match phase {
                Phase::Idle => break,
                Phase::Prepare => self.prepare(),
                Phase::Scan => self.scan(),
                Phase::Mark => self.mark(),
                Phase::Finish => self.finish(),
                Phase::ClearWeak => self.clear_weak(),
                Phase::Resurrect => self.resurrect(),
                Phase::ClearLong => self.clear_long(),
                Phase::Condemn => self.condemn(),
                Phase::Flip => self.flip(),
                Phase::Sweep => self.sweep(),
            };
        }
        self.shared
            .phase
            .store(Phase::Idle as u8, Ordering::Relaxed);
    }

    fn prepare(&mut self) -> Phase {
        let space = &self.shared.space;
        while space.sweep_piece_aside() {}
        let (number, whole) = self.shared.requests.begin();
        self.stats.number = number;
        self.stats.young = space.keeps_marks() && !whole && space.allocated_black.are_known();
        if self.stats.young {
            space.unmark_allocated_black();
        } else {
            space.forget_marks();
        }
        while space.clear_spare_piece() {}
        self.shared.weak.begin(space);
        // A kind that is made later has no cell whose words lead to what was there before.
        self.has_long = space.kinds.has_long();
        if let Some(verify) = &self.shared.verify {
            verify.begin();
        }
        self.shared.finalizers.begin();
        self.shared.drops.begin();
        self.shared.queue.take_large_work();
        self.marker.make_ready();
        self.settled = space.immutable_bytes();
        let lingers = self.shared.requests.linger() && self.shared.concurrent;
        self.stress = Stress::new(lingers, self.stats.number);
        Phase::Scan
    }

    /// Stops the world, unless it stands already.
    fn stop(&mut self) -> &Stopped<'h> {
        if self.stopped.is_none() {
            self.stats.stops_on_helpers += u32::from(self.shared.pace.hands() != 0);
            match self.shared.world.stop() {
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
    fn resume(&mut self) {
        let Some(stopped) = self.stopped.take() else {
            return;
        };
        let report = stopped.resume();
        self.resumed_at = Instant::now();
        self.stats.stopped(&report);
        self.shared
            .ledger
            .stopped(report.time_to_stop, report.pause);
    }

    // ---- stop 1: the world is stopped ... -------------------------------------------------------

    fn scan(&mut self) -> Phase {
        self.shared.roots.rehearse();
        self.shared.world.warm_up_walks();
        self.stop();
        let begun = Instant::now();
        if planted("print-in-stop") {
            drop(std::io::stdout().lock());
        }
        let shared = self.shared;
        if shared.requests.take_spans_wanted() || shared.space.is_short() {
            self.take_idle_spans();
        }
        self.review_idle();
        self.gather();
        self.handed = shared.handed();
        // Relaxed: the collector's own.
        let before = shared.cells.load(Ordering::Relaxed);
        self.cells = before.saturating_add_signed(shared.space.cells_since());
        self.stats.trigger_bytes = shared.pace.trigger();
        self.stats.goal_bytes = shared.pace.goal();
        self.stats.begin_bytes = shared.pace.used(self.handed.bytes);
        if self.stats.young {
            self.kept = shared.old.get();
            self.old = Old::before(shared.space.top());
        }
        let unmarked = self.cells.saturating_sub(self.kept.cells) + shared.space.large_work();
        self.forced = !shared.pace.begun(self.stats.begin_bytes, unmarked);
        shared
            .space
            .begin_marking_and(shared.pace.notes_allocated_black());
        // Relaxed: read with the registry lock held, which this stop holds.
        shared.scan.fetch_add(1, Ordering::Relaxed);
        if shared.concurrent {
            self.log_stores(MARKING);
        }
        let Some(stopped) = &self.stopped else {
            unreachable!("scanned without a stop")
        };
        let verify = shared.verify.as_ref();
        let mut scanner = Scanner::new(&shared.space, &mut self.marker, verify);
        // All tails before the first word: one that names a free cell then finds it black, and
        // neither counts nor follows it.
        for mutator in stopped.mutators() {
            if let Some(context) = context_of(&mutator)
                && !planted("white-tails")
            {
                // SAFETY: the runs are those of a stopped mutator of this heap.
                let tails = unsafe { context.local.blacken_tails(&shared.space) };
                self.tails = self.tails + tails;
                self.stats.sites_in_stops += context.local.sites_listed() as u64;
            }
        }
        let mut beside = Beside::default();
        let exact = !shared.stacks.are_roots();
        for (number, mutator) in stopped.mutators().enumerate() {
            scanner.source(Source::Stack(number));
            let context = context_of(&mutator);
            let frames = match context {
                Some(context) if exact && context.is_exact() => mutator.walk(&mut Unscanned),
                _ => mutator.walk(&mut scanner),
            };
            scanner.scanned.frames += frames;
            if let Some(context) = context
                && !planted("handles-unscanned")
            {
                beside.snapshot(context, number, &mut scanner, verify);
            }
        }
        let aside = stopped.aside().len();
        self.stats.aside = aside as u32;
        beside.snapshot_aside(aside);
        scanner.source(Source::Tables);
        scanner.tables(&shared.roots);
        beside.words += shared
            .roots
            .snapshot(aside != 0 && !planted("roots-end-early"));
        // Not a fault: threads that are no mutators have time to change roots.
        if planted("slow-roots") {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(verify) = verify {
            for (number, mutator) in stopped.aside().enumerate() {
                scanner.source(Source::Aside(number));
                if let Some(context) = context_of(&mutator) {
                    aside::scan(shared, context, &mutator, &mut scanner);
                    let handles = &context.handles;
                    handles.for_each(|word| verify.root_word(&shared.space, word));
                }
            }
            shared
                .roots
                .for_each(|word| verify.root_word(&shared.space, word));
        }
        self.scanned = scanner.finish();
        self.beside = Some(beside);
        let are_few = beside.words <= FEW_ROOTS && !self.stress.scans_late();
        if !shared.concurrent || are_few {
            while self.scan_beside() {}
        }
        self.marking_since = Instant::now();
        self.stats.scan = self.marking_since - begun;
        let is_small = shared.pace.kept() <= SMALL && !self.stats.young;
        if shared.concurrent && (!is_small || self.stress.parts_stops() || self.beside.is_some()) {
            shared.pace.beside();
            // The system may let everybody run but this thread.
            self.marker.lay_down();
            self.resume();
            return Phase::Mark;
        }
        Phase::Finish
    }

    /// In the stop, before anything is marked: what mutators inside `blocking` have of the heap and
    /// their programs have not goes back, to be found free by the sweep. An idle thread would hold
    /// a span for each site that it ever used, for ever.
    fn take_idle_spans(&mut self) {
        let shared = self.shared;
        if planted("idle-spans-kept") {
            return;
        }
        let blocked = self.stop().mutators().filter(StoppedMutator::is_blocked);
        for mutator in blocked {
            if let Some(context) = context_of(&mutator) {
                context.local.retire_sites(&shared.space, usize::MAX);
            }
        }
    }

    /// In the stop, before anything is marked: runs that mutators inside `blocking` no longer
    /// refill go back (`alloc/review.rs`).
    fn review_idle(&mut self) {
        if planted("idle-spans-kept") {
            return;
        }
        let space = &self.shared.space;
        let stopped = self.stop();
        let blocked = stopped.mutators().filter(StoppedMutator::is_blocked);
        let looks = |mutator| {
            context_of(&mutator).map_or(0, |context| context.local.review_idle(space) as u64)
        };
        let sites: u64 = blocked.map(looks).sum();
        self.stats.sites_in_stops += sites;
    }

    /// Scans some more of the roots that stop 1 has left; `false`: all have been scanned. What is
    /// logged meanwhile is theirs, see `roots.rs` and `handles.rs`.
    fn scan_beside(&mut self) -> bool {
        let Some(mut beside) = self.beside.take() else {
            return false;
        };
        let mut scanner = Scanner::new(&self.shared.space, &mut self.marker, None);
        let stopped = self.stopped.as_ref();
        let is_left = beside.scan_piece(self.shared, stopped, &mut scanner);
        self.scanned += scanner.finish();
        self.beside = is_left.then_some(beside);
        is_left
    }

    /// Says to mutators, in the stop, whether stores are logged, and whether what is dead has been
    /// decided (`weak/`).
    fn log_stores(&mut self, mode: u32) {
        // SeqCst, the heap's before the records': pairs with the second look of a thread that
        // attaches meanwhile (`Mutator::attach`). All others see it through their resumption.
        self.shared.marking.store(mode, Ordering::SeqCst);
        if mode != IDLE && planted("stores-unlogged") {
            return;
        }
        for mutator in self.stop().mutators() {
            if let Some(context) = context_of(&mutator) {
                if mode == IDLE {
                    // Since what is dead was decided, stores have overwritten edges to what is
                    // marked.
                    context.reset_log();
                }
                context.marking.store(mode, Ordering::SeqCst);
            }
        }
    }

    // ---- ... to here; mutators run ... ----------------------------------------------------------

    fn mark(&mut self) -> Phase {
        while self.stress.parts_stops() && !self.stress.scans_late() && self.scan_beside() {}
        self.stress.before_tracing();
        self.mark_ready();
        loop {
            if let Some(might) = self.held.take() {
                self.shared.pace.help_on(might);
            }
            let roots_left = self.scan_beside();
            self.marker.follow_old(&mut self.old, PIECE_CELLS);
            let dry =
                self.crew.step(&mut self.marker, PIECE_CELLS) && !self.old.is_left() && !roots_left;
            let pace = &self.shared.pace;
            pace.progress(self.marker.marked().cells + self.crew.cells() + self.old.followed());
            if !dry && self.shared.queue.has_no_packet() {
                // So that mutators find something to help with, whoever the system lets run.
                self.marker.share();
            }
            if dry && self.take_log(LOG_PIECE) == 0 {
                self.held = Some(self.shared.pace.hold_help());
                if !self.work_comes_back() && self.crew.close(&mut self.marker) {
                    self.select();
                    self.account();
                    self.stress.after_tracing();
                    return Phase::Finish;
                }
            }
            self.rest();
        }
    }

    /// Finds what will have to be cleared, finalized and dropped, as far as can be seen beside the
    /// mutators, so that the stop looks at nothing else. Before marking has come to an end it would
    /// find much that lives.
    fn select(&self) {
        let space = &self.shared.space;
        self.shared.weak.select_dying(space);
        for registered in [&self.shared.finalizers, &self.shared.drops] {
            while registered.select_piece(SELECT_PIECE, |cell| space.is_marked(cell)) {}
        }
    }

    /// What the pacer is told is found out before the stop in which it is.
    fn account(&mut self) {
        let settled = self.shared.space.immutable_bytes();
        self.accounts = Some(Accounts::of(self.shared, settled));
    }

    /// Waits for mutators that help: what they have in hand they put into the queue in a few
    /// microseconds, and a stop would have to wait for them as well. A mutator that is not let run
    /// meanwhile wants a processor, perhaps this one.
    fn work_comes_back(&self) -> bool {
        let begun = Instant::now();
        while self.shared.pace.hands() != 0 && self.shared.queue.is_empty() {
            match begun.elapsed() {
                soon if soon < HANDS_SOON => std::thread::yield_now(),
                late if late < HANDS => std::thread::sleep(HANDS_SOON),
                _ => break,
            }
        }
        !self.shared.queue.is_empty()
    }

    /// Rests if the collector has had more of the processors than its share. While mutators run.
    fn rest(&mut self) {
        let now = Instant::now();
        if now >= self.share_until {
            let cores = self.shared.ledger.cores();
            self.running = self.shared.running(cores);
            self.share = pacer::share(cores, self.running);
            self.share_until = now + SHARE_FOR;
            let markers = self.shared.markers.unwrap_or(self.share.markers);
            self.crew.set_helpers(markers - 1, self.share.permille);
        }
        if self.share.permille >= 1000 {
            return;
        }
        let busy = thread_cpu().saturating_sub(self.cpu_since);
        let elapsed = (now - self.since).as_nanos() as u64;
        let rest = pacer::rest(busy, elapsed, self.share.permille);
        if rest != 0 {
            // Mutators that are behind find it meanwhile.
            self.marker.lay_down();
            std::thread::sleep(Duration::from_nanos(rest));
        }
    }

    /// Marks what died in an earlier cycle and was not fetched yet, piece by piece. What is fetched
    /// meanwhile is logged.
    fn mark_ready(&mut self) {
        if core::mem::replace(&mut self.ready_marked, true) {
            return;
        }
        let (space, marker) = (&self.shared.space, &mut self.marker);
        for queue in [&self.shared.finalizers, &self.shared.drops] {
            let mut from = 0;
            while let Some(next) = queue.ready_piece(from, READY_PIECE, |cell| {
                if let Some(cell) = space.resolve(cell) {
                    marker.cell(cell);
                }
            }) {
                from = next;
            }
        }
    }

    /// Marks what words of the heap's log name; their number.
    fn take_log(&mut self, most: usize) -> usize {
        let (space, marker) = (&self.shared.space, &mut self.marker);
        self.shared
            .log
            .take(most, |word| roots::logged(space, marker, word))
    }

    // ---- stop 2: the world is stopped again, if it was not ... ----------------------------------

    fn finish(&mut self) -> Phase {
        let before = self.marker.marked().cells;
        let next = self.finish_in_the_stop();
        self.stats.cells_in_stops += self.marker.marked().cells - before;
        next
    }

    fn finish_in_the_stop(&mut self) -> Phase {
        let bound = FINISH * (1 << self.retries.min(10));
        let mutators_ran = self.stopped.is_none();
        let end = self.stop().stopped_at() + bound;
        // A mutator that was helping had the last of the work in hand, perhaps half of the heap,
        // and has put it down to be stopped.
        if mutators_ran && !self.shared.queue.is_empty() && !planted("stop-traces-on") {
            self.resume();
            return Phase::Mark;
        }
        if self.shared.concurrent && self.shared.ready() > READY_PIECE as u64 && !self.ready_marked
        {
            return self.mark_on();
        }
        self.mark_ready();
        if !planted("logs-left") {
            self.take_logs();
        }
        if !self.shared.concurrent {
            // Threads that are no mutators run in a stop, and log the roots that they remove before
            // the stop has scanned them.
            while !planted("roots-logged-in-vain") && self.take_log(LOG_PIECE) != 0 {}
            self.marker.drain();
            return self.after;
        }
        loop {
            let words = self.take_log(FINISH_CELLS);
            if self.marker.drain_bounded(FINISH_CELLS) && words == 0 {
                if self.stress.leaves(self.after) {
                    return self.mark_on();
                }
                return self.after;
            }
            if Instant::now() > end {
                return self.mark_on();
            }
        }
    }

    /// More is left than a stop has time for.
    fn mark_on(&mut self) -> Phase {
        self.retries += 1;
        self.resume();
        Phase::Mark
    }

    /// Takes what mutators have logged: into the queue, or where that would be much, into the
    /// heap's log.
    fn take_logs(&mut self) {
        let Some(stopped) = &self.stopped else {
            unreachable!("logs taken without a stop")
        };
        let mut left = FINISH_WORDS << self.retries.min(10);
        for mutator in stopped.mutators() {
            let Some(context) = context_of(&mutator) else {
                continue;
            };
            let words = context.logged();
            if words.len() > left {
                context.flush_log();
                continue;
            }
            left -= words.len();
            // Words lead anywhere: their lines come all at a time, not one by one.
            for word in context.logged() {
                roots::prefetch_logged(&self.shared.space, word);
            }
            for word in words {
                roots::logged(&self.shared.space, &mut self.marker, word);
            }
            context.reset_log();
        }
    }

    fn flip(&mut self) -> Phase {
        let shared = self.shared;
        self.stop();
        if let Some(verify) = &shared.verify {
            verify.check(&shared.space, self.stats.number);
        }
        if shared.concurrent {
            self.log_stores(IDLE);
        }
        self.stats.finalizable = shared.finalizers.publish();
        shared.drops.publish();
        self.gather();
        let handed = shared.handed();
        // What was handed out during marking is black, whether it has been allocated yet or not.
        let born = handed.less(self.handed);
        let help = shared.pace.take_help();
        let logged = shared.log.overflowed_marks();
        let by_mutators = help.marked + logged;
        let marked = self.marker.marked() + by_mutators;
        let found = self.kept + marked;
        let stats = &mut self.stats;
        stats.cells_live = found.cells + born.cells;
        stats.bytes_live = found.bytes + born.bytes;
        let allocated = found + self.tails + born;
        stats.cells_freed = (self.cells + born.cells).saturating_sub(allocated.cells);
        shared.cells.store(allocated.cells, Ordering::Relaxed);
        stats.mark = self.marking_since.elapsed();
        stats.end_bytes = shared.pace.used(handed.bytes);
        stats.assist = Duration::from_nanos(help.nanos);
        stats.assist_cells = help.marked.cells;
        stats.bytes_born = born.bytes;
        let helpers = self.crew.take_work();
        stats.markers = 1 + helpers.helpers;
        stats.collector_cpu = Duration::from_nanos(helpers.cpu);
        let external = shared.pace.external();
        let accounts = self.accounts.take();
        let Accounts {
            settled,
            interval,
            cpu,
        } = accounts.unwrap_or_else(|| Accounts::of(shared, self.settled));
        let pauses = (stats.pause_sum + stats.scan).as_nanos() as u64;
        let young_next = shared.pace.ended(&pacer::Cycle {
            young: stats.young,
            settled,
            begin: stats.begin_bytes,
            live: stats.bytes_live - born.bytes,
            born: born.bytes,
            roots: self.scanned.bytes(),
            external,
            overhead: shared
                .space
                .used_bytes()
                .saturating_sub(stats.end_bytes.saturating_sub(external)),
            marked: marked.cells + self.old.followed() + shared.queue.take_large_work(),
            assisted: by_mutators.cells,
            beside: stats.mark_concurrent.as_nanos() as u64,
            running: self.running,
            assist: help.nanos,
            cost: cpu + helpers.cpu + pauses * u64::from(self.running),
            interval,
            forced: self.forced,
        });
        if shared.poison && !planted("unpoisoned") {
            shared.space.poison_dead();
        }
        shared.space.swap(self.stats.young, young_next);
        let mutators = self.settle_owned(young_next);
        let room = shared.pace.goal().saturating_sub(shared.pace.kept());
        shared.space.foresee(room, mutators);
        shared.old.set(found);
        self.resume();
        // ---- ... to here ------------------------------------------------------------------------
        let stats = &mut self.stats;
        stats.frames_precise = self.scanned.frames.precise;
        stats.frames_conservative = self.scanned.frames.conservative;
        stats.unknown_sites = self.scanned.frames.unknown_sites;
        stats.conservative_words = self.scanned.conservative_words;
        stats.exact_words = self.scanned.exact_words;
        stats.conservative_marked = self.scanned.conservative_marked;
        stats.exact_marked = self.scanned.exact_marked;
        stats.over_memory_limit = shared.pace.is_over_limit();
        shared.ledger.enter(self.stats, handed.bytes);
        // Before those who wait for memory try again.
        shared.give_back_reserve();
        shared.requests.end(self.stats.number);
        Phase::Sweep
    }

    /// In a stop: has all that was handed out reported.
    fn gather(&mut self) {
        let shared = self.shared;
        for mutator in self.stop().mutators() {
            if let Some(context) = context_of(&mutator) {
                shared.space.report(&context.local.unreported);
            }
        }
    }

    /// In the stop in which the bitmaps have swapped: sees to the spans that mutators own; how many
    /// mutators there are.
    fn settle_owned(&mut self, young_next: bool) -> usize {
        let shared = self.shared;
        let Some(stopped) = &self.stopped else {
            unreachable!("flipped without a stop")
        };
        // Those that are aside may all come back before the next look, and claim and hand out as
        // much as any other.
        let mut mutators = stopped.aside().len();
        for mutator in stopped.mutators() {
            let Some(context) = context_of(&mutator) else {
                continue;
            };
            mutators += 1;
            self.trim_handles |= context.handles.lower();
            if planted("runs-taken-back") {
                context.local.retire(&shared.space);
            }
            if young_next {
                // SAFETY: the runs are those of a stopped mutator of this heap.
                unsafe { context.local.keep_owned(&shared.space) };
                self.stats.sites_in_stops += context.local.sites_listed() as u64;
            }
        }
        mutators
    }

    /// In the background, beside the mutators' own sweeping when they refill; left off as soon as
    /// the next collection is wanted, which finishes it in `Prepare`.
    fn sweep(&mut self) -> Phase {
        let shared = self.shared;
        let space = &shared.space;
        self.set_aside();
        shared.trim_tables(self.trim_handles);
        // Not a fault: leaves it to mutators.
        if planted("late-sweep") {
            std::thread::sleep(Duration::from_millis(50));
        }
        for table in [&shared.finalizers, &shared.drops] {
            table.trim();
        }
        while !shared.requests.is_wanted() && space.sweep_piece_aside() {
            self.rest();
        }
        while !shared.requests.is_wanted() && space.clear_spare_piece() {
            self.rest();
        }
        Phase::Idle
    }
}

/// A stopped mutator's record. A thread that somebody attached to the heap's world past the heap
/// has none; its stack is scanned all the same.
pub(crate) fn context_of<'a>(mutator: &'a StoppedMutator<'_>) -> Option<&'a Context> {
    // SAFETY: who attaches with an exit hook vouches for the data; this crate's mutators do, with
    // their context, which they free only after they have detached. A stopped mutator does not
    // write it.
    mutator
        .vouched()
        .then(|| unsafe { &*mutator.data().cast::<Context>() })
}
