//! Facts that stack maps and unwind tables omit, or give in unusual ways. Real stops lose no
//! reference, and no reader needs memory out of proportion to its input.

mod common;

use std::arch::global_asm;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use common::{hazard, register, wait_for, world};
use gc_preempt::faults::steps;
use gc_preempt::stackmap::cranelift::Function;
use gc_preempt::stackmap::{StackMapErrorKind, StackMaps};
use gc_preempt::{CodeError, CodeGuard, CodeSpec, CodeWhat, FrameRule, RootSink, WalkStats, World};

/// The complement of the reference that the walks count. No other word holds the reference itself.
const NOT: usize = !0x00ab_cdef_1234_5678;

/// Counts the words that are the reference.
#[derive(Default)]
struct Find(u32);

impl RootSink for Find {
    fn conservative(&mut self, words: Range<usize>) {
        words.step_by(8).for_each(|word| self.exact(word, 0));
    }

    fn exact(&mut self, slot: usize, _: u32) {
        // SAFETY: a word of a stopped thread.
        let word = unsafe { (slot as *const usize).read_volatile() };
        self.0 += u32::from(!word == NOT);
    }

    fn derived(&mut self, base: usize, _: usize, encoding: u32) {
        self.exact(base, encoding);
    }
}

/// Calls `run` on an attached thread, stops the thread once it is inside `wait`, and walks it.
fn walked(world: &World, run: impl FnOnce(&AtomicBool, &AtomicBool) + Send) -> (u32, WalkStats) {
    let (inside, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let _m = world.attach(std::ptr::null_mut()).unwrap();
            run(&inside, &done);
        });
        wait_for(&inside);
        let mut find = Find::default();
        let stopped = world.stop().unwrap();
        let stats = stopped.mutators().next().unwrap().walk(&mut find);
        drop(stopped);
        done.store(true, SeqCst);
        (find.0, stats)
    })
}

// ---- stack maps ---------------------------------------------------------------------------------

global_asm!(
    // fn(not, inside, done): while it waits, two references are only in its frame at SP + 8 and SP
    // + 16, and null is at SP + 24.
    ".globl urge_test_two, urge_test_two_end, urge_test_two_return",
    ".hidden urge_test_two, urge_test_two_end, urge_test_two_return",
    ".type urge_test_two,@function",
    "urge_test_two:",
    ".cfi_startproc",
    "sub rsp, 40",
    ".cfi_def_cfa_offset 48",
    "not rdi",
    "mov [rsp + 8], rdi",
    "mov [rsp + 16], rdi",
    "mov qword ptr [rsp + 24], 0",
    "xor edi, edi",
    "call urge_test_wait",
    "urge_test_two_return:",
    "add rsp, 40",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".size urge_test_two, . - urge_test_two",
    "urge_test_two_end:",
    // fn(_, inside, done): sets `inside` and waits for `done`.
    ".type urge_test_wait,@function",
    "urge_test_wait:",
    ".cfi_startproc",
    "mov byte ptr [rsi], 1",
    "2:",
    "cmp byte ptr [rdx], 0",
    "je 2b",
    "ret",
    ".cfi_endproc",
    ".size urge_test_wait, . - urge_test_wait",
);

unsafe extern "C" {
    fn urge_test_two(not: usize, inside: &AtomicBool, done: &AtomicBool);
    static urge_test_two_end: u8;
    static urge_test_two_return: u8;
}

/// A location: its kind, size, register and offset.
type Location = (u8, u16, u16, i32);
const REGISTER: u8 = 1;
const DIRECT: u8 = 2;
const INDIRECT: u8 = 3;
const CONSTANT: u8 = 4;

/// A section with one statepoint, as LLVM writes it.
fn section(
    function: usize,
    frame: u64,
    offset: u32,
    deopt: i32,
    locations: &[Location],
) -> Vec<u8> {
    let mut section = vec![3, 0, 0, 0];
    for word in [1u32, 0, 1] {
        section.extend(word.to_le_bytes());
    }
    for word in [function as u64, frame, 1, 0xabcd_ef00] {
        section.extend(word.to_le_bytes());
    }
    section.extend(offset.to_le_bytes());
    section.extend(0u16.to_le_bytes());
    section.extend((3 + locations.len() as u16).to_le_bytes());
    let constants = [0, 0, deopt].map(|value| (CONSTANT, 8, 0, value));
    for (kind, size, register, value) in constants.iter().chain(locations) {
        section.extend([*kind, 0]);
        section.extend(size.to_le_bytes());
        section.extend(register.to_le_bytes());
        section.extend([0, 0]);
        section.extend(value.to_le_bytes());
    }
    section.resize(section.len().next_multiple_of(8) + 8, 0);
    section
}

/// Walks [`urge_test_two`] while it is registered with these locations. Gives the number of its
/// references that the walk found, and the walk's statistics.
fn with_locations(world: &World, deopt: i32, locations: &[Location]) -> (u32, WalkStats) {
    let start = urge_test_two as *const () as usize;
    let offset = ((&raw const urge_test_two_return).addr() - start) as u32;
    let maps = section(start, 40, offset, deopt, locations);
    let maps = StackMaps::from_llvm(&maps).expect("a table without a fault");
    let what = CodeWhat::Managed {
        frames: FrameRule::Cfi,
        maps,
        encoding: 0,
    };
    let range = start..(&raw const urge_test_two_end).addr();
    // SAFETY: the code is this binary's, and its unwind tables are exact.
    let guard = unsafe { register(world, range, what) };
    let run = |inside: &AtomicBool, done: &AtomicBool| {
        // SAFETY: the arguments are those that the function expects.
        unsafe { urge_test_two(NOT, inside, done) };
    };
    let found = walked(world, run);
    drop(guard);
    // No thread is inside the code any more, so the next stop removes it.
    drop(world.stop().unwrap());
    found
}

#[test]
fn h52_what_a_map_says_of_allocas_or_cannot_say_is_scanned_word_by_word() {
    let name = "h52_what_a_map_says_of_allocas_or_cannot_say_is_scanned_word_by_word";
    hazard(name, "allocas-as-pairs", || {
        let world = world();
        let null = (INDIRECT, 8, 7, 24);
        let [a, b] = [8, 16].map(|offset| (DIRECT, 8, 7, offset));
        let [x, y] = [8, 16].map(|offset| (INDIRECT, 8, 7, offset));
        let zero = (CONSTANT, 8, 0, 0);
        let (found, stats) = with_locations(&world, 0, &[null, null, x, x, y, y]);
        assert_eq!((found, stats.precise), (2, 1), "a map that names both");
        for (deopt, locations) in [
            (0, &[null, null, a, b][..]),
            (0, &[null, null, a]),
            (0, &[a, b]),
            (0, &[a]),
            (1, &[a, null, null]),
            (2, &[a, b, null, null]),
            (0, &[null, null, zero, x, zero, y]),
            (0, &[null, null, (INDIRECT, 8, 3, 8), (INDIRECT, 8, 3, 8)]),
            (0, &[null, null, (REGISTER, 8, 0, 0), x]),
        ] {
            let (found, stats) = with_locations(&world, deopt, locations);
            assert_eq!((found, stats.precise), (2, 0), "{deopt} {locations:?}");
        }
    });
}

// ---- unwind tables ------------------------------------------------------------------------------

/// Functions like `urge_test_wait` with the given directives, by name.
macro_rules! waits {
    ($($name:ident: $start:literal $(, $directive:literal)*;)*) => {
        $(global_asm!(
            concat!(".hidden ", stringify!($name)),
            concat!(".globl ", stringify!($name)),
            concat!(".type ", stringify!($name), ",@function"),
            concat!(stringify!($name), ":"),
            $start,
            $($directive,)*
            "mov byte ptr [rsi], 1",
            "2:",
            "cmp byte ptr [rdx], 0",
            "je 2b",
            "ret",
            ".cfi_endproc",
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
        );)*
        unsafe extern "C" {
            $(fn $name(_: usize, inside: &AtomicBool, done: &AtomicBool);)*
        }
    };
}

type Wait = unsafe extern "C" fn(usize, &AtomicBool, &AtomicBool);

waits! {
    urge_test_plain: ".cfi_startproc";
    urge_test_silent: ".cfi_startproc simple", ".cfi_def_cfa rsp, 8";
    urge_test_same: ".cfi_startproc", ".cfi_same_value rip";
    urge_test_register: ".cfi_startproc", ".cfi_register rip, rbx";
    urge_test_elsewhere: ".cfi_startproc", ".cfi_offset rip, -16";
    // The escapes are expression(rip, breg7 + 0) and val_expression(rip, breg3 + 0).
    urge_test_expression: ".cfi_startproc", ".cfi_escape 0x10, 16, 2, 0x77, 0";
    urge_test_value: ".cfi_startproc", ".cfi_escape 0x16, 16, 2, 0x73, 0";
    urge_test_column: ".cfi_startproc", ".cfi_return_column 3", ".cfi_undefined rip";
    urge_test_no_cfa: ".cfi_startproc simple", ".cfi_undefined rip";
    urge_test_other_sp: ".cfi_startproc", ".cfi_register rsp, rbx";
}

/// A frame that alone holds four references. It lies further out than `wait`'s.
#[inline(never)]
fn holder(wait: Wait, inside: &AtomicBool, done: &AtomicBool) {
    let references = [std::hint::black_box(!NOT); 4];
    std::hint::black_box(&references);
    // SAFETY: the arguments are those that the function expects.
    unsafe { wait(0, inside, done) };
    std::hint::black_box(&references);
}

#[test]
fn h53_a_frame_without_a_word_of_its_return_address_is_not_the_outermost() {
    let name = "h53_a_frame_without_a_word_of_its_return_address_is_not_the_outermost";
    // A walk must not end in the middle of a stack, either, so the child switches off that cure,
    // too.
    hazard(name, "silence-ends-walks,ends-anywhere", || {
        let world = world();
        let walk = |wait: Wait| walked(&world, |inside, done| holder(wait, inside, done));
        let (found, stats) = walk(urge_test_plain);
        assert!(found >= 4 && !stats.to_base, "{found} {stats:?}");
        for (what, wait) in [
            ("silent", urge_test_silent as Wait),
            ("the same value", urge_test_same),
            ("in a register", urge_test_register),
            ("at another place", urge_test_elsewhere),
            ("an expression", urge_test_expression),
            ("a value", urge_test_value),
            ("in another column", urge_test_column),
            ("no CFA", urge_test_no_cfa),
            ("another SP", urge_test_other_sp),
        ] {
            let (found, stats) = walk(wait);
            assert!(found >= 4 && stats.to_base, "{what}: {found} {stats:?}");
        }
    });
}

// ---- memory that reading takes ------------------------------------------------------------------

/// The process's peak resident memory, in bytes.
fn peak() -> usize {
    // SAFETY: zero is a valid rusage, and the call fills it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage.ru_maxrss as usize * 1024
    }
}

#[test]
fn h55_a_stack_map_takes_memory_in_proportion_to_its_length() {
    let name = "h55_a_stack_map_takes_memory_in_proportion_to_its_length";
    hazard(name, "unbounded-locations", || {
        let _world = world();
        // The largest locations: each of 400 pairs says that it has 8,191 words.
        let pairs: Vec<_> = (0..400)
            .flat_map(|_| [0, 8].map(|offset| (INDIRECT, 65_528, 7, offset)))
            .collect();
        let section = section(0x1000, 1 << 20, 16, 0, &pairs);
        let before = peak();
        assert_eq!(StackMaps::from_llvm(&section).unwrap().len(), 1);
        let grown = peak() - before;
        assert!(grown < 4 << 20, "{} bytes took {grown}", section.len());
    });
}

#[test]
fn h55_unwind_tables_are_not_run_again_and_again() {
    let name = "h55_unwind_tables_are_not_run_again_and_again";
    hazard(name, "unbounded-cie", || {
        let _world = world();
        // Half of the section is shared by all functions.
        let mut section = Vec::new();
        let mut entry = |id: u32, body: &[u8]| {
            let length = (body.len() + 8).next_multiple_of(8) - 4;
            section.extend((length as u32).to_le_bytes());
            section.extend(id.to_le_bytes());
            section.extend(body);
            section.resize(section.len().next_multiple_of(8), 0);
            section.len() as u32
        };
        let head = [1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x04, 0x0c, 7, 8, 0x90, 1];
        let mut next = entry(0, &[&head[..], &[0x0e, 8].repeat(16_000)].concat());
        for function in 0..1_000u64 {
            let extent = [(0x1000 + 16 * function).to_le_bytes(), 16u64.to_le_bytes()];
            next = entry(next + 4, &[&extent.concat()[..], &[0]].concat());
        }
        let error = StackMaps::default().with_eh_frame(&section, 0).unwrap_err();
        assert!(
            matches!(error.kind, StackMapErrorKind::UnwindCie { .. }),
            "{error}"
        );
    });
}

// ---- work that registering takes ----------------------------------------------------------------

/// Registers a region of 64 bytes without an owner. A JIT compiler registers many such regions and
/// keeps its arena by each function's owner. If each registration or removal read all others, the
/// test would take very long.
fn little_code(world: &World, address: usize) -> Result<CodeGuard, CodeError> {
    let spec = CodeSpec {
        range: address..address + 64,
        what: CodeWhat::Unsafe,
        owner: None,
    };
    // SAFETY: no code runs at these addresses.
    unsafe { world.register_code(spec) }
}

#[test]
fn h54_what_code_costs_grows_with_the_logarithm_of_what_is_registered() {
    let name = "h54_what_code_costs_grows_with_the_logarithm_of_what_is_registered";
    for fault in ["linear-code", "linear-search"] {
        hazard(name, fault, || {
            let world = world();
            // The steps of one registration, of one that is refused, and of a stop that removes
            // regions, with `regions` regions in the map.
            let costs = |regions: usize| {
                let arena = vec![0u8; 64 * (regions + 1)];
                let address = |region: usize| arena.as_ptr() as usize + 64 * region;
                let middle = regions / 2;
                let mut guards: Vec<_> = (0..=regions)
                    .filter(|region| *region != middle)
                    .map(|region| little_code(&world, address(region)).unwrap())
                    .collect();
                let since = |before: u64| steps() - before;

                let before = steps();
                let guard = little_code(&world, address(middle)).unwrap();
                let registered = since(before);
                let before = steps();
                assert!(little_code(&world, address(middle)).is_err());
                let refused = since(before);

                let first = guards.remove(0);
                let last = guards.pop().unwrap();
                let done = AtomicBool::new(false);
                let waits = std::sync::Barrier::new(2);
                let stopped = std::thread::scope(|threads| {
                    threads.spawn(|| {
                        let mutator = world.attach(std::ptr::null_mut()).unwrap();
                        // Addresses between the regions that are removed.
                        let words: [usize; 100] =
                            std::array::from_fn(|n| address(1 + n % (regions - 1)) + 8);
                        std::hint::black_box(&words);
                        mutator.blocking(|| {
                            waits.wait();
                            wait_for(&done);
                        });
                        std::hint::black_box(&words);
                    });
                    waits.wait();
                    drop((guard, first, last));
                    let before = steps();
                    drop(world.stop().unwrap());
                    done.store(true, SeqCst);
                    since(before)
                });
                drop(guards);
                drop(world.stop().unwrap());
                [registered, refused, stopped]
            };
            let (few, many) = (costs(1 << 7), costs(1 << 14));
            for (few, many) in few.into_iter().zip(many) {
                // The logarithms of the sizes are as 1 to 2, and the sizes as 1 to 128.
                assert!(few > 0 && many <= 8 * few, "{few} steps, {many} steps");
            }
        });
    }
}

#[test]
fn h54_an_arena_is_filled_function_by_function_and_goes_with_the_last() {
    const FUNCTIONS: usize = 100_000;
    const BYTES: usize = 64;
    let world = world();
    let arena = Arc::new(vec![0u8; FUNCTIONS * BYTES]);
    let register = |function: usize| {
        let address = arena.as_ptr() as usize + BYTES * function;
        let facts = Function {
            address,
            size: BYTES as u32,
            frame_to_fp: 0,
            clobber: 0,
            outgoing: 0,
            sites: Vec::new(),
        };
        let what = CodeWhat::Managed {
            frames: FrameRule::Rbp,
            maps: StackMaps::from_cranelift(&[facts]).unwrap(),
            encoding: 0,
        };
        let spec = CodeSpec {
            range: address..address + BYTES,
            what,
            owner: Some(Box::new(arena.clone())),
        };
        // SAFETY: no code runs at these addresses.
        unsafe { world.register_code(spec) }
    };
    let mut guards: Vec<_> = (0..FUNCTIONS).map(|i| register(i).unwrap()).collect();
    assert_eq!(Arc::strong_count(&arena), FUNCTIONS + 1);
    for function in [0, FUNCTIONS / 2, FUNCTIONS - 1] {
        assert!(register(function).is_err());
    }
    // A few regions leave at each of many stops, as when functions are replaced. Then all leave.
    for stop in 1..=200 {
        drop(guards.split_off(guards.len() - 5));
        drop(world.stop().unwrap());
        assert_eq!(Arc::strong_count(&arena), FUNCTIONS + 1 - 5 * stop);
    }
    assert!(register(FUNCTIONS - 1).is_ok());
    drop(guards);
    drop(world.stop().unwrap());
    assert_eq!(Arc::strong_count(&arena), 1);
}
