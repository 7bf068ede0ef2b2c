//! Roots: what stacks, root ranges, handles and the embedder's callbacks hold, turned into marked
//! cells while the world is stopped.
//!
//! No root is believed. A word of a stack, a stale slot beyond an interpreter's top, a handle that
//! an unattached thread has just freed: each is looked up in the heap's tables, and one that does
//! not name an allocated cell marks nothing. That costs a few loads a word and buys that a wrong
//! root keeps too much at worst.
//!
//! # Who scans
//! The collector, one stack after the other, once all are stopped: 0.7 us a thread with a shallow
//! stack (about 300 words, most of them vector registers in use, and six native frames), where the
//! signal that stopped it took 13 us; 50 ns a native frame, 17 a managed one at a call site that
//! was met before. The other way was tried in an experiment: each thread walks its own stack in the
//! handler before it acknowledges, and leaves what it finds in a buffer. One thread gains nothing
//! by it (34 us either way, depth 10; 283 against 273 us at a depth of 5,000), and 4 or 16 threads
//! of shallow stacks lost by it, in the median. Several deep stacks at once gained: 4 threads of
//! 5,000 frames on 2 processors, 1,128 us for one scanner and 783 for all at once. That was the
//! best of 180 rounds on a busy machine, which says where it may pay and not how much. For that
//! every handler would need more stack, resolve words beside running mutators and fill buffers that
//! can overflow, so one scanner it is until deep stacks on many processors matter.
//!
//! # One wait for all look-ups
//! While the heap is marked its tables are nowhere near: a word that may name a cell needs three
//! lines of them (unit, allocated bit, mark bit), each of which took 0.3 to 0.4 us to come at 1
//! GiB. All three follow from the word alone. So they are asked for when the word is met, and the
//! word waits in a ring (`Ring`) until it is its turn: 14 such words of one shallow stack took 17
//! us one by one.
//!
//! # Slots are scanned beside the program
//! A program may hold roots by the million, so stop 1 looks at none of them. It notes, under the
//! tables' lock, which slots there are ([`Roots::snapshot`]), and the collector scans those piece
//! by piece while mutators run. Who frees or changes a slot of the snapshot that has not been
//! scanned yet logs what it held, under the same lock, as the barrier does with an edge that is
//! overwritten. A new root needs nothing: what it names was reachable when marking began, or was
//! born black. So a copy needs nothing either, though its source may be freed before it is scanned:
//! that is when it is logged.
//!
//! Ranges and callbacks are scanned in the stop: what they name changes at any instruction, without
//! a barrier.
//!
//! # Who may change the tables
//! All tables are under one lock. A mutator holds it inside `no_preempt` only, an unattached thread
//! (which is never stopped) at any time, and the collector while it notes the snapshot, for each
//! piece of it, and while it scans ranges and callbacks. Without `no_preempt` the collector would
//! wait for ever for a mutator that it has stopped itself. An unattached thread logs while it holds
//! the lock, and only while the snapshot is not scanned to its end; so no word is on its way into
//! the log when the collector has scanned the last piece, and stop 2 finds them all.

mod logged;
mod scanner;
mod tables;
mod visitor;

pub(crate) use logged::{logged, names_unmarked, prefetch_logged, prefetch_unmarked};
pub(crate) use scanner::{Scanned, Scanner, Unscanned};
pub(crate) use tables::{RangeRoot, Roots};
pub use visitor::RootVisitor;

#[cfg(test)]
mod tests;
