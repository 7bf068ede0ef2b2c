//! A mutator's part of the heap: runs of free cells, bump allocation from them, and the refill of a
//! run that is used up.
//!
//! | file | what it has |
//! |---|---|
//! | `run.rs` | a run, and the fast path of allocation |
//! | `local.rs` | [`LocalAllocator`]: a mutator's runs, owned spans and span reserve |
//! | `refill.rs` | the next run of a site |
//! | `review.rs` | runs that were not used for a while go back |
//! | `tails.rs` | cells of a run that are not allocated yet, in a stop |
//! | `large.rs` | large objects |

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
