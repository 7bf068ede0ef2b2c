//! A function as one isolate runs it, and its inline caches.
//!
//! Each `GetProperty`, `SetProperty`, `GetSuper`, `Invoke` and `SuperInvoke` has a [`Cache`] of its
//! own in [`Proto::caches`]. A cache holds ids and slots and no cells, and ids are never used
//! twice. So a cache is no root and is never cleared.

use super::bytecode::{Function, Instruction};
use super::value::Value;
use std::mem::offset_of;
use std::sync::Arc;

/// The isolate whose code runs: a [`Vm`](super::isolate::Vm), by its address. The type is opaque,
/// so that functions and cells can name the isolate that contains them.
pub enum Isolate {}

/// What one property access has seen last. Empty: `id` 0, which no header has where an instance's
/// or class's stands.
///
/// `GetProperty`, `SetProperty`, `Invoke`: `id` is the instance's shape. `GetSuper`, `SuperInvoke`:
/// the superclass's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Cache {
    /// shape or class
    pub id: u32,
    /// No flag: a field, the instance's inline slot of that number. [`CACHE_OVERFLOW`]: a field,
    /// the slot of that number in the overflow cell. [`CACHE_METHOD`]: that entry of the class's
    /// method table. [`CACHE_ADD`] (`SetProperty` only): adds a field, the inline slot of that
    /// number, and stores [`Cache::header`].
    pub slot: u32,
    /// With [`CACHE_ADD`]: the instance's header after the field was added.
    pub header: u64,
}

/// See [`Cache::slot`].
pub const CACHE_METHOD: u32 = 1 << 31;
/// See [`Cache::slot`].
pub const CACHE_ADD: u32 = 1 << 30;
/// See [`Cache::slot`].
pub const CACHE_OVERFLOW: u32 = 1 << 29;
/// The bits of [`Cache::slot`] that are a number.
pub const CACHE_NUMBER: u32 = CACHE_OVERFLOW - 1;

/// How any function is called: `base[0]` is the callee or receiver, `base[1..]` the arguments,
/// whose number has been checked; `closure` is the boxed closure. Returns [`Value::ERROR`] after a
/// runtime error. The callee counts frames and publishes the stack's limit (see
/// [`super::isolate`]).
pub type Entry = unsafe extern "C" fn(vm: *mut Isolate, closure: Value, base: *mut Value) -> Value;

/// A function as one isolate runs it: its code, its constants' cells, its caches, its counters, its
/// machine code. Lives at one address for as long as the isolate; every closure of the function
/// refers to it.
#[repr(C)]
pub struct Proto {
    /// Never null. The interpreter first; machine code once there is some.
    pub entry: Entry,
    /// The compiled code's own entry (arguments in registers), or null. Only the JIT writes and
    /// reads it.
    pub fast_entry: *const u8,
    /// The constants. Cells among them are roots of the isolate for good: machine code may hold
    /// their addresses.
    pub constants: *const Value,
    /// The inline caches.
    pub caches: *mut Cache,
    /// The code.
    pub code: *const Instruction,
    /// The functions declared inside, for `Closure`.
    pub children: *const *mut Proto,
    /// Number of calls until the JIT is asked (counts down; the interpreter does it).
    pub calls_left: u32,
    /// Number of back-edges until the JIT is asked (counts down; the interpreter does it).
    pub loops_left: u32,
    /// what [`header`](super::object::Header) of its closures carries as id
    pub id: u32,
    /// number of parameters
    pub arity: u32,
    /// slots of an activation
    pub max_stack: u32,
    /// number of upvalues
    pub upvalues: u32,
    /// length of the code
    pub length: u32,
    /// [`Function::captures_any`]
    pub captures_any: bool,
    /// The JIT's own record of this function, or null.
    pub jit: *mut std::ffi::c_void,
    /// Everything else.
    pub function: Arc<Function>,
}

/// Byte offset of [`Proto::entry`].
pub const PROTO_ENTRY: i32 = offset_of!(Proto, entry) as i32;
/// Byte offset of [`Proto::fast_entry`].
pub const PROTO_FAST_ENTRY: i32 = offset_of!(Proto, fast_entry) as i32;
/// Byte offset of [`Proto::arity`].
pub const PROTO_ARITY: i32 = offset_of!(Proto, arity) as i32;
/// Byte offset of [`Proto::calls_left`].
pub const PROTO_CALLS_LEFT: i32 = offset_of!(Proto, calls_left) as i32;
/// Byte offset of [`Proto::loops_left`].
pub const PROTO_LOOPS_LEFT: i32 = offset_of!(Proto, loops_left) as i32;
