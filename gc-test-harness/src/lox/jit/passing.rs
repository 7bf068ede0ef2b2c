//! How compiled code passes values to compiled code.
//!
//! What does not fit into the machine's argument registers goes through
//! [`Roots::passed`](crate::lox::isolate::Roots), not over the machine's stack. The callee takes it
//! from there, and leaves nil, before it calls anything. An argument on the machine's stack would
//! live for as long as the call: the outgoing arguments of a frame are scanned conservatively, and
//! no callee can clear them.

use crate::lox::fault::Fault;
use cranelift_codegen::ir::{self, InstBuilder, MemFlagsData, Type, types};
use cranelift_frontend::FunctionBuilder;

use crate::lox::isolate::VM_PASSED;
use crate::lox::value::Value;

/// Machine arguments that travel in registers.
const REGISTERS: usize = 6;

/// Plain memory access that cannot fail.
pub(super) fn plain() -> MemFlagsData {
    MemFlagsData::trusted()
}

/// How many of `count` values travel in registers, behind `fixed` other arguments.
fn in_registers(fixed: usize, count: usize) -> usize {
    if Fault::StackArguments.planted() {
        return count;
    }
    count.min(REGISTERS - fixed)
}

/// The machine parameters of code that takes `fixed` words and `count` values.
pub(super) fn params(fixed: usize, count: usize) -> Vec<Type> {
    vec![types::I64; fixed + in_registers(fixed, count)]
}

/// Passes values: returns the ones for registers. To be done right before the call.
pub(super) fn pass<'v>(
    b: &mut FunctionBuilder<'_>,
    vm: ir::Value,
    fixed: usize,
    values: &'v [ir::Value],
) -> &'v [ir::Value] {
    let (registers, rest) = values.split_at(in_registers(fixed, values.len()));
    for (&value, offset) in rest.iter().zip((VM_PASSED..).step_by(8)) {
        b.ins().store(plain(), value, vm, offset);
    }
    registers
}

/// Takes `count` passed values. `params` are all of the code's machine parameters. To be done
/// before anything else.
pub(super) fn take(
    b: &mut FunctionBuilder<'_>,
    vm: ir::Value,
    fixed: usize,
    params: &[ir::Value],
    count: usize,
) -> Vec<ir::Value> {
    let mut values = params[fixed..].to_vec();
    let rest = count - values.len();
    if rest > 0 {
        let nil = b.ins().iconst(types::I64, Value::NIL.0.cast_signed());
        for offset in (VM_PASSED..).step_by(8).take(rest) {
            values.push(b.ins().load(types::I64, plain(), vm, offset));
            b.ins().store(plain(), nil, vm, offset);
        }
    }
    values
}
