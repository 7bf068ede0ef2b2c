//! An isolate's own state of a function ([`Proto`]), and its inline caches.
//!
//! Each `GetProperty`, `SetProperty`, `GetSuper`, `Invoke` and `SuperInvoke` has a [`Cache`] of its
//! own in [`Proto::caches`]. A cache holds ids and slots, no cells, so it is no root. Ids are never
//! used twice, so a cache is never cleared.

use super::bytecode::{Function, Instruction};
use super::value::Value;
use std::mem::offset_of;
use std::sync::Arc;

/// The isolate whose code runs: a [`Vm`](super::isolate::Vm), by its address. The type is opaque,
/// so that functions and cells can name the isolate that contains them.
pub enum Isolate {}

/// The shape or class that one property access was last used with, and the result of the lookup. An
/// empty cache has `id` 0, which no instance and no class has.
///
/// `GetProperty`, `SetProperty`, `Invoke`: `id` is the instance's shape. `GetSuper`, `SuperInvoke`:
/// the superclass's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Cache {
    /// The id of a shape or class.
    pub id: u32,
    /// The result of the lookup: a number, with at most one flag. No flag: a field, in the inline
    /// slot of this number. [`CACHE_OVERFLOW`]: a field, in the overflow cell's slot of this
    /// number. [`CACHE_METHOD`]: a method, in the entry of this number of the class's method table.
    /// [`CACHE_ADD`] (`SetProperty` only): the access adds a field, in the inline slot of this
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

/// The signature of every function's entry. `base[0]` is the callee or receiver, `base[1..]` are
/// the arguments, whose number the caller has checked, and `closure` is the boxed closure. The
/// entry returns [`Value::ERROR`] after a runtime error. The callee counts frames and publishes the
/// stack's limit (see [`super::isolate`]).
pub type Entry = unsafe extern "C" fn(vm: *mut Isolate, closure: Value, base: *mut Value) -> Value;

/// An isolate's own state of a function: its code, its constants' cells, its caches, its counters
/// and its machine code. A `Proto` has one address for as long as the isolate lives, and every
/// closure of the function refers to it.
#[repr(C)]
pub struct Proto {
    /// The entry that callers use, never null: the interpreter's, or the machine code's after the
    /// function was compiled.
    pub entry: Entry,
    /// The compiled code's entry for arguments in registers, or null. Only the JIT writes and reads
    /// it.
    pub fast_entry: *const u8,
    /// The constants. The cells among them are roots for as long as the isolate lives, because
    /// machine code may hold their addresses.
    pub constants: *const Value,
    /// The inline caches.
    pub caches: *mut Cache,
    /// The code.
    pub code: *const Instruction,
    /// The functions declared inside this one, for `Closure`.
    pub children: *const *mut Proto,
    /// Number of calls until the interpreter calls
    /// [`Hooks::hot_call`](super::isolate::Hooks::hot_call). The interpreter counts it down.
    pub calls_left: u32,
    /// Number of back-edges until the interpreter calls
    /// [`Hooks::hot_loop`](super::isolate::Hooks::hot_loop). The interpreter counts it down.
    pub loops_left: u32,
    /// The id in the [`header`](super::object::Header) of the function's closures.
    pub id: u32,
    /// Number of parameters.
    pub arity: u32,
    /// Slots of an activation.
    pub max_stack: u32,
    /// Number of upvalues.
    pub upvalues: u32,
    /// Number of instructions.
    pub length: u32,
    /// [`Function::captures_any`]
    pub captures_any: bool,
    /// The JIT's record of this function, or null.
    pub jit: *mut std::ffi::c_void,
    /// The compiled function, shared by all isolates of the program.
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
