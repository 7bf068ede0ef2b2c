//! Walks an arbitrary stack with a stack map and unwind tables from arbitrary bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_preempt::fuzz::frames(data));
