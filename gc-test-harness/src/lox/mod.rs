//! Lox as the book's C implementation runs it, on Urge's heap: bytecode, a virtual machine, a JIT.

pub mod bytecode;
pub mod compiler;
mod expression;
pub mod object;
pub mod scanner;
pub mod value;
pub mod vm;
