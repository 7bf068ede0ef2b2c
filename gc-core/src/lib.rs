//! A non-moving, size-class heap and the collector that empties it, for people who write languages.
//!
//! The crate is a house of few rooms: [`heap`] holds memory and answers "which cell does this address name?",
//! [`alloc`] is a mutator's side of it (runs and the bump), [`mark`] traces, the sweep finds what is free again.
//! Threads are stopped by `gc-preempt`, which knows nothing of heaps.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "gc-core runs on Linux on x86-64 only: it keeps addresses in 47 bits and stops threads with SIGURG"
);

extern crate self as gc_core; // what the derives name

pub mod alloc;
mod api;
pub mod barrier;
mod config;
pub mod context;
mod cycle;
pub mod encoding;
mod fault;
mod finalize;
pub mod heap;
pub mod kind;
mod mapped;
pub mod mark;
mod pacer;
mod roots;
mod stats;
mod sweep;

pub use alloc::{AllocError, Refill, Run, Runs, Site};
pub use api::array::{Array, Bytes};
pub use api::field::Field;
pub use api::gc::{Gc, keep_alive};
pub use api::heap::{BuildError, Heap, HeapBuilder};
pub use api::local::{Local, Scope};
pub use api::mutator::{AttachError, Mutator};
pub use api::root::{RawRoot, RootCallback, RootRange};
pub use api::trace::{Leaf, Trace};
pub use api::typed_root::Root;
pub use api::weak::{Weak, WeakArray};
pub use config::{ConfigError, DEFAULT_RESERVE, MINIMUM_LIMIT, MINIMUM_RESERVE};
pub use context::Context;
pub use encoding::Encoding;
pub use gc_derive::{Leaf, Trace};
pub use kind::{Kind, KindError, KindId};
pub use roots::RootVisitor;
pub use stats::{CollectionStats, HeapStats};

/// The README's example, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
