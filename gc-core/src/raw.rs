//! The raw tier: for virtual machines with cells and tagged words of their own.
//!
//! A [`Kind`] describes cells, and [`Heap::kind`](crate::Heap::kind) registers it. An edge is one
//! aligned word in an [`Encoding`]. [`Mutator::alloc_raw`](crate::Mutator::alloc_raw) allocates a
//! cell of a kind; [`Mutator::alloc_at`](crate::Mutator::alloc_at) allocates one of a [`Site`],
//! which is faster. [`Mutator::write`](crate::Mutator::write), the write barrier, changes an edge
//! of a published cell. Roots are registers, stacks, [`RawRoot`]s, [`RootRange`]s and the words
//! that [`RootCallback`]s report.
//!
//! Most functions of this tier are unsafe, because the collector trusts their arguments. A
//! reference that is neither in a root nor in a live cell dangles after the next collection.
//!
//! ```
//! use gc_core::Heap;
//! use gc_core::raw::{Encoding, Kind};
//!
//! let heap = Heap::builder().build()?;
//! // Two words, both edges; the lowest bit of a word is a tag.
//! let pair = heap.kind(Kind::words_at("pair", &[0, 1], Encoding::low_bits(1)))?;
//! let mutator = heap.attach()?;
//! // SAFETY: the cells are of this heap and large enough, and this stack leads to them.
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
