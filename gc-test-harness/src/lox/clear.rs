//! Clears what calls that are over have left on the native stack.
//!
//! Native frames are scanned word by word, and a frame has words that its function never writes, or writes late. They hold what
//! was there before: a reference of some call that is over. In a frame that stands for as long as a loop runs, such a word
//! keeps a list from the node on that it names, however long the list grows. So the stack below the caller is filled with
//! zeros
//!
//! * before each native function that begins an activation ([`interpret`], [`call`], [`invoke`], [`super_invoke`]): its frame
//!   stands for as long as that activation;
//! * before a native function that allocates, at every [`EVERY`]th call from compiled code ([`add`], [`closure`],
//!   [`get_property`]; [`new_instance`], which is called once a run, at each): its frame stands in the same place each time that
//!   a loop calls it, so a word that is left there once is found by each collection;
//! * at every [`EVERY`]th turn of an interpreted loop ([`dead_stack`]).
//!
//! This is a matter of space only: no word here is relied on. What a function *has written* to its frame and needs no more
//! stays, as do registers.

use std::arch::naked_asm;

use super::bytecode::{Cache, Proto};
use super::interpreter::interpret_cleared;
use super::jit::helpers::new_instance_cleared;
use super::runtime;
use super::value::Value;
use super::vm::{VM_UNTIL_CLEARED, Vm};

/// Of so many calls that allocate, or turns of a loop, one clears the stack.
pub const EVERY: u32 = 64;

/// Bytes that a function which begins an activation may have in its frame, and those that it calls before that.
const FRAMES: usize = if cfg!(debug_assertions) { 1536 } else { 384 };

/// Bytes that the calls of a loop's turn have below it, but for their own activations.
const BELOW: usize = 2048;

/// A function that clears so many bytes of dead stack and goes on in another of the same signature.
macro_rules! cleared {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) => $target:path, $bytes:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As the function after which it is named.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> Value {
            // Writes RAX and XMM0 only, which hold no argument, and memory below SP, which is nobody's at a function's entry.
            naked_asm!(
                ".cfi_startproc",
                "lea rax, [rsp - {bytes}]",
                "xorps xmm0, xmm0",
                "2:",
                "movups [rax], xmm0",
                "add rax, 16",
                "cmp rax, rsp",
                "jb 2b",
                "jmp {target}",
                ".cfi_endproc",
                bytes = const $bytes,
                target = sym $target,
            )
        }
    };
}

/// The same at every [`EVERY`]th call.
macro_rules! cleared_at_times {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) => $target:path) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As the function after which it is named.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name(vm: *mut Vm, $($arg: $ty),*) -> Value {
            // As above; RDI is the isolate, which only this thread writes.
            naked_asm!(
                ".cfi_startproc",
                "dec dword ptr [rdi + {until}]",
                "jz 3f",
                "jmp {target}",
                "3:",
                "mov dword ptr [rdi + {until}], {every}",
                "lea rax, [rsp - {bytes}]",
                "xorps xmm0, xmm0",
                "2:",
                "movups [rax], xmm0",
                "add rax, 16",
                "cmp rax, rsp",
                "jb 2b",
                "jmp {target}",
                ".cfi_endproc",
                until = const VM_UNTIL_CLEARED,
                every = const EVERY,
                bytes = const BELOW,
                target = sym $target,
            )
        }
    };
}

cleared! {
    /// [`Proto::entry`] of a function without machine code.
    interpret(vm: *mut Vm, closure: Value, base: *mut Value) => interpret_cleared, FRAMES
}
cleared! {
    /// [`runtime::call`]
    call(vm: *mut Vm, base: *mut Value, count: u32) => runtime::call, FRAMES
}
cleared! {
    /// [`runtime::invoke`]
    invoke(vm: *mut Vm, base: *mut Value, count: u32, cache: *mut Cache, symbol: u32) => runtime::invoke, FRAMES
}
cleared! {
    /// [`runtime::super_invoke`]
    super_invoke(vm: *mut Vm, base: *mut Value, count: u32, superclass: Value, cache: *mut Cache, symbol: u32)
        => runtime::super_invoke, FRAMES
}
cleared! {
    /// A fresh instance of a class, where the inline allocation found its run used up.
    new_instance(vm: *mut Vm, class: Value) => new_instance_cleared, BELOW
}
cleared_at_times! {
    /// [`runtime::add`]
    add(left: Value, right: Value) => runtime::add
}
cleared_at_times! {
    /// [`runtime::closure`]
    closure(enclosing: Value, child: *mut Proto, base: *mut Value) => runtime::closure
}
cleared_at_times! {
    /// [`runtime::get_property`]
    get_property(object: Value, cache: *mut Cache, symbol: u32) => runtime::get_property
}

extern "C" fn nothing() -> Value {
    Value::NIL
}
cleared! {
    /// Nothing but that.
    dead_stack() => nothing, BELOW
}
