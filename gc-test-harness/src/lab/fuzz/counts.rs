//! What the fuzzer's cases report: counts, and what a panic said.

use std::any::Any;

use crate::search::counts;

counts! {
    /// What was done.
    pub struct Counts {
        /// Cases.
        cases,
        /// Cells that were allocated.
        objects,
        /// Words that were placed somewhere.
        words,
        /// Collections.
        collections,
        /// Cells that a collection kept, as it had to.
        kept,
        /// Cells that a collection freed, as it had to.
        freed,
    }
}

/// What a panic said.
pub(super) fn message(panic: &Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", text.unwrap_or("of another type"))
}
