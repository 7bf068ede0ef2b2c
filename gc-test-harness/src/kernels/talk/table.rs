//! The table of kernels.

use std::fmt;

use clap::ValueEnum;

use super::maker::{Made, Maker};
use super::strategy::Strategy;
use super::{bytes, numbers, references, spinlock};
use crate::kernels::codegen::CodegenError;

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Kernel {
    /// The sum of the numbers below a bound.
    Sum,
    /// The sum of an array.
    Array,
    /// The decoding of base64.
    Base64,
    /// The sieve of Eratosthenes.
    Sieve,
    /// The product of two matrices, by a function for a row.
    Matrix,
    /// The FNV hashes of keys, by a function for a key.
    Hash,
    /// The search for a string, by a function for a place.
    Search,
    /// The walk of a linked list of heap cells.
    List,
    /// The mandelbrot set, by a function for a row.
    Mandelbrot,
    /// A loop that allocates, and stores references with the write barrier.
    Stores,
    /// Takes a spinlock, for the scene of two threads. No part of the table.
    #[value(skip)]
    Spinlock,
}

impl Kernel {
    /// All kernels of the table.
    pub const ALL: [Kernel; 10] = [
        Kernel::Sum,
        Kernel::Array,
        Kernel::Base64,
        Kernel::Sieve,
        Kernel::Matrix,
        Kernel::Hash,
        Kernel::Search,
        Kernel::List,
        Kernel::Mandelbrot,
        Kernel::Stores,
    ];

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Sum => "sum",
            Kernel::Array => "array",
            Kernel::Base64 => "base64",
            Kernel::Sieve => "sieve",
            Kernel::Matrix => "matrix",
            Kernel::Hash => "hash",
            Kernel::Search => "search",
            Kernel::List => "list",
            Kernel::Mandelbrot => "mandelbrot",
            Kernel::Stores => "stores",
            Kernel::Spinlock => "spinlock",
        }
    }

    /// Whether it holds references to heap cells, so that a stop's scan of it can be judged.
    pub fn holds_references(self) -> bool {
        matches!(self, Kernel::List | Kernel::Stores)
    }

    /// Compiles the kernel for a strategy.
    ///
    /// # Errors
    /// The refusal of Cranelift or of the system.
    pub fn compile(self, strategy: Strategy) -> Result<Made, CodegenError> {
        self.compile_at(strategy, 0)
    }

    /// Compiles the kernel as [`compile`](Kernel::compile) does, moved by so many
    /// [`PLACE_BYTES`](super::maker::PLACE_BYTES).
    ///
    /// # Errors
    /// The refusal of Cranelift or of the system.
    pub fn compile_at(self, strategy: Strategy, places: u32) -> Result<Made, CodegenError> {
        let mut maker = Maker::new(strategy)?;
        maker.move_by(places)?;
        self.build(&mut maker)?;
        maker.finish()
    }

    /// Builds the kernel's functions.
    ///
    /// # Errors
    /// Cranelift's refusal.
    pub fn build(self, maker: &mut Maker) -> Result<(), CodegenError> {
        match self {
            Kernel::Sum => numbers::sum(maker),
            Kernel::Array => numbers::array(maker),
            Kernel::Base64 => bytes::base64(maker),
            Kernel::Sieve => numbers::sieve(maker),
            Kernel::Matrix => numbers::matrix(maker),
            Kernel::Hash => bytes::hash(maker),
            Kernel::Search => bytes::search(maker),
            Kernel::List => references::list(maker),
            Kernel::Mandelbrot => numbers::mandelbrot(maker),
            Kernel::Stores => references::stores(maker),
            Kernel::Spinlock => spinlock::spinlock(maker),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
