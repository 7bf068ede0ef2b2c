//! Ten typed kernels, each compiled for each strategy to interrupt a loop, and each with a Rust
//! function that gives the same answer.

pub mod control;
pub mod maker;
pub mod numbers;
pub mod strategy;

use std::fmt;

use clap::ValueEnum;

use super::codegen::CodegenError;
pub use control::{Control, Input};
pub use maker::{Made, Maker};
pub use strategy::Strategy;

/// A kernel of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Kernel {
    /// The sum of the numbers below a bound.
    Sum,
}

impl Kernel {
    /// All kernels.
    pub const ALL: [Kernel; 1] = [Kernel::Sum];

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Sum => "sum",
        }
    }

    /// Whether it holds references to heap cells, so that a stop's scan of it can be judged.
    pub fn holds_references(self) -> bool {
        false
    }

    /// Compiles the kernel for a strategy.
    ///
    /// # Errors
    /// The refusal of Cranelift or of the system.
    pub fn compile(self, strategy: Strategy) -> Result<Made, CodegenError> {
        let mut maker = Maker::new(strategy)?;
        match self {
            Kernel::Sum => numbers::sum(&mut maker)?,
        }
        maker.finish()
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
