//! Stubs: small compiled functions between compiled code, the interpreter and the runtime.
//!
//! Compiled functions pass arguments in registers ([`passing`]); the interpreter and the runtime
//! take them from the value stack. Stubs convert one into the other. A stub that puts arguments on
//! the value stack first fills the slots above the limit with nil, then publishes the limit, then
//! stores the arguments. So each slot below the limit holds a value at every instruction.

use std::collections::HashMap;

use crate::lox::fault::Fault;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, BlockArg, InstBuilder, Signature, types};
use cranelift_frontend::FunctionBuilder;
use cranelift_module::FuncId;

use super::helpers::{Helper, Helpers};
use super::passing::{self, plain};
use crate::kernels::codegen::{Arena, Body, CodegenError};
use crate::lox::isolate::{VM_STACK_END, VM_STACK_LIMIT};
use crate::lox::object::{CLOSURE_PROTO, HEADER_TAG, Tag};
use crate::lox::proto::{PROTO_ARITY, PROTO_ENTRY, PROTO_FAST_ENTRY};
use crate::lox::value::{ADDRESS, REFERENCE, Value};

/// The sort of a stub. A stub is identified by its sort and its number of arguments.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stub {
    /// `(vm, callee, argument..)`: calls a callee of any type.
    Call,
    /// `(vm, cache, symbol, receiver, argument..)`
    Invoke,
    /// `(vm, cache, symbol, superclass, this, argument..)`
    SuperInvoke,
    /// From an [`Entry`](crate::lox::proto::Entry) to the compiled code of a function.
    Enter,
    /// The same for a method.
    EnterMethod,
    /// From registers to the [`Entry`](crate::lox::proto::Entry) of a function. `fast_entry` points
    /// to it until the function is compiled.
    Interpret,
    /// The same for a method.
    InterpretMethod,
}

/// The stubs that exist.
#[derive(Debug, Default)]
pub(super) struct Stubs(HashMap<(Stub, usize), FuncId>);

/// The number of machine parameters of compiled code before the values: the isolate and the
/// closure. The values are the receiver of a method, and the arguments.
pub(super) const FAST_FIXED: usize = 2;

impl Stub {
    /// The number of machine parameters before the values.
    pub(super) fn fixed(self) -> usize {
        match self {
            Stub::Call => 1,
            Stub::Invoke => 3,
            Stub::SuperInvoke => 4,
            Stub::Enter | Stub::EnterMethod => 3,
            Stub::Interpret | Stub::InterpretMethod => FAST_FIXED,
        }
    }

    /// The number of values that the stub takes, for this number of arguments.
    fn values(self, count: usize) -> usize {
        match self {
            Stub::Enter | Stub::EnterMethod => 0,
            Stub::Interpret => count,
            Stub::Call | Stub::Invoke | Stub::SuperInvoke | Stub::InterpretMethod => count + 1,
        }
    }
}

impl Stubs {
    /// A stub that exists.
    pub(super) fn get(&self, stub: Stub, count: usize) -> Option<FuncId> {
        self.0.get(&(stub, count)).copied()
    }

    /// Makes a stub unless it exists.
    pub(super) fn make(
        &mut self,
        arena: &mut Arena,
        helpers: &Helpers,
        stub: Stub,
        count: usize,
    ) -> Result<FuncId, CodegenError> {
        if let Some(id) = self.get(stub, count) {
            return Ok(id);
        }
        let (fixed, values) = (stub.fixed(), stub.values(count));
        let mut params = passing::params(fixed, values);
        if matches!(stub, Stub::Invoke | Stub::SuperInvoke) {
            params[2] = types::I32;
        }
        let signature = arena.signature(&params, &[types::I64]);
        let passed = count + usize::from(stub == Stub::EnterMethod);
        let fast = arena.signature(&passing::params(FAST_FIXED, passed), &[types::I64]);
        let entry = arena.signature(&[types::I64; 3], &[types::I64]);
        let id = arena.declare(&format!("{stub:?} {count}"), &signature)?;
        arena.define(id, |body| {
            let params = body.enter();
            let mut maker = Maker {
                body,
                helpers,
                vm: params[0],
            };
            let slots = passing::take(maker.b(), params[0], fixed, &params, values);
            match stub {
                Stub::Call => maker.call(&slots, fast),
                Stub::Invoke => {
                    let args = [params[1], params[2]];
                    maker.through_stack(&slots, |maker, base, count| {
                        maker.ask(Helper::WatchedInvoke, &[base, count, args[0], args[1]])
                    });
                }
                Stub::SuperInvoke => {
                    let args = [params[3], params[1], params[2]];
                    maker.through_stack(&slots, |maker, base, count| {
                        maker.ask(
                            Helper::WatchedSuperInvoke,
                            &[base, count, args[0], args[1], args[2]],
                        )
                    });
                }
                Stub::Enter | Stub::EnterMethod => {
                    maker.enter(&params, count, stub == Stub::EnterMethod, fast);
                }
                Stub::Interpret | Stub::InterpretMethod => {
                    // Slot 0 of a function is its closure. Slot 0 of a method is the receiver.
                    let closure = params[1];
                    let mut slots = slots;
                    if stub == Stub::Interpret {
                        slots.insert(0, closure);
                    }
                    maker.through_stack(&slots, |maker, base, _| {
                        let proto = maker.proto(closure);
                        let address = maker.load(proto, PROTO_ENTRY);
                        maker.call_address(&entry, address, &[maker.vm, closure, base])
                    });
                }
            }
        })?;
        self.0.insert((stub, count), id);
        Ok(id)
    }
}

struct Maker<'b, 'm, 'f, 'h> {
    body: &'b mut Body<'m, 'f>,
    helpers: &'h Helpers,
    vm: ir::Value,
}

impl<'f> Maker<'_, '_, 'f, '_> {
    fn b(&mut self) -> &mut FunctionBuilder<'f> {
        &mut self.body.builder
    }

    fn load(&mut self, address: ir::Value, offset: i32) -> ir::Value {
        self.b().ins().load(types::I64, plain(), address, offset)
    }

    fn word(&mut self, word: u64) -> ir::Value {
        self.b().ins().iconst(types::I64, word.cast_signed())
    }

    fn address(&mut self, reference: ir::Value) -> ir::Value {
        let mask = self.word(ADDRESS);
        self.b().ins().band(reference, mask)
    }

    fn proto(&mut self, closure: ir::Value) -> ir::Value {
        let closure = self.address(closure);
        self.load(closure, CLOSURE_PROTO)
    }

    fn ask(&mut self, helper: Helper, args: &[ir::Value]) -> ir::Value {
        let callee = self.body.callee(self.helpers.id(helper));
        let args: Vec<ir::Value> = std::iter::once(self.vm)
            .chain(args.iter().copied())
            .collect();
        let call = self.b().ins().call(callee, &args);
        self.b().inst_results(call)[0]
    }

    fn call_address(
        &mut self,
        signature: &Signature,
        address: ir::Value,
        args: &[ir::Value],
    ) -> ir::Value {
        let signature = self.b().import_signature(signature.clone());
        let call = self.b().ins().call_indirect(signature, address, args);
        self.b().inst_results(call)[0]
    }

    /// Puts slot 0 and the arguments on the value stack, above the published limit, for the
    /// duration of `call`.
    fn through_stack(
        &mut self,
        slots: &[ir::Value],
        call: impl FnOnce(&mut Self, ir::Value, ir::Value) -> ir::Value,
    ) {
        let vm = self.vm;
        let base = self.load(vm, VM_STACK_LIMIT);
        let limit = self.b().ins().iadd_imm_s(base, 8 * slots.len() as i64);
        let end = self.load(vm, VM_STACK_END);
        let full = self.b().create_block();
        self.b().set_cold_block(full);
        let fits = self
            .b()
            .ins()
            .icmp(IntCC::UnsignedLessThanOrEqual, limit, end);
        self.stay_if(fits, full);
        let nil = self.word(Value::NIL.0);
        for slot in 0..slots.len() {
            self.b().ins().store(plain(), nil, base, 8 * slot as i32);
        }
        self.b().ins().store(plain(), limit, vm, VM_STACK_LIMIT);
        for (slot, &value) in slots.iter().enumerate() {
            self.b().ins().store(plain(), value, base, 8 * slot as i32);
        }
        let count = self.b().ins().iconst(types::I32, slots.len() as i64 - 1);
        let result = call(self, base, count);
        self.b().ins().store(plain(), base, vm, VM_STACK_LIMIT);
        self.b().ins().return_(&[result]);
        self.b().switch_to_block(full);
        let error = self.ask(Helper::StackOverflow, &[]);
        self.b().ins().return_(&[error]);
    }

    /// Calls the callee: directly if it is a closure with the right number of parameters, or else
    /// through the runtime.
    fn call(&mut self, slots: &[ir::Value], fast: Signature) {
        let callee = slots[0];
        let other = self.b().create_block();
        self.b().set_cold_block(other);
        let reference = self.word(REFERENCE);
        let cell = self
            .b()
            .ins()
            .icmp(IntCC::UnsignedGreaterThanOrEqual, callee, reference);
        self.stay_if(cell, other);
        let closure = self.address(callee);
        let tag = self.b().ins().load(types::I8, plain(), closure, HEADER_TAG);
        let is_closure = self
            .b()
            .ins()
            .icmp_imm_u(IntCC::Equal, tag, Tag::Closure as i64);
        self.stay_if(is_closure, other);
        let proto = self.load(closure, CLOSURE_PROTO);
        let arity = self.b().ins().load(types::I32, plain(), proto, PROTO_ARITY);
        let fits = self
            .b()
            .ins()
            .icmp_imm_u(IntCC::Equal, arity, slots.len() as i64 - 1);
        self.stay_if(fits, other);
        let code = self.load(proto, PROTO_FAST_ENTRY);
        self.stay_if(code, other);
        let result = self.call_fast(&fast, code, callee, &slots[1..]);
        self.b().ins().return_(&[result]);
        self.b().switch_to_block(other);
        self.through_stack(slots, |maker, base, count| {
            maker.ask(Helper::Call, &[base, count])
        });
    }

    fn stay_if(&mut self, condition: ir::Value, away: ir::Block) {
        let next = self.b().create_block();
        self.b().ins().brif(condition, next, &[], away, &[]);
        self.b().switch_to_block(next);
    }

    /// Calls compiled code with `values`.
    fn call_fast(
        &mut self,
        signature: &Signature,
        code: ir::Value,
        closure: ir::Value,
        values: &[ir::Value],
    ) -> ir::Value {
        let vm = self.vm;
        let registers = passing::pass(self.b(), vm, FAST_FIXED, values);
        let args = [&[vm, closure], registers].concat();
        self.call_address(signature, code, &args)
    }

    fn enter(&mut self, params: &[ir::Value], count: usize, method: bool, fast: Signature) {
        let (closure, base) = (params[1], params[2]);
        let values: Vec<ir::Value> = (usize::from(!method)..=count)
            .map(|slot| self.load(base, 8 * slot as i32))
            .collect();
        let proto = self.proto(closure);
        let code = self.load(proto, PROTO_FAST_ENTRY);
        if !Fault::StaleArguments.planted() {
            self.clear_from(base);
        }
        let result = self.call_fast(&fast, code, closure, &values);
        self.b().ins().return_(&[result]);
    }

    /// Fills the value stack from `first` to the published limit with nil: the arguments, which are
    /// in registers now, and old operands of the caller above them.
    fn clear_from(&mut self, first: ir::Value) {
        let limit = self.load(self.vm, VM_STACK_LIMIT);
        let nil = self.word(Value::NIL.0);
        let (head, body, done) = (
            self.b().create_block(),
            self.b().create_block(),
            self.b().create_block(),
        );
        let slot = self.b().append_block_param(head, types::I64);
        self.b().ins().jump(head, &[BlockArg::Value(first)]);
        self.b().switch_to_block(head);
        let more = self.b().ins().icmp(IntCC::UnsignedLessThan, slot, limit);
        self.b().ins().brif(more, body, &[], done, &[]);
        self.b().switch_to_block(body);
        self.b().ins().store(plain(), nil, slot, 0);
        let next = self.b().ins().iadd_imm_s(slot, 8);
        self.b().ins().jump(head, &[BlockArg::Value(next)]);
        self.b().switch_to_block(done);
    }
}
