//! Each place that can hold the only reference to a cell is scanned, in compiled code of Cranelift
//! and in assembly. There is a rule for each place, and the reference is lost without it.
//!
//! No other place holds the reference: a fresh thread takes it from a slot that is not scanned, and
//! the test keeps only its complement. Each hazard's test runs twice in a child: as it is, and with
//! its rule taken out (`URGE_FAULT`), when it must fail.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::cell::Cell;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::SeqCst};

use common::hazard;
use gc_preempt::stackmap::StackMaps;
use gc_preempt::stackmap::cranelift::Function;
use gc_preempt::{
    CodeGuard, CodeSpec, CodeWhat, Config, FrameRule, Mutator, RootSink, WalkStats, World,
};
use gc_test_harness::kernels::codegen::Arena;
use gc_test_harness::kernels::deep::{Frames, deep_oracle, saves_registers_oracle};
use gc_test_harness::kernels::hold::{
    CALLER_REGISTERS, HIGH_HALVES, Place, RED_ZONE, REGISTERS, VECTORS, hold_stack_argument,
    hold_stack_argument_range, wait_for_release, while_held,
};

/// The encoding that code is registered with. The walker reports it with each exact slot.
const ENCODING: u32 = 7;
/// The complement of a word that occurs nowhere else.
const HIDDEN: usize = !0x5eed_0bad_cafe_f00d;

/// The report of a walk. Its memory is allocated before the stop, because nothing may be allocated
/// while the world is stopped.
struct Found {
    /// The complement of the wanted conservative word.
    wanted: usize,
    conservative: usize,
    exact: Vec<usize>,
    stats: WalkStats,
}

impl RootSink for Found {
    fn conservative(&mut self, words: Range<usize>) {
        for at in words.step_by(8) {
            if word(at) == !self.wanted {
                self.conservative += 1;
            }
        }
    }

    fn exact(&mut self, slot: usize, encoding: u32) {
        assert_eq!(encoding, ENCODING);
        assert!(self.exact.len() < self.exact.capacity(), "no room");
        self.exact.push(!word(slot));
    }

    fn derived(&mut self, _: usize, _: usize, _: u32) {
        panic!("Cranelift's maps have no derived references");
    }
}

fn word(at: usize) -> usize {
    // SAFETY: the walker reports words of the stopped thread's stack and registers.
    unsafe { (at as *const usize).read_volatile() }
}

/// Stops the world and walks its only mutator.
fn stop_and_walk(world: &World, wanted: usize, slots: usize) -> Found {
    let mut found = Found {
        wanted,
        conservative: 0,
        exact: Vec::with_capacity(slots),
        stats: WalkStats::default(),
    };
    let stopped = world.stop().expect("the caller is no mutator");
    for mutator in stopped.mutators() {
        found.stats = mutator.walk(&mut found);
    }
    stopped.resume();
    found
}

fn new_world() -> World {
    World::new(Config::from_env().expect("sane variables")).expect("a world")
}

fn attach(world: &World) -> Mutator {
    world.attach(std::ptr::null_mut()).expect("attaches")
}

/// Registers assembly, which has frames like Cranelift's, as managed code without calls.
fn register(world: &World, range: Range<usize>) -> CodeGuard {
    let function = Function {
        address: range.start,
        size: range.len() as u32,
        frame_to_fp: 0,
        clobber: 0,
        outgoing: 0,
        sites: Vec::new(),
    };
    let spec = CodeSpec {
        range,
        what: CodeWhat::Managed {
            frames: FrameRule::Rbp,
            maps: StackMaps::from_cranelift(&[function]).expect("sane facts"),
            encoding: ENCODING,
        },
        owner: None,
    };
    // SAFETY: the range is in this program's text, and the spec describes the assembly.
    unsafe { world.register_code(spec) }.expect("registers")
}

/// Compiled code with frames of Cranelift, registered.
struct Managed {
    frames: Frames,
    _guards: Vec<CodeGuard>,
}

impl Managed {
    fn new(world: &World) -> Managed {
        let mut arena = Arena::new().expect("an arena");
        let frames = Frames::compile(&mut arena).expect("compiles");
        let guards = frames
            .code
            .iter()
            .map(|code| code.register(world, ENCODING));
        let guards = guards.collect::<Result<_, _>>().expect("registers");
        Managed {
            frames,
            _guards: guards,
        }
    }

    fn contains(&self, pc: usize) -> bool {
        self.frames
            .code
            .iter()
            .any(|code| code.range().contains(&pc))
    }
}

/// Hides the word by `hide` on a mutator's thread, stops the mutator, and searches for the word.
fn find(world: &World, name: &str, hide: impl FnOnce(*mut usize) + Send) -> Found {
    let mut slot = !HIDDEN;
    let attached = |run: &mut dyn FnMut()| {
        let _mutator = attach(world);
        run();
    };
    let found = while_held(&mut slot, attached, hide, || {
        stop_and_walk(world, HIDDEN, 64)
    });
    assert_eq!(slot, !HIDDEN, "{name}: it was there all the time");
    assert!(
        found.conservative > 0,
        "{name}: not found; {:?}",
        found.stats
    );
    found
}

/// Hides the word in each place, in native code and, if the function has a frame, in managed code.
fn find_in_places(places: &[Place]) {
    for place in places {
        // SAFETY: the slot that `find` passes is a live word.
        let hide = |slot| unsafe { (place.hold)(slot) };
        let world = new_world();
        find(&world, place.name, hide);
        if place.has_frame() {
            let _guard = register(&world, place.range());
            let found = find(&world, place.name, hide);
            assert_eq!(found.stats.unknown_sites, 0);
        }
    }
}

#[test]
fn h16_every_register_in_turn_is_the_only_root() {
    hazard(
        "h16_every_register_in_turn_is_the_only_root",
        "no-registers",
        || find_in_places(&REGISTERS),
    );
}

#[test]
fn h13_every_vector_register_in_turn_is_the_only_root() {
    hazard(
        "h13_every_vector_register_in_turn_is_the_only_root",
        "no-vectors",
        || {
            find_in_places(&VECTORS);
            if std::arch::is_x86_feature_detected!("avx") {
                find_in_places(&HIGH_HALVES);
            }
        },
    );
}

#[test]
fn h17_the_red_zone_is_scanned_from_its_first_word_to_its_last() {
    hazard(
        "h17_the_red_zone_is_scanned_from_its_first_word_to_its_last",
        "no-red-zone",
        || find_in_places(&RED_ZONE),
    );
}

/// The callee is native code with exact unwind tables, and then managed code.
#[test]
fn h18_a_stack_passed_argument_is_found_in_its_callers_frame() {
    hazard(
        "h18_a_stack_passed_argument_is_found_in_its_callers_frame",
        "no-arguments",
        || {
            let world = new_world();
            let managed = Managed::new(&world);
            // SAFETY: the slot is a live word, and the callee takes the arguments that the compiled
            // code passes.
            let hide = |slot| unsafe {
                (managed.frames.stack_argument)(slot, hold_stack_argument);
            };
            let found = find(&world, "below a native callee", hide);
            assert_eq!((found.stats.precise, found.exact), (1, vec![]));
            let _guard = register(&world, hold_stack_argument_range());
            let found = find(&world, "below a managed callee", hide);
            assert_eq!((found.stats.precise, found.exact), (1, vec![]));
        },
    );
}

#[test]
fn h19_a_callers_register_is_found_where_a_managed_callee_saved_it() {
    hazard(
        "h19_a_callers_register_is_found_where_a_managed_callee_saved_it",
        "no-saved-registers",
        || {
            let world = new_world();
            let managed = Managed::new(&world);
            let numbers = [3, 1, 4, 1, 5, 9, 2, 6];
            for place in CALLER_REGISTERS {
                let callee = managed.frames.saves_registers as usize;
                let numbers = &raw const numbers as usize;
                let wait = wait_for_release as *const () as usize;
                // SAFETY: the slot is a live word; the callee gets the three arguments that it
                // takes.
                let found = find(&world, place.name, |slot| unsafe {
                    (place.call)(slot, callee as *const u8, numbers, wait, 0);
                });
                assert_eq!(found.stats.precise, 1, "{}", place.name);
            }
        },
    );
}

/// The nodes that frames hold, by the depth of the frame that made them.
struct Nodes {
    by_depth: Vec<[u64; 2]>,
    bottom: Box<dyn FnMut()>,
}

impl Nodes {
    /// `depth + 2` nodes: one for each frame, and one for the outermost frame's argument.
    fn new(depth: u64) -> Nodes {
        Nodes {
            by_depth: (0..depth + 2).map(|d| [0, d * 3]).collect(),
            bottom: Box::new(|| ()),
        }
    }

    fn address(&self, depth: u64) -> usize {
        self.by_depth[depth as usize].as_ptr() as usize
    }

    /// The complements of the nodes that the maps of the frames of these depths name: each frame's
    /// own node, and the node that it was passed.
    fn named_by(&self, depths: Range<u64>) -> Vec<usize> {
        let both = depths.flat_map(|d| [!self.address(d), !self.address(d + 1)]);
        let mut both: Vec<usize> = both.collect();
        both.sort_unstable();
        both
    }
}

unsafe extern "C" fn fresh(nodes: *mut c_void, depth: u64) -> usize {
    // SAFETY: the tests below pass their nodes.
    let nodes = unsafe { &*nodes.cast::<Nodes>() };
    NEWEST.store(depth, SeqCst);
    nodes.address(depth)
}

unsafe extern "C" fn bottom(nodes: *mut c_void) {
    // SAFETY: as above; `fresh` and this run one after the other.
    let nodes = unsafe { &mut *nodes.cast::<Nodes>() };
    REACHED.store(true, SeqCst);
    (nodes.bottom)();
}

/// For the stepping test: the depth of the last frame that got its node, and whether the innermost
/// frame was reached.
static NEWEST: AtomicU64 = AtomicU64::new(u64::MAX);
static REACHED: AtomicBool = AtomicBool::new(false);

/// Walks 20,000 managed frames by their maps: each reference is reported, and no other word.
#[test]
fn a_deep_recursion_is_walked_exactly() {
    const DEPTH: u64 = 20_000;
    let walked = || {
        let world = new_world();
        let managed = Managed::new(&world);
        let mutator = attach(&world);
        let mut nodes = Nodes::new(DEPTH);
        let expected = nodes.named_by(0..DEPTH + 1);
        let mutator = &raw const mutator;
        let world = world.clone();
        nodes.bottom = Box::new(move || {
            // SAFETY: the mutator is alive in an outer frame of this thread.
            let mutator = unsafe { &*mutator };
            let mut found = mutator.blocking(|| {
                std::thread::scope(|s| {
                    let walk = || stop_and_walk(&world, HIDDEN, 4 * DEPTH as usize);
                    s.spawn(walk).join().expect("walks")
                })
            });
            assert_eq!(found.stats.precise, DEPTH as u32 + 1, "{:?}", found.stats);
            assert!(!found.stats.to_base && found.stats.unknown_sites == 0);
            found.exact.sort_unstable();
            assert_eq!(found.exact, expected);
        });
        let outermost = nodes.address(DEPTH + 1);
        let data = (&raw mut nodes).cast();
        // SAFETY: the callbacks take the type that `data` points to.
        let sum = unsafe { (managed.frames.deep)(DEPTH, fresh, bottom, data, 1, 2, outermost, 3) };
        assert_eq!(sum, deep_oracle(DEPTH, 1, 2, 3, |depth| depth * 3));
    };
    let thread = std::thread::Builder::new()
        .stack_size(64 << 20)
        .spawn(walked);
    thread.expect("starts").join().expect("walks");
}

/// The trap handler's inputs and its count of instructions.
struct Stepping<'a> {
    world: &'a World,
    mutator: &'a Mutator,
    managed: &'a Managed,
    check: &'a dyn Fn(&Found, usize),
    wanted: &'a dyn Fn() -> usize,
    steps: usize,
}

static STEPPING: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// After each instruction of managed code, this thread is stopped and walked inside the trap
/// handler. Behind the handler's frame, the rule for an innermost frame must hold at every
/// instruction.
extern "C" fn trapped(_: i32, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    // SAFETY: the kernel's ucontext; the field that is read is one that the kernel writes.
    let pc = unsafe {
        (&raw const (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext.gregs
            [libc::REG_RIP as usize])
            .read()
    } as usize;
    let stepping = STEPPING.load(SeqCst).cast::<Stepping<'_>>();
    // SAFETY: the pointer is null or was stored by `step`, whose value lives for as long as the
    // trap flag is set.
    let Some(stepping) = (unsafe { stepping.as_mut() }) else {
        return;
    };
    if !stepping.managed.contains(pc) {
        return;
    }
    let (world, wanted) = (stepping.world, (stepping.wanted)());
    let found = stepping
        .mutator
        .blocking(|| std::thread::scope(|s| s.spawn(|| stop_and_walk(world, wanted, 64)).join()));
    let found = found.expect("walks");
    assert!(
        !found.stats.to_base && found.stats.unknown_sites == 0,
        "{:?} at {pc:#x}",
        found.stats
    );
    (stepping.check)(&found, pc);
    stepping.steps += 1;
}

/// Runs `call` with the trap flag set. Returns the number of managed instructions at which the
/// thread was walked.
fn step<'a>(
    world: &'a World,
    mutator: &'a Mutator,
    managed: &'a Managed,
    wanted: &'a dyn Fn() -> usize,
    check: &'a dyn Fn(&Found, usize),
    call: impl FnOnce(),
) -> usize {
    let mut stepping = Stepping {
        world,
        mutator,
        managed,
        check,
        wanted,
        steps: 0,
    };
    STEPPING.store((&raw mut stepping).cast(), SeqCst);
    // SAFETY: installs a handler for the trap flag's signal, then sets and clears the flag.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = trapped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGTRAP, &action, std::ptr::null_mut()),
            0
        );
        std::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
        call();
        std::arch::asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq");
    }
    STEPPING.store(std::ptr::null_mut(), SeqCst);
    stepping.steps
}

/// Steps through Cranelift's prologues and epilogues, and compares each walk with an oracle of the
/// live references.
#[test]
fn h20_every_instruction_of_a_prologue_and_an_epilogue_is_a_safe_point() {
    hazard(
        "h20_every_instruction_of_a_prologue_and_an_epilogue_is_a_safe_point",
        "end-by-rbp-only",
        || {
            let world = new_world();
            let managed = Managed::new(&world);
            let mutator = attach(&world);
            step_through_saved_registers(&world, &managed, &mutator);
            step_through_recursion(&world, &managed, &mutator);
        },
    );
}

/// A native caller keeps a word in one register while its managed callee saves, uses and restores
/// that register.
fn step_through_saved_registers(world: &World, managed: &Managed, mutator: &Mutator) {
    unsafe extern "C" fn nothing(_: *mut c_void) {}
    let numbers = [3_u64, 1, 4, 1, 5, 9, 2, 6];
    for place in CALLER_REGISTERS {
        let check = |found: &Found, pc: usize| {
            assert!(found.conservative > 0, "{} at {pc:#x}", place.name);
            assert_eq!(found.stats.precise, 0);
        };
        let callee = managed.frames.saves_registers as *const u8;
        let numbers = &raw const numbers as usize;
        let mut slot = !HIDDEN;
        let steps = step(world, mutator, managed, &|| HIDDEN, &check, || {
            // SAFETY: the slot is a live word; the callee gets the three arguments that it takes.
            unsafe { (place.call)(&mut slot, callee, numbers, nothing as *const () as usize, 0) };
        });
        assert!(steps > 30, "{steps}");
        assert_eq!(slot, !HIDDEN);
    }
    assert_ne!(saves_registers_oracle(&numbers), 0);
}

/// At every instruction, the map of each frame but the innermost describes the frame. The innermost
/// frame's node is found, exactly or conservatively, from the moment that the frame has it.
fn step_through_recursion(world: &World, managed: &Managed, mutator: &Mutator) {
    const DEPTH: u64 = 4;
    let mut nodes = Nodes::new(DEPTH);
    let all: Vec<Vec<usize>> = (0..=DEPTH + 1)
        .map(|outer| nodes.named_by(DEPTH + 1 - outer..DEPTH + 1))
        .collect();
    let own: Vec<usize> = (0..=DEPTH).map(|d| !nodes.address(d)).collect();
    // The node that no map may name yet. On the way back, its frame may not need it any more.
    let newest = || match NEWEST.load(SeqCst) {
        u64::MAX => HIDDEN,
        _ if REACHED.load(SeqCst) => HIDDEN,
        depth => own[depth as usize],
    };
    let entry = managed.frames.deep as usize;
    let entered = Cell::new(0_u32);
    let check = |found: &Found, pc: usize| {
        // At its first instruction a frame's callers are all frames that were entered before it.
        if pc == entry {
            assert_eq!(found.stats.precise, entered.get(), "at {pc:#x}");
            entered.set(entered.get() + 1);
        }
        let mut exact = found.exact.clone();
        exact.sort_unstable();
        assert_eq!(exact, all[found.stats.precise as usize], "at {pc:#x}");
        let known = found.conservative > 0 || found.exact.contains(&found.wanted);
        assert!(
            found.wanted == HIDDEN || known,
            "at {pc:#x}: {:?}",
            found.stats
        );
    };
    let outermost = nodes.address(DEPTH + 1);
    let data = (&raw mut nodes).cast();
    let mut sum = 0;
    let steps = step(world, mutator, managed, &newest, &check, || {
        // SAFETY: the callbacks take the type that `data` points to.
        sum = unsafe { (managed.frames.deep)(DEPTH, fresh, bottom, data, 1, 2, outermost, 3) };
    });
    assert_eq!(sum, deep_oracle(DEPTH, 1, 2, 3, |depth| depth * 3));
    assert!(steps > 150 && REACHED.load(SeqCst), "{steps}");
    assert_eq!(u64::from(entered.get()), DEPTH + 1);
}
