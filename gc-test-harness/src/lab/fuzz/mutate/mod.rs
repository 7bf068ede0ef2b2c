//! Fuzz cases with threads that change their graphs while the collector marks. Each thread has a
//! model of its own.
//!
//! A thread's model identifies cells by numbers. Each cell has a *stamp* in its last word, which is
//! not an edge, and edges in its kind's encoding. Every cell that a thread's model reaches must
//! have the model's content at any time. A cell that a weak word or a finalizer gives must be
//! intact.
//!
//! The model's addresses lie in malloc's memory, which no collection scans. The graph, the thread's
//! roots or its scratch words keep a cell. The content of scratch words counts only at the first
//! stop of a cycle. So a cell that the barrier, the marker or the allocator misses is freed soon,
//! and another cell takes its memory. When the threads have ended, only the cells that the models
//! reach may be left.

mod case;
mod change;
mod finalizers;
mod fixed;
mod graph;
mod operations;
mod pairs;

pub use case::check;
pub use operations::operations;
