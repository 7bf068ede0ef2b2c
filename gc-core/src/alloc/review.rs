//! Which sites a mutator has a span of, and how those that it no longer uses leave this list.
//!
//! A stop looks at each site that a mutator's list names: it marks the rest of the run. A program
//! may have used ten thousand sites while it started, and use fifty of them since. So a run that
//! was not refilled for a while goes back: its cells become free, its span goes into the site's
//! lists, and the mutator's list no longer names the site. The next refill enters it again.
//!
//! This always holds: **a site that the list does not name has an empty run, no gaps and no span.**
//! So no cell comes from it without a refill, and a stop that does not look at it misses nothing.
//!
//! A run is *stale* when the bitmaps have swapped twice since its last refill ([`STALE`]). Once
//! would not do: a site that is refilled in each cycle may be refilled early in one and late in the
//! next. What goes back and is needed after all costs one refill.
//!
//! Who may give it back:
//!
//! * the mutator itself, where it comes by anyway: some sites at each refill, all of them before it
//!   waits ([`LocalAllocator::review_piece`](crate::alloc::LocalAllocator::review_piece));
//! * in stop 1, the collector, for a mutator that is inside `blocking`, where it is in no
//!   allocation: half of the list at a time
//!   ([`LocalAllocator::review_idle`](crate::alloc::LocalAllocator::review_idle)), so that the stop
//!   does at most some half more than it would without;
//! * nobody else: a mutator that stands elsewhere may be in the middle of the fast path, whose
//!   first rule is that its runs do not change.
//!
//! So a mutator that neither allocates nor waits keeps its list as it is. While marking is on
//! nothing goes back this way: the rest of a run is marked then, and would stay for another cycle.

use std::sync::atomic::Ordering;

use super::local::{LocalAllocator, Own};
use super::run::Run;
use crate::fault::planted;
use crate::heap::Space;

/// So many swaps after its last refill a run is stale.
const STALE: u32 = 2;
/// Sites that one piece of a review looks at where a refill does it: a microsecond or two.
pub(super) const REFILL_PIECE: usize = 16;
/// The same where the owner is about to wait: some microseconds, a piece under `no_preempt`.
pub(crate) const REVIEW_PIECE: usize = 128;
/// Sites that one stop looks at for a mutator inside `blocking`, at least.
const LEAST_IDLE: usize = 256;
impl LocalAllocator {
    /// The sites that the mutator has a span of, or may have. By the owner under `no_preempt`, or
    /// while it is stopped.
    pub(crate) fn sites(&self) -> impl Iterator<Item = usize> + '_ {
        let mut after = 0;
        core::iter::from_fn(move || {
            let site = self.site_after(after)?;
            after = site as u32 + 1;
            Some(site)
        })
    }

    /// How many these are: what a stop looks at.
    pub(crate) fn sites_listed(&self) -> usize {
        self.listed.len.load(Ordering::Relaxed) as usize
    }

    /// The site that the list names after the site `after - 1`; after 0, its first.
    fn site_after(&self, after: u32) -> Option<usize> {
        let link = match after.checked_sub(1) {
            None => self.listed.first.load(Ordering::Relaxed),
            // SAFETY: the array has MAX_SITES entries, which nobody but the caller may write now.
            Some(site) => unsafe { (*self.own.at(site as usize)).next },
        };
        (link != Own::LAST).then(|| link as usize - 1)
    }

    /// Enters a site, if it is not in the list. By the owner.
    pub(super) fn enter(&self, site: usize, own: &mut Own) {
        if own.next == 0 {
            own.next = self.listed.first.load(Ordering::Relaxed);
            self.listed.first.store(site as u32 + 1, Ordering::Relaxed);
            let len = self.listed.len.load(Ordering::Relaxed);
            self.listed.len.store(len + 1, Ordering::Relaxed);
        }
    }

    /// Takes the site after `after - 1` out of the list.
    fn leave(&self, after: u32, site: usize) {
        // SAFETY: as in `site_after`.
        let next = unsafe { core::mem::take(&mut (*self.own.at(site)).next) };
        match after.checked_sub(1) {
            None => self.listed.first.store(next, Ordering::Relaxed),
            // SAFETY: as in `site_after`.
            Some(before) => unsafe { (*self.own.at(before as usize)).next = next },
        }
        let len = self.listed.len.load(Ordering::Relaxed);
        self.listed.len.store(len - 1, Ordering::Relaxed);
    }

    /// Are there sites in the list that were not looked at since the last swap? By the owner of
    /// this allocator, or in a stop.
    #[inline]
    pub(crate) fn is_review_due(&self, space: &Space) -> bool {
        self.listed.reviewed.load(Ordering::Relaxed) != space.swap_now() && !space.is_marking()
    }

    /// Looks at `most` sites of the list and gives back the stale ones; `false`: all have been
    /// looked at since the last swap. By the owner of this allocator under `no_preempt`, or by the
    /// collector in a stop that found it inside `blocking`. While marking is off.
    pub(crate) fn review_piece(&self, space: &Space, most: usize) -> bool {
        let listed = &self.listed;
        let mut after = listed.position.load(Ordering::Relaxed);
        for _ in 0..most {
            let Some(site) = self.site_after(after) else {
                listed.position.store(0, Ordering::Relaxed);
                listed.reviewed.store(space.swap_now(), Ordering::Relaxed);
                return false;
            };
            // SAFETY: as in `site_after`.
            let refilled = unsafe { (*self.own.at(site)).refilled };
            if space.swap_now().wrapping_sub(refilled) < STALE || planted("stale-runs-kept") {
                after = site as u32 + 1;
                continue;
            }
            if !planted("stale-runs-unlisted-only") {
                self.give_run_back(space, site);
            }
            self.leave(after, site);
        }
        listed.position.store(after, Ordering::Relaxed);
        true
    }

    /// In stop 1, before marking is on: a bounded review for a mutator inside `blocking`; how many
    /// sites it looks at, at most.
    pub(crate) fn review_idle(&self, space: &Space) -> usize {
        if !self.is_review_due(space) {
            return 0;
        }
        let listed = self.sites_listed();
        let most = (listed / 2).max(LEAST_IDLE);
        self.review_piece(space, most);
        most.min(listed)
    }

    /// Gives all self and spans of a mutator back (detach). Under `no_preempt`, by the owner of
    /// this allocator.
    pub fn retire(&self, space: &Space) {
        space.give_back_reserve(&self.span_reserve);
        space.report(&self.unreported);
        self.retire_sites(space, usize::MAX);
    }

    /// Gives the self and spans of so many sites back, those that the list names first; how many
    /// there were. By the owner of this allocator under `no_preempt`; or by the collector, in a
    /// stop that found the owner inside `blocking`: there it is in no allocation, and looks at its
    /// self anew afterwards.
    pub(crate) fn retire_sites(&self, space: &Space, most: usize) -> usize {
        self.listed.position.store(0, Ordering::Relaxed);
        let mut sites = 0;
        while sites < most
            && let Some(site) = self.site_after(0)
        {
            self.give_run_back(space, site);
            self.leave(0, site);
            sites += 1;
        }
        sites
    }

    /// Gives back the run, the gaps and the span of one site. As for
    /// [`LocalAllocator::retire_sites`](crate::alloc::LocalAllocator::retire_sites).
    fn give_run_back(&self, space: &Space, site: usize) {
        let tails = self.retire_tail(space, site);
        if space.collect_every.is_some() {
            // Cells that were handed out and never allocated.
            let handed = self.handed.load(Ordering::Relaxed);
            self.handed
                .store(handed.saturating_sub(tails), Ordering::Relaxed);
        }
        // SAFETY: the caller owns this allocator.
        let (run, own) = unsafe { (&mut *self.runs.at(site), &mut *self.own.at(site)) };
        *run = Run {
            cursor: 0,
            limit: 0,
        };
        if let Some(span) = (own.span as usize).checked_sub(1) {
            own.span = 0;
            let entry = space.sites.at(site);
            space.lists(entry).partial.push(space.records(), span);
        }
    }
}
