//! Heaps, cells and words out of arbitrary bytes; what they mark is compared with an exact model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_test_harness::lab::fuzz::fuzz_one(data));
