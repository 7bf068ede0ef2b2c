//! The stack-map table: for a return address into managed code, where the frame's references lie.

pub mod cranelift;

/// The stack maps of one range of managed code.
#[derive(Debug, Default)]
pub struct StackMaps {}
