//! Stacks for tests: registering, starting, and code that holds a word where a test wants it.
#![allow(dead_code)] // each test binary uses a part

use gc_preempt::{Mutator, Stack, StackMemory, World, suspend};
use std::arch::global_asm;

/// A world, and this thread as its mutator.
pub fn attached() -> (World, Mutator) {
    let world = super::world();
    let mutator = world.attach(std::ptr::null_mut()).unwrap();
    (world, mutator)
}

/// A stack of 256 KiB, with its memory.
pub fn stack(world: &World) -> Stack {
    let memory = StackMemory::new(256 << 10).unwrap();
    // SAFETY: the memory is the registration's own.
    unsafe { world.register_stack(memory.range(), memory) }.unwrap()
}

/// Starts a function that keeps nothing of its thread over a suspension.
pub fn start(stack: &Stack, f: impl FnOnce() + Send + 'static) {
    // SAFETY: what the tests start keeps atomics and numbers.
    unsafe { stack.start(f) }.unwrap();
}

/// The registers that [`held_by_callee`] fills.
pub const HELD: usize = 5;

global_asm!(
    // rdi: the complement of a word; rsi: a function. Calls the function while the five registers
    // that a callee preserves, besides RBP, alone hold the word.
    ".globl c_held_by_callee",
    "c_held_by_callee:",
    ".cfi_startproc",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbx, 0",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r12, 0",
    "push r13",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r13, 0",
    "push r14",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r14, 0",
    "push r15",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r15, 0",
    "mov rbx, rdi",
    "not rbx",
    "mov r12, rbx",
    "mov r13, rbx",
    "mov r14, rbx",
    "mov r15, rbx",
    "xor edi, edi",
    "call rsi",
    "mov rax, rbx",
    "and rax, r12",
    "and rax, r13",
    "and rax, r14",
    "and rax, r15",
    "pop r15",
    ".cfi_adjust_cfa_offset -8",
    "pop r14",
    ".cfi_adjust_cfa_offset -8",
    "pop r13",
    ".cfi_adjust_cfa_offset -8",
    "pop r12",
    ".cfi_adjust_cfa_offset -8",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    // rdi: the complement of a word; rsi: *const AtomicBool done. Spins while R9 alone holds the
    // word, and returns the word.
    ".globl c_held_in_a_loop",
    ".globl c_held_in_a_loop_end",
    "c_held_in_a_loop:",
    "push rbp",
    "mov rbp, rsp",
    "mov r9, rdi",
    "not r9",
    "xor edi, edi",
    "1:",
    "cmp byte ptr [rsi], 0",
    "je 1b",
    "mov rax, r9",
    "pop rbp",
    "ret",
    "c_held_in_a_loop_end:",
);

unsafe extern "C-unwind" {
    fn c_held_by_callee(not: usize, f: extern "C-unwind" fn()) -> usize;
    pub fn c_held_in_a_loop(not: usize, done: *const std::sync::atomic::AtomicBool) -> usize;
    pub fn c_held_in_a_loop_end();
}

/// Calls `f` while [`HELD`] registers alone hold the word. Returns the word's complement.
/// A compiled `f` may save a register that it does not change: then the word is there twice.
pub fn held_by_callee(not: usize, f: extern "C-unwind" fn()) -> usize {
    // SAFETY: the assembly keeps the System V convention, and has an unwind table.
    unsafe { !c_held_by_callee(not, f) }
}

/// Clears the words below the caller's frame, which frames that are gone have left.
#[inline(never)]
pub fn clear_below() {
    std::hint::black_box([0usize; 256]);
}

/// [`suspend`], for [`held_by_callee`].
#[inline(never)]
pub extern "C-unwind" fn suspended() {
    suspend().unwrap();
}
