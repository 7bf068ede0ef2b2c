//! The baselines: the least that a heap, a marker and a stop must do on this machine. Each measures
//! what the library's own times are divided by.

pub mod heap;
pub mod mark;
pub mod signal;
