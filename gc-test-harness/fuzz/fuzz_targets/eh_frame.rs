//! Reads unwind tables from arbitrary bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_preempt::fuzz::eh_frame(data));
