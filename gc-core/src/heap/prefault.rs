//! Has the system back memory before a mutator comes to it, on the collector's thread.
//!
//! The first touch of a 2 MiB page is a fault in which the kernel clears all of it, and whoever
//! stops a thread waits until it is back from there: on one virtual machine the longest stops of a
//! growing heap, up to 4.8 ms of a median of 20 us, met such faults. (That machine gives free
//! memory back to its host, and most of the time is the host's; see `gclab warm`. The kernel's own
//! is 0.1 ms.) So the collector stays a little ahead of the place up to which pages have ever been
//! taken. A mutator that comes too close says so
//! ([`Space::must_tell`](crate::heap::Space::must_tell)), and goes on.
//!
//! # Should the collector be late
//! It marks, say, or the memory has been given back to the system. Then the mutator that takes the
//! first pages of a chunk has it backed itself
//! ([`Space::back_taken`](crate::heap::Space::back_taken)): all at once and inside `blocking`,
//! where no stop waits for it, before it touches any of it. One who takes others meanwhile waits
//! for that, instead of having the kernel clear a second page in vain.
//!
//! `gclab mark 64 --concurrent`, memory as it comes, five pairs of runs in alternation with the
//! build before: p99 of a cycle's longest pause 33 66 93 201 4,297 us before, 51 57 61 63 77 after.
//! `gclab trees 20` with two mutators, which came to each new chunk at nearly the same time: 3.35 s
//! of processors before and 3.04 after, 1.78 and 1.63 s (medians of five; in a calmer minute 3.04
//! and 3.04, 1.66 and 1.64). One mutator: the same.
//!
//! # What being ahead brought
//!
//! What it brought, each pair of runs in alternation with a build that differs in this alone:
//! `gclab trees 20` took 1.08 times as long without (1.06 to 1.28, five pairs), and its p99 of the
//! time to stop was 1.1 to 4.9 ms without and 0.1 to 3.0 with. `gclab mark 64 --concurrent` gained
//! nothing (p99 over the floor's 8.4 without, 20 with, nine pairs that scatter from 1 to 130).
//!
//! Doing it while marking, too, lost: the cycle ends later, and the heap grows meanwhile (206 to
//! 284 MiB in trees instead of 146 to 180). Doing it before a cycle begins, for all that is to be
//! allocated until its goal, gained nothing (six pairs, p99 1.1 to 3.9 ms without and 1.5 to 4.6
//! with): what is touched for the first time lies beyond the goal, in a cycle that ends late. Who
//! wants none of it says how much memory there will be
//! ([`SpaceConfig::pre_touch`](super::SpaceConfig::pre_touch)).
//!
//! Being ahead costs memory that is not used yet: a sixteenth of what is, and nothing in a heap of
//! less than 32 MiB. A heap that has become small gives that back, too.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gc_preempt::{Mutex, MutexGuard};

use super::page_runs::CHUNK_PAGES;
use super::range::Range;
use super::size_classes::PAGE;

/// Pages of the heap that a mutator has taken and whose first touch would be a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdPages {
    pub(crate) first: usize,
    pub(crate) pages: usize,
}
/// Pages below which a heap takes its faults as they come.
const SMALL: usize = (32 << 20) / PAGE;

/// Of the pages in use, the part by which the system is ahead.
pub(super) const PART: usize = 16;

/// Chunks that it is ahead at most: 64 MiB.
pub(super) const MOST: usize = 32;

/// How far memory is backed that was never taken. Written by the collector's thread alone, but for
/// `wanted`.
///
/// All of it is a hint, read on its own, hence Relaxed: who reads an old value takes a fault or
/// wakes the collector for nothing.
pub(super) struct Prefault {
    /// One past the last page that was backed ahead of its use.
    pub(super) backed: AtomicUsize,
    /// A mutator that takes pages beyond this one asks for more.
    pub(super) low_water: AtomicUsize,
    pub(super) wanted: AtomicBool,
    /// And nobody has told the collector yet.
    pub(super) untold: AtomicBool,
    /// Whoever has a chunk backed holds one of them: the same for the same chunk, another for the
    /// next.
    pub(super) backing: [Mutex<()>; LOCKS],
}

/// Chunks that can be backed at the same time.
pub(super) const LOCKS: usize = 8;

impl Default for Prefault {
    fn default() -> Prefault {
        Prefault {
            backed: AtomicUsize::new(0),
            low_water: AtomicUsize::new(SMALL),
            wanted: AtomicBool::new(false),
            untold: AtomicBool::new(false),
            backing: [const { Mutex::new(()) }; LOCKS],
        }
    }
}

impl Prefault {
    /// Has the first pages backed before there is a mutator. Where the system cannot, they are
    /// backed when they are used.
    pub(super) fn pre_touch(&self, range: &Range, pages: usize) {
        if range.back(0, pages) {
            self.backed.store(pages, Ordering::Relaxed);
            (0..pages / CHUNK_PAGES).for_each(|chunk| range.set_backed(chunk, true));
        }
    }

    /// All of its locks. Whoever holds one takes no other meanwhile.
    pub(super) fn lock_for_fork(&self) -> [MutexGuard<'_, ()>; LOCKS] {
        self.backing.each_ref().map(Mutex::lock)
    }

    /// Pages up to `end` were taken.
    #[inline]
    pub(super) fn taken(&self, end: usize) {
        if end > self.low_water.load(Ordering::Relaxed) && !self.wanted.load(Ordering::Relaxed) {
            self.wanted.store(true, Ordering::Relaxed);
            self.untold.store(true, Ordering::Relaxed);
        }
    }
}
