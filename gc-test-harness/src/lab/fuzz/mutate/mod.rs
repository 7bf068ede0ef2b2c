//! The fuzzer's third sort of case: threads that change their graphs while cycles mark them, each
//! against a model of its own.
//!
//! A thread knows its cells by number. Each has a *stamp* in its last word, which is no edge, and
//! edges of its kind's encoding. All that a thread reaches by its model must be there as the model
//! says, at any time; what a weak word or a finalizer gives must be a cell whole. The model's
//! addresses lie in malloc's memory, which nobody scans: a cell lives by the graph, the thread's
//! roots, or its scratch words, of which only what they held at a cycle's first stop counts. So
//! whatever the barrier, the marker or the allocator forgets is lost soon, and its memory is
//! another cell's. At the end, when the threads are gone, nothing but what the models reach may be
//! left.

mod case;
mod change;
mod finalizers;
mod fixed;
mod graph;
mod operations;
mod pairs;

pub use case::check;
pub use operations::operations;
