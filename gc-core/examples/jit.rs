//! Registers a JIT's code: machine code in an arena, with a stack map, a loop without polls, and a
//! call.
//!
//! The "compiler" copies an assembler template into the arena, so the example needs no code
//! generator. It describes the function as a JIT does: its addresses, the layout of its frame, the
//! return addresses of its calls, and the frame's slots that hold references across them. With
//! Cranelift, these come from `MachBufferFinalized::user_stack_maps` and the frame layout. LLVM
//! writes them into `.llvm_stackmaps`, which `StackMaps::from_llvm` reads.
//!
//! `cargo run -p gc-core --example jit`

use gc_core::jit::{CodeSpec, FrameRule};
use gc_core::raw::Encoding;
use gc_core::{Field, Gc, Heap, Mutator, Trace};
use gc_preempt::stackmap::{StackMaps, cranelift};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

// fn(head, helper, data, calls) -> sum: calls helper(data) `calls` times, then adds up the list.
//
// The frame: [rsp] holds the list's head, a reference; [rsp + 8] to [rsp + 24] hold plain words.
std::arch::global_asm!(
    ".pushsection .text.jit_template,\"ax\",@progbits",
    ".globl jit_template",
    ".globl jit_template_return",
    ".globl jit_template_end",
    "jit_template:",
    "    push    rbp",
    "    mov     rbp, rsp",
    "    sub     rsp, 32",
    "    mov     [rsp], rdi",
    "    mov     [rsp + 8], rsi",
    "    mov     [rsp + 16], rdx",
    "    mov     [rsp + 24], rcx",
    "2:  mov     rdi, [rsp + 16]",
    "    call    qword ptr [rsp + 8]",
    "jit_template_return:",
    "    dec     qword ptr [rsp + 24]",
    "    jnz     2b",
    // This loop has no poll. A signal stops a thread in it at any instruction, and the scan finds
    // the list in the thread's registers.
    "    mov     rcx, [rsp]",
    "    mov     qword ptr [rsp], 0",
    "    xor     eax, eax",
    "3:  add     rax, [rcx + {value}]",
    "    mov     rcx, [rcx + {next}]",
    "    test    rcx, rcx",
    "    jnz     3b",
    "    leave",
    "    ret",
    "jit_template_end:",
    ".popsection",
    value = const std::mem::offset_of!(Node, value),
    next = const std::mem::offset_of!(Node, next),
);

unsafe extern "C" {
    fn jit_template();
    fn jit_template_return();
    fn jit_template_end();
}

/// A node whose layout is part of the machine code, hence `repr(C)`.
#[derive(Trace, Default)]
#[repr(C)]
struct Node {
    next: Field<Node>,
    value: u64,
}

type Compiled = unsafe extern "C" fn(
    Gc<Node>,
    unsafe extern "C" fn(*const Mutator),
    *const Mutator,
    u64,
) -> u64;

/// The function that compiled code calls. It allocates and collects.
unsafe extern "C" fn helper(mutator: *const Mutator) {
    // SAFETY: the compiled code passes on the pointer that `main` gave it.
    let mutator = unsafe { &*mutator };
    let made = mutator.scope(|s| {
        for _ in 0..100 {
            s.alloc(Node::default())?;
        }
        Ok(())
    });
    assert!(made.is_ok(), "the heap is full of garbage");
    mutator.collect();
}

/// Executable memory, which is freed once no stack returns into it.
struct Arena {
    code: memmap2::Mmap,
    freed: Arc<AtomicBool>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.freed.store(true, Relaxed);
    }
}

/// Builds a list. Only the result leads to it.
#[inline(never)]
fn list(mutator: &Mutator, n: u64) -> Result<Gc<Node>, gc_core::AllocError> {
    mutator.scope(|s| {
        let mut head = s.alloc(Node::default())?;
        for value in 1..n {
            let node = s.alloc(Node {
                value,
                ..Node::default()
            })?;
            node.next.set(s, &head);
            head = node;
        }
        // SAFETY: the list stays on the stack, and in the frame of the compiled function.
        Ok(unsafe { head.as_gc() })
    })
}

/// Compiles, registers, runs and unregisters a function.
pub fn main() -> Result<(), Box<dyn Error>> {
    let heap = Heap::builder().build()?;
    let mutator = heap.attach()?;

    // Compile.
    let template = jit_template as *const () as usize;
    let size = jit_template_end as *const () as usize - template;
    let return_offset = jit_template_return as *const () as usize - template;
    let mut code = memmap2::MmapMut::map_anon(size)?;
    // SAFETY: the template's bytes are code of this program, and use addresses relative to
    // themselves only.
    code.copy_from_slice(unsafe { std::slice::from_raw_parts(template as *const u8, size) });
    let freed = Arc::new(AtomicBool::new(false));
    let arena = Arena {
        code: code.make_exec()?,
        freed: freed.clone(),
    };
    let address = arena.code.as_ptr() as usize;

    // Describe the code.
    let maps = StackMaps::from_cranelift(&[cranelift::Function {
        address,
        size: size as u32,
        frame_to_fp: 32,
        clobber: 0,
        outgoing: 0,
        sites: vec![cranelift::Site {
            return_offset: return_offset as u32,
            known: true,
            slots: vec![0],
        }],
    }])?;
    // SAFETY: the map describes the code: frames follow RBP, and the only reference across the call
    // is in the slot at [rsp].
    let guard = unsafe {
        heap.register_code(
            CodeSpec::new(address..address + size, FrameRule::Rbp)
                .stack_maps(maps, Encoding::RAW)
                .owner(arena),
        )?
    };

    // Run.
    // SAFETY: the arena holds code of this type.
    let compiled = unsafe { std::mem::transmute::<usize, Compiled>(address) };
    const N: u64 = 10_000;
    const CALLS: u64 = 20;
    // SAFETY: a list of this heap, and this thread's mutator.
    let sum = unsafe { compiled(list(&mutator, N)?, helper, &raw const mutator, CALLS) };
    let stats = heap.stats();
    println!(
        "compiled code summed a list of {N} nodes to {sum}, over {} collections in its calls",
        stats.collections
    );
    println!(
        "in the last one, {} frame was scanned by its map and {} conservatively",
        stats.last.frames_precise, stats.last.frames_conservative
    );
    assert_eq!(sum, N * (N - 1) / 2);
    assert!(stats.last.frames_precise >= 1 && stats.collections >= CALLS);

    // Unregister the code. The first stop that finds no word of a stack in the arena frees it. This
    // function still has its address, so it detaches first.
    drop(guard);
    drop(mutator);
    let mut stops = 0;
    while !freed.load(Relaxed) && stops < 100 {
        heap.collect();
        stops += 1;
    }
    println!("the code's memory was freed after {stops} more collection");
    assert!(freed.load(Relaxed));
    Ok(())
}
