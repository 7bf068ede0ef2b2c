//! The operations that the interpreter and compiled code share, as functions that both call.
//!
//! All are `extern "C"` and take the isolate first. A runtime error is the result [`Value::ERROR`],
//! with the message in the isolate. The caller appends its own line to the stack trace with
//! [`trace`]. Each function may allocate, so a collection may run during the call. Values are
//! passed boxed. `base` is the address of the callee or receiver on the value stack; the arguments
//! follow it, **below the published limit**.
//!
//! # Safety
//! For all functions: `vm` is this thread's isolate; values refer to live cells; a cache belongs to
//! the function whose code runs; a value whose name is a type's (`closure`, `class`, ..) has this
//! type.

#![expect(
    clippy::missing_safety_doc,
    reason = "the head of the file has it for all"
)]

use super::bytecode::{Capture, Function};
use super::cells::OutOfMemory;
use super::isolate::Vm;
use super::lookups::Property;
use super::object::*;
use super::proto::{CACHE_ADD, CACHE_METHOD, CACHE_NUMBER, CACHE_OVERFLOW, Cache, Isolate, Proto};
use super::value::{Value, sum};

/// Unwraps the result of an allocation, or fails with "Out of memory.".
macro_rules! heap {
    ($vm:expr, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(_) => return $vm.fail("Out of memory."),
        }
    };
}

/// `left + right`, of numbers or strings.
pub unsafe extern "C" fn add(vm: *mut Vm, left: Value, right: Value) -> Value {
    // SAFETY: see the head.
    let vm = unsafe { &mut *vm };
    if left.is_number() && right.is_number() {
        return Value::number(sum(left.as_number(), right.as_number()));
    }
    // SAFETY: see the head.
    if unsafe { is(left, Tag::String) && is(right, Tag::String) } {
        return heap!(vm, vm.concatenate(left, right));
    }
    vm.fail("Operands must be two numbers or two strings.")
}

/// The error of an operator for two numbers.
pub unsafe extern "C" fn operands_error(vm: *mut Vm) -> Value {
    // SAFETY: see the head.
    unsafe { &mut *vm }.fail("Operands must be numbers.")
}

/// The error of an operator for one number.
pub unsafe extern "C" fn operand_error(vm: *mut Vm) -> Value {
    // SAFETY: see the head.
    unsafe { &mut *vm }.fail("Operand must be a number.")
}

/// The error of an activation beyond [`FRAMES_MAX`](super::isolate::FRAMES_MAX), or beyond the
/// value stack.
pub unsafe extern "C" fn stack_overflow(vm: *mut Vm) -> Value {
    // SAFETY: see the head.
    unsafe { &mut *vm }.fail("Stack overflow.")
}

/// The error of reading or assigning a global variable that is not defined.
pub unsafe extern "C" fn undefined_variable(vm: *mut Vm, global: u32) -> Value {
    // SAFETY: see the head.
    let vm = unsafe { &mut *vm };
    let program = vm.program.clone();
    vm.fail_with(
        "Undefined variable '",
        &program.globals[global as usize],
        "'.",
    )
}

fn undefined_property(vm: &mut Vm, symbol: u32) -> Value {
    let program = vm.program.clone();
    vm.fail_with(
        "Undefined property '",
        &program.symbols[symbol as usize],
        "'.",
    )
}

/// The error of a call with `count` arguments of a closure that has another number of parameters.
pub unsafe extern "C" fn arity_error(vm: *mut Vm, closure: Value, count: u32) -> Value {
    // SAFETY: see the head.
    let (vm, arity) = unsafe { (&mut *vm, (*(*closure.as_cell::<Closure>()).proto).arity) };
    vm.fail(&format!("Expected {arity} arguments but got {count}."))
}

/// Adds a line to the stack trace of the present error, for an activation of `proto` at `line`.
pub unsafe extern "C" fn trace(vm: *mut Vm, proto: *const Proto, line: u32) {
    // SAFETY: see the head.
    unsafe { (*vm).trace(&(*proto).function, line) }
}

/// A fresh instance of a class.
pub unsafe extern "C" fn new_instance(vm: *mut Vm, class: Value) -> Value {
    // SAFETY: see the head.
    let vm = unsafe { &mut *vm };
    heap!(vm, vm.make_instance(class.as_cell()))
}

/// The result of a lookup of `object.name`.
enum Found {
    /// A field's value.
    Value(Value),
    /// A method's closure.
    Method(Value),
    /// There is no such property.
    Missing,
}

/// Looks up `object.name` of an instance, in the cache if it holds the instance's shape.
#[inline(always)]
unsafe fn find(vm: &mut Vm, object: Value, cache: *mut Cache, symbol: u32) -> Found {
    // SAFETY: see the head; if the cache's id is the shape's, its slot is valid for this instance.
    unsafe {
        if (*cache).id == header(object).id() {
            let number = (*cache).slot & CACHE_NUMBER;
            return match (*cache).slot & !CACHE_NUMBER {
                0 => Found::Value(*inline_slot(object, number)),
                CACHE_OVERFLOW => Found::Value(*overflow_slot(object, number)),
                _ => Found::Method(method_at(class_of(object), number)),
            };
        }
        let property = vm.property(object, symbol);
        vm.remember(object, property, cache);
        match property {
            Property::Field(field) => Found::Value(*vm.field(object, field)),
            Property::Method(entry) => Found::Method(method_at(class_of(object), entry)),
            Property::Missing => Found::Missing,
        }
    }
}

/// `object.name`
pub unsafe extern "C" fn get_property(
    vm: *mut Vm,
    object: Value,
    cache: *mut Cache,
    symbol: u32,
) -> Value {
    // SAFETY: see the head.
    unsafe {
        let vm = &mut *vm;
        if !object.is_cell() || !header(object).is_instance() {
            return vm.fail("Only instances have properties.");
        }
        match find(vm, object, cache, symbol) {
            Found::Value(value) => value,
            Found::Method(method) => heap!(vm, vm.make_bound(object, method)),
            Found::Missing => undefined_property(vm, symbol),
        }
    }
}

/// `object.name = value`; returns the value.
pub unsafe extern "C" fn set_property(
    vm: *mut Vm,
    object: Value,
    value: Value,
    cache: *mut Cache,
    symbol: u32,
) -> Value {
    // SAFETY: see the head; if the cache's id is the shape's, its slot is valid for this instance.
    unsafe {
        let vm = &mut *vm;
        if !object.is_cell() || !header(object).is_instance() {
            return vm.fail("Only instances have fields.");
        }
        if (*cache).id == header(object).id() {
            let slot = (*cache).slot;
            let number = slot & CACHE_NUMBER;
            match slot & !CACHE_NUMBER {
                0 => vm.store(inline_slot(object, number), value),
                CACHE_ADD => {
                    // No field used this slot before: an initialising store.
                    *inline_slot(object, number) = value;
                    (*object.as_cell::<Instance>()).header = Header((*cache).header);
                }
                _ => vm.store(overflow_slot(object, number), value),
            }
            return value;
        }
        match vm.property(object, symbol) {
            Property::Field(field) => {
                vm.remember(object, Property::Field(field), cache);
                let place = vm.field(object, field);
                vm.store(place, value);
            }
            // A field hides a method of the same name.
            Property::Method(_) | Property::Missing => {
                heap!(vm, vm.add_field(object, symbol, value, cache))
            }
        }
        value
    }
}

/// `super.name`, bound to `this`.
pub unsafe extern "C" fn get_super(
    vm: *mut Vm,
    this: Value,
    superclass: Value,
    cache: *mut Cache,
    symbol: u32,
) -> Value {
    // SAFETY: see the head.
    unsafe {
        let vm = &mut *vm;
        match super_method(superclass, cache, symbol) {
            Some(method) => heap!(vm, vm.make_bound(this, method)),
            None => undefined_property(vm, symbol),
        }
    }
}

/// The superclass's method, from the cache if it holds the class.
unsafe fn super_method(superclass: Value, cache: *mut Cache, symbol: u32) -> Option<Value> {
    let class: *mut Class = superclass.as_cell();
    // SAFETY: see the head.
    unsafe {
        let id = (*class).header.id();
        if (*cache).id != id {
            *cache = Cache {
                id,
                slot: CACHE_METHOD | find_method(class, symbol)?,
                header: 0,
            };
        }
        Some(method_at(class, (*cache).slot & CACHE_NUMBER))
    }
}

/// The isolate's address as entries and natives take it.
#[inline(always)]
fn isolate(vm: &mut Vm) -> *mut Isolate {
    (&raw mut *vm).cast()
}

/// Calls `closure` with the `count` arguments behind `base[0]`.
#[inline(always)]
unsafe fn call_closure(vm: &mut Vm, closure: Value, base: *mut Value, count: u32) -> Value {
    // SAFETY: see the head.
    unsafe {
        let proto = (*closure.as_cell::<Closure>()).proto;
        if (*proto).arity != count {
            return arity_error(vm, closure, count);
        }
        ((*proto).entry)(isolate(vm), closure, base)
    }
}

/// Calls the value in `base[0]` with the `count` arguments behind it.
pub unsafe extern "C" fn call(vm: *mut Vm, base: *mut Value, count: u32) -> Value {
    // SAFETY: see the head; the tag gives the cell's type.
    unsafe {
        let vm = &mut *vm;
        let callee = *base;
        if !callee.is_cell() {
            return vm.fail("Can only call functions and classes.");
        }
        let tag = header(callee).tag();
        if tag == Tag::Closure as u8 {
            call_closure(vm, callee, base, count)
        } else if tag == Tag::Class as u8 {
            let class: *mut Class = callee.as_cell();
            let instance = heap!(vm, vm.make_instance(class));
            // The instance refers to the class and keeps it alive.
            *base = instance;
            let init = (*class).init;
            if init.is_cell() {
                call_closure(vm, init, base, count)
            } else if count != 0 {
                vm.fail(&format!("Expected 0 arguments but got {count}."))
            } else {
                instance
            }
        } else if tag == Tag::BoundMethod as u8 {
            let bound: *mut BoundMethod = callee.as_cell();
            let method = (*bound).method;
            *base = (*bound).receiver;
            call_closure(vm, method, base, count)
        } else if tag == Tag::Native as u8 {
            ((*callee.as_cell::<Native>()).function)(isolate(vm), count, base.add(1))
        } else {
            vm.fail("Can only call functions and classes.")
        }
    }
}

/// `receiver.name(arguments)`, the receiver in `base[0]`.
pub unsafe extern "C" fn invoke(
    vm: *mut Vm,
    base: *mut Value,
    count: u32,
    cache: *mut Cache,
    symbol: u32,
) -> Value {
    // SAFETY: see the head.
    unsafe {
        let vm = &mut *vm;
        let receiver = *base;
        if !receiver.is_cell() || !header(receiver).is_instance() {
            return vm.fail("Only instances have methods.");
        }
        match find(vm, receiver, cache, symbol) {
            Found::Method(method) => call_closure(vm, method, base, count),
            Found::Value(value) => {
                *base = value;
                call(vm, base, count)
            }
            Found::Missing => undefined_property(vm, symbol),
        }
    }
}

/// `super.name(arguments)`, `this` in `base[0]`.
pub unsafe extern "C" fn super_invoke(
    vm: *mut Vm,
    base: *mut Value,
    count: u32,
    superclass: Value,
    cache: *mut Cache,
    symbol: u32,
) -> Value {
    // SAFETY: see the head.
    unsafe {
        let vm = &mut *vm;
        match super_method(superclass, cache, symbol) {
            Some(method) => call_closure(vm, method, base, count),
            None => undefined_property(vm, symbol),
        }
    }
}

impl Vm {
    /// The open upvalue of a slot. Makes one if there is none.
    ///
    /// # Safety
    /// `slot` must be a slot of the value stack that holds a value.
    pub(super) unsafe fn open_upvalue(
        &mut self,
        slot: *mut Value,
    ) -> Result<*mut Upvalue, OutOfMemory> {
        // SAFETY: the caller's promise; the list links live upvalues, highest slot first.
        unsafe {
            let mut previous: *mut Upvalue = std::ptr::null_mut();
            let mut next = self.roots.open_upvalues;
            while next.is_cell() {
                let upvalue: *mut Upvalue = next.as_cell();
                if (*upvalue).location == slot {
                    return Ok(upvalue);
                }
                if (*upvalue).location < slot {
                    break;
                }
                previous = upvalue;
                next = (*upvalue).next;
            }
            let upvalue = self.make_upvalue(slot, next)?;
            if previous.is_null() {
                self.roots.open_upvalues = Value::cell(upvalue);
            } else {
                self.store(&raw mut (*previous).next, Value::cell(upvalue));
            }
            Ok(upvalue)
        }
    }
}

/// A closure of `child`, declared in the function of `enclosing` whose activation is at `base`.
pub unsafe extern "C" fn closure(
    vm: *mut Vm,
    enclosing: Value,
    child: *mut Proto,
    base: *mut Value,
) -> Value {
    // SAFETY: see the head. A marker may trace the closure before all its upvalues are stored: null
    // words are no edges.
    unsafe {
        let vm = &mut *vm;
        let closure = heap!(vm, vm.make_closure(child));
        let function: &Function = &(*child).function;
        for (index, &capture) in function.captures.iter().enumerate() {
            let upvalue = match capture {
                Capture::Local(slot) => heap!(vm, vm.open_upvalue(base.add(usize::from(slot)))),
                Capture::Upvalue(outer) => {
                    *Closure::upvalue(enclosing.as_cell(), usize::from(outer))
                }
            };
            // An initialising store: no other code has the closure, and the word was null.
            *Closure::upvalue(closure, index) = upvalue;
        }
        Value::cell(closure)
    }
}

/// Closes the open upvalues of `from` and of higher slots: moves their variables from the value
/// stack into the upvalues.
pub unsafe extern "C" fn close_upvalues(vm: *mut Vm, from: *mut Value) {
    // SAFETY: see the head; open upvalues are linked from the highest slot down.
    unsafe {
        let vm = &mut *vm;
        while vm.roots.open_upvalues.is_cell() {
            let upvalue: *mut Upvalue = vm.roots.open_upvalues.as_cell();
            if (*upvalue).location < from {
                break;
            }
            vm.store(&raw mut (*upvalue).closed, *(*upvalue).location);
            (*upvalue).location = &raw mut (*upvalue).closed;
            vm.roots.open_upvalues = (*upvalue).next;
            vm.store(&raw mut (*upvalue).next, Value::NIL);
        }
    }
}

/// Assigns to a captured variable.
pub unsafe extern "C" fn set_upvalue(vm: *mut Vm, closure: Value, index: u32, value: Value) {
    // SAFETY: see the head; the location is the upvalue's own word, or a slot of the value stack,
    // which is a root and needs no barrier.
    unsafe {
        let upvalue = *Closure::upvalue(closure.as_cell(), index as usize);
        if (*upvalue).location == &raw mut (*upvalue).closed {
            (*vm).store((*upvalue).location, value);
        } else {
            *(*upvalue).location = value;
        }
    }
}

/// A new class, named by constant `name` of `proto`.
pub unsafe extern "C" fn class(vm: *mut Vm, proto: *const Proto, name: u32, fields: u32) -> Value {
    // SAFETY: see the head.
    let (vm, name) = unsafe { (&mut *vm, *(*proto).constants.add(name as usize)) };
    heap!(vm, vm.new_class(name, fields))
}

/// Lets `class` inherit from `superclass`. Returns `superclass`, or an error.
pub unsafe extern "C" fn inherit(vm: *mut Vm, superclass: Value, class: Value) -> Value {
    // SAFETY: see the head.
    unsafe {
        let vm = &mut *vm;
        if !is(superclass, Tag::Class) {
            return vm.fail("Superclass must be a class.");
        }
        heap!(vm, vm.copy_down(superclass, class));
    }
    superclass
}

/// Adds a method to `class`. Returns `class`, or an error.
pub unsafe extern "C" fn method(vm: *mut Vm, class: Value, closure: Value, symbol: u32) -> Value {
    // SAFETY: see the head.
    unsafe {
        let vm = &mut *vm;
        heap!(vm, vm.define_method(class, symbol, closure));
    }
    class
}

/// Prints a value and a newline.
pub unsafe extern "C" fn print(vm: *mut Vm, value: Value) {
    // SAFETY: see the head.
    unsafe { (*vm).print(value) }
}

/// The native `clock`: processor time of the process in seconds.
pub unsafe extern "C" fn clock(_: *mut Isolate, _: u32, _: *const Value) -> Value {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes the time to `time`; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    // C's `clock` has a resolution of microseconds.
    Value::number((time.tv_sec * 1_000_000 + time.tv_nsec / 1_000) as f64 / 1e6)
}
