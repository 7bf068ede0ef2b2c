//! A walk of an arbitrary stack, by a stack map and unwind tables out of arbitrary bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_preempt::fuzz::frames(data));
