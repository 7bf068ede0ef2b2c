//! The counts of the fuzzer's cases, and the text of a panic.

use std::any::Any;

use crate::search::counts;

counts! {
    /// The counts of a case, or of all cases.
    pub struct Counts {
        /// Cases.
        cases,
        /// Cells that were allocated.
        objects,
        /// Words that were placed in cells, roots, registers or stacks.
        words,
        /// Collections.
        collections,
        /// Cells that collections kept and had to keep.
        kept,
        /// Cells that collections freed and had to free.
        freed,
    }
}

/// The text of a panic.
pub(super) fn message(panic: &Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", text.unwrap_or("of another type"))
}
