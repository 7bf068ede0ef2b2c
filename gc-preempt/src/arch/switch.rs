//! The switch from one stack to another, and the first frame of a stack.
//!
//! [`switch`] pushes the registers that a callee preserves, and the control words of x87 and SSE,
//! which the System V convention counts among them (3.2.1). It publishes where it leaves the stack,
//! and exchanges SP. A stack that was left so has the same words on its top as one that [`prepare`]
//! has made, so one routine enters both.
//!
//! The published frame begins below the pushed words. Its PC is `urge_switch_left`, which no thread
//! executes: its unwind table says where the pushed registers are. So a walk finds the registers of
//! the switch's caller in memory, as for `call_spilled`.
//!
//! The switch goes on by a jump, not by `ret`. A processor predicts the target of a `ret` from the
//! calls that came before, which were those of the other stack.
//!
//! A prepared stack begins in `urge_stack_entry`. Its unwind table says that it has no caller, so
//! walks, backtraces and unwinding end there. The frame ends at the stack's end: a walk reports
//! all words above the call word by word, those of the body's closure included.
//!
//! A shadow stack (CET) does not follow the switch: with one, the first `ret` on another stack
//! faults.

use core::arch::{asm, global_asm};

global_asm!(
    ".text",
    ".p2align 4",
    ".globl urge_switch",
    ".hidden urge_switch",
    ".type urge_switch,@function",
    // rdi: where to store SP, FP and PC of the frame that is left; rsi: the SP of the other stack;
    // rdx: what the other side gets.
    "urge_switch:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "push rbx",
    ".cfi_def_cfa_offset 24",
    ".cfi_offset rbx, -24",
    "push r12",
    ".cfi_def_cfa_offset 32",
    ".cfi_offset r12, -32",
    "push r13",
    ".cfi_def_cfa_offset 40",
    ".cfi_offset r13, -40",
    "push r14",
    ".cfi_def_cfa_offset 48",
    ".cfi_offset r14, -48",
    "push r15",
    ".cfi_def_cfa_offset 56",
    ".cfi_offset r15, -56",
    "sub rsp, 8",
    ".cfi_def_cfa_offset 64",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "lea rax, [rsp + 48]",
    "lea rcx, [rip + urge_switch_left]",
    "mov [rdi], rsp",
    "mov [rdi + 8], rax",
    "mov [rdi + 16], rcx",
    // The other stack has the same words at its top, so the table holds on.
    "mov rsp, rsi",
    "ldmxcsr [rsp]",
    "fldcw [rsp + 4]",
    "add rsp, 8",
    ".cfi_def_cfa_offset 56",
    "pop r15",
    ".cfi_def_cfa_offset 48",
    ".cfi_restore r15",
    "pop r14",
    ".cfi_def_cfa_offset 40",
    ".cfi_restore r14",
    "pop r13",
    ".cfi_def_cfa_offset 32",
    ".cfi_restore r13",
    "pop r12",
    ".cfi_def_cfa_offset 24",
    ".cfi_restore r12",
    "pop rbx",
    ".cfi_def_cfa_offset 16",
    ".cfi_restore rbx",
    "pop rbp",
    ".cfi_def_cfa_offset 8",
    ".cfi_restore rbp",
    "mov rax, rdx",
    "pop rcx",
    ".cfi_def_cfa_offset 0",
    ".cfi_register rip, rcx",
    "jmp rcx",
    ".cfi_endproc",
    ".size urge_switch, . - urge_switch",
    ".p2align 4",
    // rbp: where the switch has pushed the caller's.
    ".cfi_startproc",
    ".cfi_def_cfa rbp, 16",
    ".cfi_offset rbp, -16",
    ".cfi_offset rbx, -24",
    ".cfi_offset r12, -32",
    ".cfi_offset r13, -40",
    ".cfi_offset r14, -48",
    ".cfi_offset r15, -56",
    "ud2",
    ".globl urge_switch_left",
    ".hidden urge_switch_left",
    "urge_switch_left:",
    "ud2",
    ".cfi_endproc",
    ".p2align 4",
    ".globl urge_stack_entry",
    ".hidden urge_stack_entry",
    ".type urge_stack_entry,@function",
    // rbp: the stack's end; rbx: a function that never returns; r12: its first argument; rax: its
    // second.
    ".cfi_startproc",
    ".cfi_def_cfa rbp, 0",
    ".cfi_undefined rip",
    // As a return address the label is looked up by the instruction before it.
    "nop",
    "urge_stack_entry:",
    "mov rdi, r12",
    "mov rsi, rax",
    "call rbx",
    "ud2",
    ".cfi_endproc",
    ".size urge_stack_entry, . - urge_stack_entry",
);

unsafe extern "C-unwind" {
    fn urge_switch(left: *mut usize, to: usize, value: *const ()) -> *const ();
}

unsafe extern "C" {
    fn urge_stack_entry();
    fn urge_switch_left();
}

/// Words that [`switch`] has on the top of a stack: control words, r15, r14, r13, r12, rbx, rbp,
/// and the return address.
const WORDS: usize = 8;

/// Leaves the running stack for the stack whose SP is `to`, which gets `value`. SP, FP and PC of
/// the frame from which a walk of the stack that is left may start go to `left`. Returns when
/// another switch has that SP as its `to`, with the value of that switch.
///
/// # Safety
/// The three words at `left` may be written. `to` was stored by a switch or comes from [`prepare`],
/// that stack is mapped, and no switch has entered it since.
#[inline(always)]
pub(crate) unsafe fn switch(left: *mut usize, to: usize, value: *const ()) -> *const () {
    // SAFETY: the caller's contract. The assembly keeps the System V convention.
    unsafe { urge_switch(left, to, value) }
}

/// The first function on a stack. It gets the argument of [`prepare`], and the value of the switch
/// that enters the stack.
pub(crate) type First = extern "C-unwind" fn(*mut (), *const ()) -> !;

/// Makes a stack's first frame, which calls `f` with `data`. Its words end at `top`, and the stack
/// at `end`. The result is as what [`switch`] stores: SP, FP and PC.
///
/// # Safety
/// `top` and `end` are multiples of 16, `top <= end`, and at least 256 bytes below `top` are mapped
/// and belong to the caller.
pub(crate) unsafe fn prepare(top: usize, end: usize, f: First, data: *mut ()) -> [usize; 3] {
    let (control, x87): (u32, u16);
    let mut words = [0u32; 2];
    // SAFETY: writes the two words.
    unsafe {
        asm!("stmxcsr [{0}]", "fnstcw [{0} + 4]", in(reg) words.as_mut_ptr(), options(nostack, preserves_flags));
    }
    (control, x87) = (words[0], words[1] as u16);
    // SP is a multiple of 16 at the entry's call, as the convention wants it.
    let sp = top - 16;
    let to = sp - 8 * WORDS;
    let frame = [
        u64::from(control) as usize | (x87 as usize) << 32,
        0,
        0,
        0,
        data as usize,
        f as usize,
        end,
        urge_stack_entry as *const () as usize,
    ];
    // SAFETY: by the contract these words are the caller's.
    unsafe { (to as *mut [usize; WORDS]).write(frame) };
    [to, to + 48, urge_switch_left as *const () as usize]
}
