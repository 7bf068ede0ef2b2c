//! The pacer's plan as mutators and the collector share it: numbers that are read at every refill.
//!
//! The arithmetic is in `pacer`, which is without threads. Here its plan lies in atomics: the
//! trigger and the goal of the next cycle, the line of the cycle that marks, and the number of
//! cells that have been marked. All of them are hints, each read on its own, so all accesses are
//! Relaxed. A thread that reads a value late by a refill, or one number of the last plan and one of
//! the next, assists at another time, and nothing else changes. Two decisions do not depend on
//! these numbers: whether a mutator *may* mark (see `Mutator::assist`), and whether marking has
//! ended (a stop decides that).

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;

use crate::marked::Marked;
use crate::pacer::{Cycle, Marking, Pacer, Policy};

/// The numbers that decide whether a collection is due, and which mutators assist it.
pub(crate) struct Pace {
    /// Stress: mutators assist at every refill.
    stress: bool,
    /// Used by the collector alone, and by a fork.
    pacer: gc_preempt::Mutex<Pacer>,
    /// Bytes of cells that the last collection kept.
    kept: AtomicU64,
    /// Bytes of cells that the last collection of all cells found alive.
    live: AtomicU64,
    /// The bytes in use at which the next collection begins, at which it should end, and at which
    /// mutators wait for it to begin.
    trigger: AtomicU64,
    goal: AtomicU64,
    hard: AtomicU64,
    /// Bytes by which the heap is meant to grow over its live bytes.
    growth: AtomicU64,
    /// Bytes outside of the heap that cells keep. Signed: a report may be withdrawn on another
    /// thread than made it.
    external: AtomicI64,
    /// Whether a collection that was due has been asked for or is under way: from the first
    /// mutator's request until the bitmaps have swapped.
    asked: AtomicBool,
    /// Whether mutators assist where marking is behind.
    assists: AtomicBool,
    line: Line,
    /// On cache lines of its own, away from the fields that are read at every refill.
    work: CachePadded<Work>,
    /// The soft limit of the heap in bytes; `u64::MAX`: none.
    memory_limit: AtomicU64,
    /// The number of guards that pause collections.
    paused: AtomicU32,
    /// Whether the heap passes the soft limit.
    over_limit: AtomicBool,
    /// The moment that [`now`](Self::now) counts from.
    epoch: Instant,
}

/// The counters that threads write while a cycle marks.
#[derive(Default)]
struct Work {
    /// Mutators that have a marker.
    assisting: AtomicU64,
    /// Cells that the collector's threads have marked in this cycle.
    background: AtomicU64,
    /// Cells and bytes that mutators have marked in this cycle.
    assist_cells: AtomicU64,
    assist_bytes: AtomicU64,
    /// Nanoseconds that mutators have spent in assists in this cycle.
    assist_nanos: AtomicU64,
}

/// Cells that a mutator marks at a refill, under stress.
const STRESS: u64 = 300;

/// A [`Marking`] that other threads may read while the collector writes it.
#[derive(Default)]
struct Line {
    begin: AtomicU64,
    goal: AtomicU64,
    hard: AtomicU64,
    work: AtomicU64,
    most: AtomicU64,
}

impl Line {
    fn store(&self, line: Marking) {
        self.begin.store(line.begin, Ordering::Relaxed);
        self.goal.store(line.goal, Ordering::Relaxed);
        self.hard.store(line.hard, Ordering::Relaxed);
        self.work.store(line.work, Ordering::Relaxed);
        self.most.store(line.most, Ordering::Relaxed);
    }

    #[inline]
    fn load(&self) -> Marking {
        Marking {
            begin: self.begin.load(Ordering::Relaxed),
            goal: self.goal.load(Ordering::Relaxed),
            hard: self.hard.load(Ordering::Relaxed),
            work: self.work.load(Ordering::Relaxed),
            most: self.most.load(Ordering::Relaxed),
        }
    }
}

/// The work that mutators have done for a cycle, and its time in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Assists {
    pub(crate) marked: Marked,
    pub(crate) nanos: u64,
}

impl Pace {
    /// The pace of a heap that marks concurrently, or not. With `stress` its mutators assist at
    /// every refill, whatever they owe.
    pub(crate) fn new(policy: Policy, concurrent: bool, stress: bool, cores: u32) -> Self {
        let pacer = Pacer::new(policy, concurrent, cores);
        let pace = Self {
            stress,
            pacer: gc_preempt::Mutex::new(pacer),
            kept: AtomicU64::new(0),
            live: AtomicU64::new(0),
            trigger: AtomicU64::new(0),
            goal: AtomicU64::new(0),
            hard: AtomicU64::new(0),
            growth: AtomicU64::new(0),
            external: AtomicI64::new(0),
            asked: AtomicBool::new(false),
            assists: AtomicBool::new(false),
            line: Line::default(),
            work: CachePadded::default(),
            memory_limit: AtomicU64::new(policy.memory_limit.unwrap_or(u64::MAX)),
            paused: AtomicU32::new(0),
            over_limit: AtomicBool::new(false),
            epoch: Instant::now(),
        };
        pace.publish(&pace.pacer.lock());
        pace
    }

    fn publish(&self, pacer: &Pacer) {
        let plan = pacer.plan();
        self.trigger.store(plan.trigger, Ordering::Relaxed);
        self.goal.store(plan.goal, Ordering::Relaxed);
        self.hard.store(plan.hard(), Ordering::Relaxed);
        self.growth.store(plan.growth(), Ordering::Relaxed);
        self.over_limit.store(plan.over_limit, Ordering::Relaxed);
    }

    /// Does the heap pass its soft limit, since the program needs more?
    pub(crate) fn is_over_limit(&self) -> bool {
        self.over_limit.load(Ordering::Relaxed)
    }

    pub(crate) fn external(&self) -> u64 {
        self.external.load(Ordering::Relaxed).max(0) as u64
    }

    pub(crate) fn report(&self, delta: i64) {
        self.external.fetch_add(delta, Ordering::Relaxed);
    }

    /// Bytes of cells that the last collection kept.
    pub(crate) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Bytes of cells that the last collection of all cells found alive.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn trigger(&self) -> u64 {
        self.trigger.load(Ordering::Relaxed)
    }

    pub(crate) fn goal(&self) -> u64 {
        self.goal.load(Ordering::Relaxed)
    }

    /// The soft limit of the heap in bytes; `u64::MAX`: none.
    pub(crate) fn memory_limit(&self) -> u64 {
        self.memory_limit.load(Ordering::Relaxed)
    }

    /// Changes the settings by `change`, and computes the trigger and the goal again. A cycle that
    /// marks keeps its line. The caller is under `no_preempt`, or its thread is no mutator.
    pub(crate) fn change_policy(&self, change: impl FnOnce(&mut Policy)) {
        let mut pacer = self.pacer.lock();
        let policy = pacer.change_policy(change);
        self.memory_limit
            .store(policy.memory_limit.unwrap_or(u64::MAX), Ordering::Relaxed);
        // Under the lock, so that the numbers of one plan do not replace those of a later one.
        self.publish(&pacer);
    }

    /// The settings. The caller is under `no_preempt`, or its thread is no mutator.
    pub(crate) fn policy(&self) -> Policy {
        self.pacer.lock().policy()
    }

    /// No collection becomes due until as many calls of [`go_on`](Self::go_on) follow.
    pub(crate) fn pause(&self) {
        self.paused.fetch_add(1, Ordering::Relaxed);
    }

    /// Undoes one [`pause`](Self::pause).
    pub(crate) fn go_on(&self) {
        self.paused.fetch_sub(1, Ordering::Relaxed);
    }

    /// Does no collection become due?
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed) != 0
    }

    /// Bytes in use, if the allocation count is `allocated` bytes.
    #[inline]
    pub(crate) fn used(&self, allocated: u64) -> u64 {
        self.kept()
            .saturating_add(allocated)
            .saturating_add(self.external())
    }

    /// Whether a collection is due, and no thread has asked for one yet.
    #[inline]
    pub(crate) fn is_due(&self, used: u64) -> bool {
        used >= self.trigger() && !self.asked.load(Ordering::Relaxed) && !self.is_paused()
    }

    /// Asks for a collection. True: the caller is the first.
    pub(crate) fn ask(&self) -> bool {
        !self.asked.swap(true, Ordering::Relaxed)
    }

    /// Is the collector so late to begin that mutators must wait for it?
    #[inline]
    pub(crate) fn must_wait(&self, used: u64) -> bool {
        used >= self.hard.load(Ordering::Relaxed)
            && self.asked.load(Ordering::Relaxed)
            && !self.may_assist()
    }

    /// Is a collection wanted or under way, and has the heap grown by more than its planned growth
    /// over its live bytes?
    #[inline]
    pub(crate) fn overshoots(&self, used: u64) -> bool {
        let meant = self.growth.load(Ordering::Relaxed);
        let meant = meant
            .saturating_add(self.live())
            .saturating_add(self.external());
        used > meant.min(self.goal()) && self.asked.load(Ordering::Relaxed)
    }

    /// May mutators assist where marking is behind?
    #[inline]
    pub(crate) fn may_assist(&self) -> bool {
        self.assists.load(Ordering::Relaxed)
    }

    /// The line that marking should keep to.
    #[inline]
    pub(crate) fn line(&self) -> Marking {
        self.line.load()
    }

    /// The number of cells that a mutator owes before it allocates `bytes` bytes. `large`: the work
    /// on large objects so far, in cells.
    #[inline]
    pub(crate) fn owed(&self, line: &Marking, used: u64, bytes: u64, large: u64) -> u64 {
        if self.stress {
            return STRESS;
        }
        let background = self.work.background.load(Ordering::Relaxed);
        let done = background + self.work.assist_cells.load(Ordering::Relaxed) + large;
        line.owed(used, done, bytes)
    }

    /// Do mutators assist at every refill, whatever they owe?
    pub(crate) fn is_stressed(&self) -> bool {
        self.stress
    }

    /// Counts the calling mutator as assisting. `false`: assists are held.
    #[must_use]
    pub(crate) fn begin_assist(&self) -> bool {
        // SeqCst, this and the next: pair with `hold_assists` and `assisting`. Either this thread
        // sees that assists are held, or the collector sees this mutator in the count.
        self.work.assisting.fetch_add(1, Ordering::SeqCst);
        let may = self.assists.load(Ordering::SeqCst);
        if !may {
            self.work.assisting.fetch_sub(1, Ordering::Release);
        }
        may
    }

    /// Ends an assist. The mutator has dropped its marker, and put the cells that it had left into
    /// the queue.
    pub(crate) fn end_assist(&self, marked: Marked) {
        self.work
            .assist_cells
            .fetch_add(marked.cells, Ordering::Relaxed);
        self.work
            .assist_bytes
            .fetch_add(marked.bytes, Ordering::Relaxed);
        // Release pairs with the load of `assisting`: a collector that no longer sees this mutator
        // in the count sees the cells that it put into the queue.
        self.work.assisting.fetch_sub(1, Ordering::Release);
    }

    /// The number of mutators that have a marker, and so may have cells that are in no queue.
    pub(super) fn assisting(&self) -> u64 {
        self.work.assisting.load(Ordering::SeqCst)
    }

    /// Adds the nanoseconds of one assist.
    pub(crate) fn add_assist_time(&self, nanos: u64) {
        self.work.assist_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Nanoseconds since the heap was built.
    pub(crate) fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// A collection begins, in stop 1, with `used` bytes in `cells` cells. Returns whether it was
    /// the trigger that asked for it.
    pub(super) fn begun(&self, used: u64, cells: u64) -> bool {
        let pacer = self.pacer.lock();
        self.line.store(pacer.plan().marking(used, cells));
        drop(pacer);
        self.work.background.store(0, Ordering::Relaxed);
        self.asked.swap(true, Ordering::Relaxed)
    }

    /// Does the cycle that begins record which cells are allocated black?
    pub(super) fn notes_allocated_black(&self) -> bool {
        self.pacer.lock().plan().notes_allocated_black
    }

    /// Mutators run beside the markers from now on. They may assist, unless the collector has had
    /// more than its part of the processors.
    pub(super) fn beside(&self) {
        let limiting = self.pacer.lock().is_limiting();
        self.assists.store(!limiting, Ordering::Relaxed);
    }

    /// Marking seems to be over: no further assist begins, since a stop would wait for its end.
    /// Returns whether assists were allowed before.
    pub(super) fn hold_assists(&self) -> bool {
        if !seam::holds_assists() {
            return self.may_assist();
        }
        self.assists.swap(false, Ordering::SeqCst)
    }

    /// Marking was not over: undoes [`hold_assists`](Self::hold_assists), which returned `might`.
    pub(super) fn restore_assists(&self, might: bool) {
        self.assists.store(might, Ordering::Relaxed);
    }

    /// Sets the number of cells that the collector's threads have marked in this cycle.
    pub(super) fn progress(&self, cells: u64) {
        self.work.background.store(cells, Ordering::Relaxed);
    }

    /// In the last stop of a cycle: forbids assists, and takes the counts of the work that mutators
    /// have done.
    pub(super) fn take_assists(&self) -> Assists {
        self.assists.store(false, Ordering::Relaxed);
        Assists {
            marked: Marked {
                cells: self.work.assist_cells.swap(0, Ordering::Relaxed),
                bytes: self.work.assist_bytes.swap(0, Ordering::Relaxed),
            },
            nanos: self.work.assist_nanos.swap(0, Ordering::Relaxed),
        }
    }

    /// In the child of a fork: no collection is under way, and none is asked for.
    pub(crate) fn abandoned(&self) {
        self.take_assists();
        // The threads that had a marker exist in the parent only.
        self.work.assisting.store(0, Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
    }

    /// A cycle has ended. Returns whether the next may be a young one.
    pub(super) fn ended(&self, cycle: &Cycle) -> bool {
        let mut pacer = self.pacer.lock();
        let plan = pacer.ended(cycle);
        self.kept
            .store(cycle.live + cycle.allocated_black, Ordering::Relaxed);
        if !cycle.young {
            self.live.store(cycle.live, Ordering::Relaxed);
        }
        self.publish(&pacer);
        drop(pacer);
        self.asked.store(false, Ordering::Relaxed);
        plan.young
    }

    /// Takes the lock, for a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.pacer.lock()
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn holds_assists() -> bool {
        !Fault::AssistsUnheld.planted()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mark::Marker;
    use crate::mutator::record::Context;
    use crate::raw::{Encoding, Kind, KindId};
    use crate::{Heap, Mutator};

    const CELLS: u64 = 3000;

    /// Makes `m` find a cycle past its goal, with [`CELLS`] cells of the kind to follow.
    fn fall_behind(m: &Mutator, kind: KindId) -> &Context {
        // SAFETY: the context lives as long as the mutator.
        let context = unsafe { &*m.context() };
        let (shared, pace) = (&*context.shared, &m.heap().state().pace);
        let mut marker = Marker::new(&shared.space, &shared.queue, &shared.weak);
        for _ in 0..CELLS {
            // SAFETY: no collection happens.
            let cell = unsafe { m.alloc_raw(kind, 16) }.unwrap().as_ptr() as usize;
            marker.cell(shared.space.resolve(cell).unwrap());
        }
        marker.publish();
        pace.line.store(Marking {
            begin: 0,
            goal: 1,
            hard: u64::MAX,
            work: CELLS,
            most: CELLS,
        });
        context.marking.store(1, Ordering::Relaxed);
        pace.beside();
        context
    }

    #[test]
    fn no_assist_begins_while_they_are_held() {
        let heap = Heap::builder().reserve(1 << 30).build().unwrap();
        let m = heap.attach().unwrap();
        let node = heap.kind(Kind::words_at("node", &[0], Encoding::RAW));
        let filler = heap.kind(Kind::leaf("filler")).unwrap();
        let context = fall_behind(&m, node.unwrap());
        let pace = &heap.state().pace;
        let assist_time = || {
            for _ in 0..100 {
                // SAFETY: no collection happens.
                unsafe { m.alloc_raw(filler, 1024) }.unwrap();
            }
            pace.work.assist_nanos.swap(0, Ordering::Relaxed)
        };
        let might = pace.hold_assists();
        assert_eq!((might, assist_time()), (true, 0));
        assert!(
            !pace.begin_assist() && pace.assisting() == 0,
            "an assist began while assists were held"
        );
        pace.restore_assists(might);
        assert!(assist_time() > 0, "no mutator has assisted");
        context.marking.store(0, Ordering::Relaxed);
    }

    /// An assist ends after a millisecond, though the cells that it owes would take longer.
    #[test]
    fn one_allocation_helps_for_a_moment_whatever_it_owes() {
        static TRACED: AtomicU64 = AtomicU64::new(0);
        let heap = Heap::builder().reserve(1 << 30).build().unwrap();
        let m = heap.attach().unwrap();
        // SAFETY: such a cell has no edges.
        let slow = unsafe {
            Kind::traced("slow", |_, _, _| {
                TRACED.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(100));
            })
        };
        let filler = heap.kind(Kind::leaf("filler")).unwrap();
        let context = fall_behind(&m, heap.kind(slow).unwrap());
        let pace = &heap.state().pace;
        let owed = pace.owed(&pace.line(), u64::MAX, 1 << 20, 0);
        // SAFETY: no collection happens.
        unsafe { m.alloc_raw(filler, 1 << 20) }.unwrap();
        context.marking.store(0, Ordering::Relaxed);
        let traced = TRACED.load(Ordering::Relaxed);
        assert!(
            owed == CELLS && 0 < traced && traced < CELLS / 2,
            "{traced} of {owed}"
        );
    }
}
