//! What a heap does at the moment, as [`Context::marking`](crate::mutator::record::Context) says it.

/// What [`Context::marking`](crate::mutator::record::Context) says: nothing is marked, and stores are not
/// logged.
pub(crate) const IDLE: u32 = 0;

/// Cells are being marked: stores and weak loads are logged.
pub(crate) const MARKING: u32 = 1;

/// What is dead has been decided, and words are being cleared beside the mutators; long words may
/// still be loaded, which is logged.
pub(crate) const JUDGING_LONG: u32 = 2;

/// As [`JUDGING_LONG`], for long words, too: nothing that is not marked can be reached any more,
/// and logs say nothing new.
pub(crate) const JUDGING: u32 = 3;
