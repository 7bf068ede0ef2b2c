//! The green threads of one isolate as the isolate owns them: stacks, queues and sleepers. The
//! scheduler is in [`green`](super::green).

use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Instant;

use gc_core::coroutine::{Stack, StackPool};
use gc_core::raw::{RootCallback, RootRange};
use memmap2::MmapMut;

use super::value::Value;

/// The number of a green thread. 0 is none.
pub(super) type Id = u32;

/// A green thread, or the memory of one that has ended.
pub(super) struct Green {
    pub(super) stack: Stack,
    /// Dropped before `limit` and `words`.
    pub(super) range: RootRange,
    /// End address of the slots that `range` covers: all that are in use, or, while the green
    /// thread runs, the scheduler's.
    pub(super) limit: Box<AtomicUsize>,
    pub(super) words: MmapMut,
    /// Number of its nested activations, while it does not run.
    pub(super) frame_count: u32,
    /// The next green thread that waits for the same channel.
    pub(super) next: Id,
}

impl Green {
    /// The address of a slot of its value stack.
    pub(super) fn slot(&self, index: usize) -> *mut Value {
        self.words
            .as_ptr()
            .cast_mut()
            .cast::<Value>()
            .wrapping_add(index)
    }
}

/// The green threads of an isolate.
pub(super) struct Greens {
    /// By their numbers minus 1. They are made by `Box::into_raw`: the scheduler uses one while the
    /// code on its stack adds others.
    pub(super) all: Vec<*mut Green>,
    pub(super) ended: Vec<Id>,
    pub(super) ready: VecDeque<Id>,
    pub(super) sleepers: BinaryHeap<Sleeper>,
    /// Number of sleeps so far, by which sleepers of one instant wake in their order.
    pub(super) sleeps: u64,
    /// The one that runs.
    pub(super) current: Id,
    /// Whether a green thread has ended by a runtime error.
    pub(super) failed: bool,
    /// How often a green thread was suspended because its slice was over.
    pub(super) preemptions: u64,
    /// Number of resumes of green threads and of their ends, so odd while one runs.
    pub(super) switches: Arc<AtomicU64>,
    pub(super) pool: StackPool,
    /// The first slot of the running green thread, for the root callback.
    pub(super) first: Arc<AtomicUsize>,
    /// Reports the running green thread's value stack.
    pub(super) _running: RootCallback,
}

/// Ordered so that a `BinaryHeap` gives the first one to wake.
#[derive(PartialEq, Eq)]
pub(super) struct Sleeper {
    pub(super) until: Instant,
    pub(super) number: u64,
    pub(super) green: Id,
}

impl Ord for Sleeper {
    fn cmp(&self, other: &Sleeper) -> std::cmp::Ordering {
        (other.until, other.number).cmp(&(self.until, self.number))
    }
}

impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Sleeper) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Drop for Greens {
    fn drop(&mut self) {
        for green in self.all.drain(..) {
            // SAFETY: the scheduler made the pointer from a box, and no code of the isolate runs
            // any more.
            let Green {
                stack,
                range,
                limit,
                words,
                ..
            } = *unsafe { Box::from_raw(green) };
            // SAFETY: the frames on the stack are Lox's activations and the runtime's functions,
            // which own nothing and to which nothing refers.
            if let Err((error, stack)) = unsafe { stack.abandon() } {
                // The memory of a stack that runs must stay: the panic that ends it comes from
                // there.
                std::mem::forget((stack, range, limit, words));
                eprintln!("a green thread's stack is kept: {error}");
                continue;
            }
            drop(range);
        }
    }
}
