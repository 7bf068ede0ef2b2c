//! A non-moving, size-class heap and the collector that empties it, for people who write languages.
//!
//! The crate is a house of few rooms: [`heap`] holds memory and answers "which cell does this address name?",
//! [`alloc`] is a mutator's side of it (runs and the bump), [`mark`] traces, [`sweep`] finds what is free again.
//! Threads are stopped by `gc-preempt`, which knows nothing of heaps.

#![allow(dead_code, reason = "the skeleton: callers land room by room")]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "gc-core runs on Linux on x86-64 only: it keeps addresses in 47 bits and stops threads with SIGURG"
);

pub mod alloc;
pub mod encoding;
pub mod heap;
pub mod kind;
pub mod mark;
mod sweep;

pub use alloc::{AllocError, Refill, Run, Runs, Site};
pub use encoding::Encoding;
pub use kind::{Kind, KindError, KindId};
