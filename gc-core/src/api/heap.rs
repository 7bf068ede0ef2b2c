//! The heap as an embedder uses it: its kinds, its figures, and its inspectors.

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

/// A garbage-collected heap. A clone is another handle on the same heap. The drop of the last
/// handle ends the collector's thread and unmaps the heap.
///
/// A [`Mutator`](crate::Mutator), a [`RawRoot`](crate::raw::RawRoot) and every other guard of the
/// heap hold a handle. Any thread may drop the last handle, anywhere: where a thread must not wait
/// for the collector's thread, as inside [`no_preempt`](crate::Mutator::no_preempt), the drop does
/// not wait, and the heap ends a little later.
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
        // A thread in `blocking_here` does not hold up a stop: another heap may stop this thread
        // while it waits here. The collector's thread is not joined but detached in four cases. It
        // is this thread: the collector has dropped a code owner that held the last handle. This
        // thread holds a stop, which the collector may wait for. This thread is inside
        // `no_preempt`, and the collector may wait for the end of it. Or the thread is one that
        // only the parent of a forked process has. In each case the collector ends by itself.
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
    /// Wraps a heap whose collector's thread runs.
    pub(crate) fn new(shared: Arc<Shared>, state: Arc<State>, thread: Thread) -> Heap {
        Heap {
            handle: Arc::new(Handle {
                shared,
                state,
                thread: Mutex::new(Some(thread)),
            }),
        }
    }

    /// The handle as an opaque value: it keeps the heap alive for a record that does not name
    /// `Heap`.
    pub(crate) fn keep(self) -> Arc<dyn Any + Send + Sync> {
        self.handle
    }

    /// The heap of a handle from [`keep`](Self::keep).
    pub(crate) fn kept(handle: Arc<dyn Any + Send + Sync>) -> Option<Heap> {
        let handle = handle.downcast().ok()?;
        Some(Heap { handle })
    }

    /// The state that the heap's mutators and its collector share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    pub(crate) fn shared_arc(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// The collector's state.
    pub(crate) fn state(&self) -> &State {
        &self.handle.state
    }

    /// Starts a collector's thread in the child of a fork, which has none. Call it inside
    /// `blocking`: it takes locks and calls malloc.
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
            // The old handle names the parent's thread, which the child cannot join.
            Ok(new) => *thread = Some(new),
            Err(error) => panic!("no thread for the collector in the child of a fork: {error}"),
        }
    }

    /// Registers a kind, which describes cells. Any thread may call this outside of
    /// [`no_preempt`](crate::Mutator::no_preempt). A heap never forgets a kind, so register each
    /// kind once.
    ///
    /// # Errors
    /// [`KindError`]: the heap has as many kinds as it can have, or no word can match the kind's
    /// encoding.
    pub fn kind(&self, kind: Kind) -> Result<KindId, KindError> {
        self.shared().add_kind(kind)
    }

    /// The site of cells of `bytes` bytes of `kind`:
    /// [`Mutator::alloc_at`](crate::Mutator::alloc_at) and inline code allocate from it. Any thread
    /// may call this. The site stays valid as long as the heap.
    ///
    /// ```
    /// use gc_core::Heap;
    /// use gc_core::raw::{Encoding, Kind};
    ///
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let pair = heap.kind(Kind::words_at("pair", &[0, 1], Encoding::RAW))?;
    /// let site = heap.site(pair, 16)?;
    /// // SAFETY: the site is of this heap, and this stack leads to the cell.
    /// let cell = unsafe { mutator.alloc_at(site)?.cast::<usize>() };
    /// // SAFETY: a new cell of two words, which are zero.
    /// assert_eq!(unsafe { cell.read() }, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SiteError`]: the kind is not of this heap, its edges lie beyond `bytes`, the table of
    /// sites is full, the heap was built with [`exact(true)`](crate::HeapBuilder::exact), or the
    /// size has no site. Sizes above [`MAX_SMALL`](crate::raw::MAX_SMALL) bytes have none; in a
    /// heap with [`past_the_end`](crate::HeapBuilder::past_the_end), nor has `MAX_SMALL` itself.
    pub fn site(&self, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        self.shared().stacks.use_fast_tier()?;
        self.shared().site_of(kind, bytes)
    }

    /// Reads the heap's figures. Any thread may call this; it stops no mutator.
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

    /// The heap's mutators as a world of `gc-preempt`. A thread that attaches through it is stopped
    /// and scanned, but is no mutator of the heap.
    pub fn world(&self) -> &World {
        &self.shared().world
    }

    /// Stops the heap's mutators, calls `f`, and resumes them. For harnesses and inspectors. `f`
    /// must follow the rules of [`World::stop`](gc_preempt::World::stop) for a stopped world, and
    /// must not use this heap's roots or finalizers. A mutator that has been in `blocking` for two
    /// collections is not among [`Stopped::mutators`](gc_preempt::Stopped::mutators) but among
    /// [`Stopped::aside`](gc_preempt::Stopped::aside).
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// let mutators = heap.with_stopped(|stopped| stopped.mutators().count())?;
    /// assert_eq!(mutators, 0); // no thread is attached
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`StopError`](gc_preempt::StopError): the caller is a mutator of this heap, or has stopped a
    /// world already.
    pub fn with_stopped<R>(
        &self,
        f: impl FnOnce(&Stopped<'_>) -> R,
    ) -> Result<R, gc_preempt::StopError> {
        let stopped = self.shared().world.stop()?;
        let result = f(&stopped);
        drop(stopped);
        Ok(result)
    }

    /// The heap's address range. No word outside of it names a cell of this heap.
    pub fn reserved(&self) -> Range<usize> {
        self.shared().space.reserved()
    }

    /// Stops the heap's mutators and calls `f` with every allocated cell, in the order of
    /// addresses. These include the cells of mutators' tails, which no program has yet (see
    /// [`for_each_unallocated`](Self::for_each_unallocated)). For oracles and inspectors. `f` must
    /// follow the rules of [`with_stopped`](Self::with_stopped).
    ///
    /// # Errors
    /// As [`with_stopped`](Self::with_stopped).
    pub fn for_each_cell(&self, mut f: impl FnMut(Cell)) -> Result<(), gc_preempt::StopError> {
        self.with_stopped(|_| self.shared().space.for_each_cell(&mut f))
    }

    /// Stops the heap's mutators and calls `f` with the address of every cell in their tails: cells
    /// that a mutator will allocate next. [`for_each_cell`](Self::for_each_cell) reports such a
    /// cell, too, but no program has it yet. It is zero, unless its kind is
    /// [`leaf_uninit`](crate::raw::Kind::leaf_uninit). `f` must follow the rules of
    /// [`with_stopped`](Self::with_stopped).
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
    /// As [`with_stopped`](Self::with_stopped).
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

    /// The number of dead cells that wait for
    /// [`Mutator::next_finalizer`](crate::Mutator::next_finalizer). Any thread may call this.
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
