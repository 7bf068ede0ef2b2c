//! A mutator's side of the heap: runs of free cells, the bump through them, and what happens when
//! one is used up.

mod large;
mod local;
mod refill;
mod review;
mod run;
mod tails;

pub use local::LocalAllocator;
pub(crate) use review::REVIEW_PIECE;
pub(crate) use run::RUN_BYTES;
pub use run::{Refill, Run, bump};
