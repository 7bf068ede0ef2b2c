//! The laboratory behind `gclab`: what stops threads, measures the stops, and tells people and programs about it.

pub mod demo;
pub mod floor;
pub mod fuzz;
pub mod pause;
pub mod report;
