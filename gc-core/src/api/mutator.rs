//! One attached thread: its stores, its finalizers, and the sections in which it is or is not
//! stopped.

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
use crate::fault::{Fault, planted};
use crate::finalize::Registration;
use crate::mutator::handles::Handles;
use crate::mutator::record::Context;
use crate::mutator::types::TypeCache;

/// The running thread's attachment to a [`Heap`]. Stays on its thread; detaches when dropped, or at
/// the thread's end if it was leaked. If it is dropped inside [`no_preempt`](Mutator::no_preempt),
/// where it cannot, it detaches when the thread attaches again, or ends.
pub struct Mutator {
    pub(super) runs: *mut Run,
    pub(super) context: NonNull<Context>,
    pub(super) heap: ManuallyDrop<Heap>,
    /// Why an allocation failed, on its way out of [`alloc_slow`](Self::alloc_slow).
    pub(super) failure: Cell<Option<AllocError>>,
    pub(super) _on_its_thread: PhantomData<*mut ()>,
}

impl Mutator {
    #[inline]
    pub(crate) fn record(&self) -> &Context {
        // SAFETY: lives until `drop`.
        unsafe { self.context.as_ref() }
    }

    /// The heap.
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// Where open scopes root what they hand out.
    #[inline]
    pub(crate) fn handles(&self) -> &Handles {
        &self.record().handles
    }

    /// What this mutator remembers of its heap's types.
    #[inline(always)]
    pub(crate) fn types(&self) -> &TypeCache {
        &self.record().types
    }

    /// The thread as `gc-preempt` sees it: its id, its stop hook, its polls.
    #[inline]
    pub fn thread(&self) -> &gc_preempt::Mutator {
        self.record().thread()
    }

    /// This mutator's record, for machine code: see [`jit`](crate::jit).
    #[inline]
    pub fn context(&self) -> *const Context {
        self.heap.shared().stacks.are_used();
        self.context.as_ptr()
    }

    /// The runs, indexed by [`Site::index`](crate::raw::Site::index), for machine code that
    /// allocates inline. The address is constant while the thread is attached.
    ///
    /// Machine code loads `cursor`, adds the site's [`size`](crate::raw::Site::size), compares with
    /// `limit`, and stores the new cursor before the first word of the cell. It registers these
    /// instructions as a restart range.
    #[inline]
    pub fn runs(&self) -> *mut Run {
        self.heap.shared().stacks.are_used();
        self.runs
    }

    /// The same, for the safe tier.
    #[inline(always)]
    pub(crate) fn own_runs(&self) -> *mut Run {
        self.runs
    }

    /// Stores an edge into a published cell: the write barrier. Needed wherever a cell is changed
    /// after it could be reached; not for a new cell's first stores, nor for root ranges and
    /// stacks.
    ///
    /// # Safety
    /// `slot` is a word of a live cell of this heap.
    #[inline]
    pub unsafe fn write(&self, slot: *mut usize, value: usize) {
        // SAFETY: forwarded; the context is this thread's.
        unsafe { barrier::store(self.context.as_ptr(), slot, value) }
    }

    /// Copies edges, word by word, each through the barrier. Overlapping ranges are copied as by
    /// `memmove`.
    ///
    /// # Safety
    /// `from` is readable and `to` lies in a live cell of this heap, `words` words each.
    pub unsafe fn write_words(&self, to: *mut usize, from: *const usize, words: usize) {
        let backwards = (to as usize).wrapping_sub(from as usize) < words * size_of::<usize>();
        for i in 0..words {
            let i = if backwards { words - 1 - i } else { i };
            // SAFETY: forwarded.
            unsafe { self.write(to.add(i), from.add(i).read()) };
        }
    }

    /// Sets words of a published cell to one value (a null, as a rule), each through the barrier.
    ///
    /// # Safety
    /// `to` lies in a live cell of this heap, `words` words long.
    pub unsafe fn fill_words(&self, to: *mut usize, value: usize, words: usize) {
        for i in 0..words {
            // SAFETY: forwarded.
            unsafe { self.write(to.add(i), value) };
        }
    }

    /// Has `cell` queued with `token` once it is found unreachable. It is kept alive for that, with
    /// all it leads to, and handed out by [`next_finalizer`](Self::next_finalizer).
    ///
    /// # Errors
    /// [`TableFull`]: there are as many finalizers as there can be.
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

    /// The next registered cell that died, and its token. What follows is an ordinary place of the
    /// program: it may allocate, store, wait, and ask for a collection.
    ///
    /// # Panics
    /// Inside `blocking`, where no stop waits for this thread.
    #[track_caller]
    pub fn next_finalizer(&self) -> Option<(NonNull<u8>, usize)> {
        if self.thread().is_blocking() {
            in_blocking();
        }
        let entry = self.record().take_dead(&self.heap.shared().finalizers)?;
        Some((NonNull::new(entry.cell as *mut u8)?, entry.token))
    }

    /// Calls `f` for each registered cell that has died so far; gives their number.
    pub fn drain_finalizers(&self, mut f: impl FnMut(NonNull<u8>, usize)) -> u64 {
        let mut n = 0;
        while let Some((cell, token)) = self.next_finalizer() {
            if planted(Fault::DrainLocked) {
                let _locked = self.heap.shared().finalizers.lock_for_fork();
                f(cell, token);
                continue;
            }
            f(cell, token);
            n += 1;
        }
        n
    }

    /// [`Heap::collect`].
    ///
    /// # Panics
    /// Inside `no_preempt`.
    #[track_caller]
    pub fn collect(&self) -> u64 {
        self.review_runs();
        self.heap.collect()
    }

    /// [`Heap::collect`], with an error where that panics.
    ///
    /// # Errors
    /// Inside `no_preempt`, and nothing has been asked for.
    pub fn try_collect(&self) -> Result<u64, InNoPreempt> {
        if self.thread().in_no_preempt() {
            Err(InNoPreempt)
        } else {
            Ok(self.collect())
        }
    }

    /// Runs `f`, which promises not to touch the heap: stops do not wait for it, and it is never
    /// interrupted by a signal of ours.
    ///
    /// # Panics
    /// Inside `no_preempt`.
    #[track_caller]
    pub fn blocking<R>(&self, f: impl FnOnce() -> R) -> R {
        self.review_runs();
        self.thread().blocking(f)
    }

    /// Runs `f` without being stopped in it. Keep it short, since a stop waits for its end.
    /// Allocation in it never collects and never waits; where the heap is at its limit, it fails.
    ///
    /// `f` must not wait for anything that a stopped thread may hold, malloc's lock among it: the
    /// stop would wait for `f`, and `f` for the stopped thread. So make room beforehand, and free
    /// afterwards.
    pub fn no_preempt<R>(&self, f: impl FnOnce() -> R) -> R {
        self.thread().no_preempt(f)
    }

    /// [`Heap::report_external`].
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
