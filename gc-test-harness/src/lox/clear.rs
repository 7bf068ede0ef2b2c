//! Clears dead words of the native stack and of vector registers, so that they keep no cells alive.
//!
//! Native frames are scanned conservatively. A frame contains words that its function never writes,
//! or writes late. Such a word may hold a reference that an earlier call left there. If the frame
//! exists for as long as a loop runs, the word keeps a list alive from the node that it names to
//! the list's end, however long the list grows. So the stack below SP is filled with zeros
//!
//! * before each native function that begins an activation
//!   ([`interpret`](super::interpreter::interpret), [`call`], [`invoke`], [`super_invoke`]): its
//!   frame exists for as long as the activation;
//! * before a native function that allocates, at every [`EVERY`]th call from compiled code
//!   ([`add`], [`closure`], [`get_property`]), and at every call of [`new_instance`], which is
//!   called once a run: a loop calls the function with its frame at the same address each time, so
//!   each collection finds a word that was left there once;
//! * at every [`EVERY`]th iteration of interpreted loops ([`dead_stack`]).
//!
//! In the second and third case the vector registers are cleared as well. Compilers move pairs of
//! words through them, and the C library copies memory through the sixteen that only AVX-512 has.
//! The next such move may use another register, so a word may stay in a register for as long as a
//! loop runs, and a stop scans all registers. At a function's entry all vector registers are dead
//! except arguments, and these functions have no arguments in vector registers.
//!
//! Clearing only reduces the memory in use; correctness does not depend on it. It does not reach
//! dead words that a function *has written* to its frame, and general registers.

use crate::lox::fault::Fault;
use std::arch::naked_asm;
use std::sync::atomic::{AtomicU8, Ordering};

use super::isolate::{VM_UNTIL_CLEARED, Vm};
use super::proto::{Cache, Proto};
use super::runtime;
use super::value::Value;

/// One of `EVERY` calls that allocate, or loop iterations, clears the stack.
pub const EVERY: u32 = 64;

/// Bytes that are cleared at the beginning of an activation: the frames of the function that begins
/// it and of the functions that it calls before it executes code.
pub(super) const FRAMES: usize = if cfg!(debug_assertions) { 1536 } else { 384 };

/// Bytes that are cleared for a loop: the frames of the native functions that an iteration calls,
/// without the activations that these begin.
const BELOW: usize = 2048;

/// The processor's vector registers: [`SSE`], [`AVX`] or [`AVX512`]. 0: none are cleared.
static VECTORS: AtomicU8 = AtomicU8::new(0);
const SSE: u8 = 1;
const AVX: u8 = 2;
const AVX512: u8 = 3;

/// Detects the processor's vector registers. Each isolate calls it before it runs code.
pub fn find_vectors() {
    let vectors = if Fault::StaleVectors.planted() {
        0
    } else if is_x86_feature_detected!("avx512f") {
        AVX512
    } else if is_x86_feature_detected!("avx") {
        AVX
    } else {
        SSE
    };
    // Relaxed: all threads write the same value, and a thread that still reads 0 clears nothing.
    VECTORS.store(vectors, Ordering::Relaxed);
}

/// Clears all vector registers, and changes no other registers.
#[unsafe(naked)]
unsafe extern "C" fn clear_vectors() {
    naked_asm!(
        ".cfi_startproc",
        "cmp byte ptr [rip + {vectors}], {avx}",
        "jb 3f",
        "vzeroall",
        "je 2f",
        // The registers that VZEROALL does not clear.
        ".irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
        "vpxord zmm\\n, zmm\\n, zmm\\n",
        ".endr",
        "2:",
        "ret",
        "3:",
        "cmp byte ptr [rip + {vectors}], {sse}",
        "jb 2b",
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "xorps xmm\\n, xmm\\n",
        ".endr",
        "ret",
        ".cfi_endproc",
        vectors = sym VECTORS,
        sse = const SSE,
        avx = const AVX,
    )
}

/// Defines a function that clears `$bytes` bytes of dead stack and jumps to a function of the same
/// signature.
macro_rules! cleared {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) => $target:path, $bytes:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As the function after which it is named.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> Value {
            // The code writes only RAX and XMM0, which hold no arguments, and memory below SP,
            // which is dead at a function's entry.
            std::arch::naked_asm!(
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
pub(super) use cleared;

/// Defines a function that clears the vector registers and jumps to a function of the same
/// signature.
macro_rules! vectors_cleared {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) => $target:path) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As the function after which it is named.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> Value {
            naked_asm!(
                ".cfi_startproc",
                "call {vectors}",
                "jmp {target}",
                ".cfi_endproc",
                vectors = sym clear_vectors,
                target = sym $target,
            )
        }
    };
}

/// Defines a function that clears both at every [`EVERY`]th call, and jumps to a function of the
/// same signature.
macro_rules! cleared_at_times {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) => $target:path) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As the function after which it is named.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name(vm: *mut Vm, $($arg: $ty),*) -> Value {
            // As in `cleared`. RDI is the isolate, which only this thread writes.
            naked_asm!(
                ".cfi_startproc",
                "dec dword ptr [rdi + {until}]",
                "jz 3f",
                "jmp {target}",
                "3:",
                "mov dword ptr [rdi + {until}], {every}",
                "call {vectors}",
                "lea rax, [rsp - {bytes}]",
                "xorps xmm0, xmm0",
                "2:",
                "movups [rax], xmm0",
                "add rax, 16",
                "cmp rax, rsp",
                "jb 2b",
                "jmp {target}",
                ".cfi_endproc",
                vectors = sym clear_vectors,
                until = const VM_UNTIL_CLEARED,
                every = const EVERY,
                bytes = const BELOW,
                target = sym $target,
            )
        }
    };
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
    /// The second part of [`new_instance`].
    new_instance_on_stack(vm: *mut Vm, class: Value) => runtime::new_instance, BELOW
}
vectors_cleared! {
    /// A fresh instance of a class, for compiled code whose inline allocation has used up its run.
    new_instance(vm: *mut Vm, class: Value) => new_instance_on_stack
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
    /// The second part of [`dead_stack`].
    dead_stack_alone() => nothing, BELOW
}
vectors_cleared! {
    /// Clears the vector registers and the dead stack.
    dead_stack() => dead_stack_alone
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::arch::asm;

    /// The vector registers 0, 15 and 31 after [`dead_stack`], which each had a word in every lane
    /// before.
    #[target_feature(enable = "avx512f")]
    fn after_clearing_with_avx512() -> [u64; 24] {
        let mut left = [u64::MAX; 24];
        // SAFETY: the function has no arguments. The clobber list names all registers that a call
        // may change, and the inputs are in none of these.
        unsafe {
            asm!(
                "vpbroadcastq zmm0, r12",
                "vmovdqa64 zmm15, zmm0",
                "vmovdqa64 zmm31, zmm0",
                "call {clear}",
                "vmovdqu64 [r13], zmm0",
                "vmovdqu64 [r13 + 64], zmm15",
                "vmovdqu64 [r13 + 128], zmm31",
                in("r12") 0x1234_5678_9abc_u64,
                in("r13") left.as_mut_ptr(),
                clear = sym dead_stack,
                clobber_abi("C"),
            );
        }
        left
    }

    /// The low 16 bytes of the vector registers 0 and 15 after [`dead_stack`], for any processor.
    fn after_clearing() -> [u64; 4] {
        let mut left = [u64::MAX; 4];
        // SAFETY: as above.
        unsafe {
            asm!(
                "movq xmm0, r12",
                "movddup xmm15, xmm0",
                "call {clear}",
                "movups [r13], xmm0",
                "movups [r13 + 16], xmm15",
                in("r12") 0x1234_5678_9abc_u64,
                in("r13") left.as_mut_ptr(),
                clear = sym dead_stack,
                clobber_abi("C"),
            );
        }
        left
    }

    #[test]
    fn vector_registers_are_cleared_on_every_processor() {
        let has_avx512 = is_x86_feature_detected!("avx512f");
        if has_avx512 {
            find_vectors();
            // SAFETY: the processor has AVX-512.
            assert_eq!(unsafe { after_clearing_with_avx512() }, [0; 24]);
        }
        for vectors in [SSE, AVX] {
            if vectors == SSE || is_x86_feature_detected!("avx") {
                VECTORS.store(vectors, Ordering::Relaxed);
                assert_eq!(after_clearing(), [0; 4]);
            }
        }
        find_vectors();
    }
}
