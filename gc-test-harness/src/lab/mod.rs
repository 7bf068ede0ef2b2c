//! The laboratory behind `gclab`: what stops threads, measures the stops, and tells people and programs about it.

mod bare;
pub mod demo;
pub mod floor;
pub mod fuzz;
pub mod limit;
pub mod mark;
pub mod pause;
pub mod pauses;
pub mod report;
pub mod trees;
