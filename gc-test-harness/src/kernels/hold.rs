//! Places that can hold the only reference to a cell: each general register, each half of a vector
//! register, the red zone, an argument on the stack, a caller's register. The functions are written
//! in assembly, because no compiler lets a program choose where a value is kept.
//!
//! Each function takes the reference out of a slot in memory and clears the slot. It keeps the
//! reference in its one place and zeroes all other general registers. Then it announces that it
//! holds the reference ([`while_held`] waits for that), spins until it is released, and stores the
//! reference in the slot again. The flags are statics that are addressed relative to RIP, because
//! their addresses must not occupy a register.
//!
//! Except for the function that holds the reference *in* RBP, the functions keep an RBP frame as
//! Cranelift's do, so that a test can register [`Place::range`] as managed code or leave it native.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

static READY: AtomicBool = AtomicBool::new(false);
static RELEASE: AtomicBool = AtomicBool::new(false);
/// There is one pair of flags, so one reference is held at a time.
static HOLDING: Mutex<()> = Mutex::new(());

/// `fn(slot)`: holds the slot's reference until it is released.
pub type Hold = unsafe extern "C" fn(*mut usize);

/// A place, and the function that holds a reference in it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The name of the register or of the place.
    pub name: &'static str,
    /// Holds the slot's reference in the place.
    pub hold: Hold,
    /// The first address behind the function.
    end: *const u8,
}

// SAFETY: a place is two addresses of code.
unsafe impl Send for Place {}
// SAFETY: a place is two addresses of code, and no thread writes through them.
unsafe impl Sync for Place {}

impl Place {
    /// The function's addresses.
    pub fn range(&self) -> Range<usize> {
        self.hold as usize..self.end as usize
    }

    /// Whether the function keeps a frame as Cranelift's do, so that it may be registered as
    /// managed code.
    pub fn has_frame(&self) -> bool {
        self.name != "rbp"
    }
}

/// Runs `held` while a new thread keeps the reference from `slot` in one place only.
///
/// `enter` runs on that thread around the function, and may attach the thread to a world. No
/// collection may scan the slot's memory, and no stack may still hold the reference: the caller
/// should take it from a thread that has ended.
pub fn while_held<R>(
    slot: &mut usize,
    enter: impl FnOnce(&mut dyn FnMut()) + Send,
    run: impl FnOnce(*mut usize) + Send,
    held: impl FnOnce() -> R,
) -> R {
    let _one = HOLDING.lock().unwrap_or_else(PoisonError::into_inner);
    // SeqCst, here and below: the flags pair with the plain loads and stores of the assembly, which
    // x86-64 keeps in order.
    READY.store(false, Ordering::SeqCst);
    RELEASE.store(false, Ordering::SeqCst);
    /// Releases the thread also when `held` panics. Otherwise the scope would wait forever.
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            RELEASE.store(true, Ordering::SeqCst);
        }
    }
    let slot = slot as *mut usize as usize;
    std::thread::scope(|scope| {
        let holder = scope.spawn(move || {
            let mut run = Some(run);
            enter(&mut || {
                if let Some(run) = run.take() {
                    run(slot as *mut usize);
                }
            });
        });
        while !READY.load(Ordering::SeqCst) && !holder.is_finished() {
            std::thread::sleep(Duration::from_micros(50));
        }
        let release = Release;
        let result = held();
        drop(release);
        result
    })
}

/// The callback of managed kernels: announces that the place is taken and waits for the release, as
/// all functions here do.
///
/// # Safety
/// Only [`while_held`] may run it.
#[unsafe(naked)]
pub unsafe extern "C" fn wait_for_release(_: *mut std::ffi::c_void) {
    core::arch::naked_asm!(
        ".cfi_startproc",
        "mov byte ptr [rip + {ready}], 1",
        "2: pause",
        "cmp byte ptr [rip + {release}], 0",
        "je 2b",
        "ret",
        ".cfi_endproc",
        ready = sym READY,
        release = sym RELEASE,
    )
}

/// Keeps its seventh argument where the caller put it, in the caller's outgoing area, and returns
/// it at the end. Its unwind tables are exact, so that as native code it hides no frame.
///
/// # Safety
/// Only [`while_held`] may run it.
#[unsafe(naked)]
pub unsafe extern "C" fn hold_stack_argument(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: usize,
) -> usize {
    core::arch::naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "mov byte ptr [rip + {ready}], 1",
        "2: pause",
        "cmp byte ptr [rip + {release}], 0",
        "je 2b",
        "mov rax, [rbp + 16]",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
        ".globl urge_held_stack_argument_end",
        "urge_held_stack_argument_end:",
        ready = sym READY,
        release = sym RELEASE,
    )
}

/// The addresses of [`hold_stack_argument`]. It keeps a frame as Cranelift's do, so a test may
/// register it as managed code.
pub fn hold_stack_argument_range() -> Range<usize> {
    unsafe extern "C" {
        #[link_name = "urge_held_stack_argument_end"]
        static END: u8;
    }
    hold_stack_argument as *const () as usize..&raw const END as usize
}

/// The prologue of each place: pushes RBP, the callee-saved registers and the slot's address. Then
/// only RAX has the reference, and the slot is empty.
macro_rules! enter {
    () => {
        "push rbp
         mov rbp, rsp
         push rbx
         push r12
         push r13
         push r14
         push r15
         push rdi
         xor eax, eax
         xchg rax, [rdi]
         xor ebx, ebx
         xor ecx, ecx
         xor edx, edx
         xor esi, esi
         xor edi, edi
         xor r8d, r8d
         xor r9d, r9d
         xor r10d, r10d
         xor r11d, r11d
         xor r12d, r12d
         xor r13d, r13d
         xor r14d, r14d
         xor r15d, r15d"
    };
}

/// Announces the reference and spins, without a change of registers.
macro_rules! spin {
    () => {
        "mov byte ptr [rip + {ready}], 1
         2: pause
         cmp byte ptr [rip + {release}], 0
         je 2b"
    };
}

/// The epilogue of each place. The reference is in RAX again.
macro_rules! leave {
    () => {
        "pop rdi
         mov [rdi], rax
         pop r15
         pop r14
         pop r13
         pop r12
         pop rbx
         pop rbp
         ret"
    };
}

/// Defines the functions of some places. `$put` moves the reference from RAX to the place and
/// clears RAX, and `$get` moves it back.
macro_rules! places {
    ($list:ident, $count:literal, $doc:literal: $($name:ident $put:literal $get:literal,)*) => {
        #[doc = $doc]
        pub static $list: [Place; $count] = [$({
            #[unsafe(naked)]
            unsafe extern "C" fn hold(_: *mut usize) {
                core::arch::naked_asm!(
                    enter!(),
                    $put,
                    spin!(),
                    $get,
                    leave!(),
                    concat!(".globl urge_held_", stringify!($name), "_end"),
                    concat!("urge_held_", stringify!($name), "_end:"),
                    ready = sym READY,
                    release = sym RELEASE,
                )
            }
            unsafe extern "C" {
                #[link_name = concat!("urge_held_", stringify!($name), "_end")]
                static END: u8;
            }
            Place { name: stringify!($name), hold, end: &raw const END }
        }),*];
    };
}

places! { REGISTERS, 15, "Every general register but RSP.":
    rax "" "",
    rbx "xchg rbx, rax" "xchg rbx, rax",
    rcx "xchg rcx, rax" "xchg rcx, rax",
    rdx "xchg rdx, rax" "xchg rdx, rax",
    rsi "xchg rsi, rax" "xchg rsi, rax",
    rdi "xchg rdi, rax" "xchg rdi, rax",
    rbp "push rbp; mov rbp, rax; xor eax, eax" "mov rax, rbp; pop rbp",
    r8 "xchg r8, rax" "xchg r8, rax",
    r9 "xchg r9, rax" "xchg r9, rax",
    r10 "xchg r10, rax" "xchg r10, rax",
    r11 "xchg r11, rax" "xchg r11, rax",
    r12 "xchg r12, rax" "xchg r12, rax",
    r13 "xchg r13, rax" "xchg r13, rax",
    r14 "xchg r14, rax" "xchg r14, rax",
    r15 "xchg r15, rax" "xchg r15, rax",
}

places! { VECTORS, 16, "The low half of every XMM register.":
    xmm0 "movq xmm0, rax; xor eax, eax" "movq rax, xmm0",
    xmm1 "movq xmm1, rax; xor eax, eax" "movq rax, xmm1",
    xmm2 "movq xmm2, rax; xor eax, eax" "movq rax, xmm2",
    xmm3 "movq xmm3, rax; xor eax, eax" "movq rax, xmm3",
    xmm4 "movq xmm4, rax; xor eax, eax" "movq rax, xmm4",
    xmm5 "movq xmm5, rax; xor eax, eax" "movq rax, xmm5",
    xmm6 "movq xmm6, rax; xor eax, eax" "movq rax, xmm6",
    xmm7 "movq xmm7, rax; xor eax, eax" "movq rax, xmm7",
    xmm8 "movq xmm8, rax; xor eax, eax" "movq rax, xmm8",
    xmm9 "movq xmm9, rax; xor eax, eax" "movq rax, xmm9",
    xmm10 "movq xmm10, rax; xor eax, eax" "movq rax, xmm10",
    xmm11 "movq xmm11, rax; xor eax, eax" "movq rax, xmm11",
    xmm12 "movq xmm12, rax; xor eax, eax" "movq rax, xmm12",
    xmm13 "movq xmm13, rax; xor eax, eax" "movq rax, xmm13",
    xmm14 "movq xmm14, rax; xor eax, eax" "movq rax, xmm14",
    xmm15 "movq xmm15, rax; xor eax, eax" "movq rax, xmm15",
}

places! { HIGH_HALVES, 2, "The high half of the first and of the last YMM register, the low half cleared. Only for hosts with AVX.":
    ymm0 "vmovq xmm0, rax; xor eax, eax; vperm2f128 ymm0, ymm0, ymm0, 8"
        "vextractf128 xmm0, ymm0, 1; vmovq rax, xmm0; vzeroupper",
    ymm15 "vmovq xmm15, rax; xor eax, eax; vperm2f128 ymm15, ymm15, ymm15, 8"
        "vextractf128 xmm15, ymm15, 1; vmovq rax, xmm15; vzeroupper",
}

places! { RED_ZONE, 2, "The red zone's first and last word, below the stack pointer.":
    red_zone_first "mov [rsp - 8], rax; xor eax, eax" "mov rax, [rsp - 8]",
    red_zone_last "mov [rsp - 128], rax; xor eax, eax" "mov rax, [rsp - 128]",
}

/// A callee-saved register, and the function that keeps a reference in it across a call.
#[derive(Clone, Copy, Debug)]
pub struct CallerPlace {
    /// The register's name.
    pub name: &'static str,
    /// Keeps the slot's reference in the register and calls `callee(first, second, third)`.
    pub call: unsafe extern "C" fn(*mut usize, *const u8, usize, usize, usize),
}

macro_rules! caller_places {
    ($($name:ident $number:literal,)*) => {
        /// The callee-saved registers. Each holds the only reference while its function calls
        /// another one. The unwind tables of these functions are exact, so that no more of the
        /// caller's frame is scanned than necessary.
        pub static CALLER_REGISTERS: [CallerPlace; 5] = [$({
            #[unsafe(naked)]
            unsafe extern "C" fn call(_: *mut usize, _: *const u8, _: usize, _: usize, _: usize) {
                core::arch::naked_asm!(
                    ".cfi_startproc",
                    "push rbp",
                    ".cfi_def_cfa_offset 16",
                    ".cfi_offset rbp, -16",
                    "mov rbp, rsp",
                    ".cfi_def_cfa_register rbp",
                    concat!("push ", stringify!($name)),
                    concat!(".cfi_offset ", $number, ", -24"),
                    "push rdi",
                    "mov rax, rsi",
                    concat!("xor ", stringify!($name), ", ", stringify!($name)),
                    concat!("xchg ", stringify!($name), ", [rdi]"),
                    "mov rdi, rdx",
                    "mov rsi, rcx",
                    "mov rdx, r8",
                    "call rax",
                    "pop rdi",
                    concat!("mov [rdi], ", stringify!($name)),
                    concat!("pop ", stringify!($name)),
                    "pop rbp",
                    ".cfi_def_cfa rsp, 8",
                    "ret",
                    ".cfi_endproc",
                )
            }
            CallerPlace { name: stringify!($name), call }
        }),*];
    };
}

caller_places! {
    rbx "3",
    r12 "12",
    r13 "13",
    r14 "14",
    r15 "15",
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::codegen::Arena;
    use crate::kernels::deep::{Frames, saves_registers_oracle};

    /// While the reference is held, the slot is empty. Afterwards the reference is back in the
    /// slot.
    fn survives(name: &str, run: impl FnOnce(*mut usize) + Send) {
        let mut slot = 0x1234_5678_9abc_def0;
        let address = &raw mut slot as usize;
        let during = while_held(
            &mut slot,
            |run| run(),
            run,
            || {
                // SAFETY: the word lives in this frame, and the holder spins and does not access
                // it.
                unsafe { (address as *const usize).read_volatile() }
            },
        );
        assert_eq!((during, slot), (0, 0x1234_5678_9abc_def0), "{name}");
    }

    #[test]
    fn every_place_holds_its_reference_and_gives_it_back() {
        let avx = std::arch::is_x86_feature_detected!("avx");
        let high: &[Place] = if avx { &HIGH_HALVES } else { &[] };
        let all = [&REGISTERS[..], &VECTORS, high, &RED_ZONE];
        for place in all.concat() {
            assert!(!place.range().is_empty() && place.range().len() < 256);
            // SAFETY: the slot is a word of the frame above.
            survives(place.name, |slot| unsafe { (place.hold)(slot) });
        }
    }

    #[test]
    fn a_stack_argument_and_a_callers_register_come_back() {
        let frames = Frames::compile(&mut Arena::new().expect("an arena")).expect("compiles");
        // SAFETY: the slot is a word of the frame above.
        survives("stack argument", |slot| unsafe {
            (frames.stack_argument)(slot, hold_stack_argument);
        });
        let numbers = [3, 1, 4, 1, 5, 9, 2, 6];
        for place in CALLER_REGISTERS {
            let callee = frames.saves_registers as usize;
            let words = [
                &raw const numbers as usize,
                wait_for_release as *const () as usize,
            ];
            // SAFETY: the callee is `saves_registers` with its three arguments, and the slot is a
            // word of the frame above.
            survives(place.name, |slot| unsafe {
                (place.call)(slot, callee as *const u8, words[0], words[1], 0);
            });
        }
        assert_ne!(saves_registers_oracle(&numbers), 0);
    }
}
