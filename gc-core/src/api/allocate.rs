//! Allocation by kind or by site, and what it does where the mutator's run is used up.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use gc_preempt::KeepErrno;

use crate::alloc::{self, RUN_BYTES, Refill};
use crate::api::mutator::Mutator;
use crate::api::room::Attempts;
use crate::config::Young;
use crate::error::AllocError;
use crate::fault::{Fault, planted, protected};
use crate::heap::{ColdPages, LargeStep, Site};
use crate::kind::KindId;

impl Mutator {
    /// A zeroed cell of at least `bytes` bytes; not zeroed, if its kind is
    /// [`leaf_uninit`](crate::raw::Kind::leaf_uninit).
    ///
    /// # Errors
    /// [`AllocError`], after a collection has been tried; inside `no_preempt`, at once.
    ///
    /// # Safety
    /// The cell lives only while a root leads to it: this thread's registers and stack, another
    /// cell's edge, a declared range, a handle. `bytes` is large enough for what the kind says of
    /// its cells.
    pub unsafe fn alloc_raw(&self, kind: KindId, bytes: usize) -> Result<NonNull<u8>, AllocError> {
        let stacks = &self.heap.shared().stacks;
        stacks.use_fast_tier().map_err(AllocError::Site)?;
        // SAFETY: forwarded.
        unsafe { self.alloc_in_window(kind, bytes) }
    }

    /// [`alloc_raw`](Self::alloc_raw), for the safe tier: the thread's window is open when there is a cell.
    ///
    /// # Safety
    /// As [`alloc_raw`](Self::alloc_raw); or the cell is put into a handle, and the window closed.
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

    /// A cell of `site`, zeroed as [`alloc_raw`](Self::alloc_raw)'s are: a bump while the run
    /// lasts.
    ///
    /// # Errors
    /// As [`alloc_raw`](Self::alloc_raw).
    ///
    /// # Safety
    /// As [`alloc_raw`](Self::alloc_raw); `site` is of this heap.
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
        // `refill` counts the cells of all holes of a bitmap word when it takes the word, so a run
        // of the next hole does not count again.
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
        let shared = self.heap.state();
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
                    if planted(Fault::ClearInside) {
                        return Ok(thread.no_preempt(|| {
                            while !shared.space.clear_large(&mut large) {}
                            shared.space.publish_large(large)
                        }));
                    }
                    if let Some(cold) = shared.space.cold_pages(&large) {
                        self.have_backed(cold);
                    }
                    // Megabytes may have to be cleared: the thread can be stopped meanwhile, since
                    // no other thread sees the cell yet.
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

    /// Collects, unless inside `no_preempt`, where nothing may wait.
    fn collect_if_allowed(&self, whole: bool) -> bool {
        !self.thread().in_no_preempt() && {
            self.review_runs();
            self.heap.collect_now(whole);
            true
        }
    }

    /// Has the system back what the next cells will lie in, where no stop waits for it. Where that
    /// cannot be, nothing is done: the first touch will do it.
    #[cold]
    fn have_backed(&self, cold: ColdPages) {
        let (record, thread) = (self.record(), self.thread());
        if thread.may_block() && !planted(Fault::ColdTouched) {
            // Relaxed, here and below: a hint for the collector, which counts the threads that want
            // a processor.
            record.is_busy.store(true, Ordering::Relaxed);
            let space = &self.heap.shared().space;
            thread.blocking(|| space.back_taken(cold));
            record.is_busy.store(false, Ordering::Relaxed);
        }
    }
}
