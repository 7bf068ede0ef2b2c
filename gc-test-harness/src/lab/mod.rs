//! The laboratory behind `gclab`: programs that stop threads, measure the stops, and report them as
//! text or JSON.

pub mod baselines;
pub mod churn;
pub mod concurrent;
pub mod crew;
pub mod demo;
pub mod explain;
pub mod fragment;
pub mod fuzz;
pub mod gauge;
pub mod green;
pub mod mark;
pub mod oracle;
pub mod pause;
pub mod pauses;
pub mod progress;
pub mod random;
pub mod soak;
pub mod talk;
pub mod trees;
pub mod warm;
pub mod whole;
