//! gc-preempt

pub mod code;
pub mod context;
pub mod stackmap;
pub mod walk;
