//! Reads LLVM's stack maps from arbitrary bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_preempt::fuzz::llvm(data));
