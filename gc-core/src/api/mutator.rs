//! One attached thread: allocation, stores, roots, and the sections in which it is or is not
//! stopped.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::time::Instant;

use gc_preempt::{InNoPreempt, KeepErrno};

use crate::alloc::{self, LocalAllocator, RUN_BYTES, Refill, Run};
use crate::api::heap::Heap;
use crate::api::local::in_blocking;
use crate::api::room::Attempts;
use crate::api::root::{RawRoot, RootRange};
use crate::barrier;
use crate::collector::{Attached, aside};
use crate::config::Young;
use crate::encoding::Encoding;
use crate::error::AllocError;
use crate::fault::{planted, protected};
use crate::finalize::Entry;
use crate::heap::{ColdPages, LargeStep, Site};
use crate::kind::KindId;
use crate::mark::Marker;
use crate::memory::MapError;
use crate::mutator::handles::Handles;
use crate::mutator::record::Context;
use crate::mutator::types::TypeCache;
use crate::pacer;
use crate::roots::RangeRoot;
use crate::stats::thread_cpu;
use crate::weak::{IDLE, MARKING};

/// The running thread's attachment to a [`Heap`]. Stays on its thread; detaches when dropped, or at
/// the thread's end if it was leaked. If it is dropped inside [`no_preempt`](Mutator::no_preempt),
/// where it cannot, it detaches when the thread attaches again, or ends.
pub struct Mutator {
    runs: *mut Run,
    context: NonNull<Context>,
    heap: ManuallyDrop<Heap>,
    /// Why an allocation failed, on its way out of [`alloc_slow`](Self::alloc_slow).
    failure: Cell<Option<AllocError>>,
    _on_its_thread: PhantomData<*mut ()>,
}

/// Why a thread could not attach.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// It is attached already, or the system refused what a stop needs.
    Thread(gc_preempt::AttachError),
    /// The system refused memory for its runs.
    Map(MapError),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread(e) => e.fmt(f),
            Self::Map(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for AttachError {}

/// Cells that a mutator marks between two looks at the clock: a microsecond's work, or ten where
/// each is a miss in memory.
const HELP_PIECE: usize = 128;

/// Bytes of an allocation that waits for a collection under way, if it would take the heap past its
/// goal.
const LARGE: usize = 1 << 20;

/// How long a mutator marks at a time. A stop waits for its end; and each beginning costs some
/// tenths of a microsecond, since what waits in a marker's rings goes back to the queue.
const HELP_TIME: Duration = Duration::from_micros(8);

/// How long one allocation marks at most, whatever it owes: a tenth of the 10 ms that
/// [`Mutator::helped`] is judged by. An allocation of 128 KiB may owe 65,536 cells, and in a heap
/// of some GiB that lies at random a cell takes 100 ns.
const HELP_MOST: Duration = Duration::from_millis(1);

impl Mutator {
    pub(crate) fn attach(heap: &Heap) -> Result<Self, AttachError> {
        if gc_preempt::holds_a_stop() {
            return Err(AttachError::Thread(gc_preempt::AttachError::HoldsAStop));
        }
        let shared = heap.shared_arc().clone();
        let context = Context::new(
            shared,
            LocalAllocator::new().map_err(AttachError::Map)?,
            Handles::new().map_err(AttachError::Map)?,
        );
        let runs = context.runs();
        let context = Box::into_raw(context);
        // SAFETY: the context is freed only after the thread has detached, by `drop`; where that
        // never comes, at the thread's end, it is leaked and may be used for as long as the thread
        // lives.
        let attached = unsafe { heap.world().attach_with(context.cast(), HOOKS) };
        match attached {
            Ok(thread) => {
                // SAFETY: made above. Other threads (the collector) read it, but not the part that
                // is set here.
                let context = unsafe { NonNull::new_unchecked(context) };
                // SAFETY: as above.
                let record = unsafe { context.as_ref() };
                record.attach(thread);
                // A collector changes the flag in a stop only, so it does not change here. Relaxed:
                // the stop orders it.
                record.thread().no_preempt(|| {
                    // SAFETY: no arguments, no memory.
                    let owner = unsafe { libc::pthread_self() } as usize;
                    let context = context.as_ptr().cast_const();
                    // With more than a million mutators, a child's spans of the last ones are never
                    // used again.
                    if let Ok(at) = record
                        .shared
                        .contexts
                        .lock()
                        .add(Attached { owner, context })
                    {
                        record.place.set(at);
                    }
                    // A thread that attaches inside `blocking` of another heap is held by a stop
                    // without being waited for: marking may begin between the two lines. SeqCst:
                    // the collector changes the heap's flag first and the records' then, so what is
                    // stored here is right, or the second look finds it wrong.
                    loop {
                        let marking = record.shared.marking.load(Ordering::SeqCst);
                        if planted("attach-once") {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        let mode = if planted("attached-unmarked") {
                            IDLE
                        } else {
                            marking
                        };
                        record.marking.store(mode, Ordering::SeqCst);
                        if record.shared.marking.load(Ordering::SeqCst) == marking
                            || planted("attach-once")
                        {
                            break;
                        }
                    }
                });
                Ok(Self {
                    runs,
                    context,
                    heap: ManuallyDrop::new(heap.clone()),
                    failure: Cell::new(None),
                    _on_its_thread: PhantomData,
                })
            }
            Err(error) => {
                // SAFETY: made above, and nobody has taken it.
                drop(unsafe { Box::from_raw(context) });
                if matches!(error, gc_preempt::AttachError::AlreadyAttached)
                    && let Some(left) = Self::left_behind(heap)
                {
                    drop(left);
                    return Self::attach(heap);
                }
                Err(AttachError::Thread(error))
            }
        }
    }

    /// The mutator that this thread has dropped where it could not detach, if it can now.
    fn left_behind(heap: &Heap) -> Option<Self> {
        if gc_preempt::in_no_preempt_here() {
            return None;
        }
        // SAFETY: no arguments, no memory.
        let me = unsafe { libc::pthread_self() } as usize;
        let (context, heap) = protected(|| {
            let mut contexts = heap.shared().contexts.lock();
            let mut from = 0;
            while let Some((at, attached)) = contexts.next(from) {
                from = at + 1;
                if attached.owner != me {
                    continue;
                }
                // SAFETY: this thread's own record, which is freed after it was taken out of the
                // slab.
                if let Some(heap) = unsafe { (*attached.context).left.take() } {
                    return Some((NonNull::new(attached.context.cast_mut())?, heap));
                }
            }
            None
        })?;
        // SAFETY: as above.
        let runs = unsafe { context.as_ref() }.runs();
        Some(Self {
            runs,
            context,
            heap: ManuallyDrop::new(heap),
            failure: Cell::new(None),
            _on_its_thread: PhantomData,
        })
    }

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

    /// This mutator's record, for machine code: see [`Context`] and [`barrier`].
    #[inline]
    pub fn context(&self) -> *const Context {
        self.heap.shared().stacks.are_used();
        self.context.as_ptr()
    }

    /// The runs, indexed by [`Site::index`], for machine code that allocates inline. The address is
    /// constant while the thread is attached.
    ///
    /// Machine code loads `cursor`, adds the site's [`size`](Site::size), compares with `limit`,
    /// and stores the new cursor before the first word of the cell. It registers these instructions
    /// as a restart range.
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

    /// A zeroed cell of at least `bytes` bytes; not zeroed, if its kind is
    /// [`leaf_uninit`](crate::Kind::leaf_uninit).
    ///
    /// # Errors
    /// [`AllocError`], after a collection has been tried; inside `no_preempt`, at once.
    ///
    /// # Safety
    /// The cell lives only while a root leads to it: this thread's registers and stack, another
    /// cell's edge, a declared range, a handle. `bytes` is large enough for what the kind says of
    /// its cells.
    pub unsafe fn alloc(&self, kind: KindId, bytes: usize) -> Result<NonNull<u8>, AllocError> {
        let stacks = &self.heap.shared().stacks;
        stacks.use_fast_tier().map_err(AllocError::Site)?;
        // SAFETY: forwarded.
        unsafe { self.alloc_in_window(kind, bytes) }
    }

    /// [`alloc`](Self::alloc), for the safe tier: the thread's window is open when there is a cell.
    ///
    /// # Safety
    /// As [`alloc`](Self::alloc); or the cell is put into a handle, and the window closed.
    pub(crate) unsafe fn alloc_in_window(
        &self,
        kind: KindId,
        bytes: usize,
    ) -> Result<NonNull<u8>, AllocError> {
        let space = &self.heap.shared().space;
        if space.is_large(bytes) {
            return self.alloc_large(kind, bytes);
        }
        let site = protected(|| space.site(kind, bytes)).map_err(AllocError::Site)?;
        // SAFETY: forwarded.
        unsafe { self.alloc_at_in_window(site) }
    }

    /// A cell of `site`, zeroed as [`alloc`](Self::alloc)'s are: eight instructions while the run
    /// lasts.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    ///
    /// # Safety
    /// As [`alloc`](Self::alloc); `site` is of this heap.
    #[inline(always)]
    pub unsafe fn alloc_at(&self, site: Site) -> Result<NonNull<u8>, AllocError> {
        // SAFETY: the array is this thread's, of the heap that made the site (the caller says).
        let cell = NonNull::new(unsafe { alloc::bump(self.runs, site) });
        match cell.or_else(|| self.alloc_slow(site)) {
            Some(cell) => Ok(cell),
            None => Err(self.why_none()),
        }
    }

    /// [`alloc_at`](Self::alloc_at), as [`alloc_in_window`](Self::alloc_in_window) is.
    ///
    /// # Safety
    /// As there.
    #[inline]
    pub(crate) unsafe fn alloc_at_in_window(&self, site: Site) -> Result<NonNull<u8>, AllocError> {
        self.record().open_window();
        // SAFETY: forwarded.
        unsafe { self.alloc_at(site) }
    }

    /// None: [`why_none`](Self::why_none) says why. No window is open while this waits, and one is
    /// when it gives a cell. An error is larger than what a call returns in registers, so that the
    /// fast path would have to store its cell for nothing but to be where the slow path's is.
    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, site: Site) -> Option<NonNull<u8>> {
        let _kept = KeepErrno::new(); // it may wait, and ask the system for memory
        let shared = self.heap.shared();
        let bump = || {
            self.record().open_window();
            // SAFETY: as in `alloc_at`.
            let cell = NonNull::new(unsafe { alloc::bump(self.runs, site) });
            if cell.is_none() {
                self.record().close_window();
            }
            cell
        };
        self.record().close_window();
        let thread = self.thread();
        let mut attempts = Attempts::default();
        // Those of a gap that was taken with the last one are accounted for.
        if thread.no_preempt(|| self.record().local.next_run(&shared.space, site)) {
            let cell = bump();
            if cell.is_some() {
                return cell;
            }
        }
        self.keep_pace(RUN_BYTES.max(site.size()));
        loop {
            match thread.no_preempt(|| self.record().local.refill(&shared.space, site)) {
                Ok(Refill::Ready) => {
                    let cell = bump();
                    if cell.is_some() {
                        self.found_room(&attempts);
                        return cell;
                    }
                }
                Ok(Refill::Due) => {
                    self.collect_if_allowed(shared.young != Young::Always);
                }
                Ok(Refill::Again) => {}
                Ok(Refill::Cold(cold)) => self.have_backed(cold),
                Err(error) => {
                    if !self.make_room(&mut attempts, site.size()) {
                        self.failure.set(Some(error));
                        return None;
                    }
                }
            }
        }
    }

    /// Why [`alloc_slow`](Self::alloc_slow) gave nothing.
    #[cold]
    #[inline(never)]
    fn why_none(&self) -> AllocError {
        match self.failure.take() {
            Some(error) => error,
            None => unreachable!("an allocation failed without a reason"),
        }
    }

    #[cold]
    fn alloc_large(&self, kind: KindId, bytes: usize) -> Result<NonNull<u8>, AllocError> {
        let _kept = KeepErrno::new();
        let shared = self.heap.shared();
        let thread = self.thread();
        let mut attempts = Attempts::default();
        // What can never be is refused before anything is collected for it.
        thread.no_preempt(|| shared.space.large_pages(kind, bytes))?;
        self.keep_pace(bytes);
        loop {
            match thread.no_preempt(|| {
                self.record()
                    .local
                    .reserve_large(&shared.space, kind, bytes)
            }) {
                Ok(LargeStep::Reserved(mut large)) => {
                    self.found_room(&attempts);
                    if planted("clear-inside") {
                        return Ok(thread.no_preempt(|| {
                            while !shared.space.clear_large(&mut large) {}
                            shared.space.publish_large(large)
                        }));
                    }
                    if let Some(cold) = shared.space.cold_pages(&large) {
                        self.have_backed(cold);
                    }
                    // Megabytes may have to be cleared: the thread can be stopped meanwhile, since
                    // nobody sees the cell yet.
                    while !shared.space.clear_large(&mut large) {}
                    self.record().open_window();
                    return Ok(thread.no_preempt(|| shared.space.publish_large(large)));
                }
                Ok(LargeStep::Due) => {
                    self.collect_if_allowed(shared.young != Young::Always);
                }
                Ok(LargeStep::Again) => {}
                Err(error) => {
                    if !self.make_room(&mut attempts, bytes) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Has the system back what the next cells will lie in, where no stop waits for it. Where that
    /// cannot be, nothing is done: the first touch will do it.
    #[cold]
    fn have_backed(&self, cold: ColdPages) {
        let (record, thread) = (self.record(), self.thread());
        if thread.may_block() && !planted("cold-touched") {
            // Relaxed, here and below: a hint for who counts the threads that want a processor.
            record.is_busy.store(true, Ordering::Relaxed);
            let space = &self.heap.shared().space;
            thread.blocking(|| space.back_taken(cold));
            record.is_busy.store(false, Ordering::Relaxed);
        }
    }

    /// Before an allocation of `bytes`: asks for a collection if one is due, and goes on, helping
    /// the one that is under way where that is behind. Waits only where collections stop the world,
    /// or where the collector is so late that the heap would grow without bound; and then for a
    /// moment an allocation, not until something has come to pass.
    #[inline]
    fn keep_pace(&self, bytes: usize) {
        let shared = self.heap.shared();
        let pace = &shared.pace;
        let used = pace.used(shared.space.allocated_since().saturating_add(bytes as u64));
        let asks = self.heap.ask_if_due(used);
        let is_block = bytes >= LARGE && shared.concurrent && !planted("blocks-overshoot");
        if is_block && pace.overshoots(used) {
            // A few of these are as much as the heap may grow by, and are made faster than anything
            // is marked.
            self.wait_a_moment(bytes as u64);
        } else if asks {
            if !shared.concurrent && !self.thread().in_no_preempt() {
                self.thread().blocking(|| shared.requests.wait_for_last());
            }
        } else if pace.is_helping() {
            self.help(used, bytes as u64);
        } else if pace.must_wait(used) {
            self.wait_a_moment(bytes as u64);
        }
        if shared.space.must_tell() {
            self.thread().no_preempt(|| shared.requests.nudge());
        }
    }

    /// Marks, if marking is behind what has been allocated meanwhile.
    fn help(&self, used: u64, bytes: u64) {
        let (shared, record) = (self.heap.shared(), self.record());
        let (pace, line) = (&shared.pace, shared.pace.line());
        let owed = pace.owed(&line, used, bytes, shared.queue.large_work());
        if self.thread().in_no_preempt() {
            return;
        }
        if owed == 0 {
            // All that was expected is marked, and more turns up: the heap does not grow without
            // bound meanwhile.
            if line.waits(used) {
                self.wait_a_moment(bytes);
            }
            return;
        }
        if pace.now() < record.respite_until.get() && !pace.is_stressed() {
            return;
        }
        // Its own time: what the system gives to others meanwhile is no help.
        let before = thread_cpu();
        let mut left = owed;
        let mut dry = false;
        let mut took = Duration::ZERO;
        while left != 0 && !dry && took < HELP_MOST {
            // A stop waits for a piece, not for all of it. The mutator's own flag says whether
            // there is anything to mark for: it changes in stops only, so not while the marker
            // lives.
            dry = self.thread().no_preempt(|| {
                if record.marking.load(Ordering::Relaxed) == 0 || !pace.help_begins() {
                    return true;
                }
                let begun = Instant::now();
                let mut marker = Marker::new(&shared.space, &shared.queue, &shared.weak);
                let dry = loop {
                    let dry = marker.drain_bounded(HELP_PIECE);
                    left = left.saturating_sub(HELP_PIECE as u64);
                    if dry || left == 0 || begun.elapsed() > HELP_TIME {
                        break dry;
                    }
                };
                // Longer than the collector waits for it, and shorter.
                if planted("slow-helpers") {
                    std::thread::sleep(Duration::from_millis(30));
                }
                if planted("brisk-helpers") {
                    std::thread::sleep(Duration::from_millis(2));
                }
                marker.lay_down();
                pace.help_ends(marker.marked());
                took += begun.elapsed();
                dry
            });
        }
        let spent = thread_cpu().saturating_sub(before);
        pace.help_took(spent);
        let respite = pacer::respite(spent, line.share(used));
        let now = pace.now();
        record.respite_until.set(now + respite);
        let mut helped = spent;
        if dry && line.waits(used) {
            self.wait_a_moment(bytes);
            helped += pace.now() - now;
        }
        record.helped.set(record.helped.get() + helped);
    }

    /// How long allocations of this mutator have marked for the collector since it attached,
    /// because it was behind, in processor time, and waited for it where the heap was beyond all
    /// bounds. What the collector takes of a thread's time is this and the stops
    /// ([`HeapStats::pause_total`](crate::HeapStats::pause_total)).
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// assert!(mutator.helped().is_zero(), "nothing was allocated");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn helped(&self) -> Duration {
        Duration::from_nanos(self.record().helped.get())
    }

    /// Lets the collector get on.
    #[cold]
    fn wait_a_moment(&self, bytes: u64) {
        if !self.thread().in_no_preempt() {
            let requests = &self.heap.shared().requests;
            self.thread()
                .blocking(|| requests.wait_for_last_at_most(pacer::moment(bytes)));
        }
    }

    /// Collects, unless inside `no_preempt`, where nothing may wait.
    fn collect_if_allowed(&self, whole: bool) -> bool {
        !self.thread().in_no_preempt() && {
            self.review_runs();
            self.heap.collect_now(whole);
            true
        }
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

    /// Loads a word of a weak cell and makes its target strong: the result may be kept like any
    /// reference. The word comes as it is, tags and all; the kind's `cleared` value says that the
    /// target is dead.
    ///
    /// # Safety
    /// `slot` is a word of a live weak cell of this heap.
    #[inline]
    pub unsafe fn load_weak(&self, slot: *const usize) -> usize {
        self.heap.shared().stacks.are_used();
        // SAFETY: forwarded.
        unsafe { self.load_weak_word(slot) }
    }

    /// The same, for the safe tier, in an open window.
    ///
    /// # Safety
    /// As [`load_weak`](Self::load_weak).
    #[inline]
    pub(crate) unsafe fn load_weak_word(&self, slot: *const usize) -> usize {
        // SAFETY: forwarded; the context is this thread's.
        unsafe { barrier::load_weak(self.context.as_ptr(), slot) }
    }

    /// Changes a pair of a published ephemeron cell ([`Kind::ephemeron`](crate::Kind::ephemeron)):
    /// enters one, replaces one by another, or, with the kind's `cleared` and 0, removes one. The
    /// old value is logged like any overwritten edge.
    ///
    /// Not to be stopped in the middle: a collection that found the old key with the new value
    /// would clear both if the old key were dead. Other threads that read the pair meanwhile may
    /// find one word old and one new; tables that several threads change need a lock of their own.
    ///
    /// # Safety
    /// `pair` is the first word of a pair of a live ephemeron cell of this heap, and `key` and
    /// `value` are null or targets that this thread holds strongly, in the kind's encoding.
    #[inline]
    pub unsafe fn write_pair(&self, pair: *mut usize, key: usize, value: usize) {
        self.thread().no_preempt(|| {
            // The collector may be clearing the pair that is replaced.
            let clearing = self.record().marking.load(Ordering::Relaxed) > MARKING;
            let weak = &self.heap.shared().weak;
            let _whole = clearing.then(|| weak.lock_pair(pair as usize));
            // SAFETY: forwarded.
            unsafe { self.write_both(pair, key, value) };
        });
    }

    /// Replaces a pair's value, if its key is still `key`. One unit with
    /// [`remove_pair`](Self::remove_pair): between the look and the store no thread removes the
    /// pair, which would leave the value in a pair without a key, to be kept for as long as the
    /// pair's cell.
    ///
    /// # Safety
    /// As [`write_pair`](Self::write_pair).
    pub(crate) unsafe fn replace_value(&self, pair: *mut usize, key: usize, value: usize) {
        // SAFETY: forwarded. Relaxed: compared, not followed.
        let is_there = || unsafe { (*pair.cast::<AtomicUsize>()).load(Ordering::Relaxed) } == key;
        if planted("pair-unlocked") {
            let is_there = is_there();
            std::thread::sleep(Duration::from_millis(2));
            if is_there {
                // SAFETY: forwarded.
                unsafe { self.write(pair.add(1), value) };
            }
            return;
        }
        self.thread().no_preempt(|| {
            let _whole = self.heap.shared().weak.lock_pair(pair as usize);
            if is_there() {
                // SAFETY: forwarded.
                unsafe { self.write(pair.add(1), value) };
            }
        });
    }

    /// Removes a pair: its key becomes `cleared`, its value null. See
    /// [`replace_value`](Self::replace_value).
    ///
    /// # Safety
    /// As [`write_pair`](Self::write_pair).
    pub(crate) unsafe fn remove_pair(&self, pair: *mut usize, cleared: usize) {
        self.thread().no_preempt(|| {
            let _whole = self.heap.shared().weak.lock_pair(pair as usize);
            // SAFETY: forwarded.
            unsafe { self.write_both(pair, cleared, 0) };
        });
    }

    /// Writes a pair's words, the value first, through the barrier: a marker that finds the key
    /// gone must find the value logged.
    ///
    /// # Safety
    /// As [`write_pair`](Self::write_pair); under `no_preempt`.
    #[inline]
    unsafe fn write_both(&self, pair: *mut usize, key: usize, value: usize) {
        // SAFETY: forwarded.
        unsafe {
            if planted("pairs-unlogged") {
                pair.add(1).write_volatile(value);
            }
            self.write(pair.add(1), value);
            // Release: whoever finds the key finds the value, and both initialised.
            (*pair.cast::<AtomicUsize>()).store(key, Ordering::Release);
        }
    }

    /// Copies words of a weak cell, or whole pairs of an ephemeron's, to another cell of the kind,
    /// without making what they lead to strong: for tables that grow. Each word may be cleared
    /// while it is copied, as any weak word may at any time.
    ///
    /// # Safety
    /// `from` and `to` lie in live cells of this heap and of the same kind, `words` words each,
    /// from a pair's first word on. No word of `to` is an edge yet.
    pub unsafe fn copy_weak(&self, to: *mut usize, from: *const usize, words: usize) {
        /// Words that are copied without a stop in between: less than a microsecond.
        const PIECE: usize = 64;
        for first in (0..words).step_by(PIECE) {
            let words = PIECE.min(words - first);
            // SAFETY: forwarded. Volatile: neither the compiler nor libc is to copy in pieces that
            // are not words. Backwards, so that a marker which finds a key finds its value.
            self.thread().no_preempt(|| unsafe {
                let (to, from) = (to.add(first), from.add(first));
                let mode = self.record().marking.load(Ordering::Relaxed);
                let (space, weak) = (&self.heap.shared().space, &self.heap.shared().weak);
                if mode > MARKING && !planted("judged-open") {
                    return weak.copy_judged(space, to as usize, from as usize, words, mode);
                }
                for word in (0..words).rev() {
                    to.add(word).write_volatile(from.add(word).read_volatile());
                }
                if mode != IDLE {
                    weak.copied(space, to as usize, words);
                }
            });
        }
    }

    /// Declares the words from `base` up to the address in `*limit` roots, edges of `encoding`,
    /// until the guard is dropped. Meant for an interpreter's stack: the limit is read in the stop,
    /// so let it be the end of the deepest frame, changed on call and return only, and not a top of
    /// stack that lives in a register in between. Stores into the range need no barrier. A stale
    /// word (one that was popped, and names a cell that has died since) keeps something too long at
    /// worst.
    ///
    /// # Panics
    /// If the heap has a million ranges already.
    ///
    /// # Safety
    /// While the guard lives, at every instruction of this thread: `limit` is readable, and so is
    /// every word from `base` to where it points.
    #[track_caller]
    pub unsafe fn root_range(
        &self,
        base: *const usize,
        limit: *const AtomicUsize,
        encoding: Encoding,
    ) -> RootRange {
        self.heap.shared().stacks.are_used();
        // SAFETY: forwarded.
        let range = unsafe { RangeRoot::new(base, limit, encoding) };
        let at = protected(|| self.heap.shared().roots.lock().add_range(range))
            .expect("a heap has at most 1048576 root ranges");
        RootRange {
            heap: Heap::clone(&self.heap),
            at,
        }
    }

    /// A handle that keeps `cell` alive from anywhere. See [`Heap::raw_root`].
    ///
    /// # Safety
    /// `cell` is a live cell of this heap.
    pub unsafe fn raw_root(&self, cell: NonNull<u8>) -> Option<RawRoot> {
        // SAFETY: forwarded.
        unsafe { self.heap.raw_root(cell) }
    }

    /// Has `cell` queued with `token` once it is found unreachable. It is kept alive for that, with
    /// all it leads to, and handed out by [`next_finalizer`](Self::next_finalizer). `false`: there
    /// are as many finalizers as there can be.
    ///
    /// # Safety
    /// `cell` is the first byte of a live cell of this heap.
    #[must_use]
    pub unsafe fn register_finalizer(&self, cell: NonNull<u8>, token: usize) -> bool {
        self.heap.shared().stacks.are_used();
        self.heap.shared().finalizers.register(Entry {
            cell: cell.as_ptr() as usize,
            token,
        })
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
            if planted("drain-locked") {
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

/// Gives back what a mutator has: its runs and its log.
fn retire(context: &Context) {
    // SAFETY: on its own thread, which is not stopped in it.
    context
        .thread()
        .no_preempt(|| unsafe { give_back(context) });
}

/// Takes a record out of the heap's.
fn strike_off(context: &Context) {
    context
        .shared
        .contexts
        .lock()
        .take(context.place.replace(usize::MAX));
}

/// # Safety
/// On the mutator's own thread inside `no_preempt`, or with the registry lock held after the thread
/// has ended.
unsafe fn give_back(context: &Context) {
    strike_off(context);
    // The collector does not meet the record any more. A scope that is open still is one of a
    // thread that has ended inside it.
    context.handles.retire(|word| context.log(word));
    context.local.retire(&context.shared.space);
    if !planted("log-kept-at-detach") {
        context.flush_log();
    }
}

/// What becomes of a mutator's record where its [`Mutator`] is not dropped, and where it has been
/// set aside.
const HOOKS: gc_preempt::MutatorHooks = gc_preempt::MutatorHooks {
    at_exit,
    gone,
    back: Some(aside::back),
};

/// A thread has ended without running any destructor. What it had logged was overwritten in the
/// snapshot of a cycle under way, so it must not be lost.
///
/// # Safety
/// `data` is the context of a mutator whose thread has ended, with the registry lock held.
unsafe fn gone(data: *mut ()) {
    // SAFETY: by the contract; contexts of threads that end so are never freed.
    unsafe { give_back(&*data.cast::<Context>()) };
}

/// The end of a thread whose [`Mutator`] was leaked.
///
/// # Safety
/// `data` is the context of the calling thread, still attached.
unsafe fn at_exit(data: *mut ()) {
    // SAFETY: by the contract; contexts of leaked mutators are never freed.
    let context = unsafe { &*data.cast::<Context>() };
    retire(context);
    context.gone.set(true);
}

impl Drop for Mutator {
    fn drop(&mut self) {
        let record = self.record();
        let gone = record.gone.get();
        let blocking = !gone && record.thread().is_blocking();
        if !gone && record.thread().in_no_preempt() {
            // It cannot wait for the registry here. It stays attached until the thread attaches to
            // the heap again, or ends.
            // SAFETY: taken once: this is the drop, and what follows does not use it.
            let heap = unsafe { ManuallyDrop::take(&mut self.heap) };
            self.record().left.set(Some(heap));
            return;
        }
        if blocking && planted("blocking-stays-attached") {
            return;
        }
        if !gone && !blocking {
            retire(record);
        } else if blocking {
            // The collector meets the record no more when it has no thread.
            gc_preempt::no_preempt_here(|| strike_off(record));
        }
        // SAFETY: the thread's registration goes first, so that no collector has the context when
        // it is freed; the heap's handle last, since it may be the last one.
        unsafe {
            let mut context = Box::from_raw(self.context.as_ptr());
            let thread = context.detach();
            if gone {
                // A thread-local that is dropped after the one that detached this thread: its
                // record may be another thread's by now.
                core::mem::forget(thread);
            } else if let Some(thread) = thread {
                if blocking {
                    // A stop takes this thread for stopped already: what it reads changes only
                    // where no stop is.
                    let section = || gc_preempt::no_preempt_here(|| give_back(&context));
                    thread.detach_after(section);
                } else {
                    drop(thread);
                }
            }
            drop(context);
            ManuallyDrop::drop(&mut self.heap);
        }
    }
}

impl fmt::Debug for Mutator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutator")
            .field("thread", &self.thread().id())
            .finish_non_exhaustive()
    }
}
