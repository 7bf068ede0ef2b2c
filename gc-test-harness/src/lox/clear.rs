//! Clears dead words of the native stack and of vector registers.
//!
//! Native frames are scanned word by word. A frame has words that its function never writes, or
//! writes late; they may hold a reference that an earlier call left there. In a frame that stands
//! for as long as a loop runs, such a word keeps a list from the node on that it names, however
//! long the list grows. So the stack below the caller is filled with zeros
//!
//! * before each native function that begins an activation
//!   ([`interpret`](super::interpreter::interpret), [`call`], [`invoke`],
//!   [`super_invoke`]): its frame stands for as long as that activation;
//! * before a native function that allocates, at every [`EVERY`]th call from compiled code
//!   ([`add`], [`closure`], [`get_property`]; [`new_instance`], which is called once a run, at
//!   each): its frame stands in the same place each time that a loop calls it, so a word that is
//!   left there once is found by each collection;
//! * at every [`EVERY`]th turn of an interpreted loop ([`dead_stack`]).
//!
//! At all of these but the first the vector registers are cleared as well. Compilers move pairs of
//! words through them, and C's library copies memory through the sixteen that only AVX-512 has. The
//! next such move may use another register, so a word stays where it is for as long as a loop runs,
//! and a stop scans all registers. At a function's entry a vector register holds an argument or
//! nothing that is needed, and these functions have no arguments there.
//!
//! This is a matter of space only: no word here is relied on. What a function *has written* to its
//! frame and needs no more stays, as do its general registers.

use crate::lox::fault::Fault;
use std::arch::naked_asm;
use std::sync::atomic::{AtomicU8, Ordering};

use super::isolate::{VM_UNTIL_CLEARED, Vm};
use super::proto::{Cache, Proto};
use super::runtime;
use super::value::Value;

/// Of so many calls that allocate, or turns of a loop, one clears the stack.
pub const EVERY: u32 = 64;

/// Bytes that a function which begins an activation may have in its frame, and those that it calls
/// before that.
pub(super) const FRAMES: usize = if cfg!(debug_assertions) { 1536 } else { 384 };

/// Bytes that the calls of a loop's turn have below it, but for their own activations.
const BELOW: usize = 2048;

/// Which vector registers the processor has: [`SSE`], [`AVX`] or [`AVX512`]. 0: none is cleared.
static VECTORS: AtomicU8 = AtomicU8::new(0);
const SSE: u8 = 1;
const AVX: u8 = 2;
const AVX512: u8 = 3;

/// Finds out which vector registers are to be cleared. Each isolate calls it before it runs code.
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
    // Relaxed: all threads write the same, and a thread that reads the zero clears nothing.
    VECTORS.store(vectors, Ordering::Relaxed);
}

/// Clears all vector registers, and changes no other ones.
#[unsafe(naked)]
unsafe extern "C" fn clear_vectors() {
    naked_asm!(
        ".cfi_startproc",
        "cmp byte ptr [rip + {vectors}], {avx}",
        "jb 3f",
        "vzeroall",
        "je 2f",
        // The registers that VZEROALL leaves out.
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

/// A function that clears so many bytes of dead stack and goes on in another of the same signature.
macro_rules! cleared {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) => $target:path, $bytes:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As the function after which it is named.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> Value {
            // Writes RAX and XMM0 only, which hold no argument, and memory below SP, which is
            // dead at a function's entry.
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

/// A function that clears the vector registers and goes on in another of the same signature.
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
    /// What [`new_instance`] goes on with.
    new_instance_on_stack(vm: *mut Vm, class: Value) => runtime::new_instance, BELOW
}
vectors_cleared! {
    /// A fresh instance of a class, where the inline allocation found its run used up.
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
    /// What [`dead_stack`] goes on with.
    dead_stack_alone() => nothing, BELOW
}
vectors_cleared! {
    /// Nothing but that.
    dead_stack() => dead_stack_alone
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::arch::asm;

    /// The registers 0, 15 and, where there are so many, 31 after [`dead_stack`]; a word in each
    /// lane before.
    #[target_feature(enable = "avx512f")]
    fn after_clearing_with_avx512() -> [u64; 24] {
        let mut left = [u64::MAX; 24];
        // SAFETY: the function has no arguments; all that a call may change is named, and the
        // inputs are in none of it.
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

    /// The registers 0 to 15 of 16 bytes, for any processor.
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
            // SAFETY: the processor has it.
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
