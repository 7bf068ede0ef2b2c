//! A collection, from the request to the last swept span: the phases as a state machine.
//!
//! ```text
//!             request
//!     Idle ----------> Prepare --> Scan --> Mark --> Resurrect --> ClearWeak --> Condemn --> Flip --> Sweep --> Idle
//!                     sweeping is  | the world is stopped                      |  | mutators run
//!                     finished,    | stop 1                             stop 2 |  | waiters of `collect` go on
//!                     spare bitmap
//!                     is clear
//! ```
//! Here stop 1 and stop 2 are one and the same stop. A concurrent collector resumes after `Scan` and stops again before `Resurrect`;
//! everything it needs for that is in place: the barrier and the weak load are units, the mutators' logs are drained in `Mark`,
//! tails of runs are blackened in `Scan`, the bitmaps swap roles in `Flip`.
//!
//! # What each phase leaves behind
//! | after | it holds that |
//! |---|---|
//! | Prepare | every span is swept, the spare bitmap is zero: marking can begin at any time |
//! | Scan | every cell that a root names is marked, and so is what mutators will allocate from their present runs |
//! | Mark | no edge leads from a marked cell to an unmarked one |
//! | Resurrect | the same, and every unmarked cell is without a finalizer |
//! | ClearWeak | no weak word of a marked cell leads to an unmarked cell |
//! | Condemn | values that need `Drop` and died are queued for it, and marked with all they lead to. Nothing else leads to them: weak words have been cleared before, so nobody can find a value that is about to be dropped |
//! | Flip | allocated cells are exactly those that were marked; the others are free, though nobody has found them yet |
//! | Sweep | whoever allocates finds them |
//!
//! The collector is a thread of its own and never a mutator, so it can be neither stopped nor waited for by a stop. Between the stop and
//! the resume it calls nothing that takes a lock of the process's: no malloc, no printing. All it writes was mapped beforehand.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use gc_preempt::{Stopped, StoppedMutator, World};

use crate::api::fork::{self, OverFork};
use crate::api::types::Types;
use crate::barrier::SharedLog;
use crate::context::Context;
use crate::encoding::Encoding;
use crate::fault::planted;
use crate::finalize::Finalizers;
use crate::heap::Space;
use crate::kind::KindId;
use crate::mapped::Slab;
use crate::mark::{MarkQueue, Marker};
use crate::pacer::{self, Found, Policy};
use crate::roots::{Roots, Scanned, Scanner};
use crate::stats::{CollectionStats, Ledger};

/// A heap, as its collector and its mutators share it.
pub(crate) struct Shared {
    pub(crate) space: Space,
    pub(crate) world: World,
    pub(crate) queue: MarkQueue,
    pub(crate) log: SharedLog,
    pub(crate) roots: Roots,
    pub(crate) finalizers: Finalizers,
    /// Values that need `Drop`: whose cells they lie in, and which of them have died.
    pub(crate) drops: Finalizers,
    /// The Rust types that have cells here.
    pub(crate) types: Types,
    pub(crate) requests: Requests,
    /// The records of all mutators, for the child of a fork. Changed inside `no_preempt`.
    pub(crate) contexts: gc_preempt::Mutex<Slab<Attached>>,
    pub(crate) over_fork: OverFork,
    /// `pthread_self` of the collector's thread, or 0.
    pub(crate) collector: AtomicUsize,
    pub(crate) ledger: Ledger,
    pub(crate) pace: Pace,
    /// The kinds of weak cells, for `ClearWeak`. Changed inside `no_preempt`.
    pub(crate) weak_kinds: gc_preempt::Mutex<Slab<WeakKind>>,
    /// Whether mutators' stores are logged. Off in this collector, which marks in one stop; what it is copied to is
    /// [`Context::marking`], so that a unit's test is one compare.
    pub(crate) marking: AtomicBool,
    pub(crate) phase: AtomicU8,
    /// Cells that the last collection left allocated, the rests of runs included.
    pub(crate) cells: AtomicU64,
}

/// A mutator's record and whose it is.
pub(crate) struct Attached {
    /// `pthread_self` of its thread.
    pub(crate) owner: usize,
    pub(crate) context: *const Context,
}

// SAFETY: read in the child of a fork only, by the thread that is left.
unsafe impl Send for Attached {}

/// A kind whose cells are weak.
#[derive(Clone, Copy)]
pub(crate) struct WeakKind {
    pub(crate) kind: KindId,
    pub(crate) first_word: usize,
    pub(crate) encoding: crate::Encoding,
    pub(crate) cleared: usize,
}

/// Where the collector stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Idle,
    Prepare,
    Scan,
    Mark,
    Resurrect,
    ClearWeak,
    Condemn,
    Flip,
    Sweep,
}

/// The numbers that decide whether a collection is due.
pub(crate) struct Pace {
    pub(crate) policy: Policy,
    /// What the last collection left alive, in bytes.
    live: AtomicU64,
    /// The bytes at which the next one begins.
    trigger: AtomicU64,
    /// Memory outside of the heap that cells keep. Signed: a report may be withdrawn on another thread than it was made on.
    external: AtomicI64,
}

impl Pace {
    pub(crate) fn new(policy: Policy) -> Self {
        let trigger = AtomicU64::new(pacer::trigger(policy, Found::default()));
        Self {
            policy,
            live: AtomicU64::new(0),
            trigger,
            external: AtomicI64::new(0),
        }
    }

    // Relaxed throughout: hints, each read on its own; being late by a refill changes nothing.

    pub(crate) fn external(&self) -> u64 {
        self.external.load(Ordering::Relaxed).max(0) as u64
    }

    pub(crate) fn report(&self, delta: i64) {
        self.external.fetch_add(delta, Ordering::Relaxed);
    }

    pub(crate) fn trigger(&self) -> u64 {
        self.trigger.load(Ordering::Relaxed)
    }

    /// Whether a collection is due, when `allocated` bytes have been handed out since the last.
    #[inline]
    pub(crate) fn due(&self, allocated: u64) -> bool {
        self.live
            .load(Ordering::Relaxed)
            .saturating_add(allocated)
            .saturating_add(self.external())
            >= self.trigger()
    }

    fn found(&self, live: u64, roots: u64) {
        let found = Found {
            live,
            roots,
            external: self.external(),
        };
        self.live.store(live, Ordering::Relaxed);
        self.trigger
            .store(pacer::trigger(self.policy, found), Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        fork::strike_off(self);
    }
}

impl Shared {
    /// All locks of the heap's tables, for a fork.
    pub(crate) fn lock_tables(&self) -> impl Sized + '_ {
        (
            // First: whoever makes a type's kind takes the locks of other tables meanwhile.
            self.types.lock_for_fork(),
            self.requests.lock(),
            self.weak_kinds.lock(),
            self.contexts.lock(),
            self.roots.lock(),
            self.finalizers.lock_for_fork(),
            self.drops.lock_for_fork(),
            self.ledger.lock_for_fork(),
            self.space.lock_for_fork(),
        )
    }
}

/// Who wants a collection, and how far the collector is.
///
/// Collections have numbers. A request wants one that has not begun yet, so requests that come while one is under way are all served by
/// the next. The lock is std's: mutators touch it inside `blocking` or `no_preempt` only, the collector outside of stops, so nobody is
/// stopped with it.
#[derive(Default)]
pub(crate) struct Requests {
    /// The collector's thread exists.
    pub(crate) alive: AtomicBool,
    pub(crate) state: Mutex<Wanted>,
    wake: Condvar,
    done: Condvar,
}

#[derive(Default)]
pub(crate) struct Wanted {
    wanted: u64,
    begun: u64,
    ended: u64,
    /// The collector's thread existed in the parent of this process.
    forked: bool,
    shutdown: bool,
}

impl Requests {
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Wanted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a collection that begins after this call; gives its number. Does not wait.
    pub(crate) fn ask(&self) -> u64 {
        let mut state = self.lock();
        let number = state.begun + 1;
        state.wanted = state.wanted.max(number);
        self.wake.notify_one();
        number
    }

    /// Waits until collection `number` has ended: until what it found dead is free.
    pub(crate) fn wait(&self, number: u64) {
        let mut state = self.lock();
        while state.ended < number && !state.shutdown {
            state = self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The collector's: waits for work; `false` at the end.
    fn next(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.shutdown {
                self.alive.store(false, Ordering::SeqCst);
                self.done.notify_all();
                return false;
            }
            if state.wanted > state.begun {
                return true;
            }
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_wanted(&self) -> bool {
        let state = self.lock();
        state.shutdown || state.wanted > state.begun
    }

    /// A collection begins: whoever asks from now on waits for the next.
    fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.begun += 1;
        state.begun
    }

    fn end(&self, number: u64) {
        self.lock().ended = number;
        self.done.notify_all();
    }

    /// In the child of a fork.
    pub(crate) fn collector_is_gone(&self) {
        let mut state = self.lock();
        self.alive.store(false, Ordering::SeqCst);
        state.forked = true;
        // What was asked for in the parent was answered, or will be, there.
        state.begun = state.begun.max(state.ended);
    }

    /// Whether the collector's thread can be joined: it is not one that only the parent of this process has.
    pub(crate) fn can_be_joined(&self) -> bool {
        let state = self.lock();
        self.alive.load(Ordering::SeqCst) || !state.forked
    }

    /// Ends the collector's thread.
    pub(crate) fn shut_down(&self) {
        self.lock().shutdown = true;
        self.wake.notify_one();
    }
}

/// Bytes of the mark queue that stay backed from one cycle to the next. A wide graph may need a hundred times as much, once.
const KEEP_QUEUE: usize = 4 << 20;

/// Runs collections until the heap's last handle is dropped. The body of the collector's thread.
pub(crate) fn run(shared: &Shared) {
    // SAFETY: no arguments, no memory. Relaxed: compared by this thread only, to tell itself from others.
    shared
        .collector
        .store(unsafe { libc::pthread_self() } as usize, Ordering::Relaxed);
    while shared.requests.next() {
        Cycle::new(shared).run();
        // SAFETY: the cycle's marker is gone, and there is one cycle at a time.
        unsafe { shared.queue.trim(KEEP_QUEUE) };
    }
}

/// One collection.
struct Cycle<'h> {
    shared: &'h Shared,
    marker: Marker<'h>,
    stopped: Option<Stopped<'h>>,
    scanned: Scanned,
    stats: CollectionStats,
    /// Bytes that were handed out since the last collection.
    allocated: u64,
    /// Cells allocated before this collection.
    cells: u64,
    /// Cells in the unallocated rests of runs.
    tails: u64,
}

impl<'h> Cycle<'h> {
    fn new(shared: &'h Shared) -> Self {
        Self {
            shared,
            // The world is stopped while it marks, and it is the only one.
            marker: Marker::new(&shared.space, &shared.queue).alone(),
            stopped: None,
            scanned: Scanned::default(),
            stats: CollectionStats::default(),
            allocated: 0,
            cells: 0,
            tails: 0,
        }
    }

    fn run(mut self) {
        let mut phase = Phase::Prepare;
        while phase != Phase::Idle {
            // Relaxed: for those who look at a hung process.
            self.shared.phase.store(phase as u8, Ordering::Relaxed);
            phase = match phase {
                Phase::Idle => break,
                Phase::Prepare => self.prepare(),
                Phase::Scan => self.scan(),
                Phase::Mark => self.mark(),
                Phase::Resurrect if planted("condemn-first") => {
                    self.condemn();
                    self.resurrect()
                }
                Phase::Resurrect => self.resurrect(),
                Phase::ClearWeak => self.clear_weak(),
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
        while self.shared.space.sweep_piece() {}
        while self.shared.space.clear_spare_piece() {}
        self.stats.number = self.shared.requests.begin();
        match self.shared.world.stop() {
            Ok(stopped) => {
                self.stopped = Some(stopped);
                Phase::Scan
            }
            Err(error) => unreachable!("the collector is never a mutator: {error}"),
        }
    }

    // ---- the world is stopped from here ... --------------------------------------------------------------------------------------

    fn scan(&mut self) -> Phase {
        let begun = Instant::now();
        let Some(stopped) = &self.stopped else {
            unreachable!("scanned without a stop")
        };
        if planted("print-in-stop") {
            drop(std::io::stdout().lock());
        }
        self.allocated = self.shared.space.allocated_since();
        // Relaxed: the collector's own.
        let before = self.shared.cells.load(Ordering::Relaxed);
        self.cells = before.saturating_add_signed(self.shared.space.cells_since());
        self.shared.space.begin_marking();
        let mut scanner = Scanner::new(&self.shared.space, &mut self.marker, &self.shared.roots);
        // All tails before the first word: one that names a free cell then finds it black, and neither counts nor follows it.
        for mutator in stopped.mutators() {
            if let Some(context) = context_of(&mutator)
                && !planted("white-tails")
            {
                // SAFETY: the array is that of a stopped mutator of this heap.
                let tails = unsafe { self.shared.space.blacken_tails(context.runs()) };
                self.tails += tails.cells;
            }
        }
        for mutator in stopped.mutators() {
            let frames = mutator.walk(&mut scanner);
            scanner.scanned.frames += frames;
            if let Some(context) = context_of(&mutator)
                && !planted("handles-unscanned")
            {
                context
                    .handles
                    .for_each(|word| scanner.word(word, Encoding::RAW));
            }
        }
        scanner.tables();
        self.scanned = scanner.scanned;
        self.stats.scan = begun.elapsed();
        Phase::Mark
    }

    fn mark(&mut self) -> Phase {
        let begun = Instant::now();
        self.marker.drain();
        if !self.drain_logs() {
            // A log ran over, so what it would have kept is unknown: this cycle keeps everything.
            let marker = &mut self.marker;
            self.shared.space.for_each_cell(&mut |cell| {
                marker.cell(cell);
            });
        }
        self.marker.drain();
        self.stats.mark = begun.elapsed();
        Phase::Resurrect
    }

    /// What barriers and weak loads have logged is alive. Says whether that is all of it.
    fn drain_logs(&mut self) -> bool {
        let Some(stopped) = &self.stopped else {
            unreachable!("logs drained without a stop")
        };
        let mut scanner = Scanner::new(&self.shared.space, &mut self.marker, &self.shared.roots);
        for mutator in stopped.mutators() {
            let Some(context) = context_of(&mutator) else {
                continue;
            };
            for word in context.logged() {
                scanner.logged(word);
            }
            context.reset_log();
        }
        self.shared.log.drain(|word| scanner.logged(word))
    }

    fn resurrect(&mut self) -> Phase {
        let mut finalizers = self.shared.finalizers.stopped();
        let space = &self.shared.space;
        let marker = &mut self.marker;
        let mut keep = |cell: usize| {
            if let Some(cell) = space.resolve(cell) {
                marker.cell(cell);
            }
        };
        // What died in an earlier cycle and was not fetched yet is a root.
        finalizers.ready().for_each(&mut keep);
        marker.drain();
        let keep = |cell: usize| {
            if !planted("no-resurrection")
                && let Some(cell) = space.resolve(cell)
            {
                marker.cell(cell);
            }
        };
        self.stats.finalizable = finalizers.bury(|cell| space.is_marked(cell), keep);
        // One round is the fixpoint: every finalizable cell that was unmarked is marked now, so this finds no further deaths.
        self.marker.drain();
        Phase::ClearWeak
    }

    fn clear_weak(&mut self) -> Phase {
        let space = &self.shared.space;
        let mut cleared = 0;
        let mut kinds = self.shared.weak_kinds.lock();
        for at in 0..kinds.high() {
            let Some(weak) = kinds.get(at).copied() else {
                continue;
            };
            space.for_each_cell_of(weak.kind, &mut |cell, marked| {
                if marked && !planted("keep-weak") {
                    cleared += clear_cell(space, &weak, cell.base, cell.size);
                }
            });
        }
        drop(kinds);
        self.stats.weak_cleared = cleared;
        Phase::Condemn
    }

    fn condemn(&mut self) -> Phase {
        let mut drops = self.shared.drops.stopped();
        let (space, marker) = (&self.shared.space, &mut self.marker);
        let mut keep = |cell: usize| {
            if let Some(cell) = space.resolve(cell) {
                marker.cell(cell);
            }
        };
        drops.ready().for_each(&mut keep);
        drops.bury(|cell| space.is_marked(cell), keep);
        self.marker.drain();
        Phase::Flip
    }

    fn flip(&mut self) -> Phase {
        let Some(stopped) = self.stopped.take() else {
            unreachable!("flipped without a stop")
        };
        self.shared.space.end_marking();
        if planted("runs-taken-back") {
            for mutator in stopped.mutators() {
                if let Some(context) = context_of(&mutator) {
                    self.shared.space.retire(&context.local);
                }
            }
        }
        let marked = self.marker.marked();
        self.stats.cells_live = marked.cells;
        self.stats.bytes_live = marked.bytes;
        self.stats.cells_freed = self.cells.saturating_sub(marked.cells + self.tails);
        self.shared
            .cells
            .store(marked.cells + self.tails, Ordering::Relaxed);
        self.shared.pace.found(marked.bytes, self.scanned.bytes());
        let report = stopped.resume();
        // ---- ... to here ---------------------------------------------------------------------------------------------------------
        let stats = &mut self.stats;
        stats.time_to_stop = report.time_to_stop;
        stats.pause = report.pause;
        stats.mutators = report.mutators;
        stats.signalled = report.signalled;
        stats.held = report.held;
        stats.deferrals = report.deferrals;
        stats.frames_precise = self.scanned.frames.precise;
        stats.frames_conservative = self.scanned.frames.conservative;
        stats.unknown_sites = self.scanned.frames.unknown_sites;
        stats.conservative_words = self.scanned.conservative_words;
        stats.exact_words = self.scanned.exact_words;
        stats.conservative_marked = self.scanned.conservative_marked;
        stats.exact_marked = self.scanned.exact_marked;
        self.shared.ledger.enter(self.stats, self.allocated);
        self.shared.requests.end(self.stats.number);
        Phase::Sweep
    }

    /// In the background, beside the mutators' own sweeping when they refill; left off as soon as the next collection is wanted, which
    /// finishes it in `Prepare`.
    fn sweep(&mut self) -> Phase {
        let space = &self.shared.space;
        while !self.shared.requests.is_wanted() && space.sweep_piece() {}
        while !self.shared.requests.is_wanted() && space.clear_spare_piece() {}
        // Up to a tenth over what the pacer lets the heap grow to: below that, what is given back would be asked for again at once.
        let trigger = self.shared.pace.trigger();
        let keep = trigger
            .saturating_add(trigger / 10)
            .saturating_sub(space.used_bytes());
        while !self.shared.requests.is_wanted() && space.release_piece(keep) > 0 {}
        Phase::Idle
    }
}

/// A stopped mutator's record. A thread that somebody attached to the heap's world past the heap has none; its stack is scanned all the same.
fn context_of<'a>(mutator: &'a StoppedMutator<'_>) -> Option<&'a Context> {
    // SAFETY: who attaches with an exit hook vouches for the data; this crate's mutators do, with their context, which they free only after
    // they have detached. A stopped mutator does not write it.
    mutator
        .vouched()
        .then(|| unsafe { &*mutator.data().cast::<Context>() })
}

/// Clears the words of one marked weak cell whose targets are dead; gives their number.
fn clear_cell(space: &Space, weak: &WeakKind, base: usize, size: usize) -> u64 {
    let mut cleared = 0;
    for at in (base + weak.first_word * size_of::<usize>()..base + size).step_by(size_of::<usize>())
    {
        let slot = at as *mut usize;
        // SAFETY: a word of an allocated cell, while every mutator is stopped.
        let word = unsafe { slot.read() };
        let Some(address) = weak.encoding.decode(word) else {
            continue;
        };
        // A word that names no cell at all (an immortal object outside of the heap) is not ours to clear.
        if space
            .resolve(address)
            .is_some_and(|target| !space.is_marked(target.base))
        {
            // SAFETY: as above.
            unsafe { slot.write(weak.cleared) };
            cleared += 1;
        }
    }
    cleared
}
