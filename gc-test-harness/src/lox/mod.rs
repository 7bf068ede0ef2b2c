//! Lox as the book's C implementation runs it, on Urge's heap: bytecode, a virtual machine, a JIT.
//!
//! Source goes through [`scanner`] and [`compiler`] to [`bytecode`], which an isolate ([`vm`]) of a
//! heap that knows Lox's [`cells`] executes. [`run`] does all of it for a file.

pub mod bytecode;
pub mod cells;
mod classes;
pub mod clear;
pub mod compiler;
mod expression;
pub(crate) mod fault;
pub mod fuzz;
pub mod interpreter;
pub mod isolate;
pub mod jit;
mod lookups;
mod make;
pub mod object;
pub mod proto;
pub mod run;
pub mod runtime;
pub mod scanner;
mod statement;
mod strings;
pub mod value;
pub mod vm;
