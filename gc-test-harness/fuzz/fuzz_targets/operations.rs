//! Runs operations from arbitrary bytes on a heap, and compares the cells that it keeps and frees
//! with an exact model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_test_harness::lab::fuzz::operations(data));
