//! Objects with pages of their own: taken, cleared and published in three steps, and freed in
//! pieces.
//!
//! Taking and publishing are short and happen under `no_preempt`. Clearing a gigabyte is not: it is
//! done between them, where the mutator can be stopped, and nothing names the object until it is
//! over.

use std::sync::atomic::AtomicUsize;

use super::span_lists::List;
use crate::kind::KindId;
use gc_preempt::Mutex;

/// A large object that is not yet visible to anybody. Clear it outside `no_preempt`, then publish
/// or cancel it.
#[derive(Debug)]
#[must_use = "its memory is in use until it is published or cancelled"]
pub struct LargeReservation {
    pub(super) first: usize,
    pub(super) pages: usize,
    pub(super) kind: KindId,
    /// Pages that are cleared.
    pub(super) cleared: usize,
}

impl LargeReservation {
    /// Of pages that the caller has just taken.
    pub(crate) fn new(first: usize, pages: usize, kind: KindId) -> LargeReservation {
        LargeReservation {
            first,
            pages,
            kind,
            cleared: 0,
        }
    }
}

/// What came of an attempt to reserve a large object.
#[derive(Debug)]
pub enum LargeStep {
    /// Clear it, then publish it.
    Reserved(LargeReservation),
    /// `collect_every`: collect, then try again.
    Due,
    /// The bounded piece ended without a find: leave `no_preempt`, come again.
    Again,
}

#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) unswept: List,
    pub(super) swept: List,
}

/// A dead object whose page words are being cleared. No pages: there is none.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Freeing {
    pub(super) first: usize,
    pub(super) pages: usize,
    pub(super) cleared: usize,
}

/// The large objects of a heap.
pub(crate) struct LargeObjects {
    /// Pages of those that markers look into. For the pace: Relaxed.
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
