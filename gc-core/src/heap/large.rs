//! Large objects: cells with pages of their own. They are taken, cleared and published in three
//! steps, and freed in pieces.
//!
//! Taking and publishing are short and happen under `no_preempt`. Clearing a gigabyte is long: it
//! happens between the two, where the mutator can be stopped. No address names the object before it
//! is published.

use std::sync::atomic::AtomicUsize;

use super::span_lists::List;
use crate::kind::KindId;
use gc_preempt::Mutex;

/// A large object that no other thread can find yet. Its owner clears it outside `no_preempt`, then
/// publishes or cancels it.
#[derive(Debug)]
#[must_use = "its memory is in use until it is published or cancelled"]
pub struct LargeReservation {
    pub(super) first: usize,
    pub(super) pages: usize,
    pub(super) kind: KindId,
    /// The number of its first pages that are cleared.
    pub(super) cleared: usize,
}

impl LargeReservation {
    /// A reservation of pages that the caller has just taken.
    pub(crate) fn new(first: usize, pages: usize, kind: KindId) -> LargeReservation {
        LargeReservation {
            first,
            pages,
            kind,
            cleared: 0,
        }
    }
}

/// The result of an attempt to reserve a large object.
#[derive(Debug)]
pub enum LargeStep {
    /// The pages are taken: clear them, then publish the object.
    Reserved(LargeReservation),
    /// `collect_every` asks for a collection: collect, then try again.
    Due,
    /// The bounded piece of work has ended without a result: leave `no_preempt`, then try again.
    Again,
}

#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) unswept: List,
    pub(super) swept: List,
}

/// A dead object whose page-table words are being cleared. `pages` is 0 if there is none.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Freeing {
    pub(super) first: usize,
    pub(super) pages: usize,
    pub(super) cleared: usize,
}

/// The large objects of a heap.
pub(crate) struct LargeObjects {
    /// Pages of the large objects whose kinds have edges. Relaxed: a figure for the pacer.
    pub(super) followed: AtomicUsize,
    pub(super) lists: Mutex<Lists>,
    pub(super) freeing: Mutex<Freeing>,
}

impl Default for LargeObjects {
    fn default() -> LargeObjects {
        LargeObjects {
            followed: AtomicUsize::new(0),
            lists: Mutex::new(Lists::default()),
            freeing: Mutex::new(Freeing::default()),
        }
    }
}
