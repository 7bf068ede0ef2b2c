//! Fills heaps from arbitrary bytes, and compares the cells that arbitrary words mark with an exact
//! model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_test_harness::lab::fuzz::fuzz_one(data));
