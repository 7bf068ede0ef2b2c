//! A Lox implementation on Urge, kernels of machine code that are hard on a collector, and the
//! laboratory (`gclab`) that stops, measures and tests both.

pub(crate) mod fault;
pub mod kernels;
pub mod lab;
pub mod lox;
pub mod report;
pub mod sched;
pub mod search;

#[cfg(all(test, feature = "faults"))]
#[global_allocator]
static STRICT: gc_preempt::StrictAllocator = gc_preempt::StrictAllocator;
