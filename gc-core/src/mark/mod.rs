//! Tracing: from roots to marked cells, without malloc and without recursion.
//!
//! An edge goes through two rings, each long enough for a cache line to arrive meanwhile
//! (prefetching on the way from a FIFO behind the mark stack: Cher, Hosking and Vitek 2004; OCaml's
//! `prefetch_buffer`):
//!
//! 1. *found*: its mark word is prefetched (in a heap of some GiB its unit's word, too), and it
//!    waits in the edge ring;
//! 2. *marked*: its bit is tested and set; if it was clear and the kind has edges, the cell goes to
//!    the queue;
//! 3. *followed*: taken from the queue, the cell's first line is prefetched, and it waits in the
//!    cell ring;
//! 4. its words are read, and each edge begins at 1.
//!
//! So the queue holds marked cells only, at most one entry a cell, and a leaf is never touched.
//! Weak cells are noted, and pairs of ephemerons whose keys are not marked wait for them (`weak/`).
//! Everything here may run while the world is stopped: no malloc, no lock, no panic.
//!
//! A locked instruction costs as much as the rest of a cell's marking (5.4 ns of 10 to 15). Cells
//! that are met one after another often lie close together, so a marker holds the new bits of one
//! word of the bitmap back until it comes to another word, and sets them with one instruction.
//! Others may come upon such a cell meanwhile and follow it too; its bit, and its count, are one
//! marker's all the same.
//!
//! # What was tried and lost
//!
//! Testing a batch of edges at a time, without a branch, and setting the bits of the unmarked ones
//! in a second loop: 13.0 against 9.8 ns a cell without locked instructions, 17.2 against 15.6 ns
//! with them.
//!
//! Marking by block, as Go's Green Tea does: blocks of 8 KiB in a FIFO, and of the block at its
//! head all cells that are marked and not scanned yet, with edges prefetched as here. As bare loops
//! over cells of 32 bytes, in alternation, in nanoseconds a cell:
//!
//! | graph | 64 MiB: stack | blocks | 512 MiB: stack | blocks | cells a block's visit |
//! |---|---|---|---|---|---|
//! | random edges to older cells, a table of all | 35 | 43 | 43 | 49 | 256 |
//! | the same, from the youngest thousand | 17 | 108 | 48 | 65 | 6 |
//! | random edges to any cell | 50 | 76 | 50 | 75 | 26 |
//! | a binary tree as it was built | 24 | 45 | 20 | 35 | 28 |
//! | a binary tree, its cells scattered | 39 | 53 | 54 | 74 | 37 |
//! | small trees, one in eight alive | 40 | 30 | 33 | 54 | 13 |
//!
//! A second bitmap, a queue's flag a block and the visits of blocks with a few cells cost more than
//! order in memory saves, for prefetching has hidden most of what there was to save.

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
