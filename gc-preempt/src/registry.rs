//! One record for each attached thread of the process. A signal handler finds it without a lock.
//!
//! A table of atomic pointers maps the thread pointer (the address of the thread's control block, a
//! load from FS:0) to the record. Thread-local storage is not used: in a library that was loaded
//! late, the first access to a thread-local may call malloc, and the handler also runs on threads
//! that never attached. The thread id is not used: it costs a system call, and changes over a fork.
//!
//! Records are mapped once and never unmapped, so a lookup may follow any pointer in the table. The
//! table changes only under the registry lock. It is an array of small buckets. A lookup searches a
//! whole bucket, so removing needs no tombstones, and a miss costs two cache lines.

use crate::altstack::{self, AlternateStack};
use crate::arch;
use crate::clock;
use crate::context::Snapshot;
use crate::hook::Hook;
use crate::lifeline::Lifeline;
use crate::own_stack::{OwnStack, StackBounds};
use crate::park::{Mutex, MutexGuard};
use crate::stack_record::{Left, StackRecord};
use crate::state::State;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::collections::BTreeMap;

/// The id of a mutator: the kernel's id of its thread.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MutatorId(pub u32);

impl core::fmt::Display for MutatorId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "thread {}", self.0)
    }
}

const BUCKETS: usize = 4096;
const BUCKET: usize = 16;

/// The record of one attached thread.
#[repr(align(128))]
pub(crate) struct Record {
    pub state: State,
    /// Depth of `no_preempt`. Written by its own thread only; its handler reads it between two of
    /// its instructions.
    pub depth: AtomicU32,
    /// A signal of ours is on its way to the thread.
    pub in_flight: AtomicU32,
    /// Number of the stop for which a call was injected and has not acknowledged yet. 0: the call
    /// was injected to preempt the thread, and acknowledges nothing.
    pub injected: AtomicU64,
    /// Its state at a stop. The thread writes it before it acknowledges, the stopper reads it after
    /// that.
    snapshot: UnsafeCell<Snapshot>,
    /// Runs after an injected stop.
    pub stop_hook: Hook,
    /// Runs when the thread is preempted (see `preempt.rs`).
    pub preempt_hook: Hook,
    /// A request to preempt the thread has been made, and has not been served yet.
    pub preempt_wanted: AtomicBool,
    /// The instruction at which the thread was preempted last, or 0. The thread's own.
    pub preempted_at: AtomicUsize,
    /// How many threads have had this record before. Changes under the registry lock.
    pub generation: AtomicU64,
    /// May a signal stop the thread for the stop that asks now? Written by the stopper before it
    /// asks.
    pub by_signal: AtomicBool,
    /// Run calls through the injected path where that is possible.
    pub inject: AtomicU32,
    /// Why the thread could not be stopped at the last attempt, see `Record::note_obstacle`.
    pub obstacle: AtomicU64,
    /// Nanoseconds from the handler's first instruction to its last, of stop `stall_of`.
    pub stall: AtomicU64,
    pub stall_of: AtomicU64,
    pub tid: AtomicI32,
    pub thread_pointer: AtomicUsize,
    /// Its stack pointer when its stack was walked last.
    walked: AtomicUsize,
    pub own_stack: OwnStack,
    /// The highest end of a frame that a walk of its stack has come to. 0: no walk yet.
    outermost: AtomicUsize,
    /// The registered stack that the thread runs on. Null: its own. Written by the thread inside
    /// `no_preempt` only, so a stop finds the stack that SP lies on.
    pub current: AtomicPtr<StackRecord>,
    /// Where the thread's own stack was left, while `current` is another.
    pub left: Left,
    /// A world of which the thread is known to be a mutator, for the check of a resume; 0: none.
    pub resumes_in: AtomicU64,
    /// Worlds that this thread is attached to.
    pub worlds: AtomicU32,
    /// Tells whether the thread still exists.
    pub lifeline: Lifeline,
    /// The thread's alternate stack. Null: it has none yet.
    pub alternate: AtomicPtr<AlternateStack>,
    /// Was SIGURG blocked before the thread attached?
    pub urg_was_blocked: AtomicBool,
    /// How often it has left `blocking`. If this has not changed between two looks at a blocked
    /// mutator, it was blocked all the time. Written by its own thread.
    pub returns: AtomicU32,
    /// It waits in `blocking` for the registry lock, and leaves `blocking` with the lock held: it
    /// must not be set aside. Written by its own thread.
    pub awaits_registry: AtomicBool,
    /// The world (`members::Inner`) in which it is aside, or null, and its place there. Under the
    /// registry lock.
    pub aside: AtomicPtr<()>,
    pub aside_at: AtomicUsize,
}

// SAFETY: the cells are written by the record's own thread and read by the stopper only when the
// state word says stopped (snapshot).
unsafe impl Sync for Record {}

impl Record {
    fn new() -> Self {
        Self {
            state: State::new(),
            depth: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            injected: AtomicU64::new(0),
            snapshot: UnsafeCell::new(Snapshot::default()),
            stop_hook: Hook::new(),
            preempt_hook: Hook::new(),
            preempt_wanted: AtomicBool::new(false),
            preempted_at: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            by_signal: AtomicBool::new(true),
            inject: AtomicU32::new(0),
            obstacle: AtomicU64::new(0),
            stall: AtomicU64::new(0),
            stall_of: AtomicU64::new(0),
            tid: AtomicI32::new(0),
            thread_pointer: AtomicUsize::new(0),
            walked: AtomicUsize::new(0),
            own_stack: OwnStack::new(),
            outermost: AtomicUsize::new(0),
            current: AtomicPtr::new(core::ptr::null_mut()),
            left: Left::new(),
            resumes_in: AtomicU64::new(0),
            worlds: AtomicU32::new(0),
            lifeline: Lifeline::new(),
            alternate: AtomicPtr::new(core::ptr::null_mut()),
            urg_was_blocked: AtomicBool::new(false),
            returns: AtomicU32::new(0),
            awaits_registry: AtomicBool::new(false),
            aside: AtomicPtr::new(core::ptr::null_mut()),
            aside_at: AtomicUsize::new(0),
        }
    }

    /// The thread's own stack: its addresses, not its part in use.
    pub(crate) fn stack(&self) -> Range<usize> {
        self.own_stack.range()
    }

    /// On its own thread, also in its handler.
    pub(crate) fn alternate(&self) -> Option<&'static AlternateStack> {
        // SAFETY: null, or a stack, which is never unmapped.
        unsafe { self.alternate.load(Ordering::Relaxed).as_ref() }
    }

    /// The bounds of its own stack for a walk.
    pub(crate) fn own_frames(&self) -> StackBounds<'_> {
        StackBounds {
            stack: self.stack(),
            outermost: &self.outermost,
        }
    }

    /// The registered stack that the thread runs on. `None`: it runs on its own.
    ///
    /// On the thread itself; or while it is stopped, or gone, under the registry lock.
    #[inline]
    pub(crate) fn current(&self) -> Option<&'static StackRecord> {
        // Relaxed: the thread's own, or published by the swap of its state word.
        // SAFETY: a stack that a thread runs on stays registered.
        unsafe { self.current.load(Ordering::Relaxed).as_ref() }
    }

    /// The bounds for a walk of the stack that the thread runs on. As [`current`](Self::current).
    pub(crate) fn frames(&self) -> StackBounds<'_> {
        self.current()
            .map_or_else(|| self.own_frames(), StackRecord::frames)
    }

    /// Does SP lie on the stack that the thread is known to run on? On the thread itself.
    /// Async-signal-safe.
    pub(crate) fn holds(&self, sp: usize) -> bool {
        match self.current() {
            Some(stack) => stack.memory.contains(&sp),
            None => self.own_stack.holds(sp),
        }
    }

    /// Bytes below `sp` that the thread may use. On the thread itself.
    pub(crate) fn room_below(&self, sp: usize) -> usize {
        match self.current() {
            Some(stack) => sp.saturating_sub(stack.memory.start),
            None => self.own_stack.room_below(sp),
        }
    }

    /// The stacks that the thread has left to resume others: where each was left, and its bounds.
    /// From the innermost outwards. While the thread is stopped, or aside.
    pub(crate) fn left_stacks(&self) -> impl Iterator<Item = (&Left, StackBounds<'_>)> {
        let mut inner = self.current();
        core::iter::from_fn(move || {
            // SAFETY: the thread stands still, so its chain does not change.
            let outer = unsafe { inner.filter(|_| seam::walks_outer_stacks())?.outer() };
            inner = outer;
            Some(outer.map_or_else(
                || (&self.left, self.own_frames()),
                |stack| (&stack.left, stack.frames()),
            ))
        })
    }

    /// Its stack pointer at the last walk, where the next walk is likely to begin.
    pub(crate) fn walked(&self) -> usize {
        // Relaxed, here and below: under the registry lock.
        self.walked.load(Ordering::Relaxed)
    }

    /// A walk begins at that stack pointer.
    pub(crate) fn note_walk(&self, sp: usize) {
        self.walked.store(sp, Ordering::Relaxed);
    }

    /// Keeps how long stop `number` held this thread, by the thread's own clock.
    pub(crate) fn note_stall(&self, number: u64, from: u64) {
        self.stall.store(clock::now() - from, Ordering::Relaxed);
        // Release pairs with the Acquire of the stopper that reads it in a later stop.
        self.stall_of.store(number, Ordering::Release);
    }

    /// The thread, by the kernel's number.
    pub(crate) fn id(&self) -> MutatorId {
        MutatorId(self.tid.load(Ordering::Relaxed) as u32)
    }

    /// # Safety
    /// On the record's own thread, before it acknowledges a stop or enters `blocking`.
    pub(crate) unsafe fn publish(&self, snapshot: Snapshot) {
        // SAFETY: by the contract no stopper reads it now.
        unsafe { *self.snapshot.get() = snapshot }
    }

    /// # Safety
    /// The stopper's, while the state word says stopped or held for its stop; or with the registry
    /// lock held, while it says aside.
    pub(crate) unsafe fn snapshot(&self) -> &Snapshot {
        // SAFETY: by the contract the thread does not write it now; its Release swap made it
        // visible.
        unsafe { &*self.snapshot.get() }
    }
}

#[repr(align(128))]
struct Bucket([AtomicPtr<Record>; BUCKET]);

static TABLE: [Bucket; BUCKETS] =
    [const { Bucket([const { AtomicPtr::new(core::ptr::null_mut()) }; BUCKET]) }; BUCKETS];

#[inline]
fn bucket(thread_pointer: usize) -> &'static Bucket {
    // Fibonacci hashing: control blocks are spaced by powers of two, so their low bits alone would
    // collide.
    let hash = (thread_pointer as u64 >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &TABLE[(hash >> 52) as usize % BUCKETS]
}

/// The record of the running thread, if it is attached. Async-signal-safe.
#[inline]
pub(crate) fn current() -> Option<&'static Record> {
    let tp = arch::thread_pointer();
    for slot in &bucket(tp).0 {
        // Acquire pairs with the Release in `insert`: the record is whole before it can be found.
        let record = slot.load(Ordering::Acquire);
        if record.is_null() {
            continue;
        }
        // SAFETY: records are never unmapped.
        let record = unsafe { &*record };
        if record.thread_pointer.load(Ordering::Relaxed) == tp {
            return Some(record);
        }
    }
    None
}

/// What the registry lock protects.
pub(crate) struct Registry {
    /// Records that no thread owns.
    pool: Vec<&'static Record>,
    /// The first and the end address of each registered stack of the process.
    stacks: BTreeMap<usize, usize>,
    alternates: altstack::Pool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    pool: Vec::new(),
    stacks: BTreeMap::new(),
    alternates: altstack::Pool::new(),
});

/// The registry lock. Attaching, detaching and registering code hold it for a moment, and a stop
/// for as long as it lasts. So stops are one at a time in the process.
///
/// A mutator that has to wait for the lock waits in `blocking`: see `blocking.rs`.
pub(crate) struct RegistryGuard(MutexGuard<'static, Registry>);

impl RegistryGuard {
    /// A record for the running thread, findable at once. `None` if its bucket is full: some ten
    /// thousand threads.
    pub(crate) fn insert(&mut self) -> Option<&'static Record> {
        let tp = arch::thread_pointer();
        let slot = bucket(tp)
            .0
            .iter()
            .find(|s| s.load(Ordering::Relaxed).is_null())?;
        let record = self
            .0
            .pool
            .pop()
            .unwrap_or_else(|| Box::leak(Box::new(Record::new())));
        record.state.reset();
        record.depth.store(0, Ordering::Relaxed);
        record.in_flight.store(0, Ordering::Relaxed);
        record.injected.store(0, Ordering::Relaxed);
        record.stop_hook.unset();
        record.preempt_hook.unset();
        record.preempt_wanted.store(false, Ordering::Relaxed);
        record.preempted_at.store(0, Ordering::Relaxed);
        record.inject.store(0, Ordering::Relaxed);
        record.worlds.store(0, Ordering::Relaxed);
        record.walked.store(0, Ordering::Relaxed);
        record.outermost.store(0, Ordering::Relaxed);
        record
            .current
            .store(core::ptr::null_mut(), Ordering::Relaxed);
        record.resumes_in.store(0, Ordering::Relaxed);
        record.obstacle.store(0, Ordering::Relaxed);
        record.stall_of.store(0, Ordering::Relaxed);
        record.awaits_registry.store(false, Ordering::Relaxed);
        record.aside.store(core::ptr::null_mut(), Ordering::Relaxed);
        record.thread_pointer.store(tp, Ordering::Relaxed);
        slot.store(core::ptr::from_ref(record).cast_mut(), Ordering::Release);
        Some(record)
    }

    /// Takes a record out of the table and keeps it for another thread.
    pub(crate) fn remove(&mut self, record: &'static Record) {
        let tp = record.thread_pointer.load(Ordering::Relaxed);
        for slot in &bucket(tp).0 {
            if core::ptr::eq(slot.load(Ordering::Relaxed), record) {
                slot.store(core::ptr::null_mut(), Ordering::Release);
            }
        }
        record.thread_pointer.store(0, Ordering::Relaxed);
        // Relaxed: read under the registry lock.
        record.generation.fetch_add(1, Ordering::Relaxed);
        record
            .alternate
            .store(core::ptr::null_mut(), Ordering::Relaxed);
        self.0.pool.push(record);
    }

    /// [`remove`](Self::remove) for a thread that no longer exists: its alternate stack is free.
    pub(crate) fn remove_dead(&mut self, record: &'static Record) {
        let alternate = record.alternate();
        self.remove(record);
        if let Some(alternate) = alternate {
            self.alternates().give(alternate);
        }
    }

    /// Notes the range of a stack. False: a registered stack overlaps it.
    pub(crate) fn add_stack(&mut self, memory: &Range<usize>) -> bool {
        let before = self.0.stacks.range(..memory.end).next_back();
        let is_free = before.is_none_or(|(_, end)| *end <= memory.start);
        if is_free {
            self.0.stacks.insert(memory.start, memory.end);
        }
        is_free
    }

    pub(crate) fn remove_stack(&mut self, memory: &Range<usize>) {
        self.0.stacks.remove(&memory.start);
    }

    /// The alternate stacks of threads that have ended.
    pub(crate) fn alternates(&mut self) -> &mut altstack::Pool {
        &mut self.0.alternates
    }

    /// Forgets every thread but `keep`: in the child of a fork the others do not exist.
    pub(crate) fn keep_only(&mut self, keep: Option<&'static Record>) {
        for slot in TABLE.iter().flat_map(|b| &b.0) {
            let record = slot.load(Ordering::Relaxed);
            if !record.is_null() && !keep.is_some_and(|k| core::ptr::eq(k, record)) {
                // SAFETY: records are never unmapped.
                self.remove_dead(unsafe { &*record });
            }
        }
    }
}

/// Takes the registry lock if it is free.
pub(crate) fn try_lock() -> Option<RegistryGuard> {
    REGISTRY.try_lock().map(RegistryGuard)
}

/// Takes the registry lock, and waits for it if it is not free.
///
/// A mutator calls this in BLOCKED only: otherwise a stop that holds the lock would wait for the
/// mutator. A thread that holds a stop must not call it.
pub(crate) fn lock_blocked() -> RegistryGuard {
    RegistryGuard(REGISTRY.lock())
}

/// Whether a stop has asked for the running thread, which is attached. For tests.
#[doc(hidden)]
pub fn is_asked_to_stop_here() -> bool {
    current().is_none_or(|record| record.state.load().asked())
}

/// Whether the running thread is attached and inside `no_preempt`.
pub fn in_no_preempt_here() -> bool {
    current().is_some_and(|record| record.depth.load(Ordering::Relaxed) != 0)
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn walks_outer_stacks() -> bool {
        !Fault::InnermostStackOnly.planted()
    }
}
