//! gc-preempt
