//! Cranelift's facts of functions out of arbitrary bytes, and a walk by them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_preempt::fuzz::cranelift(data));
