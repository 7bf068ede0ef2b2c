//! The record of one registered stack: where it lies, what it does, and where it was left.
//!
//! # Who may touch a stack's frames
//! The state word says it:
//!
//! ```text
//! IDLE, FINISHED  no frames. `start`, or the first switch to the stack, makes some.
//! SUSPENDED       frames that were left at `left`. They do not change.
//! CLAIMED         suspended, and a thread is about to switch to it. The frames do not change yet.
//! RUNNING         its frames are those of `runner`, which runs on it or on a stack that was
//!                 resumed from it, or which makes its first frame.
//! LOST            its thread is gone. The frames never run again.
//! ```
//!
//! A resumer swaps SUSPENDED to CLAIMED inside `no_preempt`, so no stop sees CLAIMED. Another
//! thread may fork then: in the child the stack is SUSPENDED again.
//!
//! # Scans of suspended stacks
//! A world has a stack epoch, which changes in its stops only. `scanned` is the epoch in which the
//! words of a suspended stack were last reported. Invariants:
//!
//! * A resumer that has claimed a stack switches to it only if it finds `scanned` equal to the
//!   epoch, in the same `no_preempt` section. So the frames of a suspended stack with an older
//!   `scanned` stand still, and the epoch does not change between the look and the switch.
//! * `scanned` is set to the epoch under the registry lock, after the stack was walked. The store
//!   is a Release, the resumer's load an Acquire: the walk's reads come before the resumer's
//!   writes.
//!
//! So the thread that holds the registry lock may walk a suspended stack whose `scanned` is old,
//! beside resumers. They hand a claimed stack back, and wait for the lock.

use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::any::Any;

use crate::context::{Origin, Registers, Snapshot};
use crate::own_stack::StackBounds;
use crate::state::AtomicWord;

/// What a stack does. The head of this file says who may touch its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum StackState {
    /// Nothing has run on it yet.
    Idle,
    /// It has frames, which go on when it is resumed.
    Suspended,
    /// A thread is about to resume it.
    Claimed,
    /// A thread runs on it, or on a stack that was resumed from it.
    Running,
    /// The function that ran on it has ended.
    Finished,
    /// The thread that ran on it has ended, or is not in the child of a fork.
    Lost,
}

impl StackState {
    const ALL: [Self; 6] = [
        Self::Idle,
        Self::Suspended,
        Self::Claimed,
        Self::Running,
        Self::Finished,
        Self::Lost,
    ];

    /// Are there no frames that could run again?
    pub(crate) fn is_free(self) -> bool {
        matches!(self, Self::Idle | Self::Finished | Self::Lost)
    }
}

/// Where a stack was left: a frame from which a walk starts.
///
/// The thread that leaves the stack writes it. A stop, or the holder of the registry lock, reads it
/// while the stack's frames do not change. Hence all accesses are Relaxed: the state words of
/// threads and stacks publish it.
pub(crate) struct Left([AtomicUsize; 3]);

impl Left {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicUsize::new(0) }; 3])
    }

    pub(crate) fn set(&self, sp: usize, fp: usize, pc: usize) {
        for (place, value) in self.0.iter().zip([sp, fp, pc]) {
            place.store(value, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn sp(&self) -> usize {
        self.0[0].load(Ordering::Relaxed)
    }

    /// The three words, for a switch to store.
    #[inline]
    pub(crate) fn words(&self) -> *mut usize {
        self.0.as_ptr().cast_mut().cast()
    }

    /// The state from which a walk starts.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let [sp, fp, pc] = [0, 1, 2].map(|i| self.0[i].load(Ordering::Relaxed));
        Snapshot {
            registers: Registers::at_call(seam::left_at(sp), fp, pc),
            vectors: 0..0,
            origin: Origin::Call,
        }
    }
}

/// Whose turn it is on a stack: its state, and the epoch in which it was last reported.
struct Turns<A = AtomicU64> {
    state: A,
    scanned: A,
}

impl<A: AtomicWord> Turns<A> {
    /// Of two words that are zero: an idle stack.
    const fn new(state: A, scanned: A) -> Self {
        Self { state, scanned }
    }

    fn state(&self) -> StackState {
        // Acquire pairs with the Release of `set`: who finds the stack suspended sees where it was
        // left, and its words.
        let now = self.state.load(Ordering::Acquire);
        StackState::ALL[now as usize % StackState::ALL.len()]
    }

    fn set(&self, state: StackState) {
        // Release pairs with the Acquire of `state` and `claim`.
        self.state.store(state as u64, Ordering::Release);
    }

    fn claim(&self, from: StackState, to: StackState) -> bool {
        // Acquire pairs with the Release of `set`: the words of the stack, and where it was left.
        let claimed = self.state.compare_exchange(
            from as u64,
            to as u64,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        claimed.is_ok()
    }

    fn may_run(&self, epoch: u64) -> bool {
        // Acquire pairs with the Release of `reported`: the walk's reads are over.
        self.scanned.load(Ordering::Acquire) == epoch
    }

    fn is_due(&self, epoch: u64) -> bool {
        // The state first: its Acquire pairs with the Release of `set`, so for a stack that was
        // started in this epoch the next load finds what `reported` has stored before. The other
        // order would find the old epoch, and then the stack suspended.
        matches!(self.state(), StackState::Suspended | StackState::Claimed)
            // Relaxed: the other stores are under the registry lock.
            && self.scanned.load(Ordering::Relaxed) != epoch
    }

    fn reported(&self, epoch: u64) {
        // Release pairs with the Acquire of `may_run`.
        self.scanned.store(epoch, Ordering::Release);
    }
}

/// The model test: with the cargo feature `loom`, as that of `state.rs`.
#[cfg(all(test, feature = "loom"))]
mod model;

/// What a panic was raised with.
pub(crate) type Payload = Box<dyn Any + Send>;

/// The record of one registered stack.
pub(crate) struct StackRecord {
    /// The addresses of the stack, without guard pages.
    pub memory: Range<usize>,
    /// The number of its world.
    pub world: u64,
    turns: Turns,
    /// The address of the record of the thread that has claimed it or runs on it; 0: none, or a
    /// thread that is not attached and makes its first frame.
    pub runner: AtomicUsize,
    /// The stack that has resumed it. Null: its thread's own stack.
    pub outer: AtomicPtr<StackRecord>,
    /// Where it was left, by a suspension or by resuming another stack.
    pub left: Left,
    /// The last switch away from it was a suspension, from which it has not come back. Written by
    /// the thread that runs on it.
    pub leaves: AtomicBool,
    /// The highest end of a frame that a walk has come to. 0: no walk yet.
    pub outermost: AtomicUsize,
    pub data: AtomicPtr<()>,
    /// Its frames were made by `start`, so `resume` and `suspend` switch it.
    pub started: AtomicBool,
    /// The panic that has ended the function on it.
    pub panic: UnsafeCell<Option<Payload>>,
    /// Dropped when the registration ends.
    _owner: Box<dyn Send>,
    /// Its place in the list of its world. Under the registry lock.
    pub at: AtomicUsize,
}

// SAFETY: the cells belong to the thread that has claimed the stack or runs on it; the owner to the
// thread that ends the registration.
unsafe impl Sync for StackRecord {}
// SAFETY: as above; the owner is Send.
unsafe impl Send for StackRecord {}

impl StackRecord {
    pub(crate) fn new(memory: Range<usize>, world: u64, owner: Box<dyn Send>) -> Self {
        Self {
            memory,
            world,
            turns: Turns::new(AtomicU64::new(0), AtomicU64::new(0)),
            runner: AtomicUsize::new(0),
            outer: AtomicPtr::new(core::ptr::null_mut()),
            left: Left::new(),
            leaves: AtomicBool::new(false),
            outermost: AtomicUsize::new(0),
            data: AtomicPtr::new(core::ptr::null_mut()),
            started: AtomicBool::new(false),
            panic: UnsafeCell::new(None),
            _owner: owner,
            at: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn state(&self) -> StackState {
        self.turns.state()
    }

    /// By the thread that has claimed the stack or runs on it, or under the registry lock when that
    /// thread is gone.
    #[inline]
    pub(crate) fn set(&self, state: StackState) {
        self.turns.set(state);
    }

    /// Swaps `from` to CLAIMED or RUNNING, for the thread of that record.
    #[inline]
    pub(crate) fn claim(&self, from: StackState, to: StackState, runner: usize) -> bool {
        let claimed = self.turns.claim(from, to);
        if claimed {
            self.runner.store(runner, Ordering::Relaxed);
        }
        claimed
    }

    /// Is it reported, so that the thread that has claimed it may run it?
    #[inline]
    pub(crate) fn may_run(&self, epoch: u64) -> bool {
        self.turns.may_run(epoch)
    }

    /// Must its words be reported before its frames may run? Under the registry lock.
    pub(crate) fn is_due(&self, epoch: u64) -> bool {
        self.turns.is_due(epoch)
    }

    /// It is reported: under the registry lock after a walk, in a stop, or without frames.
    pub(crate) fn reported(&self, epoch: u64) {
        self.turns.reported(epoch);
    }

    /// Undoes [`claim`](Self::claim), or ends the stack's run.
    #[inline]
    pub(crate) fn give_back(&self, state: StackState) {
        self.runner.store(0, Ordering::Relaxed);
        self.set(state);
    }

    /// The bounds for a walk.
    pub(crate) fn frames(&self) -> StackBounds<'_> {
        StackBounds {
            stack: self.memory.clone(),
            outermost: &self.outermost,
        }
    }

    /// The stack that has resumed it, if that is not a thread's own.
    ///
    /// # Safety
    /// The stack runs, and the chain does not change meanwhile.
    pub(crate) unsafe fn outer(&self) -> Option<&'static StackRecord> {
        // SAFETY: a stack that has resumed another stays registered.
        unsafe { self.outer.load(Ordering::Relaxed).as_ref() }
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    /// Where a walk of a stack that was left begins: below the registers that were saved on it.
    pub(super) fn left_at(sp: usize) -> usize {
        if Fault::LeftAboveSaves.planted() {
            sp + 48
        } else {
            sp
        }
    }
}
