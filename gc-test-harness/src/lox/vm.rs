//! One isolate: the state that both tiers share, and the interpreter.
//!
//! # Activations
//!
//! Each call of a Lox function is one native call of [`Proto::entry`](super::bytecode::Proto), whether interpreted or
//! compiled: at most [`FRAMES_MAX`] are nested, so native recursion is bounded. The protocol:
//!
//! * The caller puts callee (or receiver) and arguments on the value stack, `base` on. They must lie below the
//!   published limit, or be rooted otherwise until the callee has published its own. It checks the number of
//!   arguments ("Expected %d arguments but got %d." is an error *of the caller's line*).
//! * The callee's prologue fails with "Stack overflow." (again on the caller's line: it appends no trace line of its own)
//!   when [`Vm::frame_count`] is [`FRAMES_MAX`]; otherwise it counts itself, and counts down again when it leaves.
//! * A callee that uses the value stack beyond its arguments fills the slots from the old limit up to its own with nil,
//!   then publishes the new limit, which is never lower than the old one; when it leaves it puts the old one back. So each
//!   slot below the limit holds a value at any instruction (the collector scans `[stack, stack_limit)` precisely), and
//!   a slot above it means nothing. Compiled code without captured slots need not touch it at all.
//! * It returns the result, or [`Value::ERROR`] with the message in the isolate. Whoever gets that from a call or a
//!   helper appends its own line to the trace and returns it in turn: the stack trace grows as the error unwinds, innermost
//!   frame first, just as the book's machine prints it.
//!
//! # For compiled code
//!
//! Field offsets are the `VM_*` constants. Helpers that both tiers use are `extern "C"` functions in `runtime.rs`.
//! The hooks: an interpreted function counts [`Proto::calls_left`](super::bytecode::Proto) and
//! [`Proto::loops_left`](super::bytecode::Proto) down; at zero it calls [`Hooks::hot_call`], [`Hooks::hot_loop`]. The former may set the
//! function's entries. The latter may return an entry that goes on at the loop's head in the same activation: it takes
//! all slots from the value stack, runs to the function's end and returns its result; frame count, limit
//! and the closing of upvalues (`Return` does it) work as at that place in the interpreter, which afterwards only puts
//! limit and count back.

use super::value::Value;
use std::mem::offset_of;
use std::sync::atomic::AtomicUsize;

/// How many activations may be nested, the script's included.
pub const FRAMES_MAX: u32 = 64;

/// One isolate. At one address for its whole life; only its own thread touches it.
#[repr(C)]
pub struct Vm {
    /// End address of the part of the value stack that is scanned. Read by the collector while this thread is stopped.
    pub stack_limit: AtomicUsize,
    /// End address of the value stack.
    pub stack_end: usize,
    /// First global variable; a declared root range, so stores need no barrier.
    pub globals: *mut Value,
    /// This mutator's runs, indexed by site: where compiled code allocates.
    pub runs: *mut u8,
    /// Nested activations, the script's included.
    pub frame_count: u32,
    /// Set while an error unwinds.
    pub failed: bool,
    /// Cells that the isolate itself refers to; a declared root range.
    pub roots: Roots,
    /// What the JIT wants to be asked.
    pub hooks: Hooks,
}

/// The isolate's own references.
#[repr(C)]
pub struct Roots {
    /// The open upvalue of the highest slot, or nil.
    pub open_upvalues: Value,
    /// boxed [`Interned`](super::object::Interned)
    pub strings: Value,
}

/// What the interpreter calls when something is hot. `None` without the JIT.
#[repr(C)]
pub struct Hooks {
    /// A function's `calls_left` reached zero.
    pub hot_call: Option<unsafe extern "C" fn(vm: *mut Vm, proto: *mut super::bytecode::Proto)>,
    /// A function's `loops_left` reached zero at the back-edge to instruction `target`. The entry to go on with, or none.
    pub hot_loop: Option<
        unsafe extern "C" fn(
            vm: *mut Vm,
            proto: *mut super::bytecode::Proto,
            target: u32,
        ) -> Option<super::bytecode::Entry>,
    >,
    /// The JIT's own.
    pub data: *mut std::ffi::c_void,
}

/// Byte offset of [`Vm::stack_limit`].
pub const VM_STACK_LIMIT: i32 = offset_of!(Vm, stack_limit) as i32;
/// Byte offset of [`Vm::stack_end`].
pub const VM_STACK_END: i32 = offset_of!(Vm, stack_end) as i32;
/// Byte offset of [`Vm::globals`].
pub const VM_GLOBALS: i32 = offset_of!(Vm, globals) as i32;
/// Byte offset of [`Vm::runs`].
pub const VM_RUNS: i32 = offset_of!(Vm, runs) as i32;
/// Byte offset of [`Vm::frame_count`].
pub const VM_FRAME_COUNT: i32 = offset_of!(Vm, frame_count) as i32;
/// Byte offset of [`Roots::open_upvalues`].
pub const VM_OPEN_UPVALUES: i32 = (offset_of!(Vm, roots) + offset_of!(Roots, open_upvalues)) as i32;
