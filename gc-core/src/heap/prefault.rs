//! Prefault: has the system back memory before a mutator touches it, on the collector's thread.
//!
//! The first touch of a huge page is a page fault in which the kernel clears 2 MiB, and a stop
//! waits until the thread is back from there. So the collector stays a little ahead of `top`, the
//! end of the pages that were ever taken. A mutator that comes too close to the end of the backed
//! pages sets a flag ([`Space::must_tell`](super::Space::must_tell)) and goes on.
//!
//! # When the collector is late
//!
//! The collector may be marking, or the memory may have gone back to the system. Then the mutator
//! that takes the first pages of a chunk has the chunk backed itself
//! ([`Space::back_taken`](super::Space::back_taken)), all at once, before it touches any of it, and
//! in a blocking region where no stop waits for it. A mutator that takes other pages of the same
//! chunk meanwhile waits for that. Otherwise the kernel would clear a second huge page in vain.
//!
//! # The price
//!
//! The memory that is backed and not used yet is a sixteenth of what is in use, and none in a heap
//! of less than 32 MiB. A heap that has become small gives it back, too. A user who wants no page
//! faults at all says how much memory there will be
//! ([`SpaceConfig::pre_touch`](super::SpaceConfig::pre_touch)).
//!
//! To back memory while marking, too, or before a cycle for all that it allocates, lost:
//! docs/experiments.md.

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
/// The number of pages below which a heap backs nothing ahead.
const SMALL: usize = (32 << 20) / PAGE;

/// The part of the pages in use that is backed ahead.
pub(super) const PART: usize = 16;

/// The most chunks that are backed ahead: 64 MiB.
pub(super) const MOST: usize = 32;

/// How far the pages from `top` on are backed. The collector's thread writes it; mutators write
/// `wanted` and `untold`.
///
/// Relaxed: each field is a hint that is read on its own. A thread that reads an old value takes a
/// page fault, or wakes the collector for nothing.
pub(super) struct Prefault {
    /// One past the last page that was backed ahead of its use.
    pub(super) backed: AtomicUsize,
    /// A mutator that takes pages beyond this one asks for more.
    pub(super) low_water: AtomicUsize,
    pub(super) wanted: AtomicBool,
    /// A mutator asked for more, and no mutator has woken the collector yet.
    pub(super) untold: AtomicBool,
    /// A thread that has a chunk backed holds one of these locks: the same one for the same chunk,
    /// another one for the next chunk.
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
    /// Has the first pages backed before there is a mutator. Pages that the system cannot back now
    /// are backed when they are used.
    pub(super) fn pre_touch(&self, range: &Range, pages: usize) {
        if range.back(0, pages) {
            self.backed.store(pages, Ordering::Relaxed);
            (0..pages / CHUNK_PAGES).for_each(|chunk| range.set_backed(chunk, true));
        }
    }

    /// All of these locks. A thread that holds one of them takes no other of them.
    pub(super) fn lock_for_fork(&self) -> [MutexGuard<'_, ()>; LOCKS] {
        self.backing.each_ref().map(Mutex::lock)
    }

    /// Notes that pages up to `end` were taken.
    #[inline]
    pub(super) fn taken(&self, end: usize) {
        if end > self.low_water.load(Ordering::Relaxed) && !self.wanted.load(Ordering::Relaxed) {
            self.wanted.store(true, Ordering::Relaxed);
            self.untold.store(true, Ordering::Relaxed);
        }
    }
}
