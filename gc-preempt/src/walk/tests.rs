//! Each rule of the walk on a stack made by hand, and the test's own stack against the system's
//! unwinder.

use proptest::prelude::*;

use std::ops::Range;
use std::ptr;
use std::sync::atomic::AtomicUsize;

use super::walker::Walker;
use super::*;
use crate::code::{CodeGuard, CodeSpec, CodeWhat, FrameRule};
use crate::context::{RBP, RSP, Registers};
use crate::stackmap::StackMaps;
use crate::stackmap::cranelift::{Function, Site as Call};
use crate::unwind;

/// Records the ranges that a walk reports.
#[derive(Debug, Default)]
struct Recorder {
    ranges: Vec<Range<usize>>,
    exact: Vec<(usize, u32)>,
    derived: Vec<(usize, usize, u32)>,
}

impl RootSink for Recorder {
    fn conservative(&mut self, words: Range<usize>) {
        assert!(words.start.is_multiple_of(8) && words.end.is_multiple_of(8));
        self.ranges.push(words);
    }

    fn exact(&mut self, slot: usize, encoding: u32) {
        self.exact.push((slot, encoding));
    }

    fn derived(&mut self, base: usize, derived: usize, encoding: u32) {
        self.derived.push((base, derived, encoding));
    }
}

impl Recorder {
    fn covers(&self, address: usize) -> bool {
        self.ranges.iter().any(|r| r.contains(&address))
    }
}

/// Bytes of the managed functions of these tests.
const SIZE: usize = 64;
/// Offset of the call's return address in each.
const CALL: usize = 32;
/// Where each has a `ret`.
const RET: usize = 48;

/// A code map of two managed functions, in real memory, and a stack to fill.
struct Scene {
    map: &'static CodeMap,
    code: Box<[u8]>,
    words: Box<[usize]>,
    _guard: Option<CodeGuard>,
}

/// Frames of the first function: 48 bytes from SP to FP, 8 of arguments, 16 of saved registers, and
/// one slot at 16.
const SPAN: usize = 48;

impl Scene {
    fn new(known: bool) -> Self {
        // Two functions, and some bytes that belong to neither function.
        let mut code = vec![0x90u8; 2 * SIZE + 8].into_boxed_slice();
        for function in 0..2 {
            let bytes = &mut code[function * SIZE..][..SIZE];
            bytes[..4].copy_from_slice(&[0x55, 0x48, 0x89, 0xe5]);
            bytes[RET] = 0xc3;
        }
        let start = code.as_ptr() as usize;
        let function = |index: usize, slots| Function {
            address: start + index * SIZE,
            size: SIZE as u32,
            frame_to_fp: SPAN as u32,
            clobber: 16,
            outgoing: 8,
            sites: vec![Call {
                return_offset: CALL as u32,
                known,
                slots,
            }],
        };
        let maps =
            StackMaps::from_cranelift(&[function(0, vec![16]), function(1, vec![8, 24])]).unwrap();
        let map = CodeMap::leaked();
        let what = CodeWhat::Managed {
            frames: FrameRule::Rbp,
            maps,
            encoding: 5,
        };
        let spec = CodeSpec {
            range: start..start + 2 * SIZE + 8,
            what,
            owner: None,
        };
        // SAFETY: the map is this test's alone.
        let guard = unsafe { map.register(1, spec.checked().unwrap()) }.unwrap();
        Self {
            map,
            code,
            words: vec![0; 64].into(),
            _guard: Some(guard),
        }
    }

    fn pc(&self, offset: usize) -> usize {
        self.code.as_ptr() as usize + offset
    }

    /// Address of a word of the stack.
    fn at(&self, index: usize) -> usize {
        self.words.as_ptr() as usize + 8 * index
    }

    fn set(&mut self, index: usize, word: usize) {
        self.words[index] = word;
    }

    /// A frame of function `f` at its call: SP at `sp`, the callee's return address right below it.
    fn outer(&mut self, f: usize, sp: usize, saved_rbp: usize, back: usize) {
        self.set(sp - 1, self.pc(f * SIZE + CALL));
        self.set(sp + SPAN / 8, saved_rbp);
        self.set(sp + SPAN / 8 + 1, back);
    }

    fn snapshot(&self, origin: Origin, pc: usize, sp: usize, rbp: usize) -> Snapshot {
        let registers = Registers::at_call(self.at(sp), rbp, pc);
        Snapshot {
            registers,
            origin,
            ..Snapshot::default()
        }
    }

    fn walk(&self, snapshot: &Snapshot) -> (WalkStats, Recorder) {
        let mut sink = Recorder::default();
        let range = self.words.as_ptr_range();
        let stack = range.start as usize..range.end as usize;
        let outermost = AtomicUsize::new(0);
        let frames = StackBounds {
            stack,
            outermost: &outermost,
        };
        // SAFETY: stack and code are this scene's, and no other code uses its map.
        let stats = unsafe { walk(self.map, next_stop(), snapshot, frames, &mut sink) };
        // Registers first, always.
        let gpr = snapshot.registers.gpr.as_ptr_range();
        assert_eq!(sink.ranges.remove(0), gpr.start as usize..gpr.end as usize);
        (stats, sink)
    }

    fn range(&self, from: usize, to: usize) -> Range<usize> {
        self.at(from)..self.at(to)
    }
}

fn next_stop() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1 << 40);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

const NOWHERE: usize = 0x10;

/// A managed frame interrupted at each kind of place. Another managed frame called it, and code
/// without a map called that one.
#[test]
fn an_interrupted_managed_frame_ends_where_its_pc_says() {
    // (PC, words from SP to the CFA, whether RBP is the caller's)
    for (offset, words, callers) in [
        (0, 1, true),
        (1, 2, true),
        (4, 2, false),
        (5, 8, false),
        (CALL, 8, false),
        (RET - 1, 2, false),
        (RET, 1, true),
    ] {
        let mut scene = Scene::new(true);
        let sp = 20;
        let cfa = sp + words;
        // The caller's frame, of function 1. The frames above it have no map.
        scene.outer(1, cfa, NOWHERE, NOWHERE);
        let callers_fp = scene.at(cfa) + SPAN;
        scene.set(cfa - 2, callers_fp);
        let rbp = if callers {
            callers_fp
        } else {
            scene.at(cfa - 2)
        };
        let snapshot = scene.snapshot(Origin::Signal, scene.pc(offset), sp, rbp);
        let (stats, sink) = scene.walk(&snapshot);
        assert_eq!((stats.precise, stats.conservative), (1, 2), "at {offset}");
        assert!(stats.to_base && stats.unknown_sites == 0);
        let (body, fp) = (cfa, cfa + SPAN / 8);
        assert_eq!(
            sink.ranges,
            [
                scene.range(sp - 16, cfa),   // red zone and frame
                scene.range(body, body + 1), // the arguments of its call
                scene.range(fp - 2, fp + 1), // registers saved for its caller
                scene.range(fp + 2, 64),     // frames without a map
            ],
            "at {offset}"
        );
        assert_eq!(
            sink.exact,
            [(scene.at(body + 1), 5), (scene.at(body + 3), 5)]
        );
    }
}

#[test]
fn a_chain_of_called_frames_is_precise() {
    let mut scene = Scene::new(true);
    let (first, second) = (10, 10 + SPAN / 8 + 2);
    scene.outer(0, first, 0, 0);
    scene.outer(1, second, NOWHERE, NOWHERE);
    scene.set(first + SPAN / 8, scene.at(second) + SPAN);
    let snapshot = scene.snapshot(Origin::Call, scene.pc(CALL), first, scene.at(first) + SPAN);
    let (stats, sink) = scene.walk(&snapshot);
    assert_eq!((stats.precise, stats.conservative), (2, 1));
    let slots = [first + 2, second + 1, second + 3].map(|s| (scene.at(s), 5));
    assert_eq!(sink.exact, slots);
    assert!(
        !sink.covers(scene.at(first + 2)),
        "an exact slot is not scanned besides"
    );
    assert!(!sink.covers(scene.at(first + 1)), "nor is a dead word");
}

#[test]
fn what_no_map_names_is_scanned_word_by_word_and_counted() {
    let mut scene = Scene::new(true);
    scene.outer(0, 10, NOWHERE, NOWHERE);
    let rbp = scene.at(10) + SPAN;
    // One byte behind the call: a return address without an entry.
    let (stats, sink) = scene.walk(&scene.snapshot(Origin::Call, scene.pc(CALL + 1), 10, rbp));
    assert_eq!(
        (stats.precise, stats.conservative, stats.unknown_sites),
        (0, 2, 1)
    );
    assert_eq!(sink.ranges, [scene.range(10, 18), scene.range(18, 64)]);
    // An entry that says that the compiler has no map for this address.
    let mut scene = Scene::new(false);
    scene.outer(0, 10, NOWHERE, NOWHERE);
    let rbp = scene.at(10) + SPAN;
    let (stats, sink) = scene.walk(&scene.snapshot(Origin::Call, scene.pc(CALL), 10, rbp));
    assert_eq!(
        (stats.precise, stats.conservative, stats.unknown_sites),
        (0, 2, 0)
    );
    assert!(sink.exact.is_empty());
    assert_eq!(sink.ranges, [scene.range(10, 18), scene.range(18, 64)]);
}

#[test]
fn rbp_is_not_believed_in_code_that_is_no_function() {
    let mut scene = Scene::new(true);
    scene.outer(0, 10, NOWHERE, NOWHERE);
    let rbp = scene.at(10) + SPAN;
    // Behind the two functions, still in the range.
    let snapshot = scene.snapshot(Origin::Call, scene.pc(2 * SIZE + 4), 10, rbp);
    let (stats, sink) = scene.walk(&snapshot);
    assert_eq!((stats.conservative, stats.to_base), (1, true));
    assert_eq!(sink.ranges, [scene.range(10, 64)]);
    let snapshot = scene.snapshot(Origin::Signal, scene.pc(2 * SIZE + 4), 40, rbp);
    assert_eq!(scene.walk(&snapshot).1.ranges, [scene.range(24, 64)]);
}

#[test]
fn a_frame_that_contradicts_its_map_is_scanned_to_the_base() {
    let mut scene = Scene::new(true);
    scene.outer(0, 10, NOWHERE, NOWHERE);
    for rbp in [
        scene.at(10) + SPAN + 8, // not SP + span
        scene.at(10) - 8,        // below SP
        scene.at(63),            // its return address beyond the base
        scene.at(12) + 1,        // off a word's boundary
        0,
        usize::MAX - 3,
    ] {
        let (stats, sink) = scene.walk(&scene.snapshot(Origin::Call, scene.pc(CALL), 10, rbp));
        assert_eq!(
            (stats.precise, stats.conservative, stats.to_base),
            (0, 1, true),
            "{rbp:#x}"
        );
        assert_eq!(sink.ranges, [scene.range(10, 64)]);
    }
}

#[test]
fn code_without_the_prologue_is_not_believed() {
    let mut scene = Scene::new(true);
    scene.code[1] = 0x90;
    scene.outer(1, 20, NOWHERE, NOWHERE);
    let snapshot = scene.snapshot(Origin::Signal, scene.pc(0), 19, scene.at(20) + SPAN);
    let (stats, sink) = scene.walk(&snapshot);
    assert_eq!((stats.precise, stats.to_base), (0, true));
    assert_eq!(sink.ranges, [scene.range(3, 64)]);
}

#[test]
fn a_stack_that_is_not_the_threads_means_all_of_the_threads() {
    let scene = Scene::new(true);
    let mut snapshot = scene.snapshot(Origin::Signal, scene.pc(0), 10, 0);
    for sp in [0, 8, scene.at(0) - 8, scene.at(64), usize::MAX] {
        snapshot.registers.gpr[RSP] = sp;
        let (stats, sink) = scene.walk(&snapshot);
        assert!(stats.to_base);
        assert_eq!(sink.ranges, [scene.range(0, 64)]);
    }
}

#[test]
fn the_red_zone_ends_at_the_stacks_limit() {
    let scene = Scene::new(true);
    let snapshot = scene.snapshot(Origin::Signal, NOWHERE, 3, 0);
    assert_eq!(scene.walk(&snapshot).1.ranges, [scene.range(0, 64)]);
    let snapshot = scene.snapshot(Origin::Signal, NOWHERE, 40, 0);
    assert_eq!(scene.walk(&snapshot).1.ranges, [scene.range(24, 64)]);
    let snapshot = scene.snapshot(Origin::Call, NOWHERE, 40, 0);
    assert_eq!(scene.walk(&snapshot).1.ranges, [scene.range(40, 64)]);
}

#[test]
fn vectors_in_use_are_scanned() {
    let scene = Scene::new(true);
    let mut image = [0u64; 104];
    image[64] = 1 << 1; // the SSE registers
    let image = image.as_ptr() as usize..image.as_ptr() as usize + 832;
    let mut snapshot = scene.snapshot(Origin::Injected, NOWHERE, 40, 0);
    snapshot.vectors = image.clone();
    let registers = image.start + 160..image.start + 416;
    assert_eq!(scene.walk(&snapshot).1.ranges[0], registers);
}

/// What the trampoline leaves, by words from SP: the image, the registers of the interrupted code,
/// and its red zone.
struct Injected {
    image: usize,
    registers: usize,
    sp: usize,
}

impl Scene {
    /// A stack on which an injected call has interrupted code at `pc`, its image at word `image`.
    /// RBP is that of a frame of these tests.
    fn injected(image: usize, pc: usize) -> (Self, Injected) {
        arch::setup().unwrap();
        let mut scene = Scene::new(true);
        scene.words = vec![0; 2048].into();
        let registers = image + arch::xsave_size() / 8;
        let sp = registers + 18 + 16;
        scene.set(image + 464 / 8, scene.at(registers));
        scene.set(image + 512 / 8, 1 << 1); // the SSE registers
        scene.set(registers + RSP, scene.at(sp));
        scene.set(registers + RBP, scene.at(sp) + SPAN);
        scene.set(registers + 17, scene.pc(pc));
        let places = Injected {
            image,
            registers,
            sp,
        };
        (scene, places)
    }
}

/// An injected call interrupted managed code exactly at a return address, and its hook called the
/// walk.
#[test]
fn behind_an_injected_call_the_innermost_rule_holds_again() {
    let (mut scene, at) = Scene::injected(40, CALL);
    scene.outer(0, at.sp, NOWHERE, NOWHERE);
    let snapshot = scene.snapshot(Origin::Call, arch::trampoline_back(), at.image, 0);
    let (stats, sink) = scene.walk(&snapshot);
    assert_eq!(
        (stats.precise, stats.conservative, stats.injected),
        (0, 3, 1),
        "no map speaks of it"
    );
    let vectors = scene.range(at.image + 20, at.image + 52);
    assert_eq!(
        sink.ranges,
        [
            vectors,
            scene.range(at.registers, at.sp - 16),
            scene.range(at.sp - 16, at.sp + 8),
            scene.range(at.sp + 8, scene.words.len()),
        ]
    );
}

/// A long jump has left a hook, and other frames lie over the words of the injected call: no record
/// of the call is left.
#[test]
fn an_injected_call_that_was_left_by_a_long_jump_is_no_frame() {
    let (mut scene, at) = Scene::injected(40, CALL);
    scene.outer(0, at.sp - 2, NOWHERE, NOWHERE);
    let rbp = scene.at(at.sp - 2) + SPAN;
    let snapshot = scene.snapshot(Origin::Call, scene.pc(CALL), at.sp - 2, rbp);
    let (stats, _) = scene.walk(&snapshot);
    assert_eq!((stats.precise, stats.injected), (1, 0));
    // The same if the walk loses the frames below it.
    let snapshot = scene.snapshot(Origin::Call, NOWHERE, 20, 0);
    let (stats, sink) = scene.walk(&snapshot);
    assert_eq!((stats.to_base, stats.injected), (true, 0));
    assert_eq!(sink.ranges, [scene.range(20, scene.words.len())]);
}

#[test]
fn what_is_not_as_the_trampoline_leaves_it_is_scanned_to_the_base() {
    for (word, value) in [(464 / 8, 0), (464 / 8, 8), (464 / 8, usize::MAX - 7)] {
        let (mut scene, at) = Scene::injected(40, CALL);
        scene.set(at.image + word, value);
        let snapshot = scene.snapshot(Origin::Call, arch::trampoline_back(), at.image, 0);
        let (stats, sink) = scene.walk(&snapshot);
        assert_eq!((stats.to_base, stats.injected), (true, 0), "{value:#x}");
        assert_eq!(sink.ranges, [scene.range(at.image, scene.words.len())]);
    }
    let (mut scene, at) = Scene::injected(40, CALL);
    scene.set(at.registers + RSP, scene.at(at.sp + 8));
    let snapshot = scene.snapshot(Origin::Call, arch::trampoline_back(), at.image, 0);
    assert!(
        scene.walk(&snapshot).0.to_base,
        "not where the call was pushed"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Stacks of arbitrary words, some of which are addresses of the code and of the stack. Each
    /// reported range lies on the stack, and the walk leaves out words of frames with a map only.
    #[test]
    fn any_stack_is_walked_within_its_bounds(
        words in proptest::collection::vec((0u8..4, any::<u16>()), 64),
        start in (0usize..64, any::<u8>(), 0usize..80, 0u8..3),
    ) {
        let mut scene = Scene::new(true);
        for (index, (kind, value)) in words.into_iter().enumerate() {
            let value = usize::from(value);
            let word = match kind {
                0 => scene.at(value % 70),
                1 => scene.pc(CALL + SIZE * (value % 2)),
                2 => scene.pc(value % (2 * SIZE + 3)),
                _ => value,
            };
            scene.set(index, word);
        }
        let (sp, pc, rbp, origin) = start;
        let origin = [Origin::Signal, Origin::Injected, Origin::Call][usize::from(origin)];
        let pc = scene.pc(usize::from(pc) % (2 * SIZE + 2));
        let snapshot = scene.snapshot(origin, pc, sp, scene.at(rbp));
        let (stats, sink) = scene.walk(&snapshot);
        let stack = scene.range(0, 64);
        let mut last = stack.start;
        for range in &sink.ranges {
            prop_assert!(last <= range.start && range.end <= stack.end);
            last = range.end;
        }
        for (slot, _) in &sink.exact {
            prop_assert!(stack.contains(slot) && !sink.covers(*slot));
        }
        let missed = (sp..64).filter(|i| !sink.covers(scene.at(*i))).count();
        prop_assert!(missed <= stats.precise as usize * (SPAN / 8 + 1));
    }
}

// ---- the test's own stack -----------------------------------------------------------------------

/// The return addresses that the system's unwinder finds, from the caller of `f` outwards.
fn backtrace() -> Vec<usize> {
    #[repr(C)]
    struct Context {
        _private: [u8; 0],
    }
    unsafe extern "C" {
        fn _Unwind_Backtrace(each: extern "C" fn(*mut Context, *mut ()) -> i32, to: *mut ())
        -> i32;
        fn _Unwind_GetIP(context: *mut Context) -> usize;
    }
    extern "C" fn each(context: *mut Context, to: *mut ()) -> i32 {
        // SAFETY: `_Unwind_Backtrace` passes the pointer that it was given.
        unsafe { (*to.cast::<Vec<usize>>()).push(_Unwind_GetIP(context)) };
        0
    }
    let mut pcs = Vec::new();
    // SAFETY: the vector outlives the call.
    unsafe { _Unwind_Backtrace(each, (&raw mut pcs).cast()) };
    pcs
}

fn own_stack() -> Range<usize> {
    // SAFETY: the attributes are initialised by the first call and read by the second.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        assert_eq!(
            libc::pthread_getattr_np(libc::pthread_self(), &mut attributes),
            0
        );
        let (mut base, mut size) = (ptr::null_mut(), 0);
        assert_eq!(
            libc::pthread_attr_getstack(&attributes, &mut base, &mut size),
            0
        );
        libc::pthread_attr_destroy(&mut attributes);
        base as usize..base as usize + size
    }
}

struct Seen {
    stats: WalkStats,
    sink: Recorder,
    pcs: Vec<usize>,
    sp: usize,
    oracle: Vec<usize>,
}

/// Walks this thread's stack, from a call in this file.
fn walk_here() -> Seen {
    unwind::setup();
    extern "C-unwind" fn at_call(seen: *mut (), sp: usize, fp: usize, pc: usize) {
        // SAFETY: `call_spilled` passes the pointer that it is given below.
        let seen = unsafe { &mut *seen.cast::<Option<Seen>>() };
        let snapshot = Snapshot {
            registers: Registers::at_call(sp, fp, pc),
            ..Snapshot::default()
        };
        let mut sink = Recorder::default();
        let map = CodeMap::leaked();
        let mut walker = Walker::new(map, next_stop(), own_stack(), &mut sink);
        walker.run(Frame::called(&snapshot.registers));
        let (stats, pcs) = (walker.stats, std::mem::take(&mut walker.trace));
        drop(walker);
        *seen = Some(Seen {
            stats,
            sink,
            pcs,
            sp,
            oracle: backtrace(),
        });
    }
    let mut seen: Option<Seen> = None;
    crate::arch::call_spilled(at_call, (&raw mut seen).cast());
    seen.expect("at_call ran")
}

impl Seen {
    /// The walk agrees with the system's unwinder from `call_spilled` outwards, and leaves no word
    /// out.
    fn check(&self) {
        assert!(!self.stats.to_base, "lost after {:x?}", self.pcs.last());
        let from = self
            .oracle
            .iter()
            .position(|pc| *pc == self.pcs[0])
            .expect("the common frame");
        // The unwinder ends its list with a zero.
        let oracle: Vec<usize> = self.oracle[from..]
            .iter()
            .copied()
            .filter(|p| *p != 0)
            .collect();
        assert_eq!(self.pcs, oracle);
        assert_eq!(self.stats.conservative as usize, self.pcs.len());
        let mut next = self.sp;
        for range in &self.sink.ranges {
            assert_eq!(range.start, next, "no gap between frames");
            next = range.end;
        }
    }
}

#[test]
fn native_frames_are_walked_as_the_systems_unwinder_does() {
    let seen = walk_here();
    assert!(seen.pcs.len() > 5);
    seen.check();
}

#[test]
fn warming_up_walks_a_few_frames_of_its_own_and_attaching_all() {
    unwind::setup();
    let map = CodeMap::leaked();
    let lock = crate::blocking::lock().unwrap();
    // SAFETY: the registry lock is held; the stack is this thread's.
    let [few, all] = unsafe {
        let none = std::iter::empty();
        let frames = StackBounds {
            stack: own_stack(),
            outermost: &AtomicUsize::new(0),
        };
        [warm_up_walks(map, none), warm_unwind_cache(map, frames)]
    };
    drop(lock);
    // `call_spilled`, five of `walk_from_depth`, and `warm_up_walks`, which may be part of this
    // one.
    assert!((6..=8).contains(&few), "{few} frames");
    // `call_spilled` there, and `walk_here` and `call_spilled` here.
    let frames = walk_here().pcs.len() as u32;
    assert!(all + 3 >= frames && all > 8, "{all} of {frames} frames");
}

#[test]
fn frames_of_libc_are_walked_through() {
    static FOUND: std::sync::Mutex<Option<Seen>> = std::sync::Mutex::new(None);
    extern "C" fn compare(_: *const libc::c_void, _: *const libc::c_void) -> libc::c_int {
        *FOUND.lock().unwrap() = Some(walk_here());
        0
    }
    let mut items = [2u64, 1];
    // SAFETY: two items of eight bytes, and a comparison that reads neither.
    unsafe { libc::qsort(items.as_mut_ptr().cast(), 2, 8, Some(compare)) };
    let seen = FOUND.lock().unwrap().take().unwrap();
    seen.check();
    let libc = libc::qsort as *const () as usize;
    assert!(
        seen.pcs.iter().any(|pc| pc.abs_diff(libc) < 0x2000),
        "a frame of qsort"
    );
}

/// A host's signal handler on the thread's own stack: the walk passes its trampoline, and scans the
/// interrupted frame with its red zone.
#[test]
fn a_foreign_signal_frame_is_an_interruption() {
    static FOUND: std::sync::Mutex<Option<Seen>> = std::sync::Mutex::new(None);
    static AT: std::sync::Mutex<(usize, usize)> = std::sync::Mutex::new((0, 0));
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
        // SAFETY: the kernel's ucontext; only fields that it writes are read.
        let gregs = unsafe { &(*ucontext.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        *AT.lock().unwrap() = (
            gregs[libc::REG_RIP as usize] as usize,
            gregs[libc::REG_RSP as usize] as usize,
        );
        *FOUND.lock().unwrap() = Some(walk_here());
    }
    // SAFETY: the handler keeps the rules of handlers; the signal is raised at one place, on this
    // thread.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &action, ptr::null_mut()), 0);
        libc::raise(libc::SIGUSR2);
    }
    let seen = FOUND.lock().unwrap().take().unwrap();
    let (pc, sp) = *AT.lock().unwrap();
    seen.check();
    assert!(seen.pcs.contains(&pc));
    assert!(seen.sink.covers(sp - 128) && seen.sink.covers(sp));
    assert!(
        seen.sink.ranges.iter().any(|r| r.start == sp - 128),
        "a frame of its own"
    );
}
