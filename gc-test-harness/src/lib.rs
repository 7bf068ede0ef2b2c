//! A real language on Urge, machine code as mean as can be, and the laboratory (`gclab`) that
//! stops, measures and tests both.

pub mod kernels;
pub mod lab;
pub mod lox;
pub mod report;
pub mod search;

#[cfg(all(test, feature = "faults"))]
#[global_allocator]
static STRICT: gc_preempt::StrictAllocator = gc_preempt::StrictAllocator;
