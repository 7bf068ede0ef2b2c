//! The methods of [`Space`] on a mutator's span reserve: how it is filled, cut and given back.

use std::sync::atomic::Ordering;

use super::super::page_runs::{CHUNK_PAGES, NoPages, State};
use super::super::span_reserve::SpanReserve;
use super::Space;

/// All reserves together have at most this part of the pages in use.
const PART: usize = 16;

/// And at most this part of the pages that the hard limit leaves.
const PART_OF_ROOM: usize = 32;

impl Space {
    /// Pages for a new span of the mutator that owns the reserve: the first one, and whether all of
    /// them are known to be zero. By the mutator under `no_preempt`.
    pub(crate) fn take_span(
        &self,
        reserve: &SpanReserve,
        pages: usize,
    ) -> Result<(usize, bool), NoPages> {
        let (mut first, mut left) = reserve.take();
        if left < pages {
            let records = &self.range.records;
            let dirty = &self.range.dirty;
            let mut page_runs = self.page_runs.lock();
            if left != 0 {
                page_runs.put_back_used(records, dirty, first, left);
            }
            let wanted = reserve.most.load(Ordering::Relaxed) as usize;
            let part = (page_runs.used() / PART).min(page_runs.room() / PART_OF_ROOM);
            // Relaxed: the number of mutators in the last cycle's stop.
            let mutators = self.mutators.load(Ordering::Relaxed).max(1);
            let most = wanted.min(part / mutators).max(pages);
            (first, left) = self.take_with(&mut page_runs, pages, |page_runs| {
                page_runs.take_some(records, dirty, pages, most)
            })?;
            drop(page_runs);
            self.prefault.taken(first + left);
            let next = (wanted + left).min(CHUNK_PAGES);
            reserve.most.store(next as u32, Ordering::Relaxed);
        }
        let end = first + pages;
        if left > pages {
            // SAFETY: the caller took the page run, so it owns these records. No other thread reads
            // the fields that are written (see the head of `heap/span_reserve.rs`).
            unsafe {
                (*self.records().at(first)).pages = pages as u32;
                (*self.records().at(end - 1)).state = State::InUse;
                let rest = &mut *self.records().at(end);
                (rest.pages, rest.state) = ((left - pages) as u32, State::InUse);
            }
        }
        reserve.put(end, left - pages);
        Ok((first, self.range.dirty.count(first, pages) == 0))
    }

    /// In a stop: says how many mutators share the reserve.
    pub(crate) fn set_mutators(&self, mutators: usize) {
        self.mutators.store(mutators, Ordering::Relaxed);
    }

    /// Gives back the rest of a mutator's reserve. By the mutator under `no_preempt`, or outside of
    /// stops.
    pub(crate) fn give_back_reserve(&self, reserve: &SpanReserve) {
        if !seam::gives_back() {
            return;
        }
        let most = reserve.most.load(Ordering::Relaxed);
        reserve.most.store(most / 2, Ordering::Relaxed);
        let (first, pages) = reserve.take();
        if pages != 0 {
            self.page_runs.lock().put_back_used(
                &self.range.records,
                &self.range.dirty,
                first,
                pages,
            );
        }
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn gives_back() -> bool {
        !Fault::ReserveKept.planted()
    }
}
