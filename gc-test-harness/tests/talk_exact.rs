//! Exact scans of interrupted frames, against an oracle: by a map at every instruction (`maps`),
//! and at the points to which single steps lead (`step`).

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};
use gc_preempt::{CodeGuard, Config, RootSink, World};
use gc_test_harness::kernels::codegen::{Arena, Code};
use gc_test_harness::kernels::exact::ExactFrame;
use gc_test_harness::kernels::interruption::{Interruption, walk_by_maps};
use gc_test_harness::kernels::loops::{Chase, Loops, NODE_NEXT, NODE_VALUE, chase_oracle};
use gc_test_harness::kernels::places::{PlaceTable, Places};
use gc_test_harness::kernels::single_step::{self, step_through};
use gc_test_harness::kernels::step::{Answer, Stand, Stepped};
use gc_test_harness::lab::oracle::{Instruction, Judgement, Program, Scan, judge};

/// The encoding that code is registered with.
const ENCODING: u32 = 3;

// ---- programs -----------------------------------------------------------------------------------

/// `fn(slot, turns) -> sum`: walks a list and calls native code in each turn, so that the walk's
/// references live across calls. The slot is emptied first.
type Calls = unsafe extern "C" fn(*mut usize, u64) -> u64;

/// How many nodes the programs have. A ring of them would lead from each to all.
const NODES: usize = 5;

/// A program over a list that a slot names.
struct Lists {
    code: Vec<Code>,
    nodes: [[Cell<usize>; 2]; NODES],
    /// What a ruined node leads to: itself.
    pit: [Cell<usize>; 2],
    slot: Cell<usize>,
    run: fn(&Lists, usize) -> u64,
}

fn address(node: &[Cell<usize>; 2]) -> usize {
    node.as_ptr() as usize
}

impl Lists {
    fn new(code: Code, run: fn(&Lists, usize) -> u64) -> Box<Lists> {
        let lists = Lists {
            code: vec![code],
            nodes: Default::default(),
            pit: Default::default(),
            slot: Cell::new(0),
            run,
        };
        let lists = Box::new(lists);
        lists.reset();
        lists
    }
}

impl Program for Lists {
    fn code(&self) -> &[Code] {
        &self.code
    }

    fn reset(&self) {
        self.pit[0].set(address(&self.pit));
        self.pit[1].set(0xbad);
        for (number, node) in self.nodes.iter().enumerate() {
            let next = self.nodes.get(number + 1).unwrap_or(&self.pit);
            node[0].set(address(next));
            node[1].set(1 << (8 * number));
        }
        self.slot.set(address(&self.nodes[0]));
    }

    fn run(&self) -> u64 {
        (self.run)(self, self.code[0].entry() as usize)
    }

    fn cells(&self) -> Vec<Range<usize>> {
        let nodes = self.nodes.iter().map(address);
        nodes.map(|start| start..start + 16).collect()
    }

    fn roots(&self) -> Vec<usize> {
        vec![self.slot.get()]
    }

    fn words_of(&self, cell: usize) -> Vec<usize> {
        vec![self.nodes[cell][0].get()]
    }

    fn ruin(&self, cell: usize) {
        self.nodes[cell][0].set(address(&self.pit));
        self.nodes[cell][1].set(0xbad0);
    }

    fn ruin_root(&self, _: usize) {
        self.slot.set(address(&self.pit));
    }
}

fn arena() -> Arena {
    let mut arena = Arena::new().expect("an arena");
    arena.keep_places();
    arena
}

/// A loop without calls, whose references are in registers only.
fn chase() -> Box<Lists> {
    let loops = Loops::compile(&mut arena()).expect("compiles");
    let code = loops.code.into_iter().find(|code| code.name == "chase");
    Lists::new(code.expect("was compiled"), |lists, entry| {
        // SAFETY: the function's type, and a slot that names a list of enough nodes.
        let sum = unsafe {
            let chase = std::mem::transmute::<usize, Chase>(entry);
            chase(lists.slot.as_ptr(), 3)
        };
        // SAFETY: the function leaves the address of a node in the slot.
        let value = unsafe { *(lists.slot.get() as *const usize).add(1) };
        sum * 31 + value as u64
    })
}

/// A loop with calls, whose references are in stack slots and in registers.
fn calls() -> Box<Lists> {
    let mut arena = arena();
    compile_calls(&mut arena);
    let code = arena.finish().expect("links").remove(0);
    Lists::new(code, |lists, entry| {
        // SAFETY: the function's type, and a slot that names a list of enough nodes.
        unsafe {
            let calls = std::mem::transmute::<usize, Calls>(entry);
            calls(lists.slot.as_ptr(), 3)
        }
    })
}

/// A function that gets its list as an argument.
fn argument() -> Box<Lists> {
    let mut arena = arena();
    let signature = arena.signature(&[types::I64], &[types::I64]);
    let built = arena.function("argument", &signature, |body| {
        let list = body.enter()[0];
        body.reference(list);
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let value = b.ins().load(types::I64, flags, list, NODE_VALUE);
        b.ins().return_(&[value]);
    });
    built.expect("compiles");
    let code = arena.finish().expect("links").remove(0);
    Lists::new(code, |lists, entry| {
        let list = lists.slot.replace(0);
        // SAFETY: the function's type.
        unsafe {
            let argument = std::mem::transmute::<usize, extern "C" fn(usize) -> u64>(entry);
            argument(list)
        }
    })
}

extern "C" fn native(word: usize) -> usize {
    std::hint::black_box(word)
}

fn compile_calls(arena: &mut Arena) {
    let one = arena.signature(&[types::I64], &[types::I64]);
    let two = arena.signature(&[types::I64; 2], &[types::I64]);
    let native = arena.import("native", native as *const u8, &one);
    let native = native.expect("a new name");
    let built = arena.function("calls", &two, |body| {
        let params = body.enter();
        let native = body.callee(native);
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let first = b.ins().load(types::I64, flags, params[0], 0);
        let zero = b.ins().iconst(types::I64, 0);
        b.ins().store(flags, zero, params[0], 0);
        let head = b.create_block();
        let [node, sum, left] = [(); 3].map(|()| b.append_block_param(head, types::I64));
        let done = b.create_block();
        b.ins()
            .jump(head, &[first.into(), zero.into(), params[1].into()]);
        b.switch_to_block(head);
        let next = b.ins().load(types::I64, flags, node, NODE_NEXT);
        let call = b.ins().call(native, &[next]);
        let next = b.inst_results(call)[0];
        let value = b.ins().load(types::I64, flags, node, NODE_VALUE);
        let sum = b.ins().iadd(sum, value);
        let left = b.ins().iadd_imm_s(left, -1);
        let again = [next.into(), sum.into(), left.into()];
        b.ins().brif(left, head, &again, done, &[]);
        b.switch_to_block(done);
        let value = b.ins().load(types::I64, flags, first, NODE_VALUE);
        let sum = b.ins().imul_imm_s(sum, 7);
        let sum = b.ins().iadd(sum, value);
        b.ins().return_(&[sum]);
        for reference in [first, node, next] {
            body.reference(reference);
        }
    });
    built.expect("compiles");
}

/// The program with another table of all instructions.
fn with_maps(mut program: Box<Lists>, change: impl Fn(u32, Places) -> Places) -> Box<Lists> {
    let frame = program.code[0].exact.as_deref().expect("places are kept");
    let rows = frame.instructions.rows();
    let instructions = PlaceTable::of_rows(rows.map(|(at, places)| (at, change(at, places))));
    let frame = ExactFrame {
        instructions,
        ..frame.clone()
    };
    program.code[0].exact = Some(Arc::new(frame));
    program
}

fn sums(run: &[Instruction]) -> [Judgement; 4] {
    [Scan::Words, Scan::Maps, Scan::Points, Scan::Calls].map(|scan| Judgement::of(run, scan))
}

// ---- the oracle ---------------------------------------------------------------------------------

/// In a loop without calls, Cranelift's ranges are right at every instruction, and exact: the words
/// keep nodes that the walk has left, the map keeps none.
#[test]
fn a_map_of_a_loop_without_calls_is_right_at_every_instruction() {
    let run = judge(&*chase());
    let [words, maps, points, _] = sums(&run);
    assert!(run.len() > 25, "{}", run.len());
    assert_eq!((words.missed, maps.missed, points.missed), (0, 0, 0));
    assert_eq!(words.stops, maps.stops);
    assert!(maps.dead <= words.dead, "{maps:?} {words:?}");
    assert_eq!(points.stops, 3, "the head of the loop, in each turn");
}

/// Where a map at every instruction is wrong: a reference that lives across a call is in a stack
/// slot that no range names, and an argument is in its register before any range begins. The points
/// and the calls' maps are right.
#[test]
fn the_oracle_finds_where_a_map_of_a_function_with_calls_is_wrong() {
    let program = calls();
    let run = judge(&*program);
    let [words, maps, points, calls] = sums(&run);
    assert_eq!((words.missed, points.missed, calls.missed), (0, 0, 0));
    assert_eq!((calls.stops, points.stops), (3, 6));
    let back = program.code[0].facts.sites[0].return_offset;
    assert!(
        maps.missed > 0 && maps.wrong.contains(&(0, back)),
        "{maps:?}"
    );
    let run = judge(&*argument());
    let [words, maps, ..] = sums(&run);
    assert_eq!(words.missed, 0);
    assert!(maps.wrong.contains(&(0, 0)), "{maps:?}");
}

#[test]
fn a_planted_wrong_map_is_found_and_counted() {
    // A row that names nothing from the loop on, instead of the node's register.
    let program = with_maps(chase(), |_, _| Places::default());
    let run = judge(&*program);
    let maps = Judgement::of(&run, Scan::Maps);
    // The slot keeps the list up to the store that empties it, and from the store that fills it.
    let needed = run.iter().filter(|i| i.alive != 0);
    assert!(needed.count() > 20);
    assert!(maps.missed > 20, "{maps:?}");
    let head = program.code[0].exact.as_deref().expect("places are kept");
    let head = head.points.rows().next().expect("the loop's head").0;
    assert!(maps.wrong.contains(&(0, head)), "{maps:?}");
    // A row that also names a register with a node that the walk has left is not wrong: it keeps
    // dead nodes, as the words do.
    let words = Judgement::of(&run, Scan::Words);
    assert_eq!(words.missed, 0);
}

// ---- stops at every instruction -----------------------------------------------------------------

/// The words of a walk, without their closure. Its memory is allocated before the stop.
struct Found {
    conservative: Vec<usize>,
    exact: Vec<usize>,
}

impl Found {
    fn new() -> Found {
        Found {
            conservative: Vec::with_capacity(1 << 16),
            exact: Vec::with_capacity(64),
        }
    }
}

impl RootSink for Found {
    fn conservative(&mut self, words: Range<usize>) {
        for at in words.step_by(8) {
            // SAFETY: a word of the stopped thread.
            let word = unsafe { (at as *const usize).read_volatile() };
            if self.conservative.len() < self.conservative.capacity() {
                self.conservative.push(word);
            }
        }
    }

    fn exact(&mut self, slot: usize, encoding: u32) {
        assert_eq!(encoding, ENCODING);
        assert!(self.exact.len() < self.exact.capacity(), "no room");
        // SAFETY: a word of the stopped thread.
        self.exact
            .push(unsafe { (slot as *const usize).read_volatile() });
    }

    fn derived(&mut self, _: usize, _: usize, _: u32) {
        panic!("Cranelift's maps have no derived references");
    }
}

fn world() -> World {
    World::new(Config::from_env().expect("sane variables")).expect("a world")
}

fn registered(world: &World, code: &[Code]) -> Vec<CodeGuard> {
    let guards = code.iter().map(|code| code.register(world, ENCODING));
    guards.collect::<Result<_, _>>().expect("registers")
}

/// For each turn: the thread asks for a stop, and the stopper has ended it.
#[derive(Default)]
struct Turns {
    asked: AtomicU32,
    ended: AtomicU32,
}

/// Blocks SIGURG until the running handler returns, and returns when one is pending: it will
/// interrupt the very instruction to which the handler returns.
fn until_a_stop_is_pending() {
    // SAFETY: the thread's mask, which the return from the handler restores, and its pending
    // signals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGURG);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        loop {
            libc::sigpending(&raw mut set);
            if libc::sigismember(&raw const set, libc::SIGURG) == 1 {
                return;
            }
            libc::sched_yield();
        }
    }
}

/// Runs the program with a stop at each instruction of its managed code, prologue and epilogue
/// included. At each of them the walk must name each live cell, the map's walk the places that the
/// table has, and the program's answer must be right.
fn stop_at_every_instruction(program: &Lists) {
    let judged = judge(program);
    let expected = {
        program.reset();
        program.run()
    };
    let world = world();
    let _guards = registered(&world, &program.code);
    let turns = Turns::default();
    let steps = judged.len() as u32;
    let code = &program.code;
    // The stops, with the PC of each.
    let stopper = || {
        let mut stops = Vec::new();
        for turn in 1..=steps {
            while turns.asked.load(SeqCst) < turn {
                std::thread::yield_now();
            }
            let (mut words, mut exact) = (Found::new(), Found::new());
            let mut pc = 0;
            let stopped = world.stop().expect("the caller is no mutator");
            for mutator in stopped.mutators() {
                pc = mutator.snapshot().registers.pc;
                mutator.walk(&mut words);
                walk_by_maps(code, &mutator, ENCODING, &mut exact);
            }
            stopped.resume();
            turns.ended.store(turn, SeqCst);
            stops.push((pc, words, exact));
        }
        stops
    };
    let entry = code[0].range().start;
    let frame = code[0].exact.as_deref().expect("places are kept");
    let mut answer = 0;
    let mut named = Vec::new();
    let stops = std::thread::scope(|s| {
        let stopper = s.spawn(stopper);
        let _mutator = world.attach(std::ptr::null_mut()).expect("attaches");
        let mut turn = 0;
        let mut each = |at: &Interruption| {
            // The stopper has seen the thread at its last instruction, which is over.
            while turns.ended.load(SeqCst) < turn {
                // SAFETY: a system call without arguments.
                unsafe { libc::sched_yield() };
            }
            let places = frame.instructions.at((at.pc - entry) as u32);
            // SAFETY: the thread is about to run the instruction, and stands here.
            let words = unsafe { at.words_at(places, at.cfa(entry)) };
            named.push(words.collect::<Vec<usize>>());
            turn += 1;
            turns.asked.store(turn, SeqCst);
            until_a_stop_is_pending();
            true
        };
        program.reset();
        let ranges = [code[0].range()];
        step_through(&ranges, &mut each, || answer = program.run());
        stopper.join().expect("stops")
    });
    assert_eq!(answer, expected);
    assert_eq!(stops.len(), judged.len());
    let cells = program.cells();
    for ((instruction, named), (pc, words, exact)) in judged.iter().zip(&named).zip(&stops) {
        let at = instruction.offset;
        assert_eq!(*pc, entry + at as usize);
        assert_eq!(&exact.exact, named, "at {at}");
        // The conservative walk names a root of each live cell, the program's own roots included.
        let first = cells
            .iter()
            .enumerate()
            .find(|(number, _)| instruction.alive & 1 << number != 0);
        if let Some((_, cell)) = first {
            let found = words.conservative.iter().any(|word| cell.contains(word));
            let by_another = instruction.kept(Scan::Words).expect("at each") & instruction.alive;
            assert!(found || by_another == instruction.alive, "at {at}");
        }
    }
}

#[test]
fn a_stop_at_every_instruction_of_a_loop_and_its_prologue_and_epilogue() {
    stop_at_every_instruction(&chase());
}

#[test]
fn a_stop_at_every_instruction_of_a_function_with_calls() {
    stop_at_every_instruction(&calls());
}

// ---- single steps -------------------------------------------------------------------------------

/// A generous bound for a thread that steps to a point.
const SOON: Duration = Duration::from_secs(60);

/// What a storm of stops by single steps has seen.
#[derive(Default)]
struct Storm {
    points: u32,
    native: u32,
    missed: u32,
}

/// Runs `call` on a mutator's thread again and again, until `stops` stops by single steps have
/// ended at points. At each of them the walk by the point's places must name an address in `cells`.
fn storm(code: &[Code], cells: Range<usize>, stops: u32, call: impl Fn() + Sync) -> Storm {
    let world = world();
    let _guards = registered(&world, code);
    let stepped = Stepped::new(code);
    let over = AtomicU32::new(0);
    let mut storm = Storm::default();
    std::thread::scope(|s| {
        s.spawn(|| {
            let _mutator = world.attach(std::ptr::null_mut()).expect("attaches");
            let _entered = stepped.enter().expect("the only thread");
            while over.load(SeqCst) == 0 {
                call();
            }
        });
        while storm.points < stops {
            let mut found = Found::new();
            let answer = stepped.stop(SOON).expect("the thread answers");
            let stopped = world.stop().expect("the caller is no mutator");
            if let Answer::Stands(standing) = &answer {
                for mutator in stopped.mutators() {
                    standing.at().walk(&mutator, ENCODING, &mut found);
                }
            }
            stopped.resume();
            let Answer::Stands(standing) = answer else {
                storm.native += 1;
                continue;
            };
            match standing.at() {
                Stand::Native => storm.native += 1,
                Stand::Point {
                    at, entry, frame, ..
                } => {
                    storm.points += 1;
                    let offset = (at.pc - entry) as u32;
                    assert!(frame.points.exactly_at(offset).is_some(), "at {offset}");
                    let named = found.exact.iter().any(|word| cells.contains(word));
                    storm.missed += u32::from(!named);
                }
            }
        }
        over.store(1, SeqCst);
    });
    storm
}

/// A loop of the processor's registers is stopped at its head, and goes on as if nothing was.
#[test]
fn single_steps_stop_a_loop_at_its_head() {
    const STEPS: u64 = 400_001;
    let loops = Loops::compile(&mut arena()).expect("compiles");
    let values: Vec<u64> = (1..=16).collect();
    let ring: Vec<[AtomicUsize; 2]> = values.iter().map(|_| Default::default()).collect();
    for (number, node) in ring.iter().enumerate() {
        let next = &ring[(number + 1) % ring.len()];
        node[0].store(next.as_ptr() as usize, SeqCst);
        node[1].store(values[number] as usize, SeqCst);
    }
    let code: Vec<Code> = loops
        .code
        .into_iter()
        .filter(|c| c.name == "chase")
        .collect();
    let start = ring.as_ptr() as usize;
    let cells = start..start + 16 * ring.len();
    let wrong = AtomicU64::new(0);
    let storm = storm(&code, cells, 60, || {
        let mut slot = start;
        // SAFETY: the slot names a ring.
        let sum = unsafe { (loops.chase)(&mut slot, STEPS) };
        if sum != chase_oracle(&values, STEPS) {
            wrong.fetch_add(1, SeqCst);
        }
    });
    assert_eq!(wrong.load(SeqCst), 0);
    assert_eq!(storm.missed, 0);
    assert!(
        storm.points > 0,
        "the head of a loop that runs nearly always"
    );
}

/// Steps that lead into native code stop there, and the answers are right.
#[test]
fn single_steps_stop_a_loop_that_calls_native_code() {
    let mut arena = arena();
    compile_calls(&mut arena);
    let code = arena.finish().expect("links");
    let ring: Vec<[AtomicUsize; 2]> = (0..4).map(|_| Default::default()).collect();
    for (number, node) in ring.iter().enumerate() {
        node[0].store(ring[(number + 1) % 4].as_ptr() as usize, SeqCst);
        node[1].store(number + 1, SeqCst);
    }
    let start = ring.as_ptr() as usize;
    let entry = code[0].entry() as usize;
    let wrong = AtomicU64::new(0);
    let cells = start..start + 64;
    let storm = storm(&code, cells, 60, || {
        let mut slot = start;
        // SAFETY: the function's type; the slot names a ring.
        let sum = unsafe {
            let calls = std::mem::transmute::<usize, Calls>(entry);
            calls(&mut slot, 4000)
        };
        if sum != 10 * 1000 * 7 + 1 {
            wrong.fetch_add(1, SeqCst);
        }
    });
    assert_eq!(wrong.load(SeqCst), 0);
    assert_eq!((storm.points, storm.missed), (60, 0));
}

/// A request that finds native code or no thread is answered, and leaves nothing behind.
#[test]
fn a_request_of_single_steps_finds_native_code() {
    let program = chase();
    let stepped = Stepped::new(&program.code);
    let is_native = |answer: Option<Answer<'_>>| matches!(answer, Some(Answer::Native));
    assert!(is_native(stepped.stop(SOON)), "no thread");
    let (entered, over) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            let _entered = stepped.enter().expect("the only thread");
            entered.store(1, SeqCst);
            while over.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
        });
        while entered.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert!(stepped.enter().is_none(), "another thread has entered");
        assert!(is_native(stepped.stop(SOON)), "native code");
        over.store(1, SeqCst);
    });
    let _entered = stepped.enter().expect("the other thread has left");
    program.reset();
    program.run();
    assert_eq!(stepped.instructions.load(SeqCst), 0);
}

// ---- traps that are not ours --------------------------------------------------------------------

static HOSTS: AtomicU32 = AtomicU32::new(0);

extern "C" fn hosts_handler(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    HOSTS.fetch_add(1, SeqCst);
}

fn breakpoint() {
    // SAFETY: raises SIGTRAP, and changes nothing.
    unsafe { std::arch::asm!("int3") };
}

#[test]
fn a_breakpoint_goes_to_the_handler_of_the_host() {
    let name = "a_breakpoint_goes_to_the_handler_of_the_host";
    if common::is_child() {
        // SAFETY: installs a handler of this type.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = hosts_handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut());
        }
        single_step::install();
        breakpoint();
        assert_eq!(HOSTS.load(SeqCst), 1);
        let program = chase();
        let mut steps = 0;
        let ranges = [program.code[0].range()];
        let mut each = |_: &Interruption| {
            steps += 1;
            true
        };
        step_through(&ranges, &mut each, || {
            breakpoint();
            program.run();
        });
        assert!(steps > 20);
        assert_eq!(HOSTS.load(SeqCst), 2, "its own trap alone");
        return;
    }
    let output = common::run_child(name, "", &[]).expect("the child hung");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[test]
fn a_breakpoint_without_a_handler_ends_the_process() {
    let name = "a_breakpoint_without_a_handler_ends_the_process";
    if common::is_child() {
        single_step::install();
        breakpoint();
        return;
    }
    let output = common::run_child(name, "", &[]).expect("the child hung");
    assert_eq!(output.status.signal(), Some(libc::SIGTRAP));
}
