//! Roots: the collector scans stacks, root ranges, handles and the words of the embedder's
//! callbacks, and marks the cells that they name.
//!
//! The scan trusts no root. It looks up each word in the heap's tables, whether it comes from a
//! stack, from a stale slot beyond an interpreter's top, or from a handle that an unattached thread
//! has just freed. A word that names no allocated cell marks nothing. A look-up costs a few loads,
//! and a wrong root keeps too much at worst.
//!
//! # The collector scans
//! The collector scans one stack after the other, once all threads are stopped. Threads that scan
//! their own stacks in the signal handler lost, except where several stacks are deep:
//! docs/experiments.md. Every handler would need more stack, would resolve words beside running
//! mutators, and would fill buffers that can overflow.
//!
//! # One wait for all look-ups
//! The heap's tables are in no cache while the heap is marked. A word that may name a cell needs
//! three lines of them (page, allocated bit, mark bit), and all three follow from the word alone.
//! So the scanner prefetches them when it finds the word, and the word waits in a ring (`Ring`).
//!
//! # Slots are scanned beside the program
//! A program may hold roots by the million, so stop 1 scans none of them. It notes, under the
//! tables' lock, which slots are used ([`Roots::snapshot`]), and the collector scans these slots
//! piece by piece while mutators run. A thread that frees or changes a slot of the snapshot which
//! has not been scanned logs the slot's word, under the same lock, as the barrier does with an edge
//! that is overwritten. A new root needs nothing: its cell was reachable when marking began, or was
//! allocated black. So a copy needs nothing either; if its source is freed before the scan, the
//! source is logged.
//!
//! The stop scans ranges and callbacks, since their words change at any instruction, without a
//! barrier.
//!
//! # Who may change the tables
//! All tables are under one lock. A mutator holds it inside `no_preempt` only, and an unattached
//! thread (which is never stopped) at any time. The collector holds it while it notes the snapshot,
//! for each piece of the scan, and while it scans ranges and callbacks. Without `no_preempt` the
//! collector would wait for ever for a mutator that it has stopped itself. An unattached thread
//! logs while it holds the lock, and only while the snapshot is not scanned to its end. So no word
//! is on its way into the log when the collector has scanned the last piece, and stop 2 finds all
//! words there.

mod declared;
mod lister;
mod logged;
mod scanner;
mod tables;
mod visitor;

pub(crate) use lister::Lister;
pub(crate) use logged::{logged, names_unmarked, prefetch_logged, prefetch_unmarked};
pub(crate) use scanner::{Scanned, Scanner, Unscanned};
pub(crate) use tables::{RangeRoot, Roots};
pub use visitor::RootVisitor;

#[cfg(test)]
mod tests;
