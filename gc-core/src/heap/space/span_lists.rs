//! The lists of a site, brought up to the last swap.

use std::sync::atomic::Ordering;

use super::super::page_runs::{Flags, NoSpan};
use super::super::page_table::Page;
use super::super::span_lists::{Entry, SpanLists};
use super::super::span_reserve::SpanReserve;
use super::Space;
use crate::error::AllocError;
use crate::fault::planted;
use gc_preempt::MutexGuard;

impl Space {
    /// A site's lists, with the moves that the swaps since the last look ask for. By a mutator
    /// under `no_preempt`, or by a thread that is none.
    pub(crate) fn lists<'s>(&self, entry: &'s Entry) -> MutexGuard<'s, SpanLists> {
        let mut guard = entry.lists.lock();
        let lists = &mut *guard;
        if lists.seen != self.swaps.number() && !planted("lists-stale") {
            let before = lists.unswept.len();
            lists.unswept.append(self.records(), &mut lists.partial);
            lists.unswept.append(self.records(), &mut lists.full);
            if lists.seen < self.swaps.last_whole() {
                lists.unswept.append(self.records(), &mut lists.old);
            }
            lists.seen = self.swaps.number();
            // Relaxed: the lock orders it before each of these is swept, and `is_swept` says what
            // orders it before the count is believed.
            self.unswept
                .fetch_add(lists.unswept.len() - before, Ordering::Relaxed);
        }
        guard
    }

    /// Sites whose lists do not tell of the last swap.
    #[cfg(test)]
    pub(crate) fn sites_behind(&self) -> usize {
        let entries = (0..self.sites.count()).map(|site| self.sites.at(site));
        let behind = |entry: &&Entry| entry.lists.lock().seen != self.swaps.number();
        entries.filter(behind).count()
    }

    /// The low half of the last swap's number.
    #[inline(always)]
    pub(crate) fn swap_now(&self) -> u32 {
        self.swaps.number() as u32
    }

    /// A span to take runs from: one with gaps, one that nobody has looked at since the collection,
    /// or a new one; whether it is that.
    pub(crate) fn next_span(
        &self,
        entry: &Entry,
        reserve: &SpanReserve,
    ) -> Result<(usize, bool), NoSpan> {
        let clears = !self.kinds.get(entry.kind).uninit;
        {
            let mut lists = self.lists(entry);
            let listed = lists.partial.pop(self.records()).or_else(|| {
                let span = lists.unswept.pop(self.records())?;
                if !planted("unswept-unkept") {
                    self.keep_span(span, entry.class());
                }
                // Ordering: Release. Who sees the count at zero finds what was kept.
                self.unswept.fetch_sub(1, Ordering::Release);
                Some(span)
            });
            if let Some(span) = listed {
                // SAFETY: popped from its list, the span is ours.
                unsafe { (*self.records().at(span)).flags.set_as_is(!clears) };
                return Ok((span, false));
            }
        }
        let class = entry.class();
        let (span, zeroed) = self.take_span(reserve, class.pages as usize)?;
        // SAFETY: the pages were just taken, so their records are ours.
        unsafe { (*self.records().at(span)).flags = Flags::new(zeroed || !clears) };
        self.lists(entry).chain(self.records(), span);
        // Last, so that nobody resolves an address by a record that is not written yet (H24).
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

    /// There is no room: an error, unless sweeping may still find some; then a piece of that is
    /// done.
    pub(crate) fn after_sweep(&self, no: NoSpan, bytes: usize) -> Result<(), AllocError> {
        if !self.is_swept() {
            self.sweep_piece();
            return Ok(());
        }
        Err(match no {
            NoSpan::Limit => AllocError::HeapLimit {
                limit: self.hard_limit().unwrap_or(u64::MAX),
                bytes,
            },
            NoSpan::Exhausted => AllocError::Exhausted { bytes },
            NoSpan::System(e) => AllocError::System(e),
        })
    }
}
