//! Managed code that a hook suspends in the middle of its instructions: what its stack holds lives
//! by the innermost frame's words, and by the maps of the frames behind it.

mod common;

use common::{Kinds, check_list, hazard, heap_with, list};
use gc_core::coroutine::{Resumed, Stack, StackPool, suspend};
use gc_core::jit::{CodeGuard, CodeSpec, FrameRule};
use gc_core::raw::Encoding;
use gc_core::{CollectionStats, Heap};
use gc_preempt::stackmap::{StackMaps, cranelift};
use gc_preempt::{PreemptHook, take_preempt_request_here};
use std::arch::global_asm;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

// `i_outer(lists, flags)` takes two lists out of memory: to [rsp], which its map names at the call,
// and to [rsp + 8], which its map does not name. `i_inner` takes the third to a word of its frame,
// which no map names, and the fourth to a register. It sets the first flag, and spins until the
// second is set. Then all four addresses go back to memory.
global_asm!(
    ".text",
    ".p2align 4",
    ".globl i_outer",
    "i_outer:",
    "push rbp",
    "mov rbp, rsp",
    "sub rsp, 32",
    "xor eax, eax",
    "xchg rax, [rdi]",
    "mov [rsp], rax",
    "xor eax, eax",
    "xchg rax, [rdi + 8]",
    "mov [rsp + 8], rax",
    "mov [rsp + 16], rdi",
    "xor eax, eax",
    "call i_inner",
    ".globl i_outer_return",
    "i_outer_return:",
    "mov rdi, [rsp + 16]",
    "mov rax, [rsp]",
    "mov [rdi], rax",
    "mov rax, [rsp + 8]",
    "mov [rdi + 8], rax",
    "leave",
    "ret",
    ".globl i_inner",
    "i_inner:",
    "push rbp",
    "mov rbp, rsp",
    "sub rsp, 16",
    "xor eax, eax",
    "xchg rax, [rdi + 16]",
    "mov [rsp], rax",
    "xor eax, eax",
    "xchg rax, [rdi + 24]",
    "mov byte ptr [rsi], 1",
    "2: pause",
    "cmp byte ptr [rsi + 1], 0",
    "je 2b",
    "mov [rdi + 24], rax",
    "mov rax, [rsp]",
    "mov [rdi + 16], rax",
    "leave",
    "ret",
    ".globl i_end",
    "i_end:",
);

unsafe extern "C" {
    fn i_outer(lists: *const [AtomicUsize; 4], flags: *const [AtomicBool; 2]);
    fn i_outer_return();
    fn i_inner();
    fn i_end();
}

/// The nodes of the four lists. The second is dead once the inner loop runs.
const NODES: [usize; 4] = [10, 5000, 200, 3000];

/// More stacks than a stop scans itself.
const MANY: usize = 20;

/// Registers the two functions. With `known`, the outer one has a map at its call.
fn register(heap: &Heap, known: bool) -> CodeGuard {
    let [outer, back, inner, end] = [
        i_outer as *const () as usize,
        i_outer_return as *const () as usize,
        i_inner as *const () as usize,
        i_end as *const () as usize,
    ];
    let site = cranelift::Site {
        return_offset: (back - outer) as u32,
        known,
        slots: if known { vec![0] } else { Vec::new() },
    };
    let function = |start, end, frame_to_fp, sites| cranelift::Function {
        address: start,
        size: (end - start) as u32,
        frame_to_fp,
        clobber: 0,
        outgoing: 0,
        sites,
    };
    let maps = StackMaps::from_cranelift(&[
        function(outer, inner, 32, vec![site]),
        function(inner, end, 16, Vec::new()),
    ]);
    let spec = CodeSpec::new(outer..end, FrameRule::Rbp).stack_maps(maps.unwrap(), Encoding::RAW);
    // SAFETY: the code is in this program's text. Its frames are as the facts say, and the second
    // list is not used after the call.
    unsafe { heap.register_code(spec) }.unwrap()
}

static SUSPENSIONS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn suspends(_: *mut ()) {
    SUSPENSIONS.fetch_add(1, SeqCst);
    suspend().unwrap();
}

/// Collects while a stack is suspended in the inner loop, beside `others` suspended stacks.
fn collected(known: bool, others: usize) -> CollectionStats {
    let (heap, k) = heap_with(|builder| builder.poison(true).gc_percent(u32::MAX));
    let code = register(&heap, known);
    let lists: [AtomicUsize; 4] = Default::default();
    let flags: [AtomicBool; 2] = Default::default();
    // No frame of the thread that collects has held the addresses.
    std::thread::scope(|s| {
        s.spawn(|| make(&heap, k, &lists));
    });
    let m = heap.attach().unwrap();
    let pool = StackPool::new(64 << 10);
    let stack = || heap.stack(pool.take().unwrap()).unwrap();
    let others: Vec<Stack> = (0..others).map(|_| stack()).collect();
    for stack in &others {
        m.start(stack, |_| suspend().unwrap()).unwrap();
        assert_eq!(m.resume(stack), Ok(Resumed::Suspended));
    }
    let stack = stack();
    let (at, turns) = (&raw const lists as usize, &raw const flags as usize);
    // SAFETY: four words and two flags, which outlive the coroutine.
    m.start(&stack, move |_| unsafe {
        i_outer(at as *const _, turns as *const _)
    })
    .unwrap();
    let hook = PreemptHook {
        f: suspends,
        data: std::ptr::null_mut(),
    };
    // SAFETY: the hook suspends the stack that it runs on.
    unsafe { m.thread().set_preempt_hook(Some(hook)) };
    let preempter = m.thread().preempter();
    std::thread::scope(|s| {
        s.spawn(|| {
            while !flags[0].load(SeqCst) {
                std::thread::sleep(Duration::from_micros(100));
            }
            while SUSPENSIONS.load(SeqCst) == 0 {
                preempter.preempt();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(m.resume(&stack), Ok(Resumed::Suspended));
    });
    // SAFETY: there is no hook any more.
    unsafe { m.thread().set_preempt_hook(None) };
    take_preempt_request_here();
    assert!(lists.iter().all(|list| list.load(SeqCst) == 0));
    m.collect();
    let last = heap.stats().last;
    flags[1].store(true, SeqCst);
    assert_eq!(m.resume(&stack), Ok(Resumed::Finished));
    for stack in &others {
        assert_eq!(m.resume(stack), Ok(Resumed::Finished));
    }
    for at in [0, 2, 3] {
        check_list(lists[at].load(SeqCst), NODES[at]);
    }
    assert_ne!(lists[1].load(SeqCst), 0);
    drop(code);
    last
}

fn make(heap: &Heap, k: Kinds, lists: &[AtomicUsize; 4]) {
    let m = heap.attach().unwrap();
    for (list, nodes) in lists.iter().zip(NODES) {
        list.store(self::list(&m, k, nodes), SeqCst);
    }
}

fn dead_and_alive(last: CollectionStats) -> (u64, u32) {
    (last.cells_live, last.frames_precise)
}

/// The innermost frame and the registers are scanned word by word, the outer frame by its map: the
/// list that only a dead slot names is freed, and the three others live.
fn the_outer_frame_is_exact(others: usize) {
    let last = collected(true, others);
    assert_eq!(
        dead_and_alive(last),
        (10 + 200 + 3000, 1),
        "{last:?}: cells that live, and exact frames"
    );
    let beside = if others == 0 {
        (0, 1)
    } else {
        (others as u32 + 1, 0)
    };
    assert_eq!((last.stacks_beside, last.stacks_in_stops), beside);
}

/// With `words-behind-injection` planted, the frames behind the injected call are taken word by
/// word, and the dead list stays.
#[test]
fn h123_frames_behind_an_interrupted_one_are_exact_on_a_suspended_stack() {
    hazard(
        "h123_frames_behind_an_interrupted_one_are_exact_on_a_suspended_stack",
        "words-behind-injection",
        || the_outer_frame_is_exact(0),
    );
}

/// With `ends-behind-injection` planted, the walk ends with the interrupted frame, and the list
/// that the outer frame holds is freed.
#[test]
fn h123_frames_behind_an_interrupted_one_are_scanned_beside_the_program() {
    hazard(
        "h123_frames_behind_an_interrupted_one_are_scanned_beside_the_program",
        "ends-behind-injection",
        || the_outer_frame_is_exact(MANY),
    );
}

/// Without a map the dead list stays: the map is what frees it.
#[test]
fn without_a_map_a_dead_slot_keeps_its_list() {
    let last = collected(false, 0);
    let all = NODES.iter().sum::<usize>() as u64;
    assert_eq!(dead_and_alive(last), (all, 0), "{last:?}");
}
