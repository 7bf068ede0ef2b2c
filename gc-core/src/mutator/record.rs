//! One mutator's record in its heap. The fields that its fast paths read are at fixed offsets, so
//! that assembly and JIT code can read them too.

use core::any::Any;
use core::cell::{Cell, OnceCell, UnsafeCell};
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence};
use std::sync::Arc;

use gc_preempt::StoppedMutator;

use crate::alloc::{LocalAllocator, Run};
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
/// Code outside of this crate may use these offsets only: [`CONTEXT_RUNS`], [`CONTEXT_MARKING`],
/// [`CONTEXT_LOG_CURSOR`], [`CONTEXT_LOG_LIMIT`].
#[repr(C)]
pub struct Context {
    /// The mutator's runs, indexed by site.
    runs: *mut Run,
    /// Not zero while stores are logged: [`MARKING`], or a greater value while words are being
    /// cleared. The collector changes it while this mutator is stopped, so a restart range reads it
    /// once.
    pub(crate) marking: AtomicU32,
    /// Not zero while this thread holds a cell that only its registers and stack name, see
    /// [`Context::open_window`].
    window: AtomicU32,
    /// The number of open calls that need a scan of the thread's stack in any tier, see
    /// [`Context::holding`].
    holding: AtomicU32,
    /// The address of the next word in the log.
    pub(crate) log_cursor: AtomicUsize,
    /// The end of the log.
    pub(crate) log_limit: AtomicUsize,
    log: UnsafeCell<[usize; LOG_WORDS]>,
    pub(crate) local: LocalAllocator,
    thread: OnceCell<gc_preempt::Mutator>,
    /// The end of the mutator's assist credit, in nanoseconds on the pace's clock.
    pub(crate) credit_until: Cell<u64>,
    /// Nanoseconds that the mutator has spent in assists, and waited after them.
    pub(crate) assisted: Cell<u64>,
    /// Whether the mutator uses a processor inside `blocking`, while the system backs memory for
    /// it.
    pub(crate) is_busy: AtomicBool,
    /// The last collection that scanned the mutator while it was aside, by [`Shared::scan`]. Under
    /// the registry lock.
    pub(crate) scanned_in: AtomicU64,
    /// Its number among all records of the process, from 1 on: a later record may get the address.
    pub(crate) number: u64,
    /// The record's place in the heap's list of records; `usize::MAX`: none.
    pub(crate) place: Cell<usize>,
    /// Whether the thread's end has detached the mutator, though its `Mutator` still exists.
    pub(crate) gone: Cell<bool>,
    /// A reference to the heap for a `Mutator` that was dropped inside `no_preempt`, where it could
    /// not detach.
    pub(crate) left: Cell<Option<Arc<dyn Any + Send + Sync>>>,
    pub(crate) shared: Arc<Shared>,
    /// The handles of the open scopes.
    pub(crate) handles: Handles,
    /// The mutator's cache of types.
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

/// Words by which a flush prefetches mark bits ahead of the word that it handles, and the heap's
/// tables if the mark bits are clear.
const MARKS_AHEAD: usize = 24;
const TABLES_AHEAD: usize = 12;

impl Context {
    /// A record for a thread that is about to attach.
    pub(crate) fn new(shared: Arc<Shared>, local: LocalAllocator, handles: Handles) -> Box<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
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
            // Relaxed: the numbers differ, and nothing else is asked of them.
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            place: Cell::new(usize::MAX),
            gone: Cell::new(false),
            left: Cell::new(None),
            shared,
            handles,
            types: TypeCache::new(),
        });
        let first = context.log.get() as usize;
        // Relaxed: no other thread has the record yet.
        context.log_cursor.store(first, Ordering::Relaxed);
        context
            .log_limit
            .store(first + LOG_WORDS * size_of::<usize>(), Ordering::Relaxed);
        context
    }

    /// Opens the window: this thread is about to have a cell that only its registers and stack
    /// name. In a heap whose stacks are not scanned, a stop scans them in this thread until the
    /// window is closed. The safe tier keeps it open for a few instructions. A window that a panic
    /// leaves open costs exactness, and nothing else.
    #[inline(always)]
    pub(crate) fn open_window(&self) {
        // Relaxed, here and below: a stop of this thread orders it, and the fences keep the
        // compiler from moving the cell's uses out of the window.
        if seam::opens_window() {
            self.window.store(1, Ordering::Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// Closes the window: handles name all cells that this thread has.
    #[inline(always)]
    pub(crate) fn close_window(&self) {
        compiler_fence(Ordering::SeqCst);
        self.window.store(0, Ordering::Relaxed);
    }

    /// Has stops scan this thread's stack until the result is dropped. The thread has cells there
    /// that no handle names, while it runs code of the embedder.
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
            && seam::is_exact(self.holding.load(Ordering::Relaxed))
    }

    /// Keeps the thread's registration: from now on the collector finds this record.
    pub(crate) fn attach(&self, thread: gc_preempt::Mutator) {
        let set = self.thread.set(thread);
        debug_assert!(set.is_ok());
    }

    /// Takes the registration, whose drop detaches the thread.
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

    /// The words logged since the last flush. By the owner under `no_preempt`, or by the collector
    /// while the owner is stopped.
    pub(crate) fn logged(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        let first = self.log.get().cast::<usize>();
        // Relaxed: the owner wrote it, or the stop orders it.
        let n = (self.log_cursor.load(Ordering::Relaxed) - first as usize) / size_of::<usize>();
        // SAFETY: the cursor stays between the log's first word and its end, and no thread writes
        // meanwhile (see above).
        (0..n.min(LOG_WORDS)).map(move |i| unsafe { first.add(i).read() })
    }

    /// Empties the log. By the same threads as [`Context::logged`].
    pub(crate) fn reset_log(&self) {
        self.log_cursor
            .store(self.log.get() as usize, Ordering::Relaxed);
    }

    /// Logs a word if marking is on, as the barrier does: the cell that it names is strong from now
    /// on. By the owner under `no_preempt`.
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

    /// Takes the next cell from one of the heap's queues of dead cells. The queue was its root, so
    /// the cell is logged: a cycle under way must keep it.
    pub(crate) fn take_dead(&self, queue: &Finalizers) -> Option<Registration> {
        self.thread().no_preempt(|| {
            let entry = queue.next()?;
            if seam::logs_taken() {
                self.log(entry.cell);
            }
            Some(entry)
        })
    }

    /// Moves the log's words that name unmarked cells into the heap's log. The others are dropped:
    /// a mutator that logs marked cells again and again makes no work for the collector. If the
    /// heap's log is full, the mutator marks the cells that its words name, so no word is lost.
    /// Under `no_preempt`, or in a stop.
    pub(crate) fn flush_log(&self) {
        let shared = &*self.shared;
        // Relaxed: it changes while this mutator is stopped only.
        if self.marking.load(Ordering::Relaxed) == JUDGING {
            // All live cells are marked. A word that names an unmarked cell was no edge, and would
            // keep a dead cell while the weak words that lead to it are being cleared.
            return self.reset_log();
        }
        let first = self.log.get().cast::<usize>();
        let mut n = 0;
        // Overwritten edges lead anywhere, so the tables' lines for a word are prefetched some
        // words before it is handled.
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
        // While words are being cleared, marks must not change. Only loads of long words fill the
        // log then, and the clearing ends soon.
        while !shared.log.append(words) && seam::keeps_the_log() {
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

    /// The result of a weak load while words are being cleared. Under `no_preempt`.
    ///
    /// # Safety
    /// `slot` is readable.
    pub(crate) unsafe fn judge_load(&self, slot: usize) -> Load {
        let mode = self.marking.load(Ordering::Relaxed);
        // A stop may have come since the weak load read the flag, and the next cycle begun: then
        // nothing is marked yet, and most targets live.
        if mode <= MARKING && seam::looks_again() {
            // SAFETY: forwarded. Acquire pairs with the release by which the cell was stored (each
            // store of the barrier is one on x86-64): a thread that loads a cell finds it
            // initialised.
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

/// A stopped mutator's record. A thread that was attached to the heap's world, but not to the heap,
/// has none; its stack is scanned all the same.
pub(crate) fn context_of<'a>(mutator: &'a StoppedMutator<'_>) -> Option<&'a Context> {
    // SAFETY: code that attaches with an exit hook guarantees its data. The mutators of this crate
    // pass their record, and free it only after they have detached. A stopped mutator does not
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

mod seam {
    use crate::fault::Fault;

    #[inline(always)]
    pub(super) fn opens_window() -> bool {
        !Fault::NoWindow.planted()
    }

    /// Do handles name all cells of a thread that holds `depth` times what only its stack names?
    pub(super) fn is_exact(depth: u32) -> bool {
        depth == 0 || Fault::DropsUnheld.planted()
    }

    pub(super) fn logs_taken() -> bool {
        !Fault::TakenUnlogged.planted()
    }

    /// Keeps the words for which the heap's log has no room.
    pub(super) fn keeps_the_log() -> bool {
        !Fault::LogLost.planted()
    }

    /// Looks again whether words are being cleared.
    pub(super) fn looks_again() -> bool {
        !Fault::JudgedLate.planted()
    }
}
