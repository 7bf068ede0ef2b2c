//! Programs that could make a reference dangle do not compile, and the compiler says why.
//!
//! The messages are those of the Rust version that the workspace asks for. To write them again:
//! `TRYBUILD=overwrite cargo test -p gc-core --test ui`.

use gc_preempt::StrictAllocator;

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

/// Each program in `tests/ui` is refused with the error beside it.
#[test]
fn what_would_dangle_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
