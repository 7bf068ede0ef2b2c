//! The state of a translation, and its parts: machine values, operands, calls.
//!
//! The operand stack is executed abstractly: each slot is an [`Operand`], which names the machine
//! values that hold the slot's value.
//!
//! An [`Operand`] without a machine value is dead: by the liveness analysis, no instruction uses
//! it. If a translation needs its word, the translation contradicts its analysis: it sets
//! [`Unit::contradicted`], and the code is never entered.
//!
//! # References
//!
//! Each machine value that may be a boxed reference is declared to Cranelift
//! ([`Translator::declared`]). Addresses computed from a reference are used at once: none is live
//! across a call. The cells among the constants are roots of the isolate for as long as the code
//! exists, so they are immediate operands and are not declared.
//!
//! # Errors
//!
//! A function that fails returns [`Value::ERROR`], and its caller tests for it. For each line and
//! cause there is one cold block, which adds a line to the stack trace. The cold blocks are
//! generated last.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::lox::fault::Fault;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, BlockArg, FuncRef, InstBuilder, SigRef, types};
use cranelift_frontend::FunctionBuilder;
use cranelift_module::FuncId;

use super::analysis::{Analysis, Form, Type};
use super::helpers::{Helper, Helpers};
use super::oracle::Shadow;
use super::passing::plain;
use super::sites::Sites;
use super::stubs::Stubs;
use crate::kernels::codegen::Body;
use crate::lox::bytecode::{Function, Op};
use crate::lox::isolate::Vm;
use crate::lox::object::{CLOSURE_UPVALUES, UPVALUE_LOCATION};
use crate::lox::proto::Proto;
use crate::lox::value::{QNAN, REFERENCE, Value};

/// The inputs of a translation.
pub(super) struct Unit<'a> {
    /// The isolate that the code is for.
    pub(super) vm: *mut Vm,
    pub(super) proto: *mut Proto,
    pub(super) function: &'a Function,
    pub(super) analysis: Analysis,
    /// The instruction where execution begins: 0, or the head of a loop.
    pub(super) start: usize,
    /// The instructions that are translated: all, or the loop nest around `start`.
    pub(super) region: Range<usize>,
    /// Whether the code is entered from the interpreter at a loop's head.
    pub(super) osr: bool,
    pub(super) helpers: &'a Helpers,
    pub(super) stubs: &'a Stubs,
    /// The functions that have machine code, this one included.
    pub(super) compiled: &'a HashSet<*mut Proto>,
    pub(super) sites: &'a Sites,
    pub(super) shadow: Option<&'a Shadow>,
    /// Whether the translation has needed a value that the analysis takes for dead.
    pub(super) contradicted: Cell<bool>,
}

impl Unit<'_> {
    /// The instructions before which compiled code has a point: heads of loops, and the first one.
    pub(super) fn heads(&self) -> HashSet<usize> {
        // SAFETY: the isolate waits for its code.
        if !unsafe { (*self.vm).has_points } {
            return HashSet::new();
        }
        let code = self.function.code.iter();
        let loops = code.filter(|i| i.op == Op::Loop).map(|i| i.c as usize);
        loops.chain([0]).collect()
    }
}

/// The type of a slot, and the machine values that hold it. There may be several, which are equal,
/// or none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Operand {
    pub(super) kind: Type,
    pub(super) boxed: Option<ir::Value>,
    pub(super) number: Option<ir::Value>,
    pub(super) flag: Option<ir::Value>,
    /// The local variable of which this is an unchanged copy.
    pub(super) origin: Option<u32>,
    /// The global variable that this was read from.
    pub(super) global: Option<u32>,
    /// Whether the value is a constant, which no stack map needs to name.
    pub(super) constant: bool,
}

impl Operand {
    pub(super) fn boxed(kind: Type, value: ir::Value) -> Operand {
        Operand {
            kind,
            boxed: Some(value),
            ..Operand::default()
        }
    }

    pub(super) fn number(value: ir::Value) -> Operand {
        Operand {
            kind: Type::NUMBER,
            number: Some(value),
            ..Operand::default()
        }
    }

    pub(super) fn flag(value: ir::Value) -> Operand {
        Operand {
            kind: Type::BOOLEAN,
            flag: Some(value),
            ..Operand::default()
        }
    }

    /// An operand that is dead by the liveness analysis.
    pub(super) fn dead(kind: Type) -> Operand {
        Operand {
            kind,
            ..Operand::default()
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.boxed.is_none() && self.number.is_none() && self.flag.is_none()
    }
}

/// The cause of an error that ends an activation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Cause {
    /// A call has failed, and its callee has set the message.
    Callee,
    /// "Operands must be numbers."
    Operands,
    /// "Operands must be two numbers or two strings."
    Sum,
    /// "Operand must be a number."
    Operand,
    /// "Undefined variable."
    Undefined(u32),
}

/// The state of a translation.
pub(super) struct Translator<'a, 'b, 'm, 'f> {
    pub(super) unit: &'a Unit<'a>,
    pub(super) body: &'b mut Body<'m, 'f>,
    /// The isolate.
    pub(super) vm: ir::Value,
    /// The running closure.
    pub(super) closure: ir::Value,
    /// The activation's window of the value stack, if it has one.
    pub(super) base: Option<ir::Value>,
    pub(super) stack: Vec<Operand>,
    /// The instruction under translation.
    pub(super) at: usize,
    pub(super) blocks: HashMap<usize, ir::Block>,
    failures: HashMap<(u32, Cause), ir::Block>,
    callees: HashMap<FuncId, FuncRef>,
    pub(super) signatures: HashMap<usize, SigRef>,
    /// The number of inline allocations.
    pub(super) windows: u32,
    /// The activation's frame in the oracle's shadow, in tests.
    pub(super) frame: Option<ir::Value>,
    /// The instruction's operands that it needs after its next call.
    pub(super) pending: Vec<Operand>,
}

impl<'a, 'b, 'm, 'f> Translator<'a, 'b, 'm, 'f> {
    /// A translation of the unit into `body`, whose machine parameters are `params`.
    pub(super) fn new(
        unit: &'a Unit<'a>,
        body: &'b mut Body<'m, 'f>,
        params: &[ir::Value],
    ) -> Translator<'a, 'b, 'm, 'f> {
        Translator {
            unit,
            vm: params[0],
            closure: params[1],
            body,
            base: None,
            stack: Vec::new(),
            at: unit.start,
            blocks: HashMap::new(),
            failures: HashMap::new(),
            callees: HashMap::new(),
            signatures: HashMap::new(),
            windows: 0,
            frame: None,
            pending: Vec::new(),
        }
    }

    pub(super) fn b(&mut self) -> &mut FunctionBuilder<'f> {
        &mut self.body.builder
    }

    // ---- machine values ----

    pub(super) fn word(&mut self, word: u64) -> ir::Value {
        self.b().ins().iconst(types::I64, word.cast_signed())
    }

    pub(super) fn constant(&mut self, value: Value) -> ir::Value {
        self.word(value.0)
    }

    pub(super) fn load(&mut self, address: ir::Value, offset: i32) -> ir::Value {
        self.b().ins().load(types::I64, plain(), address, offset)
    }

    pub(super) fn store(&mut self, value: ir::Value, address: ir::Value, offset: i32) {
        self.b().ins().store(plain(), value, address, offset);
    }

    /// Declares to Cranelift that a machine value may be a boxed reference.
    pub(super) fn declared(&mut self, value: ir::Value) -> ir::Value {
        self.b().declare_value_needs_stack_map(value);
        value
    }

    pub(super) fn icmp(&mut self, condition: IntCC, left: ir::Value, right: u64) -> ir::Value {
        let right = self.word(right);
        self.b().ins().icmp(condition, left, right)
    }

    pub(super) fn cold_block(&mut self) -> ir::Block {
        let block = self.b().create_block();
        self.b().set_cold_block(block);
        block
    }

    /// Branches to `away` if the condition holds, and else to a new block, in which translation
    /// continues.
    pub(super) fn leave_if(&mut self, condition: ir::Value, away: ir::Block) {
        let next = self.b().create_block();
        self.b().ins().brif(condition, away, &[], next, &[]);
        self.b().switch_to_block(next);
    }

    /// Branches to a new block, in which translation continues, if the condition holds, and else to
    /// `away`.
    pub(super) fn stay_if(&mut self, condition: ir::Value, away: ir::Block) {
        let next = self.b().create_block();
        self.b().ins().brif(condition, next, &[], away, &[]);
        self.b().switch_to_block(next);
    }

    /// Jumps to a block with one parameter.
    pub(super) fn jump_with(&mut self, block: ir::Block, value: ir::Value) {
        self.b().ins().jump(block, &[BlockArg::Value(value)]);
    }

    /// A new block in which control joins, with a parameter that may be a reference.
    pub(super) fn join_block(&mut self) -> (ir::Block, ir::Value) {
        let block = self.b().create_block();
        let value = self.b().append_block_param(block, types::I64);
        self.declared_result(value);
        (block, value)
    }

    fn declared_result(&mut self, value: ir::Value) {
        if !Fault::UndeclaredResults.planted() {
            self.declared(value);
        }
    }

    // ---- operands ----

    /// The operand's boxed word.
    pub(super) fn boxed(&mut self, operand: &Operand) -> ir::Value {
        if let Some(value) = operand.boxed {
            value
        } else if let Some(number) = operand.number {
            self.b()
                .ins()
                .bitcast(types::I64, ir::MemFlagsData::new(), number)
        } else if let Some(flag) = operand.flag {
            let wide = self.b().ins().uextend(types::I64, flag);
            let zero = self.constant(Value::FALSE);
            self.b().ins().iadd(wide, zero)
        } else {
            let trusted = Fault::DeadOperandsNil.planted();
            self.unit
                .contradicted
                .set(self.unit.contradicted.get() || !trusted);
            self.constant(Value::NIL)
        }
    }

    /// The operand's word as a double: a NaN without meaning if the operand is no number.
    pub(super) fn double(&mut self, operand: &Operand) -> ir::Value {
        if let Some(number) = operand.number {
            return number;
        }
        let word = self.boxed(operand);
        self.b()
            .ins()
            .bitcast(types::F64, ir::MemFlagsData::new(), word)
    }

    pub(super) fn in_form(&mut self, operand: &Operand, form: Form) -> ir::Value {
        match form {
            Form::Boxed => self.boxed(operand),
            Form::Number => self.double(operand),
            Form::Flag => match operand.flag {
                Some(flag) => flag,
                None => {
                    let word = self.boxed(operand);
                    self.icmp(IntCC::Equal, word, Value::TRUE.0)
                }
            },
        }
    }

    pub(super) fn is_captured(&self, slot: usize) -> bool {
        self.unit.function.is_captured(slot)
    }

    /// The address of the activation's window. Every function with captured slots has one.
    pub(super) fn window(&mut self) -> ir::Value {
        match self.base {
            Some(base) => base,
            None => self.word(0),
        }
    }

    pub(super) fn push(&mut self, operand: Operand) {
        let slot = self.stack.len();
        if self.is_captured(slot) {
            let word = self.boxed(&operand);
            let base = self.window();
            self.store(word, base, 8 * slot as i32);
        }
        self.stack.push(operand);
    }

    /// A slot's operand. A captured slot is read from memory.
    pub(super) fn read(&mut self, slot: usize) -> Operand {
        if !self.is_captured(slot) {
            return self.stack[slot];
        }
        let base = self.window();
        let word = self.load(base, 8 * slot as i32);
        self.declared(word);
        Operand::boxed(Type::ANY, word)
    }

    pub(super) fn pop(&mut self) -> Operand {
        let top = self.read(self.stack.len() - 1);
        self.drop_top();
        top
    }

    /// Drops the topmost slot without reading it.
    pub(super) fn drop_top(&mut self) {
        self.stack.pop();
        let slot = self.stack.len();
        if self.is_captured(slot) && !Fault::StaleCapturedSlots.planted() {
            let (base, nil) = (self.window(), self.constant(Value::NIL));
            self.store(nil, base, 8 * slot as i32);
        }
    }

    /// Pops `count` operands; the lowest one is the first.
    pub(super) fn pop_all(&mut self, count: usize) -> Vec<Operand> {
        let first = self.stack.len() - count;
        let operands = (first..self.stack.len())
            .map(|slot| self.read(slot))
            .collect();
        for _ in 0..count {
            self.drop_top();
        }
        operands
    }

    /// Records that the operand, and the variable that it was read from, is a number from here on.
    pub(super) fn proven_number(&mut self, operand: &Operand) {
        if let Some(origin) = operand.origin {
            let mut local = self.stack[origin as usize];
            local.number = Some(self.double(&local));
            local.kind = Type::NUMBER;
            self.stack[origin as usize] = local;
        }
    }

    // ---- calls ----

    pub(super) fn callee(&mut self, id: FuncId) -> FuncRef {
        match self.callees.get(&id) {
            Some(&callee) => callee,
            None => {
                let callee = self.body.callee(id);
                self.callees.insert(id, callee);
                callee
            }
        }
    }

    /// Calls a function of the module. Its result, if it has one, may be a reference.
    pub(super) fn call(&mut self, id: FuncId, args: &[ir::Value]) -> Option<ir::Value> {
        self.watch();
        let callee = self.callee(id);
        let call = self.b().ins().call(callee, args);
        self.result(call)
    }

    /// Calls the code at an address in a register.
    pub(super) fn call_address(
        &mut self,
        signature: SigRef,
        address: ir::Value,
        args: &[ir::Value],
    ) -> ir::Value {
        self.watch();
        let call = self.b().ins().call_indirect(signature, address, args);
        match self.result(call) {
            Some(result) => result,
            None => self.constant(Value::NIL),
        }
    }

    fn result(&mut self, call: ir::Inst) -> Option<ir::Value> {
        let result = self.b().inst_results(call).first().copied();
        if let Some(result) = result {
            self.declared_result(result);
        }
        self.unwatch();
        result
    }

    /// Calls a native function that cannot fail and returns nothing.
    pub(super) fn run_helper(&mut self, helper: Helper, args: &[ir::Value]) {
        let args: Vec<ir::Value> = std::iter::once(self.vm)
            .chain(args.iter().copied())
            .collect();
        self.call(self.unit.helpers.id(helper), &args);
    }

    /// Calls a native function that returns a value or [`Value::ERROR`].
    pub(super) fn ask_helper(&mut self, helper: Helper, args: &[ir::Value]) -> ir::Value {
        let args: Vec<ir::Value> = std::iter::once(self.vm)
            .chain(args.iter().copied())
            .collect();
        let result = match self.call(self.unit.helpers.id(helper), &args) {
            Some(result) => result,
            None => self.constant(Value::NIL),
        };
        self.check(result);
        result
    }

    /// Ends this activation if `result` is an error.
    pub(super) fn check(&mut self, result: ir::Value) {
        let failed = self.icmp(IntCC::Equal, result, Value::ERROR.0);
        let away = self.failure(Cause::Callee);
        self.leave_if(failed, away);
    }

    /// The block that ends this activation with an error on the present instruction's line.
    pub(super) fn failure(&mut self, cause: Cause) -> ir::Block {
        let line = self.unit.function.lines[self.at];
        if let Some(&block) = self.failures.get(&(line, cause)) {
            return block;
        }
        let block = self.cold_block();
        self.failures.insert((line, cause), block);
        block
    }

    pub(super) fn make_failures(&mut self) {
        let mut failures: Vec<_> = self.failures.drain().collect();
        if failures.is_empty() {
            return;
        }
        failures.sort_unstable_by_key(|&(_, block)| block);
        let end = self.cold_block();
        let (vm, helpers) = (self.vm, self.unit.helpers);
        for ((line, cause), block) in failures {
            self.b().switch_to_block(block);
            let mut args = vec![vm];
            let say = match cause {
                Cause::Callee => None,
                Cause::Operands => Some(Helper::OperandsError),
                Cause::Operand => Some(Helper::OperandError),
                Cause::Sum => {
                    // The addition of two nils fails with the right message.
                    let nil = self.constant(Value::NIL);
                    args.extend([nil, nil]);
                    Some(Helper::Add)
                }
                Cause::Undefined(global) => {
                    args.push(self.int(global));
                    Some(Helper::UndefinedVariable)
                }
            };
            if let Some(helper) = say {
                let callee = self.callee(helpers.id(helper));
                self.b().ins().call(callee, &args);
            }
            let proto = self.word(self.unit.proto as u64);
            let line = self.int(line);
            let trace = self.callee(helpers.id(Helper::Trace));
            self.b().ins().call(trace, &[vm, proto, line]);
            self.b().ins().jump(end, &[]);
        }
        self.b().switch_to_block(end);
        let error = self.constant(Value::ERROR);
        self.leave(error);
    }

    pub(super) fn int(&mut self, number: u32) -> ir::Value {
        self.b().ins().iconst(types::I32, i64::from(number))
    }

    /// The address of the variable of an upvalue, to be used at once.
    pub(super) fn upvalue_location(&mut self, index: u32) -> ir::Value {
        let closure = self.address(self.closure);
        let upvalue = self.load(closure, CLOSURE_UPVALUES + 8 * index as i32);
        self.load(upvalue, UPVALUE_LOCATION)
    }

    /// The address in a boxed reference, to be used at once.
    pub(super) fn address(&mut self, reference: ir::Value) -> ir::Value {
        let mask = self.word(!REFERENCE);
        self.b().ins().band(reference, mask)
    }

    /// A flag: whether the word is a number.
    pub(super) fn is_number(&mut self, word: ir::Value) -> ir::Value {
        let mask = self.word(QNAN);
        let bits = self.b().ins().band(word, mask);
        self.icmp(IntCC::NotEqual, bits, QNAN)
    }
}
