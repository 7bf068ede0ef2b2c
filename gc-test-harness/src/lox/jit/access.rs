//! Globals, captured variables, properties.
//!
//! An access to a property is compiled for what the interpreter's cache has seen there: the 32-bit id in the receiver's header
//! is compared with a constant, and the field is read or written in place. All else is asked of the runtime.
//!
//! # Stores
//!
//! The barrier keeps the *old* value of a field. Where the field holds no reference there is nothing to keep,
//! whatever the collector is doing, so the store is done in place; a reference is overwritten by the runtime, through
//! the barrier's unit. Only this thread writes the isolate's cells: the old value cannot change between the look and the store. A store
//! that adds a field initialises its slot and needs no barrier.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, InstBuilder, types};

use super::analysis::Type;
use super::helpers::Helper;
use super::translate::{Cause, Operand, Translator, plain};
use crate::lox::bytecode::{
    CACHE_ADD, CACHE_METHOD, CACHE_NUMBER, CACHE_OVERFLOW, Cache, Instruction,
};
use crate::lox::object::{HEADER_ID, INSTANCE_CLASS, INSTANCE_SLOTS, OVERFLOW_SLOTS};
use crate::lox::value::{REFERENCE, Value};

impl Translator<'_, '_, '_, '_> {
    // ---- globals ----

    /// What a global variable holds while this is compiled.
    pub(super) fn global_now(&self, global: u32) -> Value {
        // SAFETY: the isolate waits for this compilation on the same thread, and has so many globals.
        unsafe { *(*self.unit.vm).globals.add(global as usize) }
    }

    fn global_address(&mut self, global: u32) -> ir::Value {
        // SAFETY: as in `global_now`.
        let address = unsafe { (*self.unit.vm).globals.add(global as usize) };
        self.word(address as u64)
    }

    /// Fails if the variable is undefined. Once defined, it stays so.
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
        let through_unit = self.cold_block();
        self.store_unless_reference(value, location, 0, through_unit);
        let on = self.b().create_block();
        self.b().ins().jump(on, &[]);
        self.b().switch_to_block(through_unit);
        let (closure, number) = (self.closure, self.int(index));
        self.run_helper(Helper::SetUpvalue, &[closure, number, value]);
        self.b().ins().jump(on, &[]);
        self.b().switch_to_block(on);
    }

    /// Stores if the old value is no reference; otherwise control goes to `through_unit`.
    fn store_unless_reference(
        &mut self,
        value: ir::Value,
        address: ir::Value,
        offset: i32,
        through_unit: ir::Block,
    ) {
        let old = self.load(address, offset);
        let reference = self.icmp(IntCC::UnsignedGreaterThanOrEqual, old, REFERENCE);
        self.leave_if(reference, through_unit);
        self.store(value, address, offset);
    }

    // ---- properties ----

    /// The cache of an instruction, as the runtime takes it, and what it has seen until now.
    pub(super) fn cache(&mut self, instruction: Instruction) -> (ir::Value, Cache) {
        // SAFETY: the function's caches are as many as the compiler counted; nobody writes one while this is compiled.
        let (cache, seen) = unsafe {
            let cache = (*self.unit.proto).caches.add(usize::from(instruction.b));
            (cache, *cache)
        };
        (self.word(cache as u64), seen)
    }

    /// Goes on with the address of the cell if `operand` is one whose header has this id, otherwise to `away`.
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
        let (cache, seen) = self.cache(instruction);
        let symbol = self.int(instruction.c);
        if seen.id == 0 || seen.slot & CACHE_METHOD != 0 {
            let value = self.ask_helper(Helper::GetProperty, &[word, cache, symbol]);
            self.push(Operand::boxed(Type::ANY, value));
            return;
        }
        let miss = self.cold_block();
        let (done, result) = self.join_block();
        let instance = self.demand_id(&object, seen.id, miss);
        let (cell, offset) = self.field_place(instance, seen.slot);
        let value = self.load(cell, offset);
        self.jump_with(done, value);
        self.b().switch_to_block(miss);
        let asked = self.ask_helper(Helper::GetProperty, &[word, cache, symbol]);
        self.jump_with(done, asked);
        self.b().switch_to_block(done);
        self.push(Operand::boxed(Type::ANY, result));
    }

    pub(super) fn set_property(&mut self, instruction: Instruction) {
        let value = self.pop();
        let object = self.pop();
        let (object_word, word) = (self.boxed(&object), self.boxed(&value));
        let (cache, seen) = self.cache(instruction);
        let symbol = self.int(instruction.c);
        let args = [object_word, word, cache, symbol];
        if seen.id == 0 {
            self.ask_helper(Helper::SetProperty, &args);
        } else {
            let miss = self.cold_block();
            let done = self.b().create_block();
            let instance = self.demand_id(&object, seen.id, miss);
            if seen.slot & CACHE_ADD != 0 {
                // First the value, then the header that lets it be seen.
                let offset = INSTANCE_SLOTS + 8 * (seen.slot & CACHE_NUMBER) as i32;
                self.store(word, instance, offset);
                let header = self.word(seen.header);
                self.store(header, instance, 0);
            } else {
                let (cell, offset) = self.field_place(instance, seen.slot);
                self.store_unless_reference(word, cell, offset, miss);
            }
            self.b().ins().jump(done, &[]);
            self.b().switch_to_block(miss);
            self.ask_helper(Helper::SetProperty, &args);
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
