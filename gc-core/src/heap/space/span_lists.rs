//! The methods of [`Space`] on a site's lists: moves the lists for the last swap, and finds a span
//! for a mutator.

use std::sync::atomic::Ordering;

use super::super::page_runs::{Flags, NoPages};
use super::super::page_table::Page;
use super::super::span_lists::{SiteEntry, SpanLists};
use super::super::span_reserve::SpanReserve;
use super::Space;
use crate::error::AllocError;
use gc_preempt::MutexGuard;

impl Space {
    /// A site's lists, after the moves that the swaps since the last look ask for. The caller is a
    /// mutator under `no_preempt`, or a thread that is no mutator.
    pub(crate) fn lists<'s>(&self, entry: &'s SiteEntry) -> MutexGuard<'s, SpanLists> {
        let mut guard = entry.lists.lock();
        let lists = &mut *guard;
        if lists.seen != self.swaps.number() && seam::moves_spans() {
            let before = lists.unswept.len();
            lists.unswept.append(self.records(), &mut lists.partial);
            lists.unswept.append(self.records(), &mut lists.full);
            if lists.seen < self.swaps.last_whole() {
                lists.unswept.append(self.records(), &mut lists.old);
            }
            lists.seen = self.swaps.number();
            // Relaxed: the lock orders the addition before the sweep of each of these spans.
            // `is_swept` says what orders it before a thread relies on the count.
            self.unswept
                .fetch_add(lists.unswept.len() - before, Ordering::Relaxed);
        }
        guard
    }

    /// The number of sites whose lists were not moved for the last swap.
    #[cfg(test)]
    pub(crate) fn sites_behind(&self) -> usize {
        let entries = (0..self.sites.count()).map(|site| self.sites.at(site));
        let behind = |entry: &&SiteEntry| entry.lists.lock().seen != self.swaps.number();
        entries.filter(behind).count()
    }

    /// The low half of the last swap's number.
    #[inline(always)]
    pub(crate) fn swap_now(&self) -> u32 {
        self.swaps.number() as u32
    }

    /// A span to take runs from, and whether it is new: a swept span with holes, an unswept one, or
    /// a new one.
    pub(crate) fn next_span(
        &self,
        entry: &SiteEntry,
        reserve: &SpanReserve,
    ) -> Result<(usize, bool), NoPages> {
        let clears = !self.kinds.get(entry.kind).uninit;
        {
            let mut lists = self.lists(entry);
            let listed = lists.partial.pop(self.records()).or_else(|| {
                let span = self.pop_unswept(&mut lists, entry.class())?;
                self.count_swept();
                Some(span)
            });
            if let Some(span) = listed {
                // SAFETY: the span is in no list any more, so this thread owns its record.
                unsafe { (*self.records().at(span)).flags.set_as_is(!clears) };
                return Ok((span, false));
            }
        }
        let class = entry.class();
        let (span, zeroed) = self.take_span(reserve, class.pages as usize)?;
        // SAFETY: the pages were just taken, so this thread owns their records.
        unsafe { (*self.records().at(span)).flags = Flags::new(zeroed || !clears) };
        self.lists(entry).chain(self.records(), span);
        // The words are stored last. Otherwise a thread could resolve an address by a record that
        // is not written yet (H24).
        for distance in 0..class.pages as usize {
            self.page_table().set(
                span + distance,
                Page::Small {
                    class: entry.class as usize,
                    distance,
                    kind: entry.kind,
                },
            );
        }
        Ok((span, true))
    }

    /// Sweeps a piece, if sweeping may still find room. Otherwise returns the error that `no`
    /// stands for.
    pub(crate) fn after_sweep(&self, no: NoPages, bytes: usize) -> Result<(), AllocError> {
        if !self.is_swept() {
            self.sweep_piece();
            return Ok(());
        }
        Err(match no {
            NoPages::Limit => AllocError::HeapLimit {
                limit: self.hard_limit().unwrap_or(u64::MAX),
                bytes,
            },
            NoPages::Exhausted => AllocError::Exhausted { bytes },
            NoPages::System(e) => AllocError::System(e),
        })
    }
}

mod seam {
    use crate::fault::Fault;

    /// Makes the moves that the swaps ask for.
    pub(super) fn moves_spans() -> bool {
        !Fault::ListsStale.planted()
    }
}
