//! Whether a test has taken a cure out: gc-preempt's switches, under the name that this crate uses
//! them by.

pub(crate) use gc_preempt::faults::planted;
