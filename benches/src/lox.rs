//! The Lox programs that are measured, and what each mostly does.

use std::path::{Path, PathBuf};

/// What a program mostly does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heavy {
    /// Allocates.
    Allocation,
    /// Calls.
    Calls,
    /// Something else.
    Else,
}

/// Every program of `programs/bench`.
pub const PROGRAMS: [(&str, Heavy); 10] = [
    ("binary_trees", Heavy::Allocation),
    ("closures", Heavy::Allocation),
    ("lists", Heavy::Allocation),
    ("scheduler", Heavy::Allocation),
    ("strings", Heavy::Allocation),
    ("fib", Heavy::Calls),
    ("method_calls", Heavy::Calls),
    ("queens", Heavy::Calls),
    ("mandelbrot", Heavy::Else),
    ("properties", Heavy::Else),
];

/// Where a program is; what it must print stands beside it, in a file that ends in `.out`.
pub fn path_of(program: &str) -> PathBuf {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gc-test-harness/programs/bench");
    programs.join(program).with_extension("lox")
}
