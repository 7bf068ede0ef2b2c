//! Linux on x86-64: signal frames, XSAVE images, the red zone, and the hand-written assembly.
//!
//! * [`call_spilled`] pushes the callee-saved registers and calls a function, so that all registers
//!   of a thread at a voluntary stop are in memory above a known stack pointer.
//! * [`SignalFrame::inject`] makes an interrupted instruction call `urge_async_preempt`. It saves
//!   the general registers, the flags and the whole XSAVE state on the thread's own stack, calls
//!   the function that [`define_trampoline`] is given, restores everything and returns to the
//!   interrupted instruction. `ret 128` steps back over the red zone that `inject` skipped.
//! * [`thread_pointer`] names the running thread without thread-local storage of our own.
//!
//! The trampoline is an unsafe range: no thread is stopped in it. It has no CFI, since the walker
//! knows it by its address.
//!
//! The trampoline saves the full XSAVE state. Go saved parts of it, and had corrupt vector
//! registers (its issues 35326, 46272, 80285, 81209). The header is zeroed before XSAVE, since
//! XRSTOR faults on reserved bits that XSAVE does not write.

use crate::context::Registers;
use core::arch::{asm, global_asm};
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Bytes below the stack pointer that a leaf function may use without moving it (System V ABI,
/// 3.2.2).
pub(crate) const RED_ZONE: usize = 128;

const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
/// Where the kernel writes its description of the extended state into the legacy image (`struct
/// _fpx_sw_bytes`).
const SW_RESERVED: usize = 464;
const LEGACY_FPSTATE: usize = 512;
/// Where the trampoline writes the address of its [`InjectedFrame`] into its image: bytes that
/// XSAVE leaves to software.
pub(crate) const INJECTED_REGISTERS: usize = 464;
/// The parts of the legacy image that hold registers: x87's (or MMX's), then the low halves of the
/// vector registers.
const X87: Range<usize> = 32..160;
const SSE: Range<usize> = 160..416;
/// The places of the header's two masks: the components in use, and the format. Zero is the
/// standard format, with each component at its own place.
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;

/// The XSAVE image of an injected stop, in bytes; set by [`setup`] before the first injection can
/// happen.
pub(crate) static XSAVE_SIZE: AtomicUsize = AtomicUsize::new(0);

/// Where each component of the extended state lies in an image of the standard format: offset and
/// size. From [`setup`].
static COMPONENTS: [[AtomicUsize; 2]; 64] = [const { [const { AtomicUsize::new(0) }; 2] }; 64];

global_asm!(
    ".text",
    ".p2align 4",
    ".globl urge_call_spilled",
    ".hidden urge_call_spilled",
    ".type urge_call_spilled,@function",
    "urge_call_spilled:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "push rbx",
    ".cfi_offset rbx, -24",
    "push r12",
    ".cfi_offset r12, -32",
    "push r13",
    ".cfi_offset r13, -40",
    "push r14",
    ".cfi_offset r14, -48",
    "push r15",
    ".cfi_offset r15, -56",
    "sub rsp, 8",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rsp",
    "mov rdx, rbp",
    "lea rcx, [rip + 2f]",
    "call rax",
    "2:",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size urge_call_spilled, . - urge_call_spilled",
);

/// The assembly of the `async_preempt` trampoline, which calls `$stop`: a function of the floor
/// above, so the macro is expanded there, once.
macro_rules! define_trampoline {
    ($stop:path) => {
        core::arch::global_asm!(
            ".text",
            ".p2align 4",
            ".globl urge_async_preempt",
            ".hidden urge_async_preempt",
            ".type urge_async_preempt,@function",
            "urge_async_preempt:",
            // [rsp] = the interrupted PC, the red zone above it. Flags first: nothing before this
            // line may change them.
            "pushfq",
            "lea rsp, [rsp - 128]",
            "mov [rsp + 0x00], rax",
            "mov [rsp + 0x08], rdx",
            "mov [rsp + 0x10], rcx",
            "mov [rsp + 0x18], rbx",
            "mov [rsp + 0x20], rsi",
            "mov [rsp + 0x28], rdi",
            "mov [rsp + 0x30], rbp",
            "lea rax, [rsp + 144 + 128]",
            "mov [rsp + 0x38], rax",
            "mov [rsp + 0x40], r8",
            "mov [rsp + 0x48], r9",
            "mov [rsp + 0x50], r10",
            "mov [rsp + 0x58], r11",
            "mov [rsp + 0x60], r12",
            "mov [rsp + 0x68], r13",
            "mov [rsp + 0x70], r14",
            "mov [rsp + 0x78], r15",
            "cld",
            "mov rbx, rsp",
            "sub rsp, qword ptr [rip + {size}]",
            "and rsp, -64",
            // The walker finds the registers from here: XSAVE leaves these bytes to software.
            "mov [rsp + {registers}], rbx",
            "xor eax, eax",
            "mov [rsp + 512], rax",
            "mov [rsp + 520], rax",
            "mov [rsp + 528], rax",
            "mov [rsp + 536], rax",
            "mov [rsp + 544], rax",
            "mov [rsp + 552], rax",
            "mov [rsp + 560], rax",
            "mov [rsp + 568], rax",
            "mov eax, -1",
            "mov edx, -1",
            "xsave64 [rsp]",
            "mov rdi, rbx",
            "mov rsi, rsp",
            "call {stop}",
            ".globl urge_async_preempt_back",
            ".hidden urge_async_preempt_back",
            "urge_async_preempt_back:",
            "mov eax, -1",
            "mov edx, -1",
            "xrstor64 [rsp]",
            "mov rsp, rbx",
            "mov rax, [rsp + 0x00]",
            "mov rdx, [rsp + 0x08]",
            "mov rcx, [rsp + 0x10]",
            "mov rbx, [rsp + 0x18]",
            "mov rsi, [rsp + 0x20]",
            "mov rdi, [rsp + 0x28]",
            "mov rbp, [rsp + 0x30]",
            "mov r8,  [rsp + 0x40]",
            "mov r9,  [rsp + 0x48]",
            "mov r10, [rsp + 0x50]",
            "mov r11, [rsp + 0x58]",
            "mov r12, [rsp + 0x60]",
            "mov r13, [rsp + 0x68]",
            "mov r14, [rsp + 0x70]",
            "mov r15, [rsp + 0x78]",
            "lea rsp, [rsp + 128]",
            "popfq",
            "ret 128",
            ".globl urge_async_preempt_end",
            ".hidden urge_async_preempt_end",
            "urge_async_preempt_end:",
            ".size urge_async_preempt, . - urge_async_preempt",
            size = sym $crate::arch::x86_64::XSAVE_SIZE,
            stop = sym $stop,
            registers = const $crate::arch::x86_64::INJECTED_REGISTERS,
        );
    };
}
pub(crate) use define_trampoline;

global_asm!(
    ".text",
    ".p2align 4",
    ".globl urge_call_on",
    ".hidden urge_call_on",
    ".type urge_call_on,@function",
    "urge_call_on:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rsp, rdx",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "mov rsp, rbp",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size urge_call_on, . - urge_call_on",
);

unsafe extern "C-unwind" {
    fn urge_call_spilled(f: extern "C-unwind" fn(*mut (), usize, usize, usize), data: *mut ());
}

unsafe extern "C" {
    fn urge_call_on(f: extern "C" fn(*mut ()), data: *mut (), top: usize);
    fn urge_async_preempt();
    fn urge_async_preempt_back();
    fn urge_async_preempt_end();
}

/// Spills the callee-saved registers and calls `f(data, sp, fp, pc)`. The stack pointer (below the
/// spilled registers), the frame pointer and the return address of that call describe a frame from
/// which a walk may start. `f` may unwind.
pub(crate) fn call_spilled(f: extern "C-unwind" fn(*mut (), usize, usize, usize), data: *mut ()) {
    // SAFETY: the assembly keeps the System V convention: it saves what it must, and keeps the
    // stack aligned. Its unwind table says where the saved registers are.
    unsafe { urge_call_spilled(f, data) }
}

/// Calls `f(data)` on the stack that ends at `top`.
///
/// # Safety
/// Nothing else uses that stack, which has room for `f`; `top` is a multiple of 16.
pub(crate) unsafe fn call_on(top: usize, f: extern "C" fn(*mut ()), data: *mut ()) {
    // SAFETY: the caller's contract. The assembly keeps the System V convention.
    unsafe { urge_call_on(f, data, top) }
}

/// The return address of the trampoline's call. SP is at its XSAVE image there.
pub(crate) fn trampoline_back() -> usize {
    urge_async_preempt_back as *const () as usize
}

/// The code of the `async_preempt` trampoline.
pub(crate) fn trampoline() -> Range<usize> {
    urge_async_preempt as *const () as usize..urge_async_preempt_end as *const () as usize
}

/// What `urge_async_preempt` leaves on the stack below the interrupted frame's red zone.
#[repr(C)]
pub(crate) struct InjectedFrame {
    /// In DWARF order; RSP is the interrupted one.
    pub gpr: [usize; 16],
    pub flags: usize,
    pub pc: usize,
}

/// The address of an injected call's [`InjectedFrame`], which ends its image, and the registers in
/// it. The trampoline has stored the address in the image. `word` reads the stack. `None`: the
/// words are not as a trampoline writes them.
pub(crate) fn injected_frame(
    image: usize,
    word: impl Fn(usize) -> Option<usize>,
) -> Option<(usize, Registers)> {
    let frame = word(image.checked_add(INJECTED_REGISTERS)?)?;
    let size = XSAVE_SIZE.load(Ordering::Relaxed);
    let gap = frame.checked_sub(image.checked_add(size)?)?;
    let mut registers = Registers::default();
    for (i, register) in registers.gpr.iter_mut().enumerate() {
        *register = word(frame.checked_add(8 * i)?)?;
    }
    registers.flags = word(frame + 128)?;
    registers.pc = word(frame + 136)?;
    // The image is aligned down to 64 bytes, and the call was pushed below the red zone.
    let sp = frame.checked_add(size_of::<InjectedFrame>() + RED_ZONE)?;
    (gap < 64 && registers.sp() == sp).then_some((frame, registers))
}

/// Bytes of an injected call's image.
#[cfg(test)]
pub(crate) fn xsave_size() -> usize {
    XSAVE_SIZE.load(Ordering::Relaxed)
}

/// Bytes of stack that an injected stop needs without its hook: frame, XSAVE image, and some Rust
/// frames.
pub(crate) fn injection_room() -> usize {
    XSAVE_SIZE.load(Ordering::Relaxed) + 16 * 1024
}

/// Reads what the assembly needs from the processor.
pub(crate) fn setup() -> Result<(), &'static str> {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    // The OSXSAVE bit: the system has switched XSAVE on, so XCR0 may be read and XSAVE used in user
    // mode.
    if __cpuid(1).ecx & (1 << 27) == 0 {
        return Err(
            "the processor or the system lacks XSAVE, which Urge needs to save vector registers",
        );
    }
    // Leaf 0xD, sub-leaf 0, EBX: the size of the state that XCR0 enables now, in the standard
    // format.
    let size = __cpuid_count(0xd, 0).ebx as usize;
    // Ordering: published before the handler is installed, by the system call that installs it.
    XSAVE_SIZE.store(size.next_multiple_of(64), Ordering::Relaxed);
    for (component, place) in (0..).zip(&COMPONENTS).skip(2) {
        // EAX: its size, EBX: its offset; both zero if there is none of that number.
        let leaf = __cpuid_count(0xd, component);
        place[0].store(leaf.ebx as usize, Ordering::Relaxed);
        place[1].store(leaf.eax as usize, Ordering::Relaxed);
    }
    Ok(())
}

/// Reports the parts of an XSAVE image that hold registers in use. A component that the header does
/// not mark as in use is restored as zero, whatever its bytes in the image are.
///
/// # Safety
/// `image` is readable: an image that XSAVE, FXSAVE (512 bytes) or the kernel wrote; or it is
/// empty.
pub(crate) unsafe fn state_in_use(image: &Range<usize>, mut report: impl FnMut(Range<usize>)) {
    let mut part = |offset: usize, size: usize| {
        let start = (image.start + offset) & !7;
        let end = (image.start + offset + size)
            .next_multiple_of(8)
            .min(image.end & !7);
        if start < end {
            report(start..end);
        }
    };
    let size = image.len();
    if size < XCOMP_BV + 8 {
        return part(0, size);
    }
    // SAFETY: inside the image.
    let mask = |at: usize| unsafe { ((image.start + at) as *const u64).read_unaligned() };
    let mut used = mask(XSTATE_BV);
    if mask(XCOMP_BV) != 0 {
        // Compacted: a format that the kernel does not write into signal frames.
        return part(0, size);
    }
    for legacy in [X87, SSE] {
        if used & 1 != 0 {
            part(legacy.start, legacy.len());
        }
        used >>= 1;
    }
    for place in &COMPONENTS[2..] {
        if used & 1 != 0 {
            let [offset, bytes] = [0, 1].map(|i| place[i].load(Ordering::Relaxed));
            if offset == 0 {
                return part(0, size); // a component that CPUID does not describe
            }
            part(offset, bytes);
        }
        used >>= 1;
        if used == 0 {
            break;
        }
    }
}

/// The running thread's control block: constant for the thread's life, different for each live
/// thread of the process. Not `pure`: code on a stack may go on on another thread, and looks again
/// after each switch.
#[inline]
pub(crate) fn thread_pointer() -> usize {
    let tp: usize;
    // SAFETY: the x86-64 ELF TLS ABI keeps the control block's own address at FS:0.
    unsafe { asm!("mov {}, fs:[0]", out(reg) tp, options(nostack, readonly, preserves_flags)) };
    tp
}

/// DWARF register order of [`Registers::gpr`] as positions in the kernel's `gregs`.
const DWARF_TO_GREG: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RDX,
    libc::REG_RCX,
    libc::REG_RBX,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_RBP,
    libc::REG_RSP,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The signal frame of a running handler.
///
/// Kept as a raw pointer: glibc's `ucontext_t` is larger than the kernel's, so it must never be
/// copied whole.
#[derive(Clone, Copy)]
pub(crate) struct SignalFrame(*mut libc::ucontext_t);

impl SignalFrame {
    /// # Safety
    /// `ucontext` is the third argument of a running SA_SIGINFO handler, and this value does not
    /// outlive it.
    pub(crate) unsafe fn new(ucontext: *mut libc::c_void) -> Self {
        Self(ucontext.cast())
    }

    fn greg(self, which: i32) -> usize {
        // SAFETY: by `new`'s contract the frame is alive; `gregs` lies in the part the kernel
        // writes.
        unsafe { (&raw const (*self.0).uc_mcontext.gregs[which as usize]).read() as usize }
    }

    fn set_greg(self, which: i32, value: usize) {
        // SAFETY: as `greg`; the handler owns its frame.
        unsafe { (&raw mut (*self.0).uc_mcontext.gregs[which as usize]).write(value as i64) }
    }

    pub(crate) fn pc(self) -> usize {
        self.greg(libc::REG_RIP)
    }

    pub(crate) fn set_pc(self, pc: usize) {
        self.set_greg(libc::REG_RIP, pc);
    }

    pub(crate) fn sp(self) -> usize {
        self.greg(libc::REG_RSP)
    }

    /// How many of the host's handlers have run for this signal; see `handler_chain.rs`. Kept in
    /// `uc_link`, which the kernel sets to zero.
    pub(crate) fn handlers_run(self) -> usize {
        // SAFETY: as `greg`.
        unsafe { (&raw const (*self.0).uc_link).read() as usize }
    }

    pub(crate) fn set_handlers_run(self, count: usize) {
        // SAFETY: as `set_greg`; the return from the signal does not read this word.
        unsafe { (&raw mut (*self.0).uc_link).write(count as *mut libc::ucontext_t) };
    }

    /// Its address.
    pub(crate) fn address(self) -> usize {
        self.0 as usize
    }

    /// The alternate stack that was set when the signal came. Empty: none.
    pub(crate) fn alternate_stack(self) -> Range<usize> {
        // SAFETY: as `greg`; the kernel writes `uc_stack`.
        let stack = unsafe { (&raw const (*self.0).uc_stack).read() };
        let start = stack.ss_sp as usize;
        if stack.ss_flags & libc::SS_DISABLE != 0 {
            0..0
        } else {
            start..start.saturating_add(stack.ss_size)
        }
    }

    /// The signals that were blocked when this one came.
    pub(crate) fn mask(self) -> u64 {
        // SAFETY: as `greg`; the kernel writes eight bytes of mask.
        unsafe { (&raw const (*self.0).uc_sigmask).cast::<u64>().read() }
    }

    pub(crate) fn registers(self) -> Registers {
        Registers {
            gpr: DWARF_TO_GREG.map(|r| self.greg(r)),
            pc: self.pc(),
            flags: self.greg(libc::REG_EFL),
        }
    }

    /// The XSAVE image that the kernel wrote beside the frame, with all of its components.
    pub(crate) fn vectors(self) -> Range<usize> {
        // SAFETY: as `greg`; `fpregs` points at the image inside the same signal frame, or is null.
        unsafe {
            let image = (*self.0).uc_mcontext.fpregs as usize;
            if image == 0 {
                return 0..0;
            }
            let sw = (image + SW_RESERVED) as *const u32;
            // magic1, extended size, features (two words), xstate_size
            let size = if sw.read() == FP_XSTATE_MAGIC1 {
                sw.add(4).read() as usize
            } else {
                LEGACY_FPSTATE
            };
            image..image + size.max(LEGACY_FPSTATE)
        }
    }

    /// Makes the interrupted instruction look as if it had called `async_preempt`, the return
    /// address below its red zone.
    ///
    /// # Safety
    /// The interrupted code keeps the System V convention and has [`injection_room`] bytes of its
    /// own stack below its stack pointer.
    pub(crate) unsafe fn inject(self) {
        let sp = self.sp() - RED_ZONE - size_of::<usize>();
        // SAFETY: by the contract this word is the thread's own unused stack.
        unsafe { (sp as *mut usize).write(self.pc()) };
        self.set_greg(libc::REG_RSP, sp);
        self.set_pc(trampoline().start);
    }
}

/// Prefetches the cache lines of a range. A prefetch is no access, so any address is allowed.
pub(crate) fn prefetch(range: Range<usize>) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in range.step_by(64) {
        // SAFETY: a hint.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line as *const i8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_spilled_publishes_the_frame_it_calls_from() {
        extern "C-unwind" fn probe(data: *mut (), sp: usize, fp: usize, pc: usize) {
            // SAFETY: the caller passes its own array.
            let out = unsafe { &mut *data.cast::<[usize; 4]>() };
            *out = [sp, fp, pc, core::ptr::from_ref(&sp) as usize];
        }
        let mut out = [0usize; 4];
        call_spilled(probe, (&raw mut out).cast());
        let [sp, fp, pc, inner] = out;
        assert_eq!(sp % 16, 0);
        assert!(inner < sp && sp < fp && fp < (&raw const out) as usize);
        assert!(
            (urge_call_spilled as *const () as usize
                ..urge_call_spilled as *const () as usize + 128)
                .contains(&pc)
        );
    }

    #[test]
    fn of_an_image_only_what_is_in_use_is_reported() {
        setup().unwrap();
        let avx = high_halves();
        let mut image = [0u64; 512];
        let start = image.as_mut_ptr() as usize;
        let all = start..start + 4096;
        let parts = |used: u64, format: u64, range: &Range<usize>| {
            let mut found = Vec::new();
            // SAFETY: an array of ours.
            unsafe {
                (start as *mut u64).add(64).write_volatile(used);
                (start as *mut u64).add(65).write_volatile(format);
                state_in_use(range, |r| found.push((r.start - start, r.end - start)));
            }
            found
        };
        assert_eq!(parts(0, 0, &all), []);
        let [x87, sse] = [X87, SSE].map(|r| (r.start, r.end));
        assert_eq!(parts(1, 0, &all), [x87]);
        assert_eq!(parts(3, 0, &all), [x87, sse]);
        assert_eq!(parts(6, 0, &all), [sse, (avx, avx + 256)]);
        let whole = [(0, 4096)];
        assert_eq!(parts(1 << 62, 0, &all), whole, "unheard of");
        assert_eq!(parts(3, 1 << 63, &all), whole, "compacted");
        assert_eq!(parts(3, 0, &(start..start + 512)), [(0, 512)], "FXSAVE's");
        assert_eq!(parts(3, 0, &(start..start)), []);
    }

    /// Where the high halves of the first sixteen vector registers lie.
    fn high_halves() -> usize {
        core::arch::x86_64::__cpuid_count(0xd, 2).ebx as usize
    }

    #[test]
    fn the_thread_pointer_differs_between_threads() {
        let mine = thread_pointer();
        assert_eq!(mine, thread_pointer());
        let other = std::thread::spawn(thread_pointer).join().unwrap();
        assert_ne!(mine, other);
    }
}
