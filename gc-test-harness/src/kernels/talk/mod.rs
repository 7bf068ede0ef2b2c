//! Ten typed kernels, each compiled for each strategy to interrupt a loop, and each with a Rust
//! function that gives the same answer.

pub mod bytes;
pub mod control;
pub mod maker;
pub mod numbers;
pub mod poll_page;
pub mod references;
pub mod spinlock;
pub mod strategy;
pub mod table;
pub mod work;

pub use control::{Control, Input};
pub use maker::{Made, Maker};
pub use poll_page::PollPage;
pub use strategy::Strategy;
pub use table::Kernel;
pub use work::{Cells, Work, WorkError};
