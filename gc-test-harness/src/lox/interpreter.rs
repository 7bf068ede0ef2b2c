//! The interpreter: executes one activation. For each call in it, it makes a native call of the
//! callee's entry.

use super::bytecode::{Function, Instruction, Op};
use super::clear::{self, FRAMES, cleared};
use super::green;
use super::isolate::{FRAMES_MAX, Vm};
use super::object::{Closure, Tag, is};
use super::proto::{Isolate, Proto};
use super::runtime;
use super::value::{Value, product, sum};
use std::sync::atomic::Ordering;

cleared! {
    /// [`Proto::entry`] of a function without machine code.
    interpret(vm: *mut Isolate, closure: Value, base: *mut Value) => interpret_cleared, FRAMES
}

/// The body of [`interpret`], after the stack was cleared.
///
/// # Safety
/// The protocol at the head of [`super::isolate`].
pub(super) unsafe extern "C" fn interpret_cleared(
    vm: *mut Isolate,
    closure: Value,
    base: *mut Value,
) -> Value {
    let vm: *mut Vm = vm.cast();
    // SAFETY: the protocol; protos live as long as the isolate. The isolate is used through its
    // pointer only, because the functions called from here use it as well.
    unsafe {
        let proto = (*closure.as_cell::<Closure>()).proto;
        let end = base.wrapping_add((*proto).max_stack as usize);
        if (*vm).frame_count == FRAMES_MAX || end as usize > (*vm).stack_end {
            return runtime::stack_overflow(vm);
        }
        (*proto).calls_left = (*proto).calls_left.wrapping_sub(1);
        if (*proto).calls_left == 0
            && let Some(hot_call) = (*vm).hooks.hot_call
        {
            let interpreted = (*proto).entry as usize;
            hot_call(vm, proto, base);
            if (*proto).entry as usize != interpreted {
                return ((*proto).entry)(vm.cast(), closure, base);
            }
        }

        (*vm).frame_count += 1;
        // Relaxed: only this thread writes it.
        let outer_limit = (*vm).stack_limit.load(Ordering::Relaxed);
        // All slots behind the arguments are filled: the caller's operands may have left values
        // there.
        let first = if (*vm).faulty_operands {
            outer_limit as *mut Value
        } else {
            base.add((*proto).arity as usize + 1)
        };
        fill(first, end.max(outer_limit as *mut Value));
        if (outer_limit as *mut Value) < end {
            // Release: the slots are filled before the limit covers them. The collector reads the
            // limit in a stop.
            if !(*vm).faulty_limit {
                (*vm).stack_limit.store(end as usize, Ordering::Release);
            }
        }
        // Relaxed: a flag alone.
        if (*vm).preempt.load(Ordering::Relaxed) != 0 {
            green::poll(vm);
        }
        let result = execute(vm, proto, closure, base);
        // Release: as above; the lower limit covers only slots that hold values.
        (*vm).stack_limit.store(outer_limit, Ordering::Release);
        (*vm).frame_count -= 1;
        result
    }
}

/// Fills slots with nil, so that they keep no cell alive.
///
/// # Safety
/// The slots must lie in the value stack and not be in use.
#[inline(always)]
unsafe fn fill(mut first: *mut Value, end: *mut Value) {
    while first < end {
        // SAFETY: the caller's promise.
        unsafe {
            first.write(Value::NIL);
            first = first.add(1);
        }
    }
}

/// Executes from the first instruction to `Return`, or to an error.
unsafe fn execute(vm: *mut Vm, proto: *mut Proto, closure: Value, base: *mut Value) -> Value {
    // SAFETY: the compiler made the code: the slots, constants, caches, globals and upvalues that
    // it names exist, jumps stay inside the code, and the height is at most `max_stack`. Cells on
    // the value stack are alive, because it is a root range.
    unsafe {
        let code = (*proto).code;
        let mut next = code;
        let mut top = base.add((*proto).arity as usize + 1);
        let end = base.add((*proto).max_stack as usize);

        macro_rules! push {
            ($value:expr) => {{
                let value = $value;
                top.write(value);
                top = top.add(1);
            }};
        }
        macro_rules! pop {
            () => {{
                top = top.sub(1);
                *top
            }};
        }
        // Returns an error to the caller, after appending this activation's line.
        macro_rules! check {
            ($value:expr) => {{
                let value: Value = $value;
                if value.is_error() {
                    return unwind(vm, proto, next);
                }
                value
            }};
        }
        macro_rules! numbers {
            ($result:expr) => {{
                let (left, right) = (*top.sub(2), *top.sub(1));
                if !left.is_number() || !right.is_number() {
                    check!(runtime::operands_error(vm));
                }
                top = top.sub(1);
                top.sub(1)
                    .write($result(left.as_number(), right.as_number()));
            }};
        }

        loop {
            let instruction = *next;
            next = next.add(1);
            let (a, b, c) = (
                u32::from(instruction.a),
                usize::from(instruction.b),
                instruction.c,
            );
            match instruction.op {
                Op::Constant => push!(*(*proto).constants.add(c as usize)),
                Op::Nil => push!(Value::NIL),
                Op::True => push!(Value::TRUE),
                Op::False => push!(Value::FALSE),
                Op::Pop => top = top.sub(1),
                Op::GetLocal => push!(*base.add(c as usize)),
                Op::SetLocal => *base.add(c as usize) = *top.sub(1),
                Op::GetGlobal => {
                    let value = *(*vm).globals.add(c as usize);
                    if value == Value::UNDEFINED {
                        check!(runtime::undefined_variable(vm, c));
                    }
                    push!(value);
                }
                Op::DefineGlobal => *(*vm).globals.add(c as usize) = pop!(),
                Op::SetGlobal => {
                    let global = (*vm).globals.add(c as usize);
                    if *global == Value::UNDEFINED {
                        check!(runtime::undefined_variable(vm, c));
                    }
                    *global = *top.sub(1);
                }
                Op::GetUpvalue => {
                    let upvalue = *Closure::upvalue(closure.as_cell(), c as usize);
                    push!(*(*upvalue).location);
                }
                Op::SetUpvalue => runtime::set_upvalue(vm, closure, c, *top.sub(1)),
                Op::GetProperty => {
                    let cache = (*proto).caches.add(b);
                    let value = check!(runtime::get_property(vm, *top.sub(1), cache, c));
                    top.sub(1).write(value);
                }
                Op::SetProperty => {
                    let cache = (*proto).caches.add(b);
                    let value = check!(runtime::set_property(
                        vm,
                        *top.sub(2),
                        *top.sub(1),
                        cache,
                        c
                    ));
                    top = top.sub(1);
                    top.sub(1).write(value);
                }
                Op::GetSuper => {
                    let cache = (*proto).caches.add(b);
                    let value = check!(runtime::get_super(vm, *top.sub(2), *top.sub(1), cache, c));
                    top = top.sub(1);
                    top.sub(1).write(value);
                }
                Op::Equal => {
                    let right = pop!();
                    let left = *top.sub(1);
                    top.sub(1).write(Value::boolean(left.equals(right)));
                }
                Op::Greater => numbers!(|left, right| Value::boolean(left > right)),
                Op::Less => numbers!(|left, right| Value::boolean(left < right)),
                Op::Add => {
                    let (left, right) = (*top.sub(2), *top.sub(1));
                    let sum = if left.is_number() && right.is_number() {
                        Value::number(sum(left.as_number(), right.as_number()))
                    } else {
                        check!(runtime::add(vm, left, right))
                    };
                    top = top.sub(1);
                    top.sub(1).write(sum);
                }
                Op::Subtract => numbers!(|left: f64, right: f64| Value::number(left - right)),
                Op::Multiply => {
                    numbers!(|left: f64, right: f64| Value::number(product(left, right)))
                }
                Op::Divide => numbers!(|left: f64, right: f64| Value::number(left / right)),
                Op::Not => {
                    let value = *top.sub(1);
                    top.sub(1).write(Value::boolean(value.is_falsey()));
                }
                Op::Negate => {
                    let value = *top.sub(1);
                    if !value.is_number() {
                        check!(runtime::operand_error(vm));
                    }
                    top.sub(1).write(Value::number(-value.as_number()));
                }
                Op::Print => runtime::print(vm, pop!()),
                Op::Jump => next = code.add(c as usize),
                Op::JumpIfFalse => {
                    if (*top.sub(1)).is_falsey() {
                        next = code.add(c as usize);
                    }
                }
                Op::JumpIfTrue => {
                    if !(*top.sub(1)).is_falsey() {
                        next = code.add(c as usize);
                    }
                }
                Op::PopJumpIfFalse => {
                    if pop!().is_falsey() {
                        next = code.add(c as usize);
                    }
                }
                Op::Loop => {
                    next = code.add(c as usize);
                    // The slots above `top` hold operands and locals of the last iteration. They
                    // are cleared so that no cell lives as long as the loop because of them, in the
                    // interpreter or in the code that `hot_loop` returns.
                    if !(*vm).faulty_operands {
                        fill(top, end);
                    }
                    // Relaxed: a flag alone.
                    if (*vm).preempt.load(Ordering::Relaxed) != 0 {
                        green::poll(vm);
                    }
                    (*vm).until_cleared -= 1;
                    if (*vm).until_cleared == 0 {
                        (*vm).until_cleared = clear::EVERY;
                        clear::dead_stack();
                    }
                    (*proto).loops_left = (*proto).loops_left.wrapping_sub(1);
                    if (*proto).loops_left == 0
                        && let Some(hot_loop) = (*vm).hooks.hot_loop
                        && let Some(entry) = hot_loop(vm, proto, c, base)
                    {
                        let result = entry(vm.cast(), closure, base);
                        if result != Value::RESUME {
                            return result;
                        }
                        next = code.add((*vm).resume_at as usize);
                        top = base.add((*vm).resume_height as usize);
                    }
                }
                Op::Call => {
                    let callee_at = top.sub(a as usize + 1);
                    let callee = *callee_at;
                    let value = if is(callee, Tag::Closure) {
                        let called = (*callee.as_cell::<Closure>()).proto;
                        if (*called).arity != a {
                            check!(runtime::arity_error(vm, callee, a));
                        }
                        ((*called).entry)(vm.cast(), callee, callee_at)
                    } else {
                        clear::call(vm, callee_at, a)
                    };
                    let value = check!(value);
                    top = callee_at;
                    push!(value);
                }
                Op::Invoke => {
                    let receiver_at = top.sub(a as usize + 1);
                    let cache = (*proto).caches.add(b);
                    let value = check!(clear::invoke(vm, receiver_at, a, cache, c));
                    top = receiver_at;
                    push!(value);
                }
                Op::SuperInvoke => {
                    let superclass = pop!();
                    let this_at = top.sub(a as usize + 1);
                    let cache = (*proto).caches.add(b);
                    let value = check!(clear::super_invoke(vm, this_at, a, superclass, cache, c));
                    top = this_at;
                    push!(value);
                }
                Op::Closure => {
                    let child = *(*proto).children.add(c as usize);
                    // One of the captured slots may be the slot that the closure is pushed to: a
                    // local function that calls itself. The upvalue refers to the slot, so the
                    // order does not matter.
                    push!(check!(runtime::closure(vm, closure, child, base)));
                }
                Op::CloseUpvalue => {
                    runtime::close_upvalues(vm, top.sub(1));
                    top = top.sub(1);
                }
                Op::Return => {
                    let value = pop!();
                    if (*proto).captures_any {
                        runtime::close_upvalues(vm, base);
                    }
                    return value;
                }
                Op::Class => push!(check!(runtime::class(vm, proto, b as u32, c))),
                Op::Inherit => {
                    check!(runtime::inherit(vm, *top.sub(2), *top.sub(1)));
                    top = top.sub(1);
                }
                Op::Method => {
                    check!(runtime::method(vm, *top.sub(2), *top.sub(1), c));
                    top = top.sub(1);
                }
            }
        }
    }
}

/// Adds the line of the instruction before `next` to the stack trace, and returns the error.
#[cold]
unsafe fn unwind(vm: *mut Vm, proto: *const Proto, next: *const Instruction) -> Value {
    // SAFETY: as in `execute`.
    unsafe {
        let function: &Function = &(*proto).function;
        let index = next.offset_from((*proto).code) as usize - 1;
        (*vm).trace(function, function.lines[index]);
    }
    Value::ERROR
}
