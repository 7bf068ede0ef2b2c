//! A visit of the roots that embedders declare: ranges and callbacks.

use core::sync::atomic::Ordering;

use super::tables::Roots;
use super::visitor::{RootVisitor, VisitRoots};

/// Passes on the words of all ranges and callbacks. The world is stopped, so a thread that holds the
/// tables' lock is no mutator, and soon releases it.
pub(super) fn visit_tables(roots: &Roots, consumer: &mut impl VisitRoots) {
    let mut tables = roots.lock();
    let mut from = 0;
    while let Some((at, &mut range)) = tables.ranges.next(from) {
        from = at + 1;
        // SAFETY: the limit word lives while the range is registered, as `Mutator::root_range`
        // demands. Relaxed: its writer is stopped.
        let limit = unsafe { (*range.limit).load(Ordering::Relaxed) };
        let limit = seam::limit(limit, range.cached);
        for slot in (range.base as usize..limit).step_by(size_of::<usize>()) {
            // SAFETY: `Mutator::root_range` asks that base to limit be readable at every
            // instruction.
            let word = unsafe { (slot as *const usize).read_volatile() };
            consumer.exact_word(word, range.encoding);
        }
    }
    let mut from = 0;
    while let Some((at, callback)) = tables.callbacks.next(from) {
        from = at + 1;
        callback(&mut RootVisitor::new(consumer));
    }
}

mod seam {
    use crate::fault::Fault;

    /// The limit to which a range is scanned: the present one.
    pub(super) fn limit(present: usize, at_registration: usize) -> usize {
        if Fault::CachedLimit.planted() {
            at_registration
        } else {
            present
        }
    }
}
