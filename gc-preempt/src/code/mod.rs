//! The process's code map: the ranges of addresses that hold managed code, unsafe ranges and
//! restart ranges.
//!
//! The signal handler looks up one PC (`CodeMap::classify`), the walker each return address. Both
//! search one or two ordered maps, of managed code, and of unsafe and restart ranges. Each map
//! holds disjoint ranges by their first address. Registering and removing code take time
//! logarithmic in the number of ranges.
//!
//! # Why the maps may change in place
//!
//! The maps change only under the registry lock, and a stop holds that lock from before its request
//! until after its resume. The handler reads the maps only after it has read that a stop asks for
//! its thread, and before it acknowledges. That stop cannot end before the acknowledgement, so the
//! lock is held while the handler reads. A handler that runs after its stop reads that no stop
//! asks, and does not read the maps. The changes of the last holder of the lock are visible: the
//! stop took the lock after it, and the handler reads the request with Acquire.
//!
//! A handler that no stop protects, since its thread is to be preempted, counts itself as a reader
//! (`readers.rs`).
//!
//! `removal.rs` says how code is removed.

mod guard;
mod map;
mod readers;
mod removal;
mod spec;

#[cfg(test)]
mod tests;

pub use guard::CodeGuard;
pub(crate) use map::{CODE, CodeMap, Managed, PcClass};
pub use spec::{CodeError, CodeKind, CodeSpec, CodeWhat, FrameRule};
