//! One mutator's record in its heap: what its fast paths read, at fixed offsets, so that assembly
//! and JIT code can read it too.

use core::any::Any;
use core::cell::{Cell, OnceCell, UnsafeCell};
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence};
use std::sync::Arc;

use gc_preempt::StoppedMutator;

use crate::alloc::{LocalAllocator, Run};
use crate::fault::{Fault, planted};
use crate::finalize::{Finalizers, Registration};
use crate::mark::Marker;
use crate::mutator::handles::Handles;
use crate::mutator::shared::{Attached, Shared};
use crate::mutator::types::TypeCache;
use crate::roots;
use crate::satb_log::LOG_WORDS;
use crate::weak::{JUDGING, Load, MARKING, judge_load};

/// A mutator's record. Its address is constant while the mutator is attached: a JIT may bake it in,
/// or keep it in a register.
///
/// Only the offsets below are for others: [`CONTEXT_RUNS`], [`CONTEXT_MARKING`],
/// [`CONTEXT_LOG_CURSOR`], [`CONTEXT_LOG_LIMIT`].
#[repr(C)]
pub struct Context {
    /// The mutator's runs, indexed by site.
    runs: *mut Run,
    /// Not zero while stores are logged: [`MARKING`], or while what died is
    /// being cleared, more. Changed by the collector while this mutator is stopped, so a unit reads
    /// it once.
    pub(crate) marking: AtomicU32,
    /// Not zero: this thread holds a cell that only its registers and stack know yet, see
    /// [`Context::open_window`].
    window: AtomicU32,
    /// How many calls need its stack scanned whatever tier the heap is used by, see
    /// [`Context::holding`].
    holding: AtomicU32,
    /// Where the next logged word goes.
    pub(crate) log_cursor: AtomicUsize,
    /// The end of the log.
    pub(crate) log_limit: AtomicUsize,
    log: UnsafeCell<[usize; LOG_WORDS]>,
    pub(crate) local: LocalAllocator,
    thread: OnceCell<gc_preempt::Mutator>,
    /// Until then the mutator need not help to mark: nanoseconds on the pace's clock.
    pub(crate) credit_until: Cell<u64>,
    /// Nanoseconds for which it has assisted, and waited after that.
    pub(crate) assisted: Cell<u64>,
    /// Inside `blocking`, but it is not idle there.
    pub(crate) is_busy: AtomicBool,
    /// The collection that has scanned it while it was set aside, by [`Shared::scan`]. Under the
    /// registry lock.
    pub(crate) scanned_in: AtomicU64,
    /// Its number among the heap's records.
    pub(crate) place: Cell<usize>,
    /// The thread's end has detached it, under a `Mutator` that is still there.
    pub(crate) gone: Cell<bool>,
    /// What keeps the heap alive for a `Mutator` that was dropped inside `no_preempt`, where it
    /// could not detach.
    pub(crate) left: Cell<Option<Arc<dyn Any + Send + Sync>>>,
    pub(crate) shared: Arc<Shared>,
    /// What the open scopes have rooted.
    pub(crate) handles: Handles,
    /// Where the mutator has found its types.
    pub(crate) types: TypeCache,
}

/// See [`Context::holding`].
pub(crate) struct Holding<'c>(&'c Context);

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        let depth = self.0.holding.load(Ordering::Relaxed);
        self.0.holding.store(depth - 1, Ordering::Relaxed);
    }
}

/// Offset in [`Context`] of the pointer to the runs (`*mut Run`).
pub const CONTEXT_RUNS: usize = offset_of!(Context, runs);
/// Offset in [`Context`] of the marking flag (`u32`; not zero: stores must log; above 1: a weak
/// load must call its unit).
pub const CONTEXT_MARKING: usize = offset_of!(Context, marking);
/// Offset in [`Context`] of the log's cursor (`*mut usize`).
pub const CONTEXT_LOG_CURSOR: usize = offset_of!(Context, log_cursor);
/// Offset in [`Context`] of the log's end.
pub const CONTEXT_LOG_LIMIT: usize = offset_of!(Context, log_limit);

/// How many words ahead of the one that is looked at a flush asks for mark bits, and for the heap's
/// tables if those are clear.
const MARKS_AHEAD: usize = 24;
const TABLES_AHEAD: usize = 12;

impl Context {
    /// A record for a thread that is about to attach.
    pub(crate) fn new(shared: Arc<Shared>, local: LocalAllocator, handles: Handles) -> Box<Self> {
        let context = Box::new(Self {
            runs: local.as_mut_ptr(),
            marking: AtomicU32::new(0),
            window: AtomicU32::new(0),
            holding: AtomicU32::new(0),
            log_cursor: AtomicUsize::new(0),
            log_limit: AtomicUsize::new(0),
            log: UnsafeCell::new([0; LOG_WORDS]),
            local,
            thread: OnceCell::new(),
            credit_until: Cell::new(0),
            assisted: Cell::new(0),
            is_busy: AtomicBool::new(false),
            scanned_in: AtomicU64::new(0),
            place: Cell::new(usize::MAX),
            gone: Cell::new(false),
            left: Cell::new(None),
            shared,
            handles,
            types: TypeCache::new(),
        });
        let first = context.log.get() as usize;
        // Relaxed: no other thread knows the record yet.
        context.log_cursor.store(first, Ordering::Relaxed);
        context
            .log_limit
            .store(first + LOG_WORDS * size_of::<usize>(), Ordering::Relaxed);
        context
    }

    /// This thread is about to have a cell that only its registers and stack know: in a heap whose
    /// stacks are not scanned, a stop scans them in this thread until the window is closed. The
    /// safe tier's part of it is a few instructions. A window that a panic leaves open costs
    /// exactness, and nothing else.
    #[inline(always)]
    pub(crate) fn open_window(&self) {
        // Relaxed, here and below: a stop of this thread orders it, and the fences keep the
        // compiler from moving the cell's way out of it.
        if !planted(Fault::NoWindow) {
            self.window.store(1, Ordering::Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// All cells that this thread has are in handles, or nowhere.
    #[inline(always)]
    pub(crate) fn close_window(&self) {
        compiler_fence(Ordering::SeqCst);
        self.window.store(0, Ordering::Relaxed);
    }

    /// Has this thread's stack scanned until the result is dropped: it has cells there that no
    /// handle names, while it runs code of the embedder's.
    pub(crate) fn holding(&self) -> Holding<'_> {
        // Relaxed: as in `open_window`.
        let depth = self.holding.load(Ordering::Relaxed);
        self.holding.store(depth + 1, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        Holding(self)
    }

    /// Do handles name all cells that this thread has? For the collector, while the thread is
    /// stopped.
    pub(crate) fn is_exact(&self) -> bool {
        self.window.load(Ordering::Relaxed) == 0
            && (self.holding.load(Ordering::Relaxed) == 0 || planted(Fault::DropsUnheld))
    }

    /// Keeps the thread's registration: from now on the collector finds this record.
    pub(crate) fn attach(&self, thread: gc_preempt::Mutator) {
        let set = self.thread.set(thread);
        debug_assert!(set.is_ok());
    }

    /// The registration, to be dropped: its drop detaches.
    pub(crate) fn detach(&mut self) -> Option<gc_preempt::Mutator> {
        self.thread.take()
    }

    /// The thread's registration.
    #[inline]
    pub(crate) fn thread(&self) -> &gc_preempt::Mutator {
        self.thread
            .get()
            .expect("a context is used between attach and detach only")
    }

    /// The mutator's runs.
    #[inline(always)]
    pub(crate) fn runs(&self) -> *mut Run {
        self.runs
    }

    /// The words logged since the last flush. For the owner under `no_preempt`, or the collector
    /// while the owner is stopped.
    pub(crate) fn logged(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        let first = self.log.get().cast::<usize>();
        // Relaxed: the owner wrote it, or the stop orders it.
        let n = (self.log_cursor.load(Ordering::Relaxed) - first as usize) / size_of::<usize>();
        // SAFETY: the cursor stays between the log's first word and its end, and no thread writes
        // meanwhile (see above).
        (0..n.min(LOG_WORDS)).map(move |i| unsafe { first.add(i).read() })
    }

    /// Empties the log. As for [`Context::logged`].
    pub(crate) fn reset_log(&self) {
        self.log_cursor
            .store(self.log.get() as usize, Ordering::Relaxed);
    }

    /// Logs a word if marking is on, as the units do: its target is strong from now on. By the
    /// owner under `no_preempt`.
    pub(crate) fn log(&self, word: usize) {
        if self.marking.load(Ordering::Relaxed) == 0 {
            return;
        }
        if self.log_cursor.load(Ordering::Relaxed) == self.log_limit.load(Ordering::Relaxed) {
            self.flush_log();
        }
        let cursor = self.log_cursor.load(Ordering::Relaxed);
        // SAFETY: the cursor is below the limit, inside the log, which is this thread's.
        unsafe { (cursor as *mut usize).write(word) };
        self.log_cursor
            .store(cursor + size_of::<usize>(), Ordering::Relaxed);
    }

    /// The next cell that waits in one of the heap's queues of dead ones, from now on alive as far
    /// as a cycle under way is concerned: the queue was its root.
    pub(crate) fn take_dead(&self, queue: &Finalizers) -> Option<Registration> {
        self.thread().no_preempt(|| {
            let entry = queue.next()?;
            if !planted(Fault::TakenUnlogged) {
                self.log(entry.cell);
            }
            Some(entry)
        })
    }

    /// Moves the log into the heap's: those words that name something unmarked, so that mutators
    /// which log over and over what is marked already give the collector nothing to do. Where the
    /// heap's log is full, the mutator marks what its own names itself: nothing is ever lost. Under
    /// `no_preempt`, or in a stop.
    pub(crate) fn flush_log(&self) {
        let shared = &*self.shared;
        // Relaxed: changed while this mutator is stopped.
        if self.marking.load(Ordering::Relaxed) == JUDGING {
            // All that lives is marked. What names something else was no edge, and would bring back
            // what is being cleared.
            return self.reset_log();
        }
        let first = self.log.get().cast::<usize>();
        let mut n = 0;
        // Edges that are overwritten lead anywhere: what tells of a word is asked for some words
        // before.
        let (mut marks, mut tables) = (self.logged(), self.logged());
        for word in marks.by_ref().take(MARKS_AHEAD) {
            roots::prefetch_logged(&shared.space, &shared.encodings, word);
        }
        for word in tables.by_ref().take(TABLES_AHEAD) {
            roots::prefetch_unmarked(&shared.space, &shared.encodings, word);
        }
        for word in self.logged() {
            if let Some(word) = marks.next() {
                roots::prefetch_logged(&shared.space, &shared.encodings, word);
            }
            if let Some(word) = tables.next() {
                roots::prefetch_unmarked(&shared.space, &shared.encodings, word);
            }
            if roots::names_unmarked(&shared.space, &shared.encodings, word) {
                // SAFETY: the log is this thread's, or its owner is stopped; `n` is not beyond the
                // word just read.
                unsafe { first.add(n).write(word) };
                n += 1;
            }
        }
        // SAFETY: the log's first words, written above and before.
        let words = unsafe { core::slice::from_raw_parts(first, n) };
        // While words are cleared, marks stay as they are. What fills the log are loads of long
        // words, and the clearing ends soon.
        while !shared.log.append(words) {
            if planted(Fault::LogLost) {
                break;
            }
            if self.marking.load(Ordering::Relaxed) != MARKING && shared.is_clearing() {
                std::thread::yield_now();
                continue;
            }
            let mut marker = Marker::new(&shared.space, &shared.queue, &shared.weak);
            for word in words {
                roots::logged(&shared.space, &shared.encodings, &mut marker, *word);
            }
            shared.log.overflow(marker.marked());
            break;
        }
        self.reset_log();
    }

    /// What a weak load gives while words are being cleared. Under `no_preempt`.
    ///
    /// # Safety
    /// `slot` is readable.
    pub(crate) unsafe fn judge_load(&self, slot: usize) -> Load {
        let mode = self.marking.load(Ordering::Relaxed);
        // A stop may have come since the unit looked, and the next cycle begun: nothing is marked
        // yet, and much lives.
        if mode <= MARKING && !planted(Fault::JudgedLate) {
            // SAFETY: forwarded. Acquire: a thread that loads a cell finds it initialised.
            let word = unsafe { (*(slot as *const AtomicUsize)).load(Ordering::Acquire) };
            return if mode == MARKING {
                Load::Open(word)
            } else {
                Load::Word(word)
            };
        }
        // SAFETY: forwarded.
        unsafe { judge_load(&self.shared.space, slot, mode) }
    }
}

/// A stopped mutator's record. A thread that was attached to the heap's world past the heap
/// has none; its stack is scanned all the same.
pub(crate) fn context_of<'a>(mutator: &'a StoppedMutator<'_>) -> Option<&'a Context> {
    // SAFETY: code that attaches with an exit hook vouches for the data; this crate's mutators do,
    // with their context, which they free only after they have detached. A stopped mutator does not
    // write it.
    mutator
        .vouched()
        .then(|| unsafe { &*mutator.data().cast::<Context>() })
}

impl Attached {
    /// The record of a thread that is `owner` by `pthread_self`.
    pub(crate) fn new(owner: usize, context: *const Context) -> Self {
        Self {
            owner,
            record: context.cast(),
        }
    }

    /// The record's address.
    pub(crate) fn as_ptr(&self) -> *const Context {
        self.record.cast()
    }

    /// The record.
    ///
    /// # Safety
    /// The record has not been freed: the heap's records are locked, or this is the child of a
    /// fork.
    pub(crate) unsafe fn context<'c>(&self) -> &'c Context {
        // SAFETY: by the contract.
        unsafe { &*self.as_ptr() }
    }
}
