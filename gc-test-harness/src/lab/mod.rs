//! The laboratory behind `gclab`: what stops threads, measures the stops, and tells people and
//! programs about it.

pub mod baselines;
pub mod churn;
pub mod concurrent;
pub mod crew;
pub mod demo;
pub mod fragment;
pub mod fuzz;
pub mod gauge;
pub mod mark;
pub mod pause;
pub mod pauses;
pub mod progress;
pub mod random;
pub mod soak;
pub mod trees;
pub mod warm;
