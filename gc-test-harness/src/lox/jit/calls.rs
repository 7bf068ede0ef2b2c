//! Translates calls.
//!
//! The compiler predicts the callee of a call site from the global variable that the callee is read
//! from, and from the interpreter's cache. One comparison of a header's id guards the prediction.
//! If it holds, the callee's function is known: its entry is called with arguments in registers,
//! and a method's closure is not loaded if the method's code does not use it. All other calls go
//! through a [`Stub`].

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, AbiParam, InstBuilder, Signature, types};
use cranelift_codegen::isa::CallConv;

use super::analysis::Type;
use super::helpers::Helper;
use super::passing::{self, plain};
use super::stubs::{FAST_FIXED, Stub};
use super::translator::{Operand, Translator};
use crate::lox::bytecode::Instruction;
use crate::lox::isolate::VM_RUNS;
use crate::lox::object::{
    ARRAY_ELEMENTS, CLASS_INIT, CLASS_METHODS, CLOSURE_PROTO, Class, Closure, INSTANCE_CLASS,
    METHODS_ENTRIES, MethodEntry, Methods, OVERFLOW_CLASS, Shape, Tag, is,
};
use crate::lox::proto::{CACHE_METHOD, CACHE_NUMBER, Cache, PROTO_ARITY, PROTO_FAST_ENTRY, Proto};
use crate::lox::value::{REFERENCE, Value};

/// Byte offset of the closure of entry `entry` within a method table.
fn method_offset(entry: u32) -> i32 {
    METHODS_ENTRIES
        + (entry as usize * size_of::<MethodEntry>() + std::mem::offset_of!(MethodEntry, method))
            as i32
}

/// The predicted class of a call site.
struct Predicted {
    id: u32,
    instance_header: u64,
    site: gc_core::raw::Site,
    /// `None`: no `init`
    init: Option<*mut Proto>,
}

impl Translator<'_, '_, '_, '_> {
    // ---- predictions: they read cells, but keep no reference ----

    fn predicted_closure(&self, callee: &Operand, count: usize) -> Option<*mut Proto> {
        let now = self.global_now(callee.global?);
        // SAFETY: global variables hold live values, and this thread, which alone assigns to them,
        // is here.
        unsafe {
            if !is(now, Tag::Closure) {
                return None;
            }
            let proto = (*now.as_cell::<Closure>()).proto;
            ((*proto).arity as usize == count).then_some(proto)
        }
    }

    fn predicted_class(&self, callee: &Operand, count: usize) -> Option<Predicted> {
        let now = self.global_now(callee.global?);
        // SAFETY: as above.
        unsafe {
            if !is(now, Tag::Class) {
                return None;
            }
            let class: *const Class = now.as_cell();
            let init = (*class).init;
            let init = init.is_cell().then(|| (*init.as_cell::<Closure>()).proto);
            let arity = init.map_or(0, |init| (*init).arity as usize);
            (arity == count).then(|| Predicted {
                id: (*class).header.id(),
                instance_header: (*class).instance_header.0,
                site: (*self.unit.vm)
                    .lox
                    .cells
                    .instance_site((*class).inline_capacity),
                init,
            })
        }
    }

    /// The function of entry `entry` of a method table, and the tag that says where an instance has
    /// its class. `id` is the class's or that of one of its shapes. The class is found only if a
    /// global variable holds it.
    fn predicted_method(&self, id: u32, entry: u32, count: usize) -> Option<(*mut Proto, Tag)> {
        // SAFETY: as above; a class's fields refer to its shapes and methods.
        unsafe {
            let vm = self.unit.vm;
            for global in 0..(*vm).global_count() {
                let now = self.global_now(global as u32);
                if !is(now, Tag::Class) {
                    continue;
                }
                let class: *const Class = now.as_cell();
                let tag = if (*class).header.id() == id {
                    Some(Tag::Class)
                } else {
                    shape_tag(class, id)
                };
                if let Some(tag) = tag {
                    let methods: *const Methods = (*class).methods.as_cell();
                    let place = methods
                        .byte_add(method_offset(entry) as usize)
                        .cast::<Value>();
                    let proto = (*(*place).as_cell::<Closure>()).proto;
                    return ((*proto).arity as usize == count).then_some((proto, tag));
                }
            }
        }
        None
    }

    // ---- calls ----

    /// Calls a known function. `closure` makes the closure's value if the callee needs it.
    fn call_known(
        &mut self,
        proto: *mut Proto,
        closure: impl FnOnce(&mut Self) -> ir::Value,
        this: Option<ir::Value>,
        args: &[ir::Value],
    ) -> ir::Value {
        // Compiled code uses its closure for upvalues only. The interpreter takes the function from
        // the closure.
        let compiled = self.unit.compiled.contains(&proto);
        // SAFETY: functions live as long as the isolate.
        let upvalues = unsafe { (*proto).upvalues };
        let closure = if compiled && upvalues == 0 && this.is_some() {
            self.constant(Value::NIL)
        } else {
            closure(self)
        };
        let all: Vec<ir::Value> = [closure]
            .into_iter()
            .chain(this)
            .chain(args.iter().copied())
            .collect();
        let place = self.word(proto as u64);
        self.call_entry(place, &all)
    }

    /// Calls the code of the function `proto`. Ends the activation if the call fails.
    fn call_entry(&mut self, proto: ir::Value, args: &[ir::Value]) -> ir::Value {
        let (vm, values) = (self.vm, &args[1..]);
        let code = self.load(proto, PROTO_FAST_ENTRY);
        let registers = passing::pass(self.b(), vm, FAST_FIXED, values);
        let args: Vec<ir::Value> = [vm, args[0]]
            .into_iter()
            .chain(registers.iter().copied())
            .collect();
        let signature = match self.signatures.get(&args.len()) {
            Some(&signature) => signature,
            None => {
                let mut signature = Signature::new(CallConv::SystemV);
                let params = vec![types::I64; args.len()];
                signature
                    .params
                    .extend(params.into_iter().map(AbiParam::new));
                signature.returns.push(AbiParam::new(types::I64));
                let reference = self.b().import_signature(signature);
                self.signatures.insert(args.len(), reference);
                reference
            }
        };
        let result = self.call_address(signature, code, &args);
        self.check(result);
        result
    }

    /// Calls a value without a prediction: directly if it is a closure with the right number of
    /// parameters, or else through a stub.
    fn call_any(&mut self, callee: &Operand, words: &[ir::Value]) -> ir::Value {
        let count = words.len() - 1;
        let other = self.cold_block();
        let (done, result) = self.join_block();
        let closure = self.demand_tag(callee, Tag::Closure, other);
        let proto = self.load(closure, CLOSURE_PROTO);
        let arity = self.b().ins().load(types::I32, plain(), proto, PROTO_ARITY);
        let expected = self.int(count as u32);
        let fits = self.b().ins().icmp(IntCC::Equal, arity, expected);
        self.stay_if(fits, other);
        let value = self.call_entry(proto, words);
        self.jump_with(done, value);
        self.b().switch_to_block(other);
        let value = self.call_stub(Stub::Call, count, &[], words);
        self.jump_with(done, value);
        self.b().switch_to_block(done);
        result
    }

    /// Calls a stub with its fixed arguments and the values of the call. Ends the activation if the
    /// call fails.
    fn call_stub(
        &mut self,
        stub: Stub,
        count: usize,
        fixed: &[ir::Value],
        values: &[ir::Value],
    ) -> ir::Value {
        let vm = self.vm;
        let result = match self.unit.stubs.get(stub, count) {
            Some(id) => {
                let registers = passing::pass(self.b(), vm, stub.fixed(), values);
                let args: Vec<ir::Value> = [&[vm], fixed, registers].concat();
                self.call(id, &args)
            }
            None => None,
        };
        let result = match result {
            Some(result) => result,
            None => self.constant(Value::ERROR),
        };
        self.check(result);
        result
    }

    fn words(&mut self, operands: &[Operand]) -> Vec<ir::Value> {
        operands.iter().map(|operand| self.boxed(operand)).collect()
    }

    pub(super) fn call_value(&mut self, instruction: Instruction) {
        let count = usize::from(instruction.a);
        let operands = self.pop_all(count + 1);
        let callee = operands[0];
        let words = self.words(&operands);
        let closure = self.predicted_closure(&callee, count);
        let class = self.predicted_class(&callee, count);
        if closure.is_none() && class.is_none() {
            let result = self.call_any(&callee, &words);
            self.push(Operand::boxed(Type::ANY, result));
            return;
        }
        let miss = self.cold_block();
        let (done, result) = self.join_block();
        let value = if let Some(proto) = closure {
            // SAFETY: functions live as long as the isolate.
            self.demand_id(&callee, unsafe { (*proto).id }, miss);
            self.call_known(proto, |_| words[0], None, &words[1..])
        } else if let Some(class) = class {
            self.demand_id(&callee, class.id, miss);
            self.instantiate(&class, &operands, &words)
        } else {
            words[0]
        };
        self.jump_with(done, value);
        self.b().switch_to_block(miss);
        let other = self.call_stub(Stub::Call, count, &[], &words);
        self.jump_with(done, other);
        self.b().switch_to_block(done);
        self.push(Operand::boxed(Type::ANY, result));
    }

    /// Makes an instance of the predicted class and calls its `init`. `operands`, and their boxed
    /// `words`, are the class and the arguments.
    fn instantiate(
        &mut self,
        class: &Predicted,
        operands: &[Operand],
        words: &[ir::Value],
    ) -> ir::Value {
        let vm = self.vm;
        let runs = self.load(vm, VM_RUNS);
        let run = 16 * class.site.index() as i32;
        // From the load of the cursor to its store: see `windows.rs`.
        self.windows += 1;
        self.body.mark(Some(self.windows));
        let cell = self.load(runs, run);
        let limit = self.load(runs, run + 8);
        let next = self.b().ins().iadd_imm_s(cell, class.site.size() as i64);
        let used_up = self.b().ins().icmp(IntCC::UnsignedGreaterThan, next, limit);
        let refill = self.cold_block();
        let (ready, instance) = self.join_block();
        self.leave_if(used_up, refill);
        // The heap demands that the advanced cursor is in memory before the first word of the cell
        // is written.
        self.store(next, runs, run);
        self.body.mark(None);
        let header = self.word(class.instance_header);
        self.store(header, cell, 0);
        self.store(words[0], cell, INSTANCE_CLASS);
        let reference = self.word(REFERENCE);
        let fresh = self.b().ins().bor(cell, reference);
        self.jump_with(ready, fresh);
        self.b().switch_to_block(refill);
        if class.init.is_some() {
            self.pending = operands.to_vec();
        }
        let fresh = self.ask_helper(Helper::NewInstance, &[words[0]]);
        self.pending.clear();
        self.jump_with(ready, fresh);
        self.b().switch_to_block(ready);
        match class.init {
            None => instance,
            Some(init) => self.call_known(
                init,
                |t| {
                    let class = t.address(words[0]);
                    t.load(class, CLASS_INIT)
                },
                Some(instance),
                &words[1..],
            ),
        }
    }

    pub(super) fn invoke(&mut self, instruction: Instruction) {
        let count = usize::from(instruction.a);
        let operands = self.pop_all(count + 1);
        let receiver = operands[0];
        let words = self.words(&operands);
        let (cache, shapes) = self.cache(instruction);
        let symbol = self.int(instruction.c);
        let known: Vec<(Cache, Option<(*mut Proto, Tag)>)> = shapes
            .iter()
            .filter_map(|&shape| {
                if shape.slot & CACHE_METHOD == 0 {
                    return Some((shape, None));
                }
                let entry = shape.slot & CACHE_NUMBER;
                let method = self.predicted_method(shape.id, entry, count)?;
                Some((shape, Some(method)))
            })
            .collect();
        if known.is_empty() {
            let result = self.call_stub(Stub::Invoke, count, &[cache, symbol], &words);
            self.push(Operand::boxed(Type::ANY, result));
            return;
        }
        let shapes: Vec<Cache> = known.iter().map(|&(shape, _)| shape).collect();
        let mut methods = known.iter().map(|&(_, method)| method);
        let miss = self.cold_block();
        let (done, result) = self.join_block();
        self.for_each_shape(&receiver, &shapes, miss, |t, shape, instance| {
            let value = match methods.next().flatten() {
                Some((method, tag)) => t.call_known(
                    method,
                    |t| t.load_method_of(words[0], tag, shape.slot & CACHE_NUMBER),
                    Some(words[0]),
                    &words[1..],
                ),
                None => {
                    let (cell, offset) = t.field_place(instance, shape.slot);
                    let callee = t.load(cell, offset);
                    t.declared(callee);
                    let args: Vec<ir::Value> = std::iter::once(callee)
                        .chain(words[1..].iter().copied())
                        .collect();
                    t.call_any(&Operand::boxed(Type::ANY, callee), &args)
                }
            };
            t.jump_with(done, value);
        });
        self.b().switch_to_block(miss);
        let other = self.call_stub(Stub::Invoke, count, &[cache, symbol], &words);
        self.jump_with(done, other);
        self.b().switch_to_block(done);
        self.push(Operand::boxed(Type::ANY, result));
    }

    /// The closure in entry `entry` of the method table of an instance's class.
    fn load_method_of(&mut self, instance: ir::Value, tag: Tag, entry: u32) -> ir::Value {
        let instance = self.address(instance);
        let mut class = self.load(instance, INSTANCE_CLASS);
        if tag == Tag::InstanceOverflow {
            let overflow = self.address(class);
            class = self.load(overflow, OVERFLOW_CLASS);
        }
        self.load_method(class, entry)
    }

    /// The closure in entry `entry` of a class's method table.
    fn load_method(&mut self, class: ir::Value, entry: u32) -> ir::Value {
        let class = self.address(class);
        let methods = self.load(class, CLASS_METHODS);
        let methods = self.address(methods);
        self.load(methods, method_offset(entry))
    }

    pub(super) fn super_invoke(&mut self, instruction: Instruction) {
        let count = usize::from(instruction.a);
        let superclass = self.pop();
        let operands = self.pop_all(count + 1);
        let words = self.words(&operands);
        let class = self.boxed(&superclass);
        let (cache, seen) = self.cache(instruction);
        let seen = seen.first().copied().unwrap_or_default();
        let symbol = self.int(instruction.c);
        let entry = seen.slot & CACHE_NUMBER;
        let method = (seen.id != 0)
            .then(|| self.predicted_method(seen.id, entry, count))
            .flatten();
        let Some((method, _)) = method else {
            let result = self.call_stub(Stub::SuperInvoke, count, &[cache, symbol, class], &words);
            self.push(Operand::boxed(Type::ANY, result));
            return;
        };
        let miss = self.cold_block();
        let (done, result) = self.join_block();
        self.demand_id(&superclass, seen.id, miss);
        let value = self.call_known(
            method,
            |t| t.load_method(class, entry),
            Some(words[0]),
            &words[1..],
        );
        self.jump_with(done, value);
        self.b().switch_to_block(miss);
        let other = self.call_stub(Stub::SuperInvoke, count, &[cache, symbol, class], &words);
        self.jump_with(done, other);
        self.b().switch_to_block(done);
        self.push(Operand::boxed(Type::ANY, result));
    }
}

/// The tag of instances of the shape with this id, if the shape belongs to the class.
///
/// # Safety
/// `class` must be live.
unsafe fn shape_tag(class: *const Class, id: u32) -> Option<Tag> {
    // SAFETY: a class's array holds `shape_count` shapes.
    unsafe {
        let shapes = (*class).shapes;
        if !shapes.is_cell() {
            return None;
        }
        let first = shapes
            .as_cell::<u8>()
            .add(ARRAY_ELEMENTS as usize)
            .cast::<Value>();
        (0..(*class).shape_count as usize).find_map(|index| {
            let shape = *first.add(index);
            if !is(shape, Tag::Shape) {
                return None;
            }
            let header = (*shape.as_cell::<Shape>()).instance_header;
            let tag = if header.is(Tag::InstanceOverflow) {
                Tag::InstanceOverflow
            } else {
                Tag::Instance
            };
            (header.id() == id).then_some(tag)
        })
    }
}
