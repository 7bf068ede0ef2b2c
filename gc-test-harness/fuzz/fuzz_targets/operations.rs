//! Operations on a heap out of arbitrary bytes; what it gives, keeps and frees is compared with an
//! exact model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gc_test_harness::lab::fuzz::operations(data));
