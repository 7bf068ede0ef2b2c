//! The process's code map: which ranges of addresses hold managed code, and where inside or outside
//! of it a thread must not be stopped.
//!
//! The signal handler asks it about one PC (`CodeMap::classify`), the walker about each return
//! address. Both are a search in one or two ordered maps, of managed code and of the unsafe and
//! restart ranges, each of disjoint ranges by their first address. To register code is an
//! insertion, to remove it the reverse: both take time logarithmic in what is registered.
//!
//! # Why the maps may change in place
//!
//! They change only under the registry lock, and a stop holds that lock from before its request is
//! published until after its resume. The handler classifies only when it has read that a stop is
//! under way *and* that its own thread has not yet answered it. That stop cannot end before this
//! thread answers, so the lock is held, and the maps stay as they are, for as long as the handler
//! reads them. A handler that runs late, after its stop, reads that there is nothing to answer and
//! never gets here. What the last holder of the lock has written is seen: the stop took the lock
//! after it, and its request is read by Acquire.
//!
//! How code is removed again is in `removal.rs`.

mod guard;
mod map;
mod removal;
mod spec;

#[cfg(test)]
mod tests;

pub use guard::CodeGuard;
pub(crate) use map::{CODE, CodeMap, Managed, PcClass};
pub use spec::{CodeError, CodeKind, CodeSpec, CodeWhat, FrameRule};
