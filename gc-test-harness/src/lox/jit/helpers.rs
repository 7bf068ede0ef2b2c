//! The native functions that compiled code calls.
//!
//! Most are the functions of [`runtime`], which the interpreter calls as well (some through
//! [`sites`]). So interpreted and compiled code fail with the same messages.

use crate::lox::fault::Fault;
use cranelift_codegen::ir::{Type, types};
use cranelift_module::FuncId;

use super::sites;
use crate::kernels::codegen::{Arena, CodegenError};
use crate::lox::clear;
use crate::lox::runtime;

/// The native functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Helper {
    Add,
    OperandsError,
    OperandError,
    StackOverflow,
    UndefinedVariable,
    Trace,
    GetProperty,
    SetProperty,
    GetSuper,
    Call,
    Closure,
    CloseUpvalues,
    Class,
    Inherit,
    Method,
    Print,
    NewInstance,
    /// The heap's barrier. Its first argument is the mutator's context, not the isolate.
    Store,
    WatchedGetProperty,
    WatchedSetProperty,
    WatchedInvoke,
    WatchedSuperInvoke,
}

/// A function's name, address, parameters behind the isolate, and whether it returns a value. The
/// rows are in the order of [`Helper`].
type Row = (&'static str, *const u8, &'static [Type], bool);

/// `cleared`, the function that clears dead native stack and jumps to `plain`; with the planted
/// fault, `plain`.
fn cleared(cleared: *const u8, plain: *const u8) -> *const u8 {
    if Fault::StaleNativeStack.planted() {
        plain
    } else {
        cleared
    }
}

fn table() -> [Row; 22] {
    use types::{I32, I64};
    [
        (
            "add",
            cleared(clear::add as *const u8, runtime::add as *const u8),
            &[I64, I64],
            true,
        ),
        (
            "operands_error",
            runtime::operands_error as *const u8,
            &[],
            true,
        ),
        (
            "operand_error",
            runtime::operand_error as *const u8,
            &[],
            true,
        ),
        (
            "stack_overflow",
            runtime::stack_overflow as *const u8,
            &[],
            true,
        ),
        (
            "undefined_variable",
            runtime::undefined_variable as *const u8,
            &[I32],
            true,
        ),
        ("trace", runtime::trace as *const u8, &[I64, I32], false),
        (
            "get_property",
            cleared(
                clear::get_property as *const u8,
                runtime::get_property as *const u8,
            ),
            &[I64, I64, I32],
            true,
        ),
        (
            "set_property",
            runtime::set_property as *const u8,
            &[I64, I64, I64, I32],
            true,
        ),
        (
            "get_super",
            runtime::get_super as *const u8,
            &[I64, I64, I64, I32],
            true,
        ),
        (
            "call",
            cleared(clear::call as *const u8, runtime::call as *const u8),
            &[I64, I32],
            true,
        ),
        (
            "closure",
            cleared(clear::closure as *const u8, runtime::closure as *const u8),
            &[I64, I64, I64],
            true,
        ),
        (
            "close_upvalues",
            runtime::close_upvalues as *const u8,
            &[I64],
            false,
        ),
        ("class", runtime::class as *const u8, &[I64, I32, I32], true),
        ("inherit", runtime::inherit as *const u8, &[I64, I64], true),
        (
            "method",
            runtime::method as *const u8,
            &[I64, I64, I32],
            true,
        ),
        ("print", runtime::print as *const u8, &[I64], false),
        (
            "new_instance",
            cleared(
                clear::new_instance as *const u8,
                runtime::new_instance as *const u8,
            ),
            &[I64],
            true,
        ),
        (
            "store",
            gc_core::jit::store_address() as *const u8,
            &[I64, I64],
            false,
        ),
        (
            "watched get_property",
            sites::get_property as *const u8,
            &[I64, I64, I32],
            true,
        ),
        (
            "watched set_property",
            sites::set_property as *const u8,
            &[I64, I64, I64, I32],
            true,
        ),
        (
            "watched invoke",
            sites::invoke as *const u8,
            &[I64, I32, I64, I32],
            true,
        ),
        (
            "watched super_invoke",
            sites::super_invoke as *const u8,
            &[I64, I32, I64, I64, I32],
            true,
        ),
    ]
}

/// The native functions as an arena's imports.
#[derive(Clone, Debug)]
pub(super) struct Helpers(Vec<FuncId>);

impl Helpers {
    /// Imports the functions into the arena.
    pub(super) fn import(arena: &mut Arena) -> Result<Helpers, CodegenError> {
        let mut ids = Vec::new();
        for (name, address, params, returns) in table() {
            let params: Vec<Type> = std::iter::once(types::I64)
                .chain(params.iter().copied())
                .collect();
            let returns: &[Type] = if returns { &[types::I64] } else { &[] };
            let signature = arena.signature(&params, returns);
            ids.push(arena.import(name, address, &signature)?);
        }
        Ok(Helpers(ids))
    }

    /// The import of a function.
    pub(super) fn id(&self, helper: Helper) -> FuncId {
        self.0[helper as usize]
    }
}
