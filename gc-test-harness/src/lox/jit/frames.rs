//! Generates the beginning and the end of an activation.
//!
//! Compiled code keeps the protocol of [`isolate`](crate::lox::isolate): a function increments the
//! frame count, and takes a window of the value stack if closures may capture its variables. A loop
//! that is entered from the interpreter uses the interpreter's window. Its code takes over the
//! slots, and writes them back if control leaves the loop without leaving the function.
//!
//! The value stack is a root. So a slot whose value compiled code has taken over holds nil while
//! that code runs: each slot of an interpreted loop ([`Translator::enter_loop`]), and each argument
//! that a function was entered with (`Stub::Enter`). Otherwise the slot would keep its old value
//! alive for as long as the activation, even after an assignment to the variable.

use crate::lox::fault::Fault;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, InstBuilder, types};

use super::analysis::Type;
use super::helpers::Helper;
use super::passing::{self, plain};
use super::stubs::FAST_FIXED;
use super::translator::{Operand, Translator};
use crate::lox::isolate::{
    FRAMES_MAX, VM_FRAME_COUNT, VM_OPEN_UPVALUES, VM_RESUME_AT, VM_RESUME_HEIGHT, VM_STACK_END,
    VM_STACK_LIMIT,
};
use crate::lox::value::{REFERENCE, Value};

impl Translator<'_, '_, '_, '_> {
    pub(super) fn enter_function(&mut self, params: &[ir::Value]) {
        let (function, vm) = (self.unit.function, self.vm);
        let count = function.arity as usize + usize::from(function.is_method);
        let values = passing::take(self.b(), vm, FAST_FIXED, params, count);
        let count = self
            .body
            .builder
            .ins()
            .load(types::I32, plain(), self.vm, VM_FRAME_COUNT);
        let overflow = self.cold_block();
        let limit = self.int(FRAMES_MAX);
        let full = self
            .b()
            .ins()
            .icmp(IntCC::UnsignedGreaterThanOrEqual, count, limit);
        self.leave_if(full, overflow);
        if function.captures_any() {
            self.open_window(overflow);
        }
        let more = self.b().ins().iadd_imm_s(count, 1);
        self.b().ins().store(plain(), more, vm, VM_FRAME_COUNT);

        // Slot 0 of a function is its closure. Slot 0 of a method is the receiver.
        let mut slots = values;
        if !function.is_method {
            slots.insert(0, self.closure);
        }
        for &slot in &slots {
            self.declared(slot);
        }
        self.open_frame();
        for (slot, value) in slots.into_iter().enumerate() {
            let kind = if slot == 0 && function.is_method {
                Type::INSTANCE
            } else {
                Type::ANY
            };
            self.push(Operand::boxed(kind, value));
        }
        let (block, args) = self.edge(0);
        self.b().ins().jump(block, &args);

        self.b().switch_to_block(overflow);
        let stack_overflow = self.callee(self.unit.helpers.id(Helper::StackOverflow));
        let call = self.b().ins().call(stack_overflow, &[vm]);
        let result = self.b().inst_results(call)[0];
        self.b().ins().return_(&[result]);
    }

    /// Takes a window above the published limit, for the slots that closures capture. The slots
    /// hold nil before they are published.
    fn open_window(&mut self, overflow: ir::Block) {
        let slots = 256
            - self
                .unit
                .function
                .captured
                .iter()
                .rev()
                .fold((0, true), |(zeros, leading), word| match (leading, *word) {
                    (true, 0) => (zeros + 64, true),
                    (true, word) => (zeros + word.leading_zeros(), false),
                    (false, _) => (zeros, false),
                })
                .0;
        let vm = self.vm;
        let base = self.load(vm, VM_STACK_LIMIT);
        let limit = self.b().ins().iadd_imm_s(base, 8 * i64::from(slots));
        let end = self.load(vm, VM_STACK_END);
        let beyond = self.b().ins().icmp(IntCC::UnsignedGreaterThan, limit, end);
        self.leave_if(beyond, overflow);
        let nil = self.constant(Value::NIL);
        for slot in 0..slots {
            self.store(nil, base, 8 * slot as i32);
        }
        self.store(limit, vm, VM_STACK_LIMIT);
        self.base = Some(base);
    }

    /// Begins at a loop's head that the interpreter has reached. The interpreter's window stays the
    /// activation's window.
    pub(super) fn enter_loop(&mut self, base: ir::Value) {
        self.base = Some(base);
        self.open_frame();
        let unit = self.unit;
        for (slot, &kind) in unit.analysis.start.iter().enumerate() {
            let operand = if self.is_captured(slot) {
                Operand::default()
            } else {
                let word = self.load(base, 8 * slot as i32);
                if kind.may_refer() {
                    self.declared(word);
                }
                Operand::boxed(kind, word)
            };
            self.stack.push(operand);
        }
        // The interpreter has cleared the slots above those in use.
        let nil = self.constant(Value::NIL);
        for (slot, kind) in unit.analysis.start.iter().enumerate() {
            if !self.is_captured(slot) && kind.may_refer() && !Fault::StaleLoopSlots.planted() {
                self.store(nil, base, 8 * slot as i32);
            }
        }
        let (block, args) = self.edge(unit.start);
        self.b().ins().jump(block, &args);
    }

    /// Ends the activation. A function's code restores the frame count and the limit; after a
    /// loop's code, the interpreter does.
    pub(super) fn leave(&mut self, result: ir::Value) {
        let vm = self.vm;
        self.close_frame();
        if !self.unit.osr {
            if let Some(base) = self.base {
                self.store(base, vm, VM_STACK_LIMIT);
            }
            let count = self
                .body
                .builder
                .ins()
                .load(types::I32, plain(), vm, VM_FRAME_COUNT);
            let less = self.b().ins().iadd_imm_s(count, -1);
            self.b().ins().store(plain(), less, vm, VM_FRAME_COUNT);
        }
        self.b().ins().return_(&[result]);
    }

    pub(super) fn return_top(&mut self) {
        let top = self.pop();
        let result = self.boxed(&top);
        if self.unit.function.captures_any()
            && let Some(base) = self.base
        {
            let vm = self.vm;
            let open = self.load(vm, VM_OPEN_UPVALUES);
            let some = self.icmp(IntCC::UnsignedGreaterThanOrEqual, open, REFERENCE);
            let close = self.cold_block();
            let done = self.b().create_block();
            self.b().ins().brif(some, close, &[], done, &[]);
            self.b().switch_to_block(close);
            self.run_helper(Helper::CloseUpvalues, &[base]);
            self.b().ins().jump(done, &[]);
            self.b().switch_to_block(done);
        }
        self.leave(result);
    }

    /// Leaves a loop's code: the interpreter continues at instruction `target` outside the loop.
    pub(super) fn resume_at(&mut self, target: usize) {
        let (vm, base) = (self.vm, self.window());
        for slot in 0..self.stack.len() {
            if !self.is_captured(slot) && self.unit.analysis.live.has(target, slot) {
                let operand = self.stack[slot];
                let word = self.boxed(&operand);
                self.store(word, base, 8 * slot as i32);
            }
        }
        let (at, height) = (self.int(target as u32), self.int(self.stack.len() as u32));
        self.store(at, vm, VM_RESUME_AT);
        self.store(height, vm, VM_RESUME_HEIGHT);
        let resume = self.constant(Value::RESUME);
        self.leave(resume);
    }
}
