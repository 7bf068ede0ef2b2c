//! Translates accesses to globals, captured variables and properties.
//!
//! A property access is compiled for the shapes that it has seen ([`Sites`](super::sites::Sites)):
//! the code compares the 32-bit id in the receiver's header with constants, and reads or writes the
//! field directly. For any other receiver it calls the runtime.
//!
//! # Stores
//!
//! The barrier logs the *old* value of a field. If the old value is no reference, there is nothing
//! to log in any phase of the collector, so the code stores directly. If it is a reference, the
//! code calls the heap's barrier. Only this thread writes the isolate's cells, so the old value
//! does not change between the test and the store. A store that adds a field initialises its slot
//! and needs no barrier.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, InstBuilder, types};

use super::analysis::Type;
use super::helpers::Helper;
use super::passing::plain;
use super::translator::{Cause, Operand, Translator};
use crate::lox::bytecode::Instruction;
use crate::lox::object::{
    HEADER_ID, HEADER_TAG, INSTANCE_CLASS, INSTANCE_SLOTS, OVERFLOW_SLOTS, Tag,
};
use crate::lox::proto::{CACHE_ADD, CACHE_METHOD, CACHE_NUMBER, CACHE_OVERFLOW, Cache};
use crate::lox::value::{REFERENCE, Value};

impl Translator<'_, '_, '_, '_> {
    // ---- globals ----

    /// The present value of a global variable, at the time of compilation.
    pub(super) fn global_now(&self, global: u32) -> Value {
        // SAFETY: the isolate waits for this compilation on the same thread, and the compiler's
        // globals exist in it.
        unsafe { *(*self.unit.vm).globals.add(global as usize) }
    }

    fn global_address(&mut self, global: u32) -> ir::Value {
        // SAFETY: as in `global_now`.
        let address = unsafe { (*self.unit.vm).globals.add(global as usize) };
        self.word(address as u64)
    }

    /// Fails if the variable is undefined. A variable that is defined now stays defined and is not
    /// tested.
    fn demand_defined(&mut self, global: u32, value: ir::Value) {
        if self.global_now(global) == Value::UNDEFINED {
            let undefined = self.icmp(IntCC::Equal, value, Value::UNDEFINED.0);
            let away = self.failure(Cause::Undefined(global));
            self.leave_if(undefined, away);
        }
    }

    pub(super) fn get_global(&mut self, global: u32) {
        let address = self.global_address(global);
        let value = self.load(address, 0);
        self.declared(value);
        self.demand_defined(global, value);
        self.push(Operand {
            global: Some(global),
            ..Operand::boxed(Type::ANY, value)
        });
    }

    pub(super) fn define_global(&mut self, global: u32) {
        let value = self.pop();
        let value = self.boxed(&value);
        let address = self.global_address(global);
        self.store(value, address, 0);
    }

    pub(super) fn set_global(&mut self, global: u32) {
        let address = self.global_address(global);
        if self.global_now(global) == Value::UNDEFINED {
            let old = self.load(address, 0);
            self.demand_defined(global, old);
        }
        let top = self.read(self.stack.len() - 1);
        let value = self.boxed(&top);
        self.store(value, address, 0);
    }

    // ---- captured variables ----

    pub(super) fn set_upvalue(&mut self, index: u32) {
        let top = self.read(self.stack.len() - 1);
        let value = self.boxed(&top);
        let location = self.upvalue_location(index);
        let done = self.b().create_block();
        self.store_field(value, location, 0, done);
        self.b().switch_to_block(done);
    }

    /// Stores a field, with the heap's barrier if the old value is a reference, and jumps to
    /// `done`.
    fn store_field(&mut self, value: ir::Value, cell: ir::Value, offset: i32, done: ir::Block) {
        let old = self.load(cell, offset);
        let reference = self.icmp(IntCC::UnsignedGreaterThanOrEqual, old, REFERENCE);
        let through_unit = self.cold_block();
        self.leave_if(reference, through_unit);
        self.store(value, cell, offset);
        self.b().ins().jump(done, &[]);
        self.b().switch_to_block(through_unit);
        // SAFETY: the isolate is alive and waits.
        let context = unsafe { (*self.unit.vm).mutator.context() };
        let context = self.word(context as u64);
        let place = self.b().ins().iadd_imm_s(cell, i64::from(offset));
        self.call(
            self.unit.helpers.id(Helper::Store),
            &[context, place, value],
        );
        self.b().ins().jump(done, &[]);
    }

    // ---- properties ----

    /// The address of an instruction's cache, and the shapes that the access has seen so far.
    pub(super) fn cache(&mut self, instruction: Instruction) -> (ir::Value, Vec<Cache>) {
        // SAFETY: the function has as many caches as the compiler counted.
        let cache = unsafe { (*self.unit.proto).caches.add(usize::from(instruction.b)) };
        (self.word(cache as u64), self.unit.sites.seen(cache))
    }

    /// The native function to call after a miss: `watched`, which notes the miss, while the
    /// function may be compiled again.
    fn on_miss(&self, watched: Helper, plain: Helper) -> Helper {
        if self.unit.sites.watches(self.unit.proto) {
            watched
        } else {
            plain
        }
    }

    /// Compares the receiver with each of the shapes. `hit` generates the code for one shape, given
    /// the instance's address. If no shape fits, control goes to `miss`.
    pub(super) fn for_each_shape(
        &mut self,
        operand: &Operand,
        shapes: &[Cache],
        miss: ir::Block,
        mut hit: impl FnMut(&mut Self, Cache, ir::Value),
    ) {
        let word = self.boxed(operand);
        self.demand_cell(operand, word, miss);
        let address = self.address(word);
        let seen = self.b().ins().load(types::I32, plain(), address, HEADER_ID);
        for (index, &shape) in shapes.iter().enumerate() {
            let other = if index + 1 == shapes.len() {
                miss
            } else {
                self.b().create_block()
            };
            let expected = self.int(shape.id);
            let same = self.b().ins().icmp(IntCC::Equal, seen, expected);
            self.stay_if(same, other);
            hit(self, shape, address);
            if other != miss {
                self.b().switch_to_block(other);
            }
        }
    }

    /// The address of the cell if `operand` is a reference to one with this id. Otherwise control
    /// goes to `away`.
    pub(super) fn demand_id(&mut self, operand: &Operand, id: u32, away: ir::Block) -> ir::Value {
        let word = self.boxed(operand);
        self.demand_cell(operand, word, away);
        let address = self.address(word);
        let seen = self.b().ins().load(types::I32, plain(), address, HEADER_ID);
        let expected = self.int(id);
        let same = self.b().ins().icmp(IntCC::Equal, seen, expected);
        self.stay_if(same, away);
        address
    }

    /// The address of the cell if `operand` is a reference to one with this tag. Otherwise control
    /// goes to `away`.
    pub(super) fn demand_tag(&mut self, operand: &Operand, tag: Tag, away: ir::Block) -> ir::Value {
        let word = self.boxed(operand);
        self.demand_cell(operand, word, away);
        let address = self.address(word);
        let seen = self.b().ins().load(types::I8, plain(), address, HEADER_TAG);
        let expected = self.b().ins().iconst(types::I8, tag as i64);
        let same = self.b().ins().icmp(IntCC::Equal, seen, expected);
        self.stay_if(same, away);
        address
    }

    fn demand_cell(&mut self, operand: &Operand, word: ir::Value, away: ir::Block) {
        if !operand.kind.is(Type::INSTANCE.join(Type::CELL)) {
            let cell = self.icmp(IntCC::UnsignedGreaterThanOrEqual, word, REFERENCE);
            self.stay_if(cell, away);
        }
    }

    /// The cell that holds a cached field, and the field's offset.
    pub(super) fn field_place(&mut self, instance: ir::Value, slot: u32) -> (ir::Value, i32) {
        let offset = 8 * (slot & CACHE_NUMBER) as i32;
        if slot & CACHE_OVERFLOW != 0 {
            let overflow = self.load(instance, INSTANCE_CLASS);
            (self.address(overflow), OVERFLOW_SLOTS + offset)
        } else {
            (instance, INSTANCE_SLOTS + offset)
        }
    }

    pub(super) fn get_property(&mut self, instruction: Instruction) {
        let object = self.pop();
        let word = self.boxed(&object);
        let (cache, mut shapes) = self.cache(instruction);
        shapes.retain(|shape| shape.slot & CACHE_METHOD == 0);
        let symbol = self.int(instruction.c);
        let helper = self.on_miss(Helper::WatchedGetProperty, Helper::GetProperty);
        if shapes.is_empty() {
            let value = self.ask_helper(helper, &[word, cache, symbol]);
            self.push(Operand::boxed(Type::ANY, value));
            return;
        }
        let miss = self.cold_block();
        let (done, result) = self.join_block();
        self.for_each_shape(&object, &shapes, miss, |t, shape, instance| {
            let (cell, offset) = t.field_place(instance, shape.slot);
            let value = t.load(cell, offset);
            t.jump_with(done, value);
        });
        self.b().switch_to_block(miss);
        let asked = self.ask_helper(helper, &[word, cache, symbol]);
        self.jump_with(done, asked);
        self.b().switch_to_block(done);
        self.push(Operand::boxed(Type::ANY, result));
    }

    pub(super) fn set_property(&mut self, instruction: Instruction) {
        let value = self.pop();
        let object = self.pop();
        let (object_word, word) = (self.boxed(&object), self.boxed(&value));
        let (cache, shapes) = self.cache(instruction);
        let symbol = self.int(instruction.c);
        let args = [object_word, word, cache, symbol];
        let helper = self.on_miss(Helper::WatchedSetProperty, Helper::SetProperty);
        if shapes.is_empty() {
            self.ask_helper(helper, &args);
        } else {
            let miss = self.cold_block();
            let done = self.b().create_block();
            self.for_each_shape(&object, &shapes, miss, |t, shape, instance| {
                if shape.slot & CACHE_ADD != 0 {
                    // First the value, then the header with the shape that has the field.
                    let offset = INSTANCE_SLOTS + 8 * (shape.slot & CACHE_NUMBER) as i32;
                    t.store(word, instance, offset);
                    let header = t.word(shape.header);
                    t.store(header, instance, 0);
                    t.b().ins().jump(done, &[]);
                } else {
                    let (cell, offset) = t.field_place(instance, shape.slot);
                    t.store_field(word, cell, offset, done);
                }
            });
            self.b().switch_to_block(miss);
            self.ask_helper(helper, &args);
            self.b().ins().jump(done, &[]);
            self.b().switch_to_block(done);
        }
        self.push(Operand {
            global: None,
            ..value
        });
    }

    pub(super) fn get_super(&mut self, instruction: Instruction) {
        let superclass = self.pop();
        let this = self.pop();
        let (this, superclass) = (self.boxed(&this), self.boxed(&superclass));
        let (cache, _) = self.cache(instruction);
        let symbol = self.int(instruction.c);
        let bound = self.ask_helper(Helper::GetSuper, &[this, superclass, cache, symbol]);
        self.push(Operand::boxed(Type::CELL, bound));
    }
}
