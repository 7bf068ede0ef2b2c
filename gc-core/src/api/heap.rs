//! The heap as an embedder holds it: what it allocates, its figures, and its inspectors.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use gc_preempt::{Stopped, World};

use crate::collector::{self, State};
use crate::error::SiteError;
use crate::fault::protected;
use crate::heap::Cell;
use crate::heap::Site;
use crate::kind::{Kind, KindError, KindId};
use crate::mutator::record::context_of;
use crate::mutator::shared::Shared;
use crate::stats::HeapStats;
use crate::thread::Thread;

/// A garbage-collected heap. Clones are handles on the same heap; the last one to go ends its
/// collector's thread and unmaps it.
///
/// [`Mutator`](crate::Mutator)s, [`RawRoot`](crate::raw::RawRoot)s and the other guards keep the
/// heap alive. The last handle may go anywhere: where its thread may not wait for the collector's,
/// as inside [`no_preempt`](crate::Mutator::no_preempt), that ends by itself a little later.
///
/// ```
/// # use gc_core::Heap;
/// let (one, other) = (Heap::builder().build()?, Heap::builder().build()?);
/// let mutator = one.attach()?;
/// mutator.no_preempt(|| drop(other));
/// mutator.collect();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Heap {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    state: Arc<State>,
    thread: Mutex<Option<Thread>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        protected(|| self.state.requests.shut_down());
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // The last handle may be an owner's that the collector itself has just dropped: it ends by
        // itself then. Another heap may want this thread to stop meanwhile, so the wait is a
        // blocking one. And a collector that waits for the stop of this thread, or for the end of
        // its `no_preempt`, ends after it.
        let Some(thread) = thread else { return };
        if !thread.is_current()
            && !gc_preempt::holds_a_stop()
            && !gc_preempt::in_no_preempt_here()
            && protected(|| self.state.requests.can_be_joined())
        {
            gc_preempt::blocking_here(|| thread.join());
        } else {
            thread.detach();
        }
    }
}

impl Heap {
    /// A heap whose collector's thread runs.
    pub(crate) fn new(shared: Arc<Shared>, state: Arc<State>, thread: Thread) -> Heap {
        Heap {
            handle: Arc::new(Handle {
                shared,
                state,
                thread: Mutex::new(Some(thread)),
            }),
        }
    }

    /// What keeps the heap alive, for a record that does not know this type.
    pub(crate) fn keep(self) -> Arc<dyn Any + Send + Sync> {
        self.handle
    }

    /// The heap that [`keep`](Self::keep) has kept alive.
    pub(crate) fn kept(handle: Arc<dyn Any + Send + Sync>) -> Option<Heap> {
        let handle = handle.downcast().ok()?;
        Some(Heap { handle })
    }

    /// What the heap's mutators and its collector share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    pub(crate) fn shared_arc(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// The heap's collector.
    pub(crate) fn state(&self) -> &State {
        &self.handle.state
    }

    /// In the child of a fork the collector's thread does not exist: starts another.
    /// Inside `blocking`: it locks and calls malloc.
    pub(super) fn revive(&self) {
        if self.state().requests.alive.load(Ordering::SeqCst) {
            return;
        }
        let mut thread = self
            .handle
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.state().requests.alive.load(Ordering::SeqCst) {
            return;
        }
        match collector::spawn(&self.handle.state) {
            // The parent's thread cannot be joined here.
            Ok(new) => *thread = Some(new),
            Err(error) => panic!("no thread for the collector in the child of a fork: {error}"),
        }
    }

    /// Describes cells to the heap.
    ///
    /// # Errors
    /// [`KindError`]: there are as many kinds as there can be, or the encoding cannot match any
    /// word.
    pub fn kind(&self, kind: Kind) -> Result<KindId, KindError> {
        self.shared().add_kind(kind)
    }

    /// The site that allocates cells of `bytes` bytes of `kind` inline.
    ///
    /// # Errors
    /// [`SiteError`]: the kind is unknown, or cells of this size cannot have a site: above
    /// [`MAX_SMALL`](crate::raw::MAX_SMALL) bytes, or of as many with
    /// [`past_the_end`](crate::HeapBuilder::past_the_end).
    pub fn site(&self, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        self.shared().stacks.use_fast_tier()?;
        self.shared().site_of(kind, bytes)
    }

    /// The heap's figures.
    pub fn stats(&self) -> HeapStats {
        let shared = self.state();
        let mut stats = protected(|| shared.ledger.read());
        stats.sweeping = !shared.space.ready_to_mark();
        stats.allocated_since = shared.space.allocated_since();
        stats.allocated_total += stats.allocated_since;
        stats.used_bytes = protected(|| shared.space.used_bytes());
        (stats.high_water_bytes, stats.metadata_bytes) =
            protected(|| shared.space.metadata_bytes());
        stats.queue_peak_bytes = shared.queue.peak_bytes();
        stats.external_bytes = shared.pace.external();
        stats.trigger_bytes = shared.pace.trigger();
        stats.goal_bytes = shared.pace.goal();
        stats.finalizers_waiting = shared.finalizers.waiting();
        stats
    }

    /// The heap's mutators as `gc-preempt` sees them. A thread attached through it is stopped and
    /// scanned, but is no mutator of the heap.
    pub fn world(&self) -> &World {
        &self.shared().world
    }

    /// Stops the heap's mutators, calls `f`, resumes them. For harnesses and inspectors; `f` must
    /// keep to what [`World::stop`](gc_preempt::World::stop) says of a stopped world, and not touch
    /// this heap's roots or finalizers. Mutators that have been in `blocking` for long are not
    /// among [`Stopped::mutators`](gc_preempt::Stopped::mutators), but
    /// [`Stopped::aside`](gc_preempt::Stopped::aside).
    ///
    /// # Errors
    /// If the caller is itself a mutator of this heap.
    pub fn with_stopped<R>(
        &self,
        f: impl FnOnce(&Stopped<'_>) -> R,
    ) -> Result<R, gc_preempt::StopError> {
        let stopped = self.shared().world.stop()?;
        let result = f(&stopped);
        drop(stopped);
        Ok(result)
    }

    /// The heap's addresses. Whatever lies outside names no cell of it.
    pub fn reserved(&self) -> Range<usize> {
        self.shared().space.reserved()
    }

    /// Stops the heap's mutators and calls `f` with every allocated cell in order of addresses,
    /// those included that a mutator has ready for its next allocations
    /// ([`for_each_unallocated`](Self::for_each_unallocated)). For oracles and inspectors; `f` is
    /// bound as in [`with_stopped`](Self::with_stopped).
    ///
    /// # Errors
    /// If the caller is itself a mutator of this heap.
    pub fn for_each_cell(&self, mut f: impl FnMut(Cell)) -> Result<(), gc_preempt::StopError> {
        self.with_stopped(|_| self.shared().space.for_each_cell(&mut f))
    }

    /// Stops the heap's mutators and calls `f` with the address of every cell that one of them has
    /// ready: [`for_each_cell`](Self::for_each_cell) finds it, but no program has it yet. It is
    /// zero. `f` is bound as in [`with_stopped`](Self::with_stopped).
    ///
    /// ```
    /// use gc_core::raw::Kind;
    /// use gc_core::Heap;
    ///
    /// let heap = Heap::builder().build()?;
    /// let leaf = heap.kind(Kind::leaf("leaf"))?;
    /// let mutator = heap.attach()?;
    /// // SAFETY: the cell is used before the next collection only.
    /// let cell = unsafe { mutator.alloc_raw(leaf, 16)? }.as_ptr() as usize;
    /// let look = || {
    ///     let (mut all, mut ready) = (0, 0);
    ///     heap.for_each_cell(|_| all += 1).unwrap();
    ///     heap.for_each_unallocated(|other| {
    ///         assert_ne!(other, cell);
    ///         ready += 1;
    ///     })
    ///     .unwrap();
    ///     assert_eq!(all, ready + 1);
    /// };
    /// mutator.blocking(|| std::thread::scope(|s| drop(s.spawn(look).join())));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the caller is itself a mutator of this heap.
    pub fn for_each_unallocated(
        &self,
        mut f: impl FnMut(usize),
    ) -> Result<(), gc_preempt::StopError> {
        let space = &self.shared().space;
        self.with_stopped(|stopped| {
            for mutator in stopped.mutators() {
                if let Some(context) = context_of(&mutator) {
                    // SAFETY: the runs are those of a stopped mutator of this heap.
                    unsafe { context.local.for_each_unallocated(space, &mut f) };
                }
            }
        })
    }

    /// How many finalizable cells died and wait for
    /// [`Mutator::next_finalizer`](crate::Mutator::next_finalizer).
    pub fn finalizers_waiting(&self) -> u64 {
        self.shared().finalizers.waiting()
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap")
            .field("stats", &self.stats())
            .finish()
    }
}
