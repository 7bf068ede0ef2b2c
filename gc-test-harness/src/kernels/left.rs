//! Precision on a stack that was left in the middle of an instruction sequence, as a count of
//! cells.
//!
//! The managed function `outer` makes two lists. It reads the first one for the last time, and
//! calls the managed function `inner`, which makes a third list and spins in a loop without calls.
//! There a signal preempts it, and its hook suspends the stack. The stack map at the call in
//! `outer` names the slot of the second list. The slot of the first list still holds its address,
//! and no map names it. No map speaks of the loop in `inner`, whose registers and frame are scanned
//! word by word. A collection that reads the frame of `outer` by its map frees the first list
//! alone.

use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};
use gc_core::coroutine::{Resumed, StackPool, suspend};
use gc_core::jit;
use gc_core::raw::{Encoding, Site};
use gc_core::{CollectionStats, Heap, Mutator};
use gc_preempt::stackmap::StackMaps;
use gc_preempt::{FrameRule, PreemptHook, take_preempt_request_here};

use super::alloc::node_site;
use super::codegen::{Arena, Code};
use super::loops::NODE_VALUE;

/// The nodes of the three lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// The list that only a stale slot names.
    pub stale: u64,
    /// The list that `outer` reads after the call.
    pub mapped: u64,
    /// The list that the loop keeps.
    pub innermost: u64,
}

/// What the collector knows of the call in `outer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maps {
    /// Cranelift's stack map.
    Cranelifts,
    /// No map: the frame is scanned word by word.
    Missing,
}

/// The reason why there are no figures.
#[derive(Debug)]
pub struct LeftError(String);

impl fmt::Display for LeftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LeftError {}

fn failed(error: impl fmt::Display) -> LeftError {
    LeftError(error.to_string())
}

/// The values of the lists' first nodes.
const FIRST: [u64; 3] = [1_000, 20_000, 300_000];

/// What the compiled code and the callbacks share.
#[repr(C)]
struct Scene<'m> {
    /// The loop runs.
    entered: AtomicU64,
    /// The loop is to end.
    over: AtomicU64,
    mutator: &'m Mutator,
    site: Site,
    nodes: [u64; 3],
}

/// Bytes from a scene to `over`.
const OVER: i64 = std::mem::offset_of!(Scene<'_>, over) as i64;

/// `fn(data, number) -> a list`.
type Make = unsafe extern "C" fn(*mut c_void, u64) -> usize;
/// `fn(make, wipe, data) -> the sum of the lists' first values`.
type Outer = unsafe extern "C" fn(Make, unsafe extern "C" fn(), *mut c_void) -> u64;

/// Collects while the stack is suspended in the loop, in a heap and on a thread of their own.
/// Returns the figures of the collection.
///
/// # Errors
/// The code could not be compiled or registered, or the heap had no room.
pub fn collected_in_the_loop(nodes: Nodes, maps: Maps) -> Result<CollectionStats, LeftError> {
    std::thread::scope(|scope| {
        let figures = scope.spawn(|| on_this_thread(nodes, maps)).join();
        figures.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn on_this_thread(nodes: Nodes, maps: Maps) -> Result<CollectionStats, LeftError> {
    let mut arena = Arena::new().map_err(failed)?;
    compile(&mut arena).map_err(failed)?;
    let code = arena.finish().map_err(failed)?;
    let entry = Code::entry_of(&code, "outer").map_err(failed)?;
    // SAFETY: the function was compiled with this signature above, and `code` keeps the memory.
    let outer = unsafe { std::mem::transmute::<*const u8, Outer>(entry) };
    // The pacer starts no collection, so the one below is the only one.
    let heap = Heap::builder().gc_percent(u32::MAX).build();
    let heap = heap.map_err(failed)?;
    let guards = code.iter().map(|code| register(code, &heap, maps));
    let _guards = guards.collect::<Result<Vec<_>, _>>()?;
    let site = node_site(&heap).map_err(failed)?;
    let mutator = heap.attach().map_err(failed)?;
    let scene = Scene {
        entered: AtomicU64::new(0),
        over: AtomicU64::new(0),
        mutator: &mutator,
        site,
        nodes: [nodes.stale, nodes.mapped, nodes.innermost],
    };
    let stack = heap.stack(StackPool::new(256 << 10).take().map_err(failed)?);
    let stack = stack.map_err(failed)?;
    let result = AtomicU64::new(0);
    let (data, sum) = (&raw const scene as usize, &raw const result as usize);
    let body = move |_: &Mutator| {
        // SAFETY: the scene and the result outlive the coroutine, which ends below.
        unsafe {
            let value = outer(make, wipe, data as *mut c_void);
            (*(sum as *const AtomicU64)).store(value, Ordering::Relaxed);
        }
    };
    mutator.start(&stack, body).map_err(failed)?;
    preempted_in_the_loop(&mutator, &scene, || mutator.resume(&stack).map_err(failed))?;
    mutator.collect();
    let last = heap.stats().last;
    // Relaxed: the loop runs on this thread.
    scene.over.store(1, Ordering::Relaxed);
    let ended = mutator.resume(&stack).map_err(failed)?;
    let sum = result.load(Ordering::Relaxed);
    if (ended, sum) != (Resumed::Finished, FIRST.iter().sum()) {
        return Err(LeftError(format!("the function has ended with {sum}")));
    }
    Ok(last)
}

/// Registers a function, with the facts of all its calls unknown if the maps are to be missing.
fn register(code: &Code, heap: &Heap, maps: Maps) -> Result<jit::CodeGuard, LeftError> {
    let mut facts = code.facts.clone();
    if maps == Maps::Missing {
        for site in &mut facts.sites {
            site.known = false;
            site.slots.clear();
        }
    }
    let maps = StackMaps::from_cranelift(&[facts]).map_err(failed)?;
    let spec = jit::CodeSpec::new(code.range(), FrameRule::Rbp)
        .stack_maps(maps, Encoding::RAW)
        .owner(code.memory());
    // SAFETY: Cranelift made range and facts of this function, and the owner keeps it mapped. A
    // call of which nothing is known is scanned word by word.
    unsafe { heap.register_code(spec) }.map_err(failed)
}

/// Runs `resume`, which enters the loop, until a request from another thread has preempted it
/// there.
fn preempted_in_the_loop(
    mutator: &Mutator,
    scene: &Scene<'_>,
    resume: impl FnOnce() -> Result<Resumed, LeftError>,
) -> Result<(), LeftError> {
    unsafe extern "C" fn suspends(suspended: *mut ()) {
        // SAFETY: the hook's data, below.
        unsafe { (*suspended.cast::<AtomicU64>()).store(1, Ordering::Relaxed) };
        // An error would show in the result of `resume`.
        let _ = suspend();
    }
    let suspended = AtomicU64::new(0);
    let hook = PreemptHook {
        f: suspends,
        data: (&raw const suspended).cast_mut().cast(),
    };
    // SAFETY: the hook suspends the stack that it runs on. It is unset while its data lives.
    unsafe { mutator.thread().set_preempt_hook(Some(hook)) };
    let preempter = mutator.thread().preempter();
    // Relaxed, both: no other data is published by them.
    let (entered, suspended) = (&scene.entered, &suspended);
    let ended = &AtomicU64::new(0);
    let resumed = std::thread::scope(|scope| {
        scope.spawn(move || {
            let is_over =
                || (suspended.load(Ordering::Relaxed) | ended.load(Ordering::Relaxed)) != 0;
            while !is_over() {
                if entered.load(Ordering::Relaxed) != 0 {
                    preempter.preempt();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let resumed = resume();
        ended.store(1, Ordering::Relaxed);
        resumed
    });
    // SAFETY: there is no hook any more.
    unsafe { mutator.thread().set_preempt_hook(None) };
    take_preempt_request_here();
    match resumed? {
        Resumed::Suspended => Ok(()),
        Resumed::Finished => Err(LeftError("the loop was not preempted".into())),
    }
}

unsafe extern "C" fn make(data: *mut c_void, number: u64) -> usize {
    // SAFETY: the compiled code passes its scene.
    let scene = unsafe { &*data.cast::<Scene<'_>>() };
    let mut list = 0usize;
    for left in (0..scene.nodes[number as usize]).rev() {
        // SAFETY: the cell is the new head of the list, which is on this stack and is returned in a
        // register. It has two words, and is written before another thread has it.
        unsafe {
            let cell = scene
                .mutator
                .alloc_at(scene.site)
                .expect("the heap has room");
            let words = cell.as_ptr().cast::<usize>();
            words.write(list);
            words.add(1).write((FIRST[number as usize] + left) as usize);
            list = words as usize;
        }
    }
    list
}

/// Overwrites the words that earlier calls left below the caller's frame, and the registers that a
/// callee may change, so that no stale word of them keeps cells.
unsafe extern "C" fn wipe() {
    let mut words = [0usize; 4096];
    std::hint::black_box(&mut words);
    // SAFETY: zeroes registers that the convention lets a function change.
    unsafe {
        std::arch::asm!(
            "xor eax, eax", "xor ecx, ecx", "xor edx, edx", "xor esi, esi", "xor edi, edi",
            "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d", "xor r11d, r11d",
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            options(nostack),
        );
    }
}

fn compile(arena: &mut Arena) -> Result<(), super::codegen::CodegenError> {
    let making = arena.signature(&[types::I64; 2], &[types::I64]);
    let wiping = arena.signature(&[], &[]);
    let signature = arena.signature(&[types::I64; 3], &[types::I64]);
    let flags = MemFlagsData::trusted();

    let inner = arena.declare("inner", &signature)?;
    arena.define(inner, |body| {
        let params = body.enter();
        let (maker, wiper, data) = (params[0], params[1], params[2]);
        let b = &mut body.builder;
        let (making, wiping) = (
            b.import_signature(making.clone()),
            b.import_signature(wiping.clone()),
        );
        let (turn, over) = (b.create_block(), b.create_block());
        let number = b.ins().iconst(types::I64, 2);
        let made = b.ins().call_indirect(making, maker, &[data, number]);
        // No collection takes place before the loop, so no call's map has to name the list.
        let list = b.inst_results(made)[0];
        b.ins().call_indirect(wiping, wiper, &[]);
        let one = b.ins().iconst(types::I64, 1);
        b.ins().atomic_store(flags, one, data);
        b.ins().jump(turn, &[]);

        b.switch_to_block(turn);
        let at = b.ins().iadd_imm_s(data, OVER);
        let is_over = b.ins().atomic_load(types::I64, flags, at);
        b.ins().brif(is_over, over, &[], turn, &[]);

        b.switch_to_block(over);
        let value = b.ins().load(types::I64, flags, list, NODE_VALUE);
        b.ins().return_(&[value]);
    })?;

    arena.function("outer", &signature, |body| {
        let params = body.enter();
        let (maker, wiper, data) = (params[0], params[1], params[2]);
        let inner = body.callee(inner);
        let b = &mut body.builder;
        let making = b.import_signature(making);
        let numbers = [0, 1].map(|number| b.ins().iconst(types::I64, number));
        let [stale, mapped] = numbers.map(|number| {
            let made = b.ins().call_indirect(making, maker, &[data, number]);
            let list = b.inst_results(made)[0];
            b.declare_value_needs_stack_map(list);
            list
        });
        let first = b.ins().load(types::I64, flags, stale, NODE_VALUE);
        let looped = b.ins().call(inner, &[maker, wiper, data]);
        let third = b.inst_results(looped)[0];
        let second = b.ins().load(types::I64, flags, mapped, NODE_VALUE);
        let sum = b.ins().iadd(first, second);
        let sum = b.ins().iadd(sum, third);
        b.ins().return_(&[sum]);
    })
}
