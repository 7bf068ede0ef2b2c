//! The baselines: the least work of a heap, a marker and a stop on this machine. The library's own
//! times are divided by theirs.

pub mod heap;
pub mod mark;
pub mod signal;
