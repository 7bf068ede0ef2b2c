//! The passing of values from compiled code to compiled code.
//!
//! Values that do not fit into the machine's argument registers are passed in
//! [`Roots::passed`](crate::lox::isolate::Roots), not on the machine's stack. The callee takes them
//! and writes nil over them before it calls any function. A value on the machine's stack would live
//! for as long as the call: the outgoing arguments of a frame are scanned conservatively, and a
//! callee cannot clear them.

use crate::lox::fault::Fault;
use cranelift_codegen::ir::{self, InstBuilder, MemFlagsData, Type, types};
use cranelift_frontend::FunctionBuilder;

use crate::lox::isolate::VM_PASSED;
use crate::lox::value::Value;

/// The number of machine arguments in registers.
const REGISTERS: usize = 6;

/// The flags of an aligned memory access that cannot trap.
pub(super) fn plain() -> MemFlagsData {
    MemFlagsData::trusted()
}

/// The number of the `count` values that are passed in registers, behind `fixed` other arguments.
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

/// Stores the values that are not passed in registers and returns the others. The call must follow
/// directly.
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

/// Takes `count` passed values. `params` are all machine parameters of the code. This must be the
/// first thing that the callee does.
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
