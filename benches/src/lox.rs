//! The Lox programs that are measured, and the main work of each.

use std::path::{Path, PathBuf};

/// The main work of a program.
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

/// The path of a program. Its expected output is beside it, in a file that ends in `.out`.
pub fn path_of(program: &str) -> PathBuf {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gc-test-harness/programs/bench");
    programs.join(program).with_extension("lox")
}
