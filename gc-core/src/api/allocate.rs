//! Allocation by kind or by site, and its slow path, which refills the mutator's run.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use gc_preempt::KeepErrno;

use crate::alloc::{self, RUN_BYTES, Refill};
use crate::api::mutator::Mutator;
use crate::api::room::Attempts;
use crate::config::Young;
use crate::error::AllocError;
use crate::fault::protected;
use crate::heap::{ColdPages, LargeStep, Site};
use crate::kind::KindId;

impl Mutator {
    /// Allocates a zeroed cell of at least `bytes` bytes. If the kind is
    /// [`leaf_uninit`](crate::raw::Kind::leaf_uninit), the cell is not zeroed.
    ///
    /// # Errors
    /// [`AllocError`]: the heap has no room, after a collection as well; inside `no_preempt`
    /// without a collection. Or the cell is smaller than its kind demands, or the heap was built
    /// with [`exact(true)`](crate::HeapBuilder::exact).
    ///
    /// # Safety
    /// The cell lives only while a root or a live cell leads to it: a register or the stack of this
    /// thread, an edge, a root range, a raw root. `bytes` is large enough for all words that the
    /// kind describes. The thread is not inside `blocking`.
    pub unsafe fn alloc_raw(&self, kind: KindId, bytes: usize) -> Result<NonNull<u8>, AllocError> {
        let stacks = &self.heap.shared().stacks;
        stacks.use_fast_tier().map_err(AllocError::Site)?;
        // SAFETY: forwarded.
        unsafe { self.alloc_in_window(kind, bytes) }
    }

    /// Does what [`alloc_raw`](Self::alloc_raw) does, for the safe tier: on success the thread's
    /// window is open.
    ///
    /// # Safety
    /// As [`alloc_raw`](Self::alloc_raw), or the caller makes a handle of the cell and closes the
    /// window.
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

    /// Allocates a cell of `site`: a bump while the mutator's run lasts. It is zeroed as in
    /// [`alloc_raw`](Self::alloc_raw).
    ///
    /// # Errors
    /// As [`alloc_raw`](Self::alloc_raw).
    ///
    /// # Safety
    /// As [`alloc_raw`](Self::alloc_raw), and `site` is of this heap.
    #[inline(always)]
    pub unsafe fn alloc_at(&self, site: Site) -> Result<NonNull<u8>, AllocError> {
        // SAFETY: the runs are this thread's, and belong to the heap that made the site, as the
        // caller promises.
        let cell = NonNull::new(unsafe { alloc::bump(self.runs, site) });
        match cell.or_else(|| self.alloc_slow(site)) {
            Some(cell) => Ok(cell),
            None => Err(self.why_none()),
        }
    }

    /// Does what [`alloc_at`](Self::alloc_at) does, for the safe tier: on success the thread's
    /// window is open.
    ///
    /// # Safety
    /// As [`alloc_in_window`](Self::alloc_in_window), and `site` is of this heap.
    #[inline]
    pub(crate) unsafe fn alloc_at_in_window(&self, site: Site) -> Result<NonNull<u8>, AllocError> {
        self.record().open_window();
        // SAFETY: forwarded.
        unsafe { self.alloc_at(site) }
    }

    /// Refills the run and allocates. `None`: [`why_none`](Self::why_none) returns the error. No
    /// window is open while this function waits, and the window is open when it returns a cell. It
    /// does not return the error itself: a result that is larger than two registers would make the
    /// fast path store its cell in memory.
    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, site: Site) -> Option<NonNull<u8>> {
        let _kept = KeepErrno::new(); // it may wait, and ask the system for memory
        let shared = self.heap.state();
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
        // `refill` takes all holes of a bitmap word at once and counts all their cells. So a run
        // from the next hole is not counted again.
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

    /// The error of an [`alloc_slow`](Self::alloc_slow) that returned `None`.
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
        let shared = self.heap.state();
        let thread = self.thread();
        let mut attempts = Attempts::default();
        // A request that can never succeed is refused before it makes a collection due.
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
                    if !seam::clears_outside() {
                        return Ok(thread.no_preempt(|| {
                            while !shared.space.clear_large(&mut large) {}
                            shared.space.publish_large(large)
                        }));
                    }
                    if let Some(cold) = shared.space.cold_pages(&large) {
                        self.have_backed(cold);
                    }
                    // There may be megabytes to clear. The thread may be stopped meanwhile: no
                    // other thread finds the cell yet.
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

    /// Collects, except inside `no_preempt`, where a thread must not wait.
    fn collect_if_allowed(&self, whole: bool) -> bool {
        !self.thread().in_no_preempt() && {
            self.review_runs();
            self.heap.collect_now(whole);
            true
        }
    }

    /// Has the system back the next cells' memory inside `blocking`, where no stop waits for the
    /// kernel. If the thread must not block here, the first touch of the memory does it.
    #[cold]
    fn have_backed(&self, cold: ColdPages) {
        let (record, thread) = (self.record(), self.thread());
        if thread.may_block() && seam::backs_memory() {
            // Relaxed, here and below: a hint for the collector, which counts the threads that want
            // a processor.
            record.is_busy.store(true, Ordering::Relaxed);
            let space = &self.heap.shared().space;
            thread.blocking(|| space.back_taken(cold));
            record.is_busy.store(false, Ordering::Relaxed);
        }
    }
}

mod seam {
    use crate::fault::Fault;

    /// Clears memory outside of `no_preempt`.
    pub(super) fn clears_outside() -> bool {
        !Fault::ClearInside.planted()
    }

    pub(super) fn backs_memory() -> bool {
        !Fault::ColdTouched.planted()
    }
}
