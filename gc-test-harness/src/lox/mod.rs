//! Lox on Urge's heap: a bytecode compiler, an interpreter and a JIT. The behaviour is that of
//! clox, the C implementation in Nystrom's *Crafting Interpreters* ("the book" in this module).
//!
//! The [`scanner`] and the [`compiler`] turn source into [`bytecode`]. An isolate ([`vm`]) executes
//! the bytecode, on a heap in which Lox's [`cells`] are registered. [`run`] does all of this for a
//! file. [`green`] adds green threads and channels, which clox does not have.

pub mod bytecode;
pub mod cells;
mod classes;
pub mod clear;
pub mod compiler;
mod expression;
pub(crate) mod fault;
pub mod fuzz;
pub mod green;
mod greens;
pub mod interpreter;
pub mod isolate;
pub mod jit;
pub mod listing;
mod lookups;
mod make;
pub mod object;
pub mod points;
pub mod proto;
pub mod run;
pub mod runtime;
pub mod scanner;
mod statement;
mod strings;
pub mod value;
pub mod vm;
