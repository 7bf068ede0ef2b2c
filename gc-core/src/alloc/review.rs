//! The review of a mutator's sites: runs that were not used for a while go back.
//!
//! A stop looks at each site in a mutator's list, since it marks the rest of the run. A program may
//! have used ten thousand sites while it started, and use fifty since. So a run that was not
//! refilled for a while goes back: its cells become free, its span goes into the site's lists, and
//! the site leaves the mutator's list. The next refill enters the site again.
//!
//! The invariant: **a site that the list does not have has an empty run, no holes and no span.** So
//! no cell comes from it without a refill, and a stop that does not look at it misses nothing.
//!
//! A run is *stale* when the bitmaps have swapped twice since its last refill ([`STALE`]). Once
//! would be too early: a site that is refilled in each cycle may be refilled early in one and late
//! in the next. A run that goes back and is needed after all costs one refill.
//!
//! These threads may give a run back:
//!
//! * the mutator itself: some sites at each refill, and all of them before it waits
//!   ([`LocalAllocator::review_piece`]);
//! * the collector in stop 1, for a mutator inside `blocking`, which is in no allocation: half of
//!   the list at a time ([`LocalAllocator::review_idle`]), so that the review adds at most half to
//!   the stop's own work.
//!
//! No other thread may: a mutator that stands elsewhere may be in the middle of the fast path,
//! whose first rule is that its runs do not change. So a mutator that neither allocates nor waits
//! keeps its list. While marking is on no run goes back, since its rest is marked then and would
//! stay for another cycle.

use std::sync::atomic::Ordering;

use super::local::{LocalAllocator, OwnedSpan};
use super::run::Run;
use crate::heap::Space;

/// A run is stale after this many swaps since its last refill.
const STALE: u32 = 2;
/// Sites that one piece of a review looks at in a refill: one or two microseconds.
pub(super) const REFILL_PIECE: usize = 16;
/// Sites that one piece looks at before the owner waits: some microseconds under `no_preempt`.
pub(crate) const REVIEW_PIECE: usize = 128;
/// The least number of sites that one stop looks at for a mutator inside `blocking`.
const LEAST_IDLE: usize = 256;
impl LocalAllocator {
    /// The sites in the mutator's list: those that it has a span of, or may have. By the owner
    /// under `no_preempt`, or while it is stopped.
    pub(crate) fn sites(&self) -> impl Iterator<Item = usize> + '_ {
        let mut after = 0;
        core::iter::from_fn(move || {
            let site = self.site_after(after)?;
            after = site as u32 + 1;
            Some(site)
        })
    }

    /// The number of sites in the list, which a stop looks at.
    pub(crate) fn sites_listed(&self) -> usize {
        self.listed.len.load(Ordering::Relaxed) as usize
    }

    /// The site in the list that follows the site `after - 1`; for 0, the first.
    fn site_after(&self, after: u32) -> Option<usize> {
        let link = match after.checked_sub(1) {
            None => self.listed.first.load(Ordering::Relaxed),
            // SAFETY: the array has MAX_SITES elements, and only the caller may write them now.
            Some(site) => unsafe { (*self.owned.at(site as usize)).next },
        };
        (link != OwnedSpan::LAST).then(|| link as usize - 1)
    }

    /// Enters a site into the list, if the list does not have it. By the owner.
    pub(super) fn enter(&self, site: usize, owned: &mut OwnedSpan) {
        if owned.next == 0 {
            owned.next = self.listed.first.load(Ordering::Relaxed);
            self.listed.first.store(site as u32 + 1, Ordering::Relaxed);
            let len = self.listed.len.load(Ordering::Relaxed);
            self.listed.len.store(len + 1, Ordering::Relaxed);
        }
    }

    /// Takes `site`, which follows the site `after - 1`, out of the list.
    fn leave(&self, after: u32, site: usize) {
        // SAFETY: as in `site_after`.
        let next = unsafe { core::mem::take(&mut (*self.owned.at(site)).next) };
        match after.checked_sub(1) {
            None => self.listed.first.store(next, Ordering::Relaxed),
            // SAFETY: as in `site_after`.
            Some(before) => unsafe { (*self.owned.at(before as usize)).next = next },
        }
        let len = self.listed.len.load(Ordering::Relaxed);
        self.listed.len.store(len - 1, Ordering::Relaxed);
    }

    /// Whether there are sites in the list that were not reviewed since the last swap. By the owner
    /// of this allocator, or in a stop.
    #[inline]
    pub(crate) fn is_review_due(&self, space: &Space) -> bool {
        self.listed.reviewed.load(Ordering::Relaxed) != space.swap_now() && !space.is_marking()
    }

    /// Reviews `most` sites of the list and gives back the stale ones. `false`: all were reviewed
    /// since the last swap. While marking is off; by the owner of this allocator under
    /// `no_preempt`, or by the collector in a stop that found it inside `blocking`.
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
            let refilled = unsafe { (*self.owned.at(site)).refilled };
            if space.swap_now().wrapping_sub(refilled) < STALE || !seam::reviews() {
                after = site as u32 + 1;
                continue;
            }
            if seam::gives_back() {
                self.give_run_back(space, site);
            }
            self.leave(after, site);
        }
        listed.position.store(after, Ordering::Relaxed);
        true
    }

    /// In stop 1, before marking is on: a bounded review for a mutator inside `blocking`. Returns
    /// the most sites that it may have looked at.
    pub(crate) fn review_idle(&self, space: &Space) -> usize {
        if !self.is_review_due(space) {
            return 0;
        }
        let listed = self.sites_listed();
        let most = (listed / 2).max(LEAST_IDLE);
        self.review_piece(space, most);
        most.min(listed)
    }

    /// Gives back all runs, spans and the span reserve of a mutator that detaches. Under
    /// `no_preempt`, by the owner of this allocator.
    pub fn retire(&self, space: &Space) {
        space.give_back_reserve(&self.span_reserve);
        self.retire_sites(space, usize::MAX);
    }

    /// Gives back the runs and spans of the first `most` sites of the list, and returns how many
    /// sites there were. By the owner of this allocator under `no_preempt`, or by the collector in
    /// a stop that found the owner inside `blocking`: there it is in no allocation, and reads its
    /// runs anew afterwards.
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

    /// Gives back the run, the holes and the span of one site. As for
    /// [`LocalAllocator::retire_sites`].
    fn give_run_back(&self, space: &Space, site: usize) {
        let tails = self.retire_tail(space, site);
        if space.collect_every.is_some() {
            // The cells of the tail were taken and never allocated.
            let taken = self.taken.load(Ordering::Relaxed);
            self.taken
                .store(taken.saturating_sub(tails), Ordering::Relaxed);
        }
        // SAFETY: the caller owns this allocator.
        let (run, owned) = unsafe { (&mut *self.runs.at(site), &mut *self.owned.at(site)) };
        *run = Run {
            cursor: 0,
            limit: 0,
        };
        if let Some(span) = (owned.span as usize).checked_sub(1) {
            owned.span = 0;
            let entry = space.sites.at(site);
            space.lists(entry).partial.push(space.records(), span);
        }
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn reviews() -> bool {
        !Fault::StaleRunsKept.planted()
    }

    /// Gives back what leaves the list.
    pub(super) fn gives_back() -> bool {
        !Fault::StaleRunsUnlistedOnly.planted()
    }
}
