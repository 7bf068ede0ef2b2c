//! Stretches of free pages that a mutator has to itself, and cuts its new spans from.
//!
//! Where mutators take their spans one by one from the same stretch, each gets every other one, 64
//! KiB of 128, and what it builds lies scattered among what the others build. After the next
//! collection the free stretches are such single spans, too, and so on. To walk what was just built
//! takes longer then: in `gclab trees 20` with two mutators, the samples in its counting of trees
//! were 4,150 to 5,700 of some 14,000 so, and 3,600 to 3,900 where each mutator had a heap of its
//! own in the same process (ten runs; trees of 8 MiB and more made the difference, those that fit
//! into the second-level cache none). With claims they are 3,700 to 4,100, and the whole takes 1.29
//! s (2.45 s of processors) instead of 1.385 s (2.615 s; medians of six pairs). Why the processor
//! minds is not known: pages, and how many of them, are the same. So a mutator claims what lies
//! beside its new span, too, as far as the 2 MiB that the system maps as one page go.
//!
//! # How much
//! Twice what it claimed before, up to such a page: who allocates little holds little. And all
//! mutators together no more than a 16th of what the heap uses, nor a 32nd of what the hard limit
//! leaves. At the end of each collection all claims go back
//! ([`Space::give_back_reserve`](crate::heap::Space::give_back_reserve)), before whoever waits for
//! memory tries again, and the next ones are half as long: an idle mutator keeps nothing.
//!
//! # Who owns it
//! A claimed stretch is in use, and its pages have no words: nothing resolves there. It is one
//! word, which its mutator takes and puts back under `no_preempt` and the collector takes outside
//! of stops. Whoever took it has the stretch, records included. So the mutator may cut it without
//! the heap's lock: the boundaries that it makes lie inside, and their neighbours' owners look at
//! them only after they got the span. What bounds the stretch itself, others may look at meanwhile,
//! and it is not written. The child of a fork loses what a gone thread had just taken to cut it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A mutator's stretch. See the module's head.
#[derive(Debug, Default)]
pub(crate) struct SpanReserve {
    /// The first page in the high half, how many in the low one; 0: none.
    stretch: AtomicU64,
    /// Pages that the next one may have at most. A hint: Relaxed.
    pub(super) most: AtomicU32,
}

impl SpanReserve {
    /// Takes the stretch: first page and how many, 0 if there is none.
    pub(super) fn take(&self) -> (usize, usize) {
        // Ordering: Acquire pairs with the Release in `put`: the records are as its last owner left
        // them.
        let stretch = self.stretch.swap(0, Ordering::Acquire);
        ((stretch >> 32) as usize, stretch as u32 as usize)
    }

    /// Puts what is left of it back. By the mutator, which took it.
    pub(super) fn put(&self, first: usize, pages: usize) {
        if pages != 0 {
            let stretch = (first as u64) << 32 | pages as u64;
            // Ordering: Release pairs with the Acquire in `take`.
            self.stretch.store(stretch, Ordering::Release);
        }
    }
}
