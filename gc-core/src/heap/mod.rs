//! The heap's memory: one reserved address range, cut into spans of equal cells, with side tables
//! that turn any address into its cell by arithmetic.
//!
//! ```text
//! address range   | span of 16-byte cells | span of 48-byte cells | large object .... | free | never taken ...
//! page table      one word per 4 KiB: class, kind, distance to the span's start
//! records         32 bytes per 4 KiB, touched at the ends of spans: length, links
//! two bitmaps     one bit per 16 bytes: which cells are allocated, which are marked
//! ```
//!
//! An address names a cell if its page is published, the multiplication gives a cell of the span,
//! and that cell's allocated bit is set. No header, no search, no lock. Whatever else a word may
//! be, it is told apart here: the bits of free cells are clear, a span's tail has no cell, a page
//! that is not in use has no word.
//!
//! The two bitmaps swap their roles when marking ends: what was marked is then allocated, and all
//! else is free, at once.

mod allocated_black;
mod allocation_count;
mod bitmap;
mod large;
mod page_runs;
mod page_table;
mod prefault;
mod range;
mod scavenge;
mod size_classes;
mod space;
mod span_lists;
mod span_reserve;

pub use crate::limits::MAX_RESERVE;
#[cfg(any(test, feature = "internals"))]
pub use crate::limits::MIN_RESERVE;
pub(crate) use allocation_count::Unreported;
pub(crate) use bitmap::{Bitmap, WORDS_PER_PAGE, take_first_run};
pub use large::{LargeReservation, LargeStep};
pub(crate) use page_runs::CHUNK_PAGES;
pub(crate) use page_table::Page;
pub use prefault::ColdPages;
pub(crate) use scavenge::ScavengePace;
pub(crate) use size_classes::{Class, TABLE as CLASS_TABLE};
pub use size_classes::{GRANULE, MAX_SMALL, PAGE};
#[cfg(test)]
pub(crate) use space::tests;
pub use space::{Cell, POISON, Space, SpaceConfig};
pub(crate) use space::{kinds_for, live_heaps};
pub use span_lists::Site;
pub(crate) use span_reserve::SpanReserve;
