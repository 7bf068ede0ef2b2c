//! Stretches of free units that a mutator has to itself, and cuts its new spans from.
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
//! leaves. At the end of each collection all claims go back ([`Space::unclaim`]), before whoever
//! waits for memory tries again, and the next ones are half as long: an idle mutator keeps nothing.
//!
//! # Who owns it
//! A claimed stretch is in use, and its units have no words: nothing resolves there. It is one
//! word, which its mutator takes and puts back under `no_preempt` and the collector takes outside
//! of stops. Whoever took it has the stretch, records included. So the mutator may cut it without
//! the heap's lock: the boundaries that it makes lie inside, and their neighbours' owners look at
//! them only after they got the span. What bounds the stretch itself, others may look at meanwhile,
//! and it is not written. The child of a fork loses what a gone thread had just taken to cut it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::page_runs::State;
use super::{CHUNK_UNITS, NoSpan, Space};
use crate::fault::planted;

/// Of the units that are in use, the part that all claims together have at most.
const PART: usize = 16;

/// Of those that the hard limit leaves.
const PART_OF_ROOM: usize = 32;

/// A mutator's stretch. See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    /// The first unit in the high half, how many in the low one; 0: none.
    stretch: AtomicU64,
    /// Units that the next one may have at most. A hint: Relaxed.
    most: AtomicU32,
}

impl Claim {
    /// Takes the stretch: first unit and how many, 0 if there is none.
    fn take(&self) -> (usize, usize) {
        // Ordering: Acquire pairs with the Release in `put`: the records are as its last owner left
        // them.
        let stretch = self.stretch.swap(0, Ordering::Acquire);
        ((stretch >> 32) as usize, stretch as u32 as usize)
    }

    /// Puts what is left of it back. By the mutator, which took it.
    fn put(&self, first: usize, units: usize) {
        if units != 0 {
            let stretch = (first as u64) << 32 | units as u64;
            // Ordering: Release pairs with the Acquire in `take`.
            self.stretch.store(stretch, Ordering::Release);
        }
    }
}

impl Space {
    /// Units for a new span of the mutator whose claim this is: the first, and whether all of them
    /// are known to be zero. By the mutator under `no_preempt`.
    pub(crate) fn take_span(&self, claim: &Claim, units: usize) -> Result<(usize, bool), NoSpan> {
        let (mut first, mut left) = claim.take();
        if left < units {
            let records = &self.range.records;
            let dirty = &self.range.dirty;
            let mut spans = self.spans.lock();
            if left != 0 {
                spans.put_back_used(records, dirty, first, left);
            }
            let wanted = claim.most.load(Ordering::Relaxed) as usize;
            let part = (spans.used() / PART).min(spans.room() / PART_OF_ROOM);
            // Relaxed: as many as there were in the last cycle's stop.
            let mutators = self.mutators.load(Ordering::Relaxed).max(1);
            let most = wanted.min(part / mutators).max(units);
            (first, left) = self.take_with(&mut spans, units, |spans| {
                spans.take_some(records, dirty, units, most)
            })?;
            drop(spans);
            self.ahead.taken(first + left);
            let next = (wanted + left).min(CHUNK_UNITS);
            claim.most.store(next as u32, Ordering::Relaxed);
        }
        let end = first + units;
        if left > units {
            // SAFETY: the stretch is the caller's, and so are these records; nobody else reads what
            // is written of them (see the module's head).
            unsafe {
                (*self.records().at(first)).units = units as u32;
                (*self.records().at(end - 1)).state = State::InUse;
                let rest = &mut *self.records().at(end);
                (rest.units, rest.state) = ((left - units) as u32, State::InUse);
            }
        }
        claim.put(end, left - units);
        Ok((first, self.range.dirty.count(first, units) == 0))
    }

    /// Gives back what a mutator has claimed and not used. By the mutator under `no_preempt`, or
    /// outside of stops.
    pub(crate) fn unclaim(&self, claim: &Claim) {
        if planted("claims-kept") {
            return;
        }
        let most = claim.most.load(Ordering::Relaxed);
        claim.most.store(most / 2, Ordering::Relaxed);
        let (first, units) = claim.take();
        if units != 0 {
            self.spans
                .lock()
                .put_back_used(&self.range.records, &self.range.dirty, first, units);
        }
    }
}
