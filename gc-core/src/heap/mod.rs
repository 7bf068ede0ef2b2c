//! A heap's memory: one reserved address range, cut into spans of equal cells, with side tables
//! that turn any word into the cell that it names.
//!
//! ```text
//! address range   | span of 16-byte cells | span of 48-byte cells | large object | free | unused
//! page table      one word per 4 KiB: size class, kind, distance to the span's first page
//! records         32 bytes per 4 KiB, written at the ends of page runs: length, state, links
//! two bitmaps     one bit per 16 bytes: which cells are allocated, which are marked
//! ```
//!
//! # What `Space` promises
//!
//! * A word names a cell if its page has a word in the page table, the multiplication gives a cell
//!   of the span, and the allocated bit of that cell is set ([`Space::resolve`]). There is no
//!   header, no search and no lock. The bit of a free cell is clear, the end of a span that is no
//!   cell has no bit, and the page of a free page run has no word.
//! * Memory of a new cell is zero, unless its kind is
//!   [`leaf_uninit`](crate::raw::Kind::leaf_uninit).
//! * A cell never moves, and its kind and size never change.
//! * Freeing is one step: when marking ends, the two bitmaps swap their roles. The marked cells are
//!   then the allocated ones, and all others are free ([`Space::swap`]).
//! * A table that a stop reads or writes is mapped memory. No method that a stop calls mallocs, nor
//!   one that a mutator calls under `no_preempt`.
//!
//! # Which thread calls what
//!
//! | caller | calls |
//! |---|---|
//! | any thread, at any time | `resolve`, `is_allocated`, `is_marked`, `contains`, the figures |
//! | a mutator under `no_preempt` | `site`, `next_span`, `publish_large`, `sweep_piece` |
//! | a mutator outside `no_preempt` | `add_kind`, `clear_large` |
//! | a mutator in a blocking region | `back_taken` |
//! | the collector outside of stops | `sweep_piece_aside`, `clear_spare_piece`, `scavenge_piece` |
//! | the collector in a stop | `begin_marking_and`, `swap`, walks over all cells |
//!
//! A mutator takes a lock that the stopper takes, too, under `no_preempt` only. So a stopped
//! mutator holds no such lock.
//!
//! # Files
//!
//! | file | what it has |
//! |---|---|
//! | `size_classes.rs` | sizes of cells and spans, division by multiplication |
//! | `page_table.rs` | a page's word |
//! | `page_runs.rs` | which pages are free: records, dirty pages, free lists |
//! | `bitmap.rs` | a bit for each granule |
//! | `span_lists.rs` | sites, and the spans of each |
//! | `span_reserve.rs` | free pages that one mutator cuts its spans from |
//! | `allocation_count.rs` | bytes that mutators got since the last swap |
//! | `allocated_black.rs` | which cells were allocated while marking |
//! | `large.rs` | large objects |
//! | `prefault.rs` | memory that is backed before it is touched |
//! | `scavenge.rs` | the pace at which memory goes back to the system |
//! | `range.rs` | the address range and the tables that cover it |
//! | `space.rs` | `Space`: its fields, its construction, `resolve` |
//! | `space/` | the methods of `Space` on the data of the file with the same name |
//! | `space/sweep.rs`, `space/sticky.rs` | sweeping, and marks that stay for young collections |
//! | `space/iterate.rs`, `space/edges.rs` | walks over all cells, the edges of one cell |

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

#[cfg(any(test, feature = "internals"))]
pub use crate::limits::MIN_RESERVE;
pub use crate::limits::{MAX_RESERVE, POISON};
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
pub use space::{Cell, Space, SpaceConfig};
pub(crate) use space::{kinds_for, live_heaps};
pub use span_lists::Site;
pub(crate) use span_reserve::SpanReserve;
