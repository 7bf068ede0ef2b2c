//! One attached thread: its stores, its finalizers, and the sections in which it is not stopped or
//! need not be.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use gc_preempt::InNoPreempt;

use crate::alloc::Run;
use crate::api::heap::Heap;
use crate::barrier;
use crate::error::{AllocError, TableFull};
use crate::finalize::Registration;
use crate::mutator::handles::Handles;
use crate::mutator::record::Context;
use crate::mutator::types::TypeCache;

/// The attachment of the running thread to a [`Heap`]. It stays on its thread and detaches when it
/// is dropped, or when the thread ends. A thread cannot detach inside
/// [`no_preempt`](Mutator::no_preempt): if a mutator is dropped there, the thread detaches when it
/// next attaches, or ends.
pub struct Mutator {
    pub(super) runs: *mut Run,
    pub(super) context: NonNull<Context>,
    pub(super) heap: ManuallyDrop<Heap>,
    /// The error of a failed allocation, on its way out of [`alloc_slow`](Self::alloc_slow).
    pub(super) failure: Cell<Option<AllocError>>,
    pub(super) _on_its_thread: PhantomData<*mut ()>,
}

impl Mutator {
    #[inline]
    pub(crate) fn record(&self) -> &Context {
        // SAFETY: the record lives until this mutator is dropped.
        unsafe { self.context.as_ref() }
    }

    /// The heap that this thread is attached to.
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// The handle table of this mutator's open scopes.
    #[inline]
    pub(crate) fn handles(&self) -> &Handles {
        &self.record().handles
    }

    /// This mutator's cache of its heap's types.
    #[inline(always)]
    pub(crate) fn types(&self) -> &TypeCache {
        &self.record().types
    }

    /// The thread as a mutator of `gc-preempt`: its id, its stop hook, its polls.
    #[inline]
    pub fn thread(&self) -> &gc_preempt::Mutator {
        self.record().thread()
    }

    /// The address of this mutator's record, for machine code: see [`jit`](crate::jit). It is
    /// constant while the thread is attached.
    #[inline]
    pub fn context(&self) -> *const Context {
        self.heap.shared().stacks.are_used();
        self.context.as_ptr()
    }

    /// The runs of this mutator, indexed by [`Site::index`](crate::raw::Site::index), for machine
    /// code that allocates inline. The address is constant while the thread is attached.
    ///
    /// Machine code loads `cursor`, adds the site's [`size`](crate::raw::Site::size), compares the
    /// sum with `limit`, and stores the new cursor before the first word of the cell. These
    /// instructions must be registered as a restart range: see [`jit`](crate::jit).
    #[inline]
    pub fn runs(&self) -> *mut Run {
        self.heap.shared().stacks.are_used();
        self.runs
    }

    /// The runs, for the safe tier: does not make stacks roots.
    #[inline(always)]
    pub(crate) fn own_runs(&self) -> *mut Run {
        self.runs
    }

    /// Stores `value` as an edge into a word of a published cell, through the write barrier. Every
    /// change of an edge needs it after another cell or a root leads to the cell. The first stores
    /// into a new cell need no barrier, nor do stores into root ranges and stacks.
    ///
    /// # Safety
    /// `slot` is an aligned word of a live cell of this heap. The thread is not inside
    /// [`blocking`](Self::blocking).
    #[inline]
    pub unsafe fn write(&self, slot: *mut usize, value: usize) {
        // SAFETY: forwarded; the record is this thread's.
        unsafe { barrier::store(self.context.as_ptr(), slot, value) }
    }

    /// Copies `words` edges into a published cell, each through the barrier. The ranges may
    /// overlap, as with `memmove`.
    ///
    /// # Safety
    /// `words` words are readable at `from`, and lie in a live cell of this heap at `to`. The
    /// thread is not inside [`blocking`](Self::blocking).
    pub unsafe fn write_words(&self, to: *mut usize, from: *const usize, words: usize) {
        let backwards = (to as usize).wrapping_sub(from as usize) < words * size_of::<usize>();
        for i in 0..words {
            let i = if backwards { words - 1 - i } else { i };
            // SAFETY: forwarded.
            unsafe { self.write(to.add(i), from.add(i).read()) };
        }
    }

    /// Sets `words` edges of a published cell to one value, such as null, each through the barrier.
    ///
    /// # Safety
    /// `words` words at `to` lie in a live cell of this heap. The thread is not inside
    /// [`blocking`](Self::blocking).
    pub unsafe fn fill_words(&self, to: *mut usize, value: usize, words: usize) {
        for i in 0..words {
            // SAFETY: forwarded.
            unsafe { self.write(to.add(i), value) };
        }
    }

    /// Registers a finalizer: when a collection finds `cell` dead, it queues the cell with `token`,
    /// and [`next_finalizer`](Self::next_finalizer) returns both. The queue keeps the cell alive,
    /// with all cells that it leads to. A cell that is registered several times is queued as often.
    ///
    /// ```
    /// # use gc_core::Heap;
    /// # use gc_core::raw::Kind;
    /// # let heap = Heap::builder().build()?;
    /// # let mutator = heap.attach()?;
    /// # let leaf = heap.kind(Kind::leaf("leaf"))?;
    /// // SAFETY: the cell is alive, since this thread has just allocated it.
    /// unsafe { mutator.register_finalizer(mutator.alloc_raw(leaf, 16)?, 7)? };
    /// mutator.collect();
    /// // A stale word of this stack may keep the cell alive: then the queue is empty.
    /// while let Some((_cell, token)) = mutator.next_finalizer() {
    ///     assert_eq!(token, 7);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`TableFull`]: the heap has as many finalizers as it can have, or the system has no memory
    /// for another.
    ///
    /// # Safety
    /// `cell` is the first byte of a live cell of this heap.
    pub unsafe fn register_finalizer(
        &self,
        cell: NonNull<u8>,
        token: usize,
    ) -> Result<(), TableFull> {
        self.heap.shared().stacks.are_used();
        let entry = Registration {
            cell: cell.as_ptr() as usize,
            token,
        };
        if self.heap.shared().finalizers.register(entry) {
            Ok(())
        } else {
            Err(TableFull {
                table: "finalizers",
                cure: "call next_finalizer() more often, or build the heap with a larger reserve",
            })
        }
    }

    /// Removes the next dead cell with a finalizer from the queue, and returns it with its token.
    /// The cell lives from then on as long as a root leads to it. The caller may then allocate,
    /// store, wait, and collect, as at any place of the program.
    ///
    /// # Panics
    /// Inside `blocking`, since a stop would not scan the thread's stack.
    #[track_caller]
    pub fn next_finalizer(&self) -> Option<(NonNull<u8>, usize)> {
        if self.thread().is_blocking() {
            in_blocking();
        }
        let entry = self.record().take_dead(&self.heap.shared().finalizers)?;
        Some((NonNull::new(entry.cell as *mut u8)?, entry.token))
    }

    /// Calls `f` with each dead cell in the queue and its token, and returns the number of cells.
    ///
    /// # Panics
    /// As [`next_finalizer`](Self::next_finalizer).
    pub fn drain_finalizers(&self, mut f: impl FnMut(NonNull<u8>, usize)) -> u64 {
        let mut n = 0;
        while let Some((cell, token)) = self.next_finalizer() {
            if !seam::holds_no_lock() {
                seam::with_lock(&self.heap.shared().finalizers, || f(cell, token));
                continue;
            }
            f(cell, token);
            n += 1;
        }
        n
    }

    /// Runs a full collection and waits for it: [`Heap::collect`].
    ///
    /// # Panics
    /// Inside `no_preempt`, and as [`Heap::collect`].
    #[track_caller]
    pub fn collect(&self) -> u64 {
        self.review_runs();
        self.heap.collect()
    }

    /// Does what [`collect`](Self::collect) does, with an error inside `no_preempt`.
    ///
    /// # Errors
    /// [`InNoPreempt`]: the thread is inside `no_preempt`. No collection was requested.
    pub fn try_collect(&self) -> Result<u64, InNoPreempt> {
        if self.thread().in_no_preempt() {
            Err(InNoPreempt)
        } else {
            Ok(self.collect())
        }
    }

    /// Runs `f`, which must not use the heap. Stops do not wait for the thread meanwhile, and send
    /// it no signal.
    ///
    /// ```
    /// # let heap = gc_core::Heap::builder().build()?;
    /// # let mutator = heap.attach()?;
    /// let text = mutator.blocking(|| std::fs::read("/proc/self/stat"))?;
    /// assert!(!text.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// Inside `no_preempt`, and on a stack that is neither the thread's own nor
    /// [registered](crate::coroutine).
    #[track_caller]
    pub fn blocking<R>(&self, f: impl FnOnce() -> R) -> R {
        self.review_runs();
        self.thread().blocking(f)
    }

    /// Runs `f`, in which this thread is not stopped. Keep `f` short: a stop waits for its end. An
    /// allocation inside `f` neither collects nor waits; it fails where the heap is at its limit.
    ///
    /// `f` must not wait for a lock that a stopped thread may hold. malloc has such locks: the stop
    /// would wait for `f`, and `f` for the stopped thread. So allocate with malloc before
    /// `no_preempt`, and free after it.
    pub fn no_preempt<R>(&self, f: impl FnOnce() -> R) -> R {
        self.thread().no_preempt(f)
    }

    /// Reports memory outside of the heap that cells keep, in bytes: [`Heap::report_external`].
    pub fn report_external(&self, delta: i64) {
        self.heap.report_external(delta);
    }
}

impl fmt::Debug for Mutator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutator")
            .field("thread", &self.thread().id())
            .finish_non_exhaustive()
    }
}

#[cold]
#[inline(never)]
#[track_caller]
pub(crate) fn in_blocking() -> ! {
    panic!("the heap was used inside blocking(), where the collector does not wait for this thread")
}

mod seam {
    use crate::fault::Fault;
    use crate::finalize::Finalizers;

    /// Holds no lock while the embedder's code runs.
    #[inline(always)]
    pub(super) fn holds_no_lock() -> bool {
        !Fault::DrainLocked.planted()
    }

    pub(super) fn with_lock(table: &Finalizers, f: impl FnOnce()) {
        let _lock = table.lock_for_fork();
        f();
    }
}
