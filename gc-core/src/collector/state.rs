//! What a heap's collector and its mutators share: one record, and the locks of its tables.

use core::any::Any;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use core::time::Duration;

use gc_preempt::{ForkHooks, World};

use super::pace::Pace;
use super::requests::Requests;
use crate::config::Young;
use crate::dying::Dying;
use crate::fault::planted;
use crate::finalize::Finalizers;
use crate::heap::Space;
use crate::mark::{MarkQueue, Marker};
use crate::marked::Marked;
use crate::memory::tables::Slab;
use crate::mutator::record::Context;
use crate::mutator::types::Types;
use crate::pacer::Vain;
use crate::roots::{self, Roots};
use crate::satb_log::SharedLog;
use crate::stacks::Stacks;
use crate::stats::Ledger;
use crate::verify::Verify;
use crate::weak::WeakWork;

/// A heap, as its collector and its mutators share it.
pub(crate) struct Shared {
    pub(crate) space: Space,
    pub(crate) world: World,
    pub(crate) queue: MarkQueue,
    /// Weak cells and ephemerons that markers meet.
    pub(crate) weak: WeakWork,
    pub(crate) log: SharedLog,
    pub(crate) roots: Roots,
    /// Whether stacks and registers are roots.
    pub(crate) stacks: Stacks,
    pub(crate) finalizers: Finalizers,
    /// Values that need `Drop`: whose cells they lie in, and which of them have died.
    pub(crate) drops: Finalizers,
    /// Values whose `Drop` runs.
    pub(crate) dying: Dying,
    /// The Rust types that have cells here.
    pub(crate) types: Types,
    pub(crate) requests: Requests,
    /// The records of all mutators, for the child of a fork. Changed inside `no_preempt`.
    pub(crate) contexts: gc_preempt::Mutex<Slab<Attached>>,
    pub(crate) over_fork: OverFork,
    /// `pthread_self` of the collector's thread, or 0.
    pub(crate) collector: AtomicUsize,
    pub(crate) ledger: Ledger,
    /// The second marking, if it was asked for.
    pub(crate) verify: Option<Verify>,
    /// Cells that are freed are filled.
    pub(crate) poison: bool,
    pub(crate) pace: Pace,
    /// Whether mutators' stores are logged, and whether what is dead has been decided: see `weak/`.
    /// Changes in stops only. Each mutator has a copy, [`Context::marking`], so that a unit's test
    /// is one compare.
    pub(crate) marking: AtomicU32,
    /// The number of the last scan of the roots, from 1 on. Changes in stops.
    pub(crate) scan: AtomicU64,
    /// Marks must not change: while mutators run, it is being decided by them what is cleared and
    /// queued.
    pub(crate) clearing: AtomicBool,
    /// Mutators run while cells are marked (not so with `URGE_STW=1`).
    pub(crate) concurrent: bool,
    /// When collections are young ones.
    pub(crate) young: Young,
    /// How long after the last collection a heap is collected that nobody uses.
    pub(crate) idle_after: Option<Duration>,
    /// Collections for room that were in vain.
    pub(crate) vain: gc_preempt::Mutex<Vain>,
    /// Threads that mark, where the embedder has said so.
    pub(crate) markers: Option<u32>,
    pub(crate) phase: AtomicU8,
    /// Cells that the last collection left allocated, the rests of runs included.
    pub(crate) cells: AtomicU64,
    /// Of these, what the next collection finds marked if it is a young one.
    pub(crate) old: OldMarks,
}

/// Cells that are old, and their bytes. The collector's alone.
#[derive(Default)]
pub(crate) struct OldMarks {
    cells: AtomicU64,
    bytes: AtomicU64,
}

impl OldMarks {
    pub(super) fn get(&self) -> Marked {
        Marked {
            cells: self.cells.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set(&self, old: Marked) {
        self.cells.store(old.cells, Ordering::Relaxed);
        self.bytes.store(old.bytes, Ordering::Relaxed);
    }
}

/// What the forking thread holds of a heap, from the prepare hook to the parent's and the child's.
#[derive(Default)]
pub(crate) struct OverFork(pub(super) UnsafeCell<Option<Box<dyn Any>>>);

// SAFETY: touched by fork hooks only, one fork at a time, on the forking thread.
unsafe impl Send for OverFork {}
// SAFETY: as above.
unsafe impl Sync for OverFork {}

/// A mutator's record and whose it is.
pub(crate) struct Attached {
    /// `pthread_self` of its thread.
    pub(crate) owner: usize,
    pub(crate) context: *const Context,
}

// SAFETY: read in the child of a fork only, by the thread that is left.
unsafe impl Send for Attached {}

/// Where the collector stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Idle,
    Prepare,
    Scan,
    Mark,
    Finish,
    ClearWeak,
    Resurrect,
    ClearLong,
    Condemn,
    Flip,
    Sweep,
}

impl Drop for Shared {
    fn drop(&mut self) {
        end_fork_hooks(self);
    }
}

/// Ends what `fork::enrol` began: the world may outlive the heap.
fn end_fork_hooks(shared: &Shared) {
    unsafe fn nothing(_: *mut ()) {}
    let hooks = ForkHooks {
        prepare: nothing,
        parent: nothing,
        child: nothing,
        data: core::ptr::null_mut(),
    };
    // SAFETY: the hooks do nothing.
    unsafe { shared.world.on_fork(hooks) };
}

impl Shared {
    /// Cells and bytes that mutators were handed since the bitmaps swapped last.
    pub(super) fn handed(&self) -> Marked {
        Marked {
            cells: self.space.cells_since().max(0) as u64,
            bytes: self.space.allocated_since(),
        }
    }

    /// How many mutators want a processor, up to `most`. By the collector, outside of stops.
    pub(super) fn running(&self, most: u32) -> u32 {
        let mut running = 0;
        let mut contexts = self.contexts.lock();
        let mut from = 0;
        while running < most
            && let Some((at, attached)) = contexts.next(from)
        {
            from = at + 1;
            // SAFETY: a mutator takes its record out, under this lock, before it frees it; and it
            // has its thread before it puts it in.
            let context = unsafe { &*attached.context };
            // Relaxed: a hint.
            let is_busy = context.is_busy.load(Ordering::Relaxed);
            running += u32::from(is_busy || !context.thread().is_blocking());
        }
        running
    }

    /// Gives back what mutators have claimed of the heap and not used. By the collector, outside of
    /// stops.
    pub(super) fn give_back_reserve(&self) {
        let mut contexts = self.contexts.lock();
        let mut from = 0;
        while let Some((at, attached)) = contexts.next(from) {
            from = at + 1;
            // SAFETY: a mutator takes its record out, under this lock, before it frees it.
            self.space
                .give_back_reserve(unsafe { &(*attached.context).local.span_reserve });
        }
    }

    /// Removes or changes a root: see [`Roots`]. Inside `no_preempt`, or by a thread that is no
    /// mutator.
    pub(crate) fn change_root(&self, slot: usize, to: Option<usize>) {
        self.roots.change(slot, to, |word| {
            if !planted("roots-unlogged") && !self.log.append(&[word]) {
                // As in `Context::flush_log`. The snapshot of the roots is not read to its end, so
                // marking is not over.
                let mut marker = Marker::new(&self.space, &self.queue, &self.weak);
                roots::logged(&self.space, &mut marker, word);
                self.log.overflow(marker.marked());
            }
        });
    }

    /// Gives back the memory of the root tables and of handle tables that a peak has left, and what
    /// is kept of its size. Outside of stops.
    pub(super) fn trim_tables(&self, handles: bool) {
        self.roots.trim();
        let mut from = 0;
        // One table at a time: attaching and detaching wait meanwhile.
        while handles && let Some((at, attached)) = self.contexts.lock().next(from) {
            from = at + 1;
            // SAFETY: a mutator takes its record out, under this lock, before it frees it.
            unsafe { (*attached.context).handles.trim() };
        }
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.contexts.lock().trim_piece(at);
        }
    }

    /// See [`clearing`](Self::clearing).
    pub(crate) fn is_clearing(&self) -> bool {
        // Relaxed: who sees it late waits a moment longer, or marks a moment later.
        self.clearing.load(Ordering::Relaxed)
    }

    /// How many cells wait to be finalized or dropped.
    pub(super) fn ready(&self) -> u64 {
        self.finalizers.waiting() + self.drops.waiting()
    }

    /// All locks of the heap's tables, for a fork.
    pub(crate) fn lock_tables(&self) -> impl Sized + '_ {
        (
            // First: whoever makes a type's kind takes the locks of other tables meanwhile.
            self.types.lock_for_fork(),
            self.requests.lock(),
            self.contexts.lock(),
            self.roots.lock(),
            self.finalizers.lock_for_fork(),
            self.drops.lock_for_fork(),
            self.dying.lock_for_fork(),
            self.weak.lock_for_fork(),
            self.ledger.lock_for_fork(),
            self.pace.lock_for_fork(),
            self.vain.lock(),
            self.space.lock_for_fork(),
        )
    }
}
