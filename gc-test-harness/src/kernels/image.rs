//! A thread's whole state, with words that a fuzzer chooses: each register, the stack, the red
//! zone, and the dead words below it.
//!
//! The functions behind [`Hold`] load an [`Image`], announce it, spin until they are released, and
//! then store what the registers and the stack hold, so that a test sees a stop that lost a bit.
//! Before they return they wipe everything that they wrote, including registers and dead stack. So
//! a thread may hold one image after another, and no word of the first is left during the second.
//!
//! The flags are words of the spinning frame, so that no register is needed to address them and
//! several threads can hold images at once. All unwind tables are exact.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use gc_preempt::stackmap::StackMaps;
use gc_preempt::stackmap::cranelift::{Function, Site};
use gc_preempt::{CodeGuard, CodeSpec, CodeWhat, FrameRule};
use gc_preempt::{Config, World};

/// Words of an image's innermost frame, and of the frame that calls it.
pub const FRAME_WORDS: usize = 32;
/// Words of the red zone.
pub const RED_ZONE_WORDS: usize = 16;
/// The slots that the calling frame's stack map names, in words from its SP.
pub const SLOTS: [usize; 3] = [6, 10, 17];
/// Words at the bottom of the calling frame that are arguments of its call.
pub const ARGUMENT_WORDS: usize = 4;
/// Words at the top of the calling frame that are registers saved for its caller.
pub const SAVED_WORDS: usize = 5;

/// The registers, each with any content.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// ZMM0 to ZMM31, eight words each. The processor may have only the first two or four words,
    /// and only the first 16 registers.
    pub vectors: [[usize; 8]; 32],
    /// RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP (which is never set), R8 to R15.
    pub gpr: [usize; 16],
    /// MM0 to MM7.
    pub mmx: [usize; 8],
    /// K0 to K7.
    pub masks: [usize; 8],
}

/// The words that a thread is to hold, and the words that it held at the end.
#[repr(C)]
#[derive(Debug)]
pub struct Image {
    /// The registers.
    pub registers: Registers,
    /// The innermost frame, from SP upwards.
    pub stack: [usize; FRAME_WORDS],
    /// The red zone, from SP - 128 upwards.
    pub red_zone: [usize; RED_ZONE_WORDS],
    /// The dead words from SP - 256 to SP - 128.
    pub below: [usize; RED_ZONE_WORDS],
    /// The calling frame, from SP upwards, if there is one.
    pub caller: [usize; FRAME_WORDS],
    /// The registers after the release.
    pub after: Registers,
    /// The address of the spinning frame's two flags: held, release.
    flags: AtomicUsize,
    /// The zeros that wipe the registers.
    zeros: [[usize; 8]; 32],
}

const ZERO: Registers = Registers {
    vectors: [[0; 8]; 32],
    gpr: [0; 16],
    mmx: [0; 8],
    masks: [0; 8],
};

impl Image {
    /// An image of zeros.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            registers: ZERO,
            stack: [0; FRAME_WORDS],
            red_zone: [0; RED_ZONE_WORDS],
            below: [0; RED_ZONE_WORDS],
            caller: [0; FRAME_WORDS],
            after: ZERO,
            flags: AtomicUsize::new(0),
            zeros: [[0; 8]; 32],
        })
    }

    /// # Safety
    /// As [`Image::is_held`].
    unsafe fn flag<'a>(image: *const Self, at: usize) -> Option<&'a AtomicUsize> {
        // SAFETY: the caller says that the image is alive, and this word of it is an atomic.
        let flags = unsafe { &(*image).flags };
        // Acquire: pairs with the spinning frame's store of its address, after which its zeroed
        // flags are visible (the assembly's stores are not reordered on x86-64).
        let flags = flags.load(Ordering::Acquire) as *const AtomicUsize;
        // SAFETY: null, or two words of a frame that exists until `release`, which the image's
        // owner calls once.
        (!flags.is_null()).then(|| unsafe { &*flags.add(at) })
    }

    /// Whether a thread holds the image.
    ///
    /// # Safety
    /// The image must be alive, and a thread that was started to hold it must not have been
    /// released.
    pub unsafe fn is_held(image: *const Self) -> bool {
        // Acquire: pairs with the holder's store of the flag, which comes after all loads of the
        // image.
        // SAFETY: the caller's promise is the one that `flag` needs.
        unsafe { Self::flag(image, 0) }.is_some_and(|held| held.load(Ordering::Acquire) & 1 == 1)
    }

    /// Releases the thread that holds the image.
    ///
    /// # Panics
    /// If no thread holds it.
    ///
    /// # Safety
    /// As for [`Image::is_held`].
    pub unsafe fn release(image: *const Self) {
        // SAFETY: the caller's promise is the one that `is_held` and `flag` need.
        unsafe {
            assert!(Self::is_held(image), "an image that no thread holds");
            let release = Self::flag(image, 1).expect("is held");
            // Release: all reads of the thread's stack come before it.
            release.store(1, Ordering::Release);
        }
    }

    /// Clears the words that this processor's registers do not have.
    fn mask(registers: &mut Registers) {
        let (count, words) = match isa() {
            Isa::Sse => (16, 2),
            Isa::Avx => (16, 4),
            Isa::Avx512 => (32, 8),
        };
        for (at, vector) in registers.vectors.iter_mut().enumerate() {
            let words = if at < count { words } else { 0 };
            vector[words..].fill(0);
        }
        if isa() != Isa::Avx512 {
            registers.masks.fill(0);
        }
        registers.gpr[7] = 0;
    }

    /// Clears the words that this processor cannot hold.
    pub fn trim(&mut self) {
        Self::mask(&mut self.registers);
    }

    /// The words of all registers.
    pub fn register_words(&self) -> impl Iterator<Item = usize> + '_ {
        let r = &self.registers;
        let vectors = r.vectors.iter().flatten();
        vectors.chain(&r.gpr).chain(&r.mmx).chain(&r.masks).copied()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    Sse,
    Avx,
    Avx512,
}

fn isa() -> Isa {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        Isa::Avx512
    } else if is_x86_feature_detected!("avx") {
        Isa::Avx
    } else {
        Isa::Sse
    }
}

/// The way in which an image is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Native code holds it.
    Native,
    /// Managed code that is interrupted holds it. Unwind tables describe the frame.
    Managed,
    /// Native code that managed code has called holds it. The calling frame has a stack map that
    /// names [`SLOTS`].
    Called,
}

/// Bytes of dead stack that are wiped. They contain everything that a stop may leave there, of
/// which an injected call's frame is the largest.
const WIPED: usize = 48 << 10;
/// Bytes of the spinning frame: the image's words, the image's address, two flags, the scratch word
/// for RAX, and a word that keeps SP aligned.
const FRAME: usize = FRAME_WORDS * 8 + 40;

/// One load for each register `$n`, from word `$scale * $n` of a part of the image.
macro_rules! loads {
    ($operation:literal $part:literal $scale:literal: $($n:literal)*) => {
        concat!($($operation, $n, ", [rdx + {", $part, "} + ", $scale, "*", $n, "]\n"),*)
    };
}

/// One store for each register `$n`, to word `$scale * $n` of a part of the image.
macro_rules! stores {
    ($operation:literal $part:literal $scale:literal $register:literal: $($n:literal)*) => {
        concat!($($operation, " [rdx + {", $part, "} + ", $scale, "*", $n, "], ", $register, $n, "\n"),*)
    };
}

macro_rules! load_sse {
    () => {
        loads!("movdqu xmm" "vectors" 64: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}
macro_rules! load_avx {
    () => {
        loads!("vmovdqu ymm" "vectors" 64: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}
macro_rules! load_avx512 {
    () => {
        concat!(
            loads!("vmovdqu64 zmm" "vectors" 64: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
            loads!("kmovq k" "masks" 8: 0 1 2 3 4 5 6 7),
        )
    };
}
macro_rules! store_sse {
    () => {
        stores!("movdqu" "after_vectors" 64 "xmm": 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}
macro_rules! store_avx {
    () => {
        stores!("vmovdqu" "after_vectors" 64 "ymm": 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}
macro_rules! store_avx512 {
    () => {
        concat!(
            stores!("vmovdqu64" "after_vectors" 64 "zmm": 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
            stores!("kmovq" "after_masks" 8 "k": 0 1 2 3 4 5 6 7),
        )
    };
}
macro_rules! wipe_sse {
    () => {
        loads!("movdqu xmm" "zeros" 64: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}
macro_rules! wipe_avx {
    () => {
        "vzeroall"
    };
}
macro_rules! wipe_avx512 {
    () => {
        concat!(
            loads!("vmovdqu64 zmm" "zeros" 64: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
            loads!("kmovq k" "zeros" 8: 0 1 2 3 4 5 6 7),
            "vzeroall",
        )
    };
}

macro_rules! hold {
    ($(#[$doc:meta])* $name:ident $end:ident $end_label:literal, $load:ident $store:ident $wipe:ident) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name(_: *mut Image) {
            core::arch::naked_asm!(
                // This comment of the assembly uses the operands that a variant may lack.
                "# {masks} {after_masks} {zeros}",
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
                "sub rsp, {frame}",
                ".cfi_adjust_cfa_offset {frame}",
                "mov [rsp + {own}], rdi",
                "mov qword ptr [rsp + {own} + 8], 0",
                "mov qword ptr [rsp + {own} + 16], 0",
                "mov qword ptr [rsp + {own} + 24], 0",
                "mov qword ptr [rsp + {own} + 32], 0",
                "lea rax, [rsp + {own} + 8]",
                "mov [rdi + {flags}], rax",
                "mov rdx, rdi",
                "cld",
                "lea rsi, [rdx + {stack}]",
                "mov rdi, rsp",
                "mov ecx, {frame_words}",
                "rep movsq",
                "lea rsi, [rdx + {below}]",
                "lea rdi, [rsp - 256]",
                "mov ecx, 16",
                "rep movsq",
                "lea rsi, [rdx + {red_zone}]",
                "mov ecx, 16",
                "rep movsq",
                $load!(),
                loads!("movq mm" "mmx" 8: 0 1 2 3 4 5 6 7),
                "mov rax, [rdx + {gpr}]",
                "mov rcx, [rdx + {gpr} + 16]",
                "mov rbx, [rdx + {gpr} + 24]",
                "mov rsi, [rdx + {gpr} + 32]",
                "mov rdi, [rdx + {gpr} + 40]",
                "mov rbp, [rdx + {gpr} + 48]",
                "mov r8, [rdx + {gpr} + 64]",
                "mov r9, [rdx + {gpr} + 72]",
                "mov r10, [rdx + {gpr} + 80]",
                "mov r11, [rdx + {gpr} + 88]",
                "mov r12, [rdx + {gpr} + 96]",
                "mov r13, [rdx + {gpr} + 104]",
                "mov r14, [rdx + {gpr} + 112]",
                "mov r15, [rdx + {gpr} + 120]",
                "mov rdx, [rdx + {gpr} + 8]",
                "mov byte ptr [rsp + {own} + 8], 1",
                "2: pause",
                "cmp byte ptr [rsp + {own} + 16], 0",
                "je 2b",
                // The image was released: the registers are stored.
                "mov [rsp + {own} + 24], rax",
                "mov rax, [rsp + {own}]",
                "mov [rax + {after_gpr} + 8], rdx",
                "mov [rax + {after_gpr} + 16], rcx",
                "mov [rax + {after_gpr} + 24], rbx",
                "mov [rax + {after_gpr} + 32], rsi",
                "mov [rax + {after_gpr} + 40], rdi",
                "mov [rax + {after_gpr} + 48], rbp",
                "mov [rax + {after_gpr} + 64], r8",
                "mov [rax + {after_gpr} + 72], r9",
                "mov [rax + {after_gpr} + 80], r10",
                "mov [rax + {after_gpr} + 88], r11",
                "mov [rax + {after_gpr} + 96], r12",
                "mov [rax + {after_gpr} + 104], r13",
                "mov [rax + {after_gpr} + 112], r14",
                "mov [rax + {after_gpr} + 120], r15",
                "mov rdx, rax",
                "mov rax, [rsp + {own} + 24]",
                "mov [rdx + {after_gpr}], rax",
                $store!(),
                stores!("movq" "after_mmx" 8 "mm": 0 1 2 3 4 5 6 7),
                // Stack and red zone are moved into the image, where the test compares them.
                "cld",
                "lea rdi, [rdx + {stack}]",
                "mov rsi, rsp",
                "mov ecx, {frame_words}",
                "rep movsq",
                "lea rdi, [rdx + {red_zone}]",
                "lea rsi, [rsp - 128]",
                "mov ecx, 16",
                "rep movsq",
                // No word of the image stays on the stack or in registers.
                "mov qword ptr [rdx + {flags}], 0",
                "lea rdi, [rsp - {wiped}]",
                "mov ecx, ({wiped} + {frame}) / 8",
                "xor eax, eax",
                "rep stosq",
                $wipe!(),
                loads!("movq mm" "zeros" 8: 0 1 2 3 4 5 6 7),
                "emms",
                "xor edx, edx",
                "xor esi, esi",
                "xor edi, edi",
                "xor r8d, r8d",
                "xor r9d, r9d",
                "xor r10d, r10d",
                "xor r11d, r11d",
                "add rsp, {frame}",
                ".cfi_adjust_cfa_offset -{frame}",
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
                "ret",
                ".cfi_endproc",
                concat!(".globl ", $end_label),
                concat!($end_label, ":"),
                frame = const FRAME,
                own = const FRAME_WORDS * 8,
                frame_words = const FRAME_WORDS,
                wiped = const WIPED,
                flags = const core::mem::offset_of!(Image, flags),
                stack = const core::mem::offset_of!(Image, stack),
                below = const core::mem::offset_of!(Image, below),
                red_zone = const core::mem::offset_of!(Image, red_zone),
                vectors = const core::mem::offset_of!(Image, registers.vectors),
                gpr = const core::mem::offset_of!(Image, registers.gpr),
                mmx = const core::mem::offset_of!(Image, registers.mmx),
                masks = const core::mem::offset_of!(Image, registers.masks),
                after_vectors = const core::mem::offset_of!(Image, after.vectors),
                after_gpr = const core::mem::offset_of!(Image, after.gpr),
                after_mmx = const core::mem::offset_of!(Image, after.mmx),
                after_masks = const core::mem::offset_of!(Image, after.masks),
                zeros = const core::mem::offset_of!(Image, zeros),
            )
        }
        unsafe extern "C" {
            #[link_name = $end_label]
            #[allow(dead_code)]
            static $end: u8;
        }
    };
}

hold! { native_sse NATIVE_SSE_END "urge_image_native_sse_end", load_sse store_sse wipe_sse }
hold! { native_avx NATIVE_AVX_END "urge_image_native_avx_end", load_avx store_avx wipe_avx }
hold! { native_avx512 NATIVE_AVX512_END "urge_image_native_avx512_end", load_avx512 store_avx512 wipe_avx512 }
hold! { managed_sse MANAGED_SSE_END "urge_image_managed_sse_end", load_sse store_sse wipe_sse }
hold! { managed_avx MANAGED_AVX_END "urge_image_managed_avx_end", load_avx store_avx wipe_avx }
hold! { managed_avx512 MANAGED_AVX512_END "urge_image_managed_avx512_end", load_avx512 store_avx512 wipe_avx512 }

/// The zeros that wipe registers.
static ZEROS: [usize; 32 * 8] = [0; 32 * 8];

macro_rules! wipe {
    ($name:ident $wipe:ident) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(_: *const usize) {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "mov rdx, rdi",
                $wipe!(),
                loads!("movq mm" "zeros" 8: 0 1 2 3 4 5 6 7),
                "emms",
                "xor eax, eax",
                "xor ecx, ecx",
                "xor edx, edx",
                "xor esi, esi",
                "xor edi, edi",
                "xor r8d, r8d",
                "xor r9d, r9d",
                "xor r10d, r10d",
                "xor r11d, r11d",
                "ret",
                ".cfi_endproc",
                zeros = const 0,
            )
        }
    };
}

wipe! { wipe_registers_sse wipe_sse }
wipe! { wipe_registers_avx wipe_avx }
wipe! { wipe_registers_avx512 wipe_avx512 }

/// Clears all registers that a callee may change, including vectors, of words that earlier calls
/// left.
pub fn wipe_registers() {
    let wipe = match isa() {
        Isa::Sse => wipe_registers_sse,
        Isa::Avx => wipe_registers_avx,
        Isa::Avx512 => wipe_registers_avx512,
    };
    // SAFETY: the function changes only registers that any function may change.
    unsafe { wipe(ZEROS.as_ptr()) }
}

/// A frame in Cranelift's layout, filled from the image, that calls `hold(image)`.
#[unsafe(naked)]
unsafe extern "C" fn caller(_: *mut Image, _: HoldFn) {
    core::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "sub rsp, {bytes}",
        "mov rdx, rdi",
        "mov rax, rsi",
        "cld",
        "lea rsi, [rdx + {caller}]",
        "mov rdi, rsp",
        "mov ecx, {words}",
        "rep movsq",
        "xor esi, esi",
        "mov rdi, rdx",
        "call rax",
        ".globl urge_image_caller_return",
        "urge_image_caller_return:",
        "mov rdi, rsp",
        "mov ecx, {words}",
        "xor eax, eax",
        "rep stosq",
        "leave",
        "ret",
        ".globl urge_image_caller_end",
        "urge_image_caller_end:",
        bytes = const FRAME_WORDS * 8,
        words = const FRAME_WORDS,
        caller = const core::mem::offset_of!(Image, caller),
    )
}

unsafe extern "C" {
    #[link_name = "urge_image_caller_return"]
    static CALLER_RETURN: u8;
    #[link_name = "urge_image_caller_end"]
    static CALLER_END: u8;
}

type HoldFn = unsafe extern "C" fn(*mut Image);

fn native() -> HoldFn {
    match isa() {
        Isa::Sse => native_sse,
        Isa::Avx => native_avx,
        Isa::Avx512 => native_avx512,
    }
}

fn managed() -> (HoldFn, Range<usize>) {
    let (hold, end): (HoldFn, *const u8) = match isa() {
        Isa::Sse => (managed_sse, &raw const MANAGED_SSE_END),
        Isa::Avx => (managed_avx, &raw const MANAGED_AVX_END),
        Isa::Avx512 => (managed_avx512, &raw const MANAGED_AVX512_END),
    };
    (hold, hold as usize..end as usize)
}

/// Registers the managed functions once for the whole process. Edges of the calling frame's slots
/// have encoding 0, which is [`Encoding::RAW`](gc_core::raw::Encoding::RAW) in every heap.
fn registered() {
    static GUARDS: OnceLock<(World, [CodeGuard; 2])> = OnceLock::new();
    GUARDS.get_or_init(|| {
        let world = World::new(Config::default()).expect("threads can be stopped");
        let register = |range: Range<usize>, frames, functions: &[Function]| {
            let maps =
                StackMaps::from_cranelift(functions).expect("the frame as it is written above");
            let what = CodeWhat::Managed {
                frames,
                maps,
                encoding: 0,
            };
            let spec = CodeSpec {
                range,
                what,
                owner: None,
            };
            // SAFETY: the functions are in this file and never unloaded. Their frames are as the
            // maps and the unwind tables say.
            unsafe { world.register_code(spec) }.expect("code that is registered once")
        };
        let start = caller as *const () as usize;
        let function = Function {
            address: start,
            size: (&raw const CALLER_END as usize - start) as u32,
            frame_to_fp: (FRAME_WORDS * 8) as u32,
            clobber: (SAVED_WORDS * 8) as u32,
            outgoing: (ARGUMENT_WORDS * 8) as u32,
            sites: vec![Site {
                return_offset: (&raw const CALLER_RETURN as usize - start) as u32,
                known: true,
                slots: SLOTS.map(|word| word as u32 * 8).to_vec(),
            }],
        };
        let range = start..start + function.size as usize;
        let guards = [
            register(range, FrameRule::Rbp, &[function]),
            register(managed().1, FrameRule::Cfi, &[]),
        ];
        (world, guards)
    });
}

impl Hold {
    /// Holds the image on this thread until another thread releases it: `registers`, `stack`,
    /// `red_zone`, `below` and, for [`Hold::Called`], `caller`.
    ///
    /// # Safety
    /// During the call no other thread may hold the image or write to it.
    pub unsafe fn hold(self, image: *mut Image) {
        registered();
        // SAFETY: the functions take only an image. The caller has the image to itself, except for
        // the flags, which are atomic.
        unsafe {
            (*image).trim();
            match self {
                Hold::Native => native()(image),
                Hold::Managed => managed().0(image),
                Hold::Called => caller(image, native()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_held_whole_and_leaves_nothing_behind() {
        for hold in [Hold::Native, Hold::Managed, Hold::Called] {
            let mut image = Image::new();
            let mut word = 0x0123_4567_89ab_cdefusize;
            let mut next = || {
                word = word
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                word
            };
            image
                .registers
                .vectors
                .as_flattened_mut()
                .fill_with(&mut next);
            for part in [
                &mut image.registers.gpr[..],
                &mut image.stack,
                &mut image.red_zone,
                &mut image.below,
                &mut image.caller,
            ] {
                part.fill_with(&mut next);
            }
            image.registers.mmx.fill_with(&mut next);
            image.registers.masks.fill_with(&mut next);
            image.trim();
            let before = (image.registers.clone(), image.stack, image.red_zone);
            let pointer = &raw mut *image as usize;
            std::thread::scope(|scope| {
                // SAFETY: the image is this test's. Until the thread has ended, the test accesses
                // only its flags.
                let holder = scope.spawn(move || unsafe { hold.hold(pointer as *mut Image) });
                // SAFETY: the image is alive, and its holder is not released before the call of
                // `release`.
                unsafe {
                    while !Image::is_held(pointer as *const Image) {
                        std::thread::yield_now();
                    }
                    Image::release(pointer as *const Image);
                }
                holder.join().expect("returns");
            });
            assert!(
                before == (image.after.clone(), image.stack, image.red_zone),
                "{hold:?}"
            );
        }
    }
}
