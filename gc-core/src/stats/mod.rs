//! The figures of a heap and of its collections.

mod figures;
mod ledger;
mod trace_line;

pub use figures::{CollectionStats, HeapStats, StopTimes, Times};
pub(crate) use ledger::Ledger;
