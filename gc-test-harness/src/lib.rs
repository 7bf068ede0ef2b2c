//! gc-test-harness
