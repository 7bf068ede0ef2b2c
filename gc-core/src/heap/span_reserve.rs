//! A span reserve: a page run that a mutator has to itself and cuts its next spans from.
//!
//! If mutators take their spans one by one from the same page run, each gets every other span, and
//! the objects that one mutator builds lie scattered among those of the others. After the next
//! collection the free page runs are single spans, too. To walk what was just built takes longer
//! then (docs/experiments.md). So a mutator reserves the pages beside its new span, too, within the
//! same chunk.
//!
//! # How much
//!
//! A reserve is twice as long as the mutator's last one, up to a chunk, so a mutator that allocates
//! little holds little. All reserves together have at most a 16th of the pages in use, and at most
//! a 32nd of the pages that the hard limit leaves. At the end of each collection all reserves go
//! back ([`Space::give_back_reserve`](super::Space::give_back_reserve)), before threads that wait
//! for memory try again. The next reserve may be half as long, so an idle mutator ends up with
//! none.
//!
//! # Which thread owns it
//!
//! The reserve counts as in use, and its pages have no page-table words, so nothing resolves there.
//! It is one word. The mutator takes it and puts it back under `no_preempt`; the collector takes it
//! outside of stops. The thread that took the word owns the page run and its records, so the
//! mutator may cut the page run without the heap's lock. The new boundaries lie inside the page
//! run, and the owners of their neighbours read them only after they got the span. Other threads
//! may read the records at the ends of the page run meanwhile, and these are not written.
//!
//! The child of a fork loses a reserve that a thread of the parent had taken to cut it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A mutator's reserve. See the module's head.
#[derive(Debug, Default)]
pub(crate) struct SpanReserve {
    /// The first page in the high half, the number of pages in the low half; 0: none.
    page_run: AtomicU64,
    /// The most pages that the next reserve may have. Relaxed: a hint.
    pub(super) most: AtomicU32,
}

impl SpanReserve {
    /// Takes the reserve: the first page and the number of pages, 0 if there is none.
    pub(super) fn take(&self) -> (usize, usize) {
        // Ordering: Acquire pairs with the Release in `put`: the records are as the last owner left
        // them.
        let page_run = self.page_run.swap(0, Ordering::Acquire);
        ((page_run >> 32) as usize, page_run as u32 as usize)
    }

    /// Puts the rest of the reserve back. By the mutator, which took it.
    pub(super) fn put(&self, first: usize, pages: usize) {
        if pages != 0 {
            let page_run = (first as u64) << 32 | pages as u64;
            // Ordering: Release pairs with the Acquire in `take`.
            self.page_run.store(page_run, Ordering::Release);
        }
    }
}
