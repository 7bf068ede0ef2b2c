//! What a heap does at the moment, as [`Context::marking`](crate::mutator::record::Context) says
//! it.

/// What [`Context::marking`](crate::mutator::record::Context) says: no marking is on, and stores
/// are not logged.
pub(crate) const IDLE: u32 = 0;

/// Cells are being marked: stores and weak loads are logged.
pub(crate) const MARKING: u32 = 1;

/// It is decided which cells are dead, and the collector clears words beside the mutators. A load
/// of a long word is still logged.
pub(crate) const JUDGING_LONG: u32 = 2;

/// As [`JUDGING_LONG`], for long words, too: no unmarked cell can be reached any more, and logs
/// hold nothing new.
pub(crate) const JUDGING: u32 = 3;
