//! The write barrier and the weak load: two short assembly routines, each a restart range.
//!
//! # What the barrier keeps
//! Marking keeps a snapshot: all cells that were reachable when it began. A mutator that overwrites
//! an edge while marking is on may erase the only path by which a marker would have found the old
//! target, so it logs the *old* value first (Yuasa 1990, "Real-time garbage collection on
//! general-purpose machines"). Stores into new cells, onto stacks, and into handles and root ranges
//! need no barrier: new cells are allocated black, and the others were all scanned in stop 1.
//!
//! # Why a restart range
//! ```text
//!     store(context, slot, value):
//!         if context.marking { log(*slot) }
//!         *slot = value
//! ```
//! Suppose that a stop came between the test and the store, and the collector turned marking on.
//! Then the store would erase an edge of the snapshot that no log has.
//!
//! So both routines are *restart ranges*: a thread that is stopped inside continues at the first
//! instruction. This is right for two reasons. The inputs stay intact until the last instruction.
//! And only the last instruction takes effect: before it nothing has happened (a word that is
//! logged twice is kept twice), and after it the thread has left the range. Two other designs lost.
//! With an unsafe range, the collector must retry a thread that stores in a tight loop until it is
//! elsewhere. With the store first and the log second, the old value is in a register meanwhile, so
//! every stop 2 must scan registers, and compilers give no promise on what those hold.
//!
//! `load_weak` is the mirror image: between the load of a weak word and the moment at which its
//! target is strong, stop 2 could decide that the target is dead. The routine logs the loaded word
//! as if it had been overwritten, and stop 2 drains the logs before it decides.
//!
//! After that it tests the flag and the word again, for one case that the range does not cover: a
//! signal handler of the host has interrupted the routine and waits in `blocking`, where a stop
//! leaves its thread as it is. Stop 1 walks the thread's stack and moves the interrupted PC back to
//! the start of the range. Stop 2 walks no stacks, but the second test finds what it has changed:
//! the flag, or if it has cleared all words itself, the word.
//!
//! While words are cleared beside the mutators, the flag is above `MARKING`. A weak load then tests
//! whether the target is marked. If it is not, the load returns the value that the word is about to
//! get (`weak/`).

use core::ffi::c_void;
use core::mem::offset_of;
use std::sync::{Mutex, PoisonError};

use gc_preempt::World;
use gc_preempt::{CodeError, CodeSpec, CodeWhat};

use crate::mutator::record::Context;
use crate::weak::{Load, MARKING};

core::arch::global_asm!(
    ".pushsection .text.urge_barrier,\"ax\",@progbits",
    ".balign 64",
    ".globl urge_gc_core_store_start",
    ".hidden urge_gc_core_store_start",
    ".type urge_gc_core_store_start,@function",
    "urge_gc_core_store_start:",
    ".cfi_startproc",
    "    cmp     dword ptr [rdi + {marking}], 0",
    "    je      3f",
    "    mov     rax, qword ptr [rsi]",
    "    mov     rcx, qword ptr [rdi + {cursor}]",
    "    cmp     rcx, qword ptr [rdi + {limit}]",
    "    je      4f",
    "    mov     qword ptr [rcx], rax",
    "    add     rcx, 8",
    "    mov     qword ptr [rdi + {cursor}], rcx",
    "3:  mov     qword ptr [rsi], rdx",
    ".globl urge_gc_core_store_end",
    ".hidden urge_gc_core_store_end",
    "urge_gc_core_store_end:",
    "    ret",
    // The log is full. Nothing has taken effect yet: flush it, and begin again.
    "4:  push    rdi",
    ".cfi_adjust_cfa_offset 8",
    "    push    rsi",
    ".cfi_adjust_cfa_offset 8",
    "    push    rdx",
    ".cfi_adjust_cfa_offset 8",
    "    call    {flush}",
    "    pop     rdx",
    ".cfi_adjust_cfa_offset -8",
    "    pop     rsi",
    ".cfi_adjust_cfa_offset -8",
    "    pop     rdi",
    ".cfi_adjust_cfa_offset -8",
    "    jmp     urge_gc_core_store_start",
    ".cfi_endproc",
    ".size urge_gc_core_store_start, . - urge_gc_core_store_start",
    "",
    ".balign 64",
    ".globl urge_gc_core_load_weak_start",
    ".hidden urge_gc_core_load_weak_start",
    ".type urge_gc_core_load_weak_start,@function",
    "urge_gc_core_load_weak_start:",
    ".cfi_startproc",
    "    cmp     dword ptr [rdi + {marking}], {on}",
    "    jb      5f",
    "    ja      6f",
    "    mov     rcx, qword ptr [rdi + {cursor}]",
    "    cmp     rcx, qword ptr [rdi + {limit}]",
    "    je      4f",
    "    mov     rax, qword ptr [rsi]",
    "    mov     qword ptr [rcx], rax",
    "    add     rcx, 8",
    "    mov     qword ptr [rdi + {cursor}], rcx",
    // Marking is still on and the word has not changed, so the word was logged in time.
    "    cmp     dword ptr [rdi + {marking}], {on}",
    "    jne     urge_gc_core_load_weak_start",
    "    cmp     rax, qword ptr [rsi]",
    "    jne     urge_gc_core_load_weak_start",
    "    ret",
    "5:  mov     rax, qword ptr [rsi]",
    ".globl urge_gc_core_load_weak_end",
    ".hidden urge_gc_core_load_weak_end",
    "urge_gc_core_load_weak_end:",
    "    ret",
    "4:  push    rdi",
    ".cfi_adjust_cfa_offset 8",
    "    push    rsi",
    ".cfi_adjust_cfa_offset 8",
    "    sub     rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "    call    {flush}",
    "    add     rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "    pop     rsi",
    ".cfi_adjust_cfa_offset -8",
    "    pop     rdi",
    ".cfi_adjust_cfa_offset -8",
    "    jmp     urge_gc_core_load_weak_start",
    // The dead cells are decided, and their words are being cleared.
    "6:  sub     rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "    call    {judged}",
    "    add     rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "    ret",
    ".cfi_endproc",
    ".size urge_gc_core_load_weak_start, . - urge_gc_core_load_weak_start",
    ".globl urge_gc_core_barrier_end",
    ".hidden urge_gc_core_barrier_end",
    "urge_gc_core_barrier_end:",
    ".popsection",
    marking = const offset_of!(Context, marking),
    cursor = const offset_of!(Context, log_cursor),
    limit = const offset_of!(Context, log_limit),
    flush = sym flush,
    judged = sym load_judged,
    on = const MARKING,
);

unsafe extern "C" {
    fn urge_gc_core_store_start(context: *const c_void, slot: *mut usize, value: usize);
    fn urge_gc_core_store_end();
    fn urge_gc_core_load_weak_start(context: *const c_void, slot: *const usize) -> usize;
    fn urge_gc_core_load_weak_end();
    #[cfg(feature = "internals")]
    fn urge_gc_core_barrier_end();
}

/// Stores an edge with the write barrier.
///
/// # Safety
/// `context` is the calling thread's record; `slot` is a word of a live cell of its heap (or of any
/// memory, if the old value need not be kept).
#[inline]
pub(crate) unsafe fn store(context: *const Context, slot: *mut usize, value: usize) {
    // SAFETY: by this function's own contract.
    unsafe { urge_gc_core_store_start(context.cast(), slot, value) }
}

/// Loads a weak word and makes its target strong.
///
/// # Safety
/// As for [`store`].
#[inline]
pub(crate) unsafe fn load_weak(context: *const Context, slot: *const usize) -> usize {
    // SAFETY: by this function's own contract.
    unsafe { urge_gc_core_load_weak_start(context.cast(), slot) }
}

/// Returns the address of the write barrier's store, for JIT code that calls it. The table in
/// [`jit`](crate::jit) has its arguments.
#[must_use]
pub fn store_address() -> usize {
    urge_gc_core_store_start as *const () as usize
}

/// Returns the address of the weak load, for JIT code that calls it. The table in
/// [`jit`](crate::jit) has its arguments.
#[must_use]
pub fn load_weak_address() -> usize {
    urge_gc_core_load_weak_start as *const () as usize
}

/// The addresses of the two routines, each with the instructions that are no part of its restart
/// range.
#[cfg(feature = "internals")]
pub fn routines() -> [(&'static str, core::ops::Range<usize>); 2] {
    let end = urge_gc_core_barrier_end as *const () as usize;
    [
        ("store", store_address()..load_weak_address()),
        ("load_weak", load_weak_address()..end),
    ]
}

/// The two restart ranges.
pub(crate) fn restart_ranges() -> [core::ops::Range<usize>; 2] {
    [
        store_address()..urge_gc_core_store_end as *const () as usize,
        load_weak_address()..urge_gc_core_load_weak_end as *const () as usize,
    ]
}

/// Registers the two restart ranges, once in a process.
pub(crate) fn register_units(world: &World) -> Result<(), CodeError> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done || !seam::has_restart_ranges() {
        return Ok(());
    }
    for range in restart_ranges() {
        let spec = CodeSpec {
            range,
            what: CodeWhat::Restart,
            owner: None,
        };
        // SAFETY: the ranges are text of this program, and may be restarted from every instruction:
        // see the module's head.
        let guard = unsafe { world.register_code(spec) }?;
        // The ranges are part of this crate's text: they are never unregistered.
        core::mem::forget(guard);
    }
    *done = true;
    Ok(())
}

/// Called by the routines when a mutator's log is full: moves it to the heap's log, or if that is
/// full too, marks the cells that its words name.
///
/// # Safety
/// `context` is the calling thread's.
unsafe extern "C" fn flush(context: *const Context) {
    // SAFETY: the routine was called with this thread's own record, which outlives the call.
    let context = unsafe { &*context };
    context.thread().no_preempt(|| context.flush_log());
}

/// The weak load while words are being cleared: returns the word, or for a dead target the value
/// that the word gets.
///
/// # Safety
/// As for [`load_weak`].
unsafe extern "C" fn load_judged(context: *const Context, slot: *const usize) -> usize {
    // SAFETY: as in `flush`.
    let context = unsafe { &*context };
    seam::delay();
    // When this thread can be stopped again, the word is in a register. The flag does not change
    // before.
    context.thread().no_preempt(|| {
        // SAFETY: forwarded.
        match unsafe { context.judge_load(slot as usize) } {
            Load::Word(word) => word,
            Load::Open(word) => {
                context.log(word);
                word
            }
        }
    })
}

mod seam {
    use core::time::Duration;

    use crate::fault::Fault;

    pub(super) fn has_restart_ranges() -> bool {
        !Fault::NoRestart.planted()
    }

    /// Gives a stop time to begin between the routine's test of the flag and the next one.
    pub(super) fn delay() {
        if Fault::JudgedLate.planted() {
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

#[cfg(test)]
mod tests;
