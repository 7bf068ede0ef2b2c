//! gc-preempt

#[allow(dead_code)]
pub mod code;
pub mod context;
#[allow(dead_code)]
pub mod stackmap;
pub mod walk;
