//! The fuzzer's third sort of case: threads that change their graphs while cycles mark them, each
//! against a model of its own.
//!
//! A thread knows its cells by number. Each cell has a *stamp* in its last word, which is no edge,
//! and edges of its kind's encoding. Every cell that a thread's model reaches must hold at any time
//! what the model says. A cell that a weak word or a finalizer gives must be whole.
//!
//! The model's addresses lie in malloc's memory, which no collection scans. A cell lives by the
//! graph, by the thread's roots, or by its scratch words, whose content counts at a cycle's first
//! stop only. So a cell that the barrier, the marker or the allocator forgets is freed soon, and
//! another cell takes its memory. When the threads are gone, only the cells that the models reach
//! may be left.

mod case;
mod change;
mod finalizers;
mod fixed;
mod graph;
mod operations;
mod pairs;

pub use case::check;
pub use operations::operations;
