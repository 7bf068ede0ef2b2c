//! Marking: from roots to marked cells, without malloc and without recursion.
//!
//! A marker takes each edge through two rings, which are long enough for a cache line to arrive
//! meanwhile (prefetching on the way from a FIFO behind the mark stack: Cher, Hosking and Vitek
//! 2004; OCaml's `prefetch_buffer`):
//!
//! 1. *found*: the marker prefetches the edge's mark word, and the edge waits in the edge ring;
//! 2. *marked*: the marker tests the mark bit and sets it. If the bit was clear and the kind has
//!    edges, the cell goes to the queue;
//! 3. *followed*: the marker takes the cell from the queue and prefetches its first line, and the
//!    cell waits in the cell ring;
//! 4. the marker reads the cell's words, and each edge begins at step 1.
//!
//! So the queue holds marked cells only, at most one item a cell, and no marker touches a leaf.
//! Markers note weak cells, and an ephemeron's pair waits for a key that is not marked (`weak/`).
//! Everything here may run while the world is stopped: no malloc, no lock, no panic.
//!
//! A locked instruction costs about as much as the rest of a cell's marking. Cells that a marker
//! meets one after another often lie close together. So a marker keeps the new bits of one word of
//! the bitmap back until it comes to another word, and sets them with one instruction. Another
//! marker may meet such a cell meanwhile and follow it, too. One of the two sets the cell's bit and
//! counts the cell.
//!
//! Block marking as in Go's Green Tea lost, and so did testing edges in batches without a branch:
//! docs/experiments.md.

mod bits;
mod budget;
mod dead;
mod ephemerons;
mod local;
mod marker;
pub(crate) mod old;
mod queue;
mod steps;
mod termination;
mod work_item;
mod worker_state;
pub(crate) mod workers;

pub use marker::Marker;
pub use queue::MarkQueue;
pub(crate) use queue::kept_bytes;

#[cfg(test)]
mod tests;
