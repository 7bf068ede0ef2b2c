//! The machine code of a Lox program, for readers of it.

use std::sync::Arc;

use super::compiler::compile;
use super::isolate::{NATIVES, Output, Vm};
use super::jit::{self, JitConfig};
use super::run::{RunConfig, make_heap, on_large_stack};
use super::vm::StartError;
use crate::kernels::codegen::Code;

/// Runs a program, compiles its functions, and calls `f` with all pieces of code while they are
/// registered.
///
/// The program runs to its end first, so that its code has the types and shapes that the program
/// uses. What it prints is lost, and so is a runtime error. With `cold` it does not run.
///
/// The name of a piece is `lox NAME #N`, or `lox NAME loop at N #M`.
///
/// # Errors
/// The messages of the compiler, or why there is no heap or no code generator.
pub fn with_code<R: Send>(
    source: &[u8],
    cold: bool,
    f: impl FnOnce(&[Code]) -> R + Send,
) -> Result<R, String> {
    on_large_stack(|| {
        let text = |messages: Vec<u8>| String::from_utf8_lossy(&messages).into_owned();
        let program = Arc::new(compile(source, &NATIVES).map_err(text)?);
        let lox = make_heap(&RunConfig::default()).map_err(|error| error.to_string())?;
        let mut vm =
            Vm::new(&lox, program, Output::Kept(Vec::new())).map_err(|error| match error {
                StartError::OutOfMemory => "out of memory".to_owned(),
                StartError::Attach(error) => error.to_string(),
            })?;
        let mut jit = jit::attach(&mut vm, JitConfig::default()).map_err(|e| e.to_string())?;
        jit.keep_code();
        if !cold {
            vm.run();
        }
        jit.compile_cold(&mut vm);
        Ok(f(jit.code()))
    })
}
