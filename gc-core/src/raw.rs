//! The raw tier: for virtual machines with cells and tagged words of their own.
//!
//! A cell is described by a [`Kind`], which [`Heap::kind`](crate::Heap::kind) registers. An edge is
//! one aligned word in an [`Encoding`]. Cells come from
//! [`Mutator::alloc_raw`](crate::Mutator::alloc_raw), or by a [`Site`] from
//! [`Mutator::alloc_at`](crate::Mutator::alloc_at). A published cell's edges are changed by
//! [`Mutator::write`](crate::Mutator::write), the write barrier. Roots are registers, stacks,
//! [`RawRoot`]s, [`RootRange`]s and what [`RootCallback`]s report.
//!
//! Functions of this tier are unsafe where the collector trusts what it is told: a reference that
//! no root leads to dangles after the next collection.
//!
//! ```
//! use gc_core::Heap;
//! use gc_core::raw::{Encoding, Kind};
//!
//! let heap = Heap::builder().build()?;
//! // Two words, both edges; the lowest bit of a word is a tag.
//! let pair = heap.kind(Kind::words_at("pair", &[0, 1], Encoding::low_bits(1)))?;
//! let mutator = heap.attach()?;
//! // SAFETY: the cells are of this heap and large enough; the stack roots them.
//! unsafe {
//!     let first = mutator.alloc_raw(pair, 16)?.cast::<usize>();
//!     let second = mutator.alloc_raw(pair, 16)?.cast::<usize>();
//!     mutator.write(first.as_ptr(), second.as_ptr() as usize | 1);
//!     assert_eq!(first.read(), second.as_ptr() as usize | 1);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use crate::api::root::{RawRoot, RootCallback, RootRange};
pub use crate::encoding::Encoding;
pub use crate::error::SiteError;
pub use crate::heap::{Cell, MAX_SMALL, Site};
pub use crate::kind::{Kind, KindError, KindId, TraceFn};
pub use crate::roots::RootVisitor;
pub use crate::tracer::Tracer;
