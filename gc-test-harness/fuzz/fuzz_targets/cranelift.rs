//! Reads Cranelift's facts of functions from arbitrary bytes, and walks a stack with them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_preempt::fuzz::cranelift(data));
