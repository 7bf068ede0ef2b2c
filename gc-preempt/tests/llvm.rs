//! Managed code from LLVM that really runs: a shared library is linked, and its frames are walked
//! in a stop from inside its calls and its loop.
//!
//! No other word of the stacks holds the references that the code is called with. The test keeps
//! their complements, and a few instructions of assembly complement them again.

mod common;

use std::arch::global_asm;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use common::{hazard, wait_for};
use gc_preempt::stackmap::StackMaps;
use gc_preempt::{
    CodeGuard, CodeSpec, CodeWhat, Config, FrameRule, Mutator, RootSink, StopHook, WalkStats, World,
};
use object::{Object, ObjectSection};

/// The encoding with which the code is registered.
const ENCODING: u32 = 77;

global_asm!(
    // fn(f, not a, not b, c, d, not rbx): calls f(a, b, c, d) with a reference in RBX, too.
    ".globl urge_test_call",
    ".hidden urge_test_call",
    ".type urge_test_call,@function",
    "urge_test_call:",
    ".cfi_startproc",
    "push rbx",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbx, -16",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov rcx, r8",
    "mov rbx, r9",
    "not rdi",
    "not rsi",
    "not rbx",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "call rax",
    "pop rbx",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".size urge_test_call, . - urge_test_call",
    // The same with the trap flag set, so that SIGTRAP follows each instruction.
    ".globl urge_test_step",
    ".hidden urge_test_step",
    ".type urge_test_step,@function",
    "urge_test_step:",
    ".cfi_startproc",
    "sub rsp, 8",
    ".cfi_def_cfa_offset 16",
    "pushfq",
    ".cfi_def_cfa_offset 24",
    "or qword ptr [rsp], 0x100",
    "popfq",
    ".cfi_def_cfa_offset 16",
    "call urge_test_call",
    "pushfq",
    ".cfi_def_cfa_offset 24",
    "and qword ptr [rsp], ~0x100",
    "popfq",
    ".cfi_def_cfa_offset 16",
    "add rsp, 8",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".size urge_test_step, . - urge_test_step",
);

unsafe extern "C" {
    fn urge_test_call(f: usize, na: usize, nb: usize, c: usize, d: usize, nrbx: usize) -> u64;
    fn urge_test_step(f: usize, na: usize, nb: usize, c: usize, d: usize, nrbx: usize) -> u64;
}

/// The loaded library.
struct Library {
    handle: usize,
    text: Range<usize>,
    section: &'static [u8],
    eh_frame: &'static [u8],
}

impl Library {
    /// Links the committed object and loads it, once in the process. Without a linker it gives
    /// `None` and prints a message on standard error.
    fn get() -> Option<&'static Library> {
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        LIBRARY.get_or_init(Library::load).as_ref()
    }

    fn load() -> Option<Library> {
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/roots.o");
        let directory = std::env::temp_dir().join(format!("urge-llvm-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let library = directory.join("libroots.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-o"]).arg(&library).arg(object);
        let loaded = match cc.output() {
            // ld warns of relocations in a section that is not writable. The loader applies them
            // all the same.
            Ok(output) if output.status.success() => Some(Self::open(&library)),
            Ok(output) => panic!("{cc:?}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                eprintln!("skipped: cc cannot be run ({error}), so LLVM's object is not linked");
                None
            }
        };
        let _ = std::fs::remove_dir_all(&directory);
        loaded
    }

    fn open(path: &Path) -> Library {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the library is this test's, and its initialisers are those of the C start files.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "dlopen {path:?}");
        let mut library = Library {
            handle: handle as usize,
            text: 0..0,
            section: &[],
            eh_frame: &[],
        };
        // SAFETY: `dladdr` fills its argument.
        let base = unsafe {
            let mut info: libc::Dl_info = std::mem::zeroed();
            assert_ne!(
                libc::dladdr(library.symbol(c"keep_two") as *const c_void, &mut info),
                0
            );
            info.dli_fbase as usize
        };
        let file = std::fs::read(path).unwrap();
        let file = object::File::parse(&*file).unwrap();
        let range = |name| {
            let section = file.section_by_name(name).expect(name);
            let start = base + section.address() as usize;
            start..start + section.size() as usize
        };
        library.text = range(".text");
        let bytes = |name| {
            let range = range(name);
            // SAFETY: a section that is loaded, never unloaded, and not written after its
            // relocation.
            unsafe { std::slice::from_raw_parts(range.start as *const u8, range.len()) }
        };
        library.section = bytes(".llvm_stackmaps");
        library.eh_frame = bytes(".eh_frame");
        library
    }

    fn symbol(&self, name: &std::ffi::CStr) -> usize {
        // SAFETY: the handle is open.
        let address = unsafe { libc::dlsym(self.handle as *mut c_void, name.as_ptr()) };
        assert!(!address.is_null(), "{name:?}");
        address as usize
    }

    fn register(&self, world: &World, owner: Option<Box<dyn std::any::Any + Send>>) -> CodeGuard {
        let maps = StackMaps::from_llvm(self.section).expect("a table without a fault");
        self.register_with(world, owner, maps)
    }

    fn register_with(
        &self,
        world: &World,
        owner: Option<Box<dyn std::any::Any + Send>>,
        maps: StackMaps,
    ) -> CodeGuard {
        let what = CodeWhat::Managed {
            frames: FrameRule::Cfi,
            maps,
            encoding: ENCODING,
        };
        let spec = CodeSpec {
            range: self.text.clone(),
            what,
            owner,
        };
        // SAFETY: the maps are LLVM's for this text, and the library stays loaded.
        unsafe { world.register_code(spec) }.unwrap()
    }
}

/// A lock for one test at a time: the tests share the library's hook and its code range.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The results of a walk. Their memory is allocated in advance, because a stop must not allocate.
struct Found {
    exact: Vec<usize>,
    derived: Vec<(usize, usize)>,
    /// The words that the walk looks for, as complements.
    wanted: Vec<usize>,
    seen: Vec<usize>,
    /// The last exact slot, and (`doubly`) whether it was reported conservatively, too.
    slot: usize,
    doubly: bool,
    stats: WalkStats,
}

impl Found {
    fn new(wanted: &[usize]) -> Self {
        Self {
            exact: Vec::with_capacity(64),
            derived: Vec::with_capacity(64),
            wanted: wanted.to_vec(),
            seen: Vec::with_capacity(1 << 12),
            slot: 0,
            doubly: false,
            stats: WalkStats::default(),
        }
    }
}

fn push<T>(to: &mut Vec<T>, value: T) {
    assert!(to.len() < to.capacity(), "no room");
    to.push(value);
}

fn word(at: usize) -> usize {
    // SAFETY: the walker reports words of the stopped thread's stack and registers.
    unsafe { ptr::read_volatile(at as *const usize) }
}

impl RootSink for Found {
    fn conservative(&mut self, words: Range<usize>) {
        self.doubly |= words.contains(&self.slot);
        for at in words.step_by(8) {
            if self.wanted.contains(&!word(at)) {
                push(&mut self.seen, word(at));
            }
        }
    }

    fn exact(&mut self, slot: usize, encoding: u32) {
        assert_eq!(encoding, ENCODING);
        push(&mut self.exact, word(slot));
        self.slot = slot;
    }

    fn derived(&mut self, base: usize, derived: usize, encoding: u32) {
        assert_eq!(encoding, ENCODING);
        push(&mut self.derived, (word(base), word(derived)));
    }
}

/// Stops the world, which has one mutator, and walks the mutator.
fn stop_and_walk(world: &World, wanted: &[usize]) -> Found {
    let mut found = Found::new(wanted);
    let stopped = world.stop().unwrap();
    for mutator in stopped.mutators() {
        let stats = mutator.walk(&mut found);
        found.stats += stats;
    }
    stopped.resume();
    found
}

/// The hook's arguments and results.
struct Context<'a> {
    world: &'a World,
    mutator: &'a Mutator,
    wanted: Vec<usize>,
    found: Option<Found>,
}

static CONTEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// The function that managed code calls: another thread stops and walks this one, which waits in
/// `blocking`.
extern "C" fn hook(_: u64) {
    // SAFETY: `Call::run` has stored the pointer, and waits for this function.
    let context = unsafe { &mut *CONTEXT.load(SeqCst).cast::<Context<'_>>() };
    let (world, wanted) = (context.world, &context.wanted);
    let found = context.mutator.blocking(|| {
        std::thread::scope(|s| s.spawn(|| stop_and_walk(world, wanted)).join().unwrap())
    });
    context.found = Some(found);
}

/// Two objects of a pretended heap, as complements, and the complement of a word that only RBX
/// holds.
struct Objects {
    a: usize,
    b: usize,
    rbx: usize,
}

static WORDS: [[AtomicU64; 2]; 2] = [const { [const { AtomicU64::new(0) }; 2] }; 2];

impl Objects {
    fn new() -> Self {
        for (words, value) in WORDS.iter().zip([100, 200]) {
            words[0].store(value, SeqCst);
            words[1].store(value + 1, SeqCst);
        }
        let [a, b] = [0, 1].map(|i| !(WORDS[i].as_ptr() as usize));
        // Otherwise the compiler would know the words themselves and keep them in registers and on
        // this stack.
        let rbx = !0x5eed_0000_1234_5678;
        let [a, b, rbx] = [a, b, rbx].map(std::hint::black_box);
        Self { a, b, rbx }
    }

    fn call(&self, library: &Library, name: &std::ffi::CStr, c: usize, d: usize) -> (u64, Found) {
        let maps = StackMaps::from_llvm(library.section).expect("a table without a fault");
        let (result, found) = self.call_with(library, maps, name, c, d);
        assert!(!found.stats.to_base, "{:?}", found.stats);
        assert_eq!(found.stats.unknown_sites, 0);
        (result, found)
    }

    fn call_with(
        &self,
        library: &Library,
        maps: StackMaps,
        name: &std::ffi::CStr,
        c: usize,
        d: usize,
    ) -> (u64, Found) {
        let world = World::new(Config::default()).unwrap();
        let mutator = world.attach(ptr::null_mut()).unwrap();
        let guard = library.register_with(&world, None, maps);
        let slot = library.symbol(c"urge_test_hook") as *mut usize;
        // SAFETY: the library's global, which only its functions read, on this thread.
        unsafe { slot.write(hook as *const () as usize) };
        let wanted = vec![self.a, self.b, self.rbx];
        let mut context = Context {
            world: &world,
            mutator: &mutator,
            wanted,
            found: None,
        };
        CONTEXT.store((&raw mut context).cast(), SeqCst);
        // SAFETY: a function of the fixture, with arguments of its type.
        let result =
            unsafe { urge_test_call(library.symbol(name), self.a, self.b, c, d, self.rbx) };
        let found = context.found.expect("the hook ran");
        drop(mutator);
        drop(guard);
        // The world has no mutator any more, so this stop removes the code.
        world.stop().unwrap().resume();
        (result, found)
    }
}

#[test]
fn slots_of_llvm_frames_hold_the_references_they_were_given() {
    let _alone = alone();
    let Some(library) = Library::get() else {
        return;
    };
    let o = Objects::new();

    let (sum, found) = o.call(library, c"keep_two", 0, 0);
    assert_eq!(sum, 300);
    assert_eq!(found.exact, [!o.b, !o.a]);
    assert!(found.derived.is_empty());
    assert_eq!(found.stats.precise, 1);
    assert!(
        !found.doubly,
        "an exact slot is not scanned word by word besides"
    );

    let (element, found) = o.call(library, c"keep_derived", 8, 1);
    assert_eq!(element, 101);
    assert_eq!(found.exact, [!o.a]);
    assert_eq!(found.derived, [(!o.a, !o.a + 8)]);

    let (_, found) = o.call(library, c"keep_none", 0, 0);
    assert!(found.exact.is_empty() && found.derived.is_empty());
}

#[test]
fn managed_frames_of_llvm_call_each_other_with_pushed_arguments() {
    hazard(
        "managed_frames_of_llvm_call_each_other_with_pushed_arguments",
        "no-arguments",
        || {
            let Some(library) = Library::get() else {
                return fail_if_planted();
            };
            let o = Objects::new();
            let (sum, found) = o.call(library, c"outer", 0, 0);
            assert_eq!(sum, 306);
            assert_eq!(found.exact, [!o.b, !o.a, !o.b], "inner's, then outer's");
            assert_eq!(found.stats.precise, 2);
            assert!(
                found.seen.contains(&!o.a),
                "the pushed arguments are scanned word by word"
            );
        },
    );
}

#[test]
fn a_native_callers_register_is_found_in_the_saves_of_an_llvm_frame() {
    hazard(
        "a_native_callers_register_is_found_in_the_saves_of_an_llvm_frame",
        "no-saved-registers",
        || {
            let Some(library) = Library::get() else {
                return fail_if_planted();
            };
            let o = Objects::new();
            let (_, found) = o.call(library, c"outer", 0, 0);
            assert!(
                found.seen.contains(&!o.rbx),
                "only inner's saved registers hold RBX"
            );
        },
    );
}

/// Without a linker a hazard's child cannot test anything, so it fails if its fault is planted, as
/// it must.
fn fail_if_planted() {
    assert_eq!(
        std::env::var("URGE_FAULT").unwrap_or_default(),
        "",
        "skipped"
    );
}

/// Code that was generated in memory is registered with its unwind tables. The loader's tables are
/// then not used.
#[test]
fn unwind_tables_given_with_the_code_are_used() {
    let _alone = alone();
    let Some(library) = Library::get() else {
        return;
    };
    let o = Objects::new();
    let maps = || StackMaps::from_llvm(library.section).unwrap();
    let address = library.eh_frame.as_ptr() as usize;
    let whole = maps().with_eh_frame(library.eh_frame, address).unwrap();
    let (_, found) = o.call_with(library, whole, c"outer", 0, 0);
    assert_eq!(found.exact, [!o.b, !o.a, !o.b]);
    assert_eq!((found.stats.precise, found.stats.to_base), (2, false));
    let none = maps().with_eh_frame(&[], address).unwrap();
    let (_, found) = o.call_with(library, none, c"outer", 0, 0);
    assert_eq!((found.stats.precise, found.stats.to_base), (0, true));
    assert!(found.seen.contains(&!o.a) && found.seen.contains(&!o.b));
    let error = maps()
        .with_eh_frame(&library.eh_frame[..30], address)
        .unwrap_err();
    assert_eq!(error.kind, gc_preempt::stackmap::StackMapErrorKind::Unwind);
}

#[test]
fn an_llvm_frame_of_varying_size_is_passed() {
    let _alone = alone();
    let Some(library) = Library::get() else {
        return;
    };
    let o = Objects::new();
    for words in [1, 1000] {
        // The second argument is the number of words to take from the stack, so it is complemented,
        // too.
        let mut o = Objects { b: !words, ..o };
        let (sum, found) = o.call(library, c"dynamic", 0, 0);
        assert_eq!(sum, 100 + words as u64);
        o.b = 0;
        assert!(found.seen.contains(&!o.a) || found.exact.contains(&!o.a));
    }
}

/// A signal stops the loop, which has no map and keeps its reference in a register.
#[test]
fn a_loop_without_calls_is_walked_from_any_instruction() {
    let _alone = alone();
    let Some(library) = Library::get() else {
        return;
    };
    let o = Objects::new();
    let world = World::new(Config::default()).unwrap();
    static STAGE: AtomicUsize = AtomicUsize::new(0);
    static FLAG: AtomicU64 = AtomicU64::new(0);
    STAGE.store(0, SeqCst);
    FLAG.store(0, SeqCst);
    struct Owner(Arc<AtomicBool>);
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = library.register(&world, Some(Box::new(Owner(dropped.clone()))));
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            let mutator = world.attach(ptr::null_mut()).unwrap();
            STAGE.store(1, SeqCst);
            // SAFETY: a function of the fixture, with arguments of its type.
            let result = unsafe {
                let flag = !(FLAG.as_ptr() as usize);
                urge_test_call(library.symbol(c"spin"), o.a, flag, 0, 0, o.rbx)
            };
            STAGE.store(2, SeqCst);
            while STAGE.load(SeqCst) != 3 {
                std::hint::spin_loop();
            }
            drop(mutator);
            result
        });
        while STAGE.load(SeqCst) != 1 {
            std::thread::yield_now();
        }
        let mut inside = 0;
        while inside < 100 {
            let mut found = Found::new(&[o.a]);
            let stopped = world.stop().unwrap();
            let mut pc = 0;
            for mutator in stopped.mutators() {
                pc = mutator.snapshot().registers.pc;
                let stats = mutator.walk(&mut found);
                found.stats += stats;
            }
            stopped.resume();
            if library.text.contains(&pc) {
                inside += 1;
                assert!(found.seen.contains(&!o.a));
                assert!(!found.stats.to_base);
            }
        }
        // The guard is dropped while the thread is in the code.
        drop(guard);
        for _ in 0..3 {
            world.stop().unwrap().resume();
            assert!(
                !dropped.load(SeqCst),
                "the code's owner was dropped under a running thread"
            );
        }
        FLAG.store(1, SeqCst);
        while STAGE.load(SeqCst) != 2 {
            std::thread::yield_now();
        }
        // The PC has left the code. A stale word below SP does not keep the code, but one above SP
        // may for a while.
        STAGE.store(3, SeqCst);
        assert_eq!(thread.join().unwrap(), 100);
    });
    world.stop().unwrap().resume();
    assert!(
        dropped.load(SeqCst),
        "no thread returns into the code, so its owner is dropped"
    );
}

/// The state of the trap handler.
struct Stepping<'a> {
    world: &'a World,
    mutator: &'a Mutator,
    library: &'a Library,
    objects: &'a Objects,
    steps: usize,
    /// Steps at which an outer managed frame was scanned by its map.
    outer: usize,
}

static STEPPING: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Runs after each instruction of the managed code. The signal frame lies between this function and
/// the managed frame, and the innermost frame's rule must hold behind it.
extern "C" fn trapped(_: i32, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    // SAFETY: the kernel's ucontext. Only a field that the kernel writes is read.
    let pc = unsafe {
        (&raw const (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext.gregs
            [libc::REG_RIP as usize])
            .read()
    };
    // SAFETY: the test has stored the pointer, and its thread runs the interrupted code.
    let stepping = unsafe { &mut *STEPPING.load(SeqCst).cast::<Stepping<'_>>() };
    if !stepping.library.text.contains(&(pc as usize)) {
        return;
    }
    let o = stepping.objects;
    let world = stepping.world;
    let found = stepping.mutator.blocking(|| {
        std::thread::scope(|s| s.spawn(|| stop_and_walk(world, &[o.rbx])).join().unwrap())
    });
    let what = format!(
        "at {:#x}: {:?}",
        pc as usize - stepping.library.text.start,
        found.stats
    );
    assert!(
        !found.stats.to_base && found.stats.unknown_sites == 0,
        "{what}"
    );
    // The native caller's RBX is in the register, or in the frame of the function that uses RBX.
    assert!(found.seen.contains(&!o.rbx), "{what}");
    match found.stats.precise {
        0 => assert!(found.exact.is_empty(), "{what}"),
        // The frame is `outer`'s, while `inner` is stepped through. Its slots are exact at each
        // instruction of its callee.
        1 => assert_eq!(found.exact, [!o.a, !o.b], "{what}"),
        _ => panic!("{what}"),
    }
    stepping.steps += 1;
    stepping.outer += found.stats.precise as usize;
}

extern "C" fn nothing(_: u64) {}

/// LLVM's unwind tables hold at each instruction of prologues, pushes of arguments and epilogues,
/// and a walk from each instruction reaches the stack's end.
#[test]
fn llvm_frames_are_walked_from_every_single_instruction() {
    hazard(
        "llvm_frames_are_walked_from_every_single_instruction",
        "map-behind-interruption",
        || {
            let Some(library) = Library::get() else {
                return fail_if_planted();
            };
            let o = Objects::new();
            let world = World::new(Config::default()).unwrap();
            let mutator = world.attach(ptr::null_mut()).unwrap();
            let guard = library.register(&world, None);
            let mut stepping = Stepping {
                world: &world,
                mutator: &mutator,
                library,
                objects: &o,
                steps: 0,
                outer: 0,
            };
            STEPPING.store((&raw mut stepping).cast(), SeqCst);
            let slot = library.symbol(c"urge_test_hook") as *mut usize;
            // SAFETY: the library's global, and a handler for the signal that the stepped functions
            // raise. Only this test uses them.
            unsafe {
                slot.write(nothing as *const () as usize);
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = trapped as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO;
                assert_eq!(libc::sigaction(libc::SIGTRAP, &action, ptr::null_mut()), 0);
            }
            for (name, c, d, result) in [
                (c"keep_two", 0, 0, 300),
                (c"keep_derived", 8, 1, 101),
                (c"keep_derived", 8, 0, 201),
                (c"outer", 0, 0, 306),
            ] {
                // SAFETY: functions of the fixture, with arguments of their types.
                let got = unsafe { urge_test_step(library.symbol(name), o.a, o.b, c, d, o.rbx) };
                assert_eq!(got, result, "{name:?}");
            }
            assert!(
                stepping.steps > 60 && stepping.outer > 10,
                "{} {}",
                stepping.steps,
                stepping.outer
            );
            drop(mutator);
            drop(guard);
            world.stop().unwrap().resume();
        },
    );
}

static IN_HOOK: AtomicBool = AtomicBool::new(false);
static LEAVE_HOOK: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn stop_hook(_: *mut ()) {
    IN_HOOK.store(true, SeqCst);
    while !LEAVE_HOOK.load(SeqCst) {
        std::hint::spin_loop();
    }
}

/// A stop injects a call of the hook into the loop. The next stop finds the thread inside the hook,
/// and the loop's frame behind an interruption.
#[test]
fn the_walk_passes_a_hook_that_runs_in_an_injected_call() {
    let _alone = alone();
    let Some(library) = Library::get() else {
        return;
    };
    let o = Objects::new();
    let world = World::new(Config::default()).unwrap();
    let guard = library.register(&world, None);
    static READY: AtomicBool = AtomicBool::new(false);
    static FLAG: AtomicU64 = AtomicU64::new(0);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mutator = world.attach(ptr::null_mut()).unwrap();
            // SAFETY: the hook may run anywhere in managed code.
            unsafe {
                mutator.set_stop_hook(Some(StopHook {
                    f: stop_hook,
                    data: ptr::null_mut(),
                }))
            };
            READY.store(true, SeqCst);
            // SAFETY: a function of the fixture, with arguments of its type.
            unsafe {
                let flag = !(FLAG.as_ptr() as usize);
                urge_test_call(library.symbol(c"spin"), o.a, flag, 0, 0, o.rbx);
            }
        });
        wait_for(&READY);
        // The hook runs only after a stop that found the thread in managed code.
        while !IN_HOOK.load(SeqCst) {
            world.stop().unwrap().resume();
            std::thread::yield_now();
        }
        let mut interrupted = 0;
        while interrupted < 20 {
            let mut found = Found::new(&[o.a, o.rbx]);
            let stopped = world.stop().unwrap();
            for mutator in stopped.mutators() {
                let stats = mutator.walk(&mut found);
                interrupted += stats.injected;
                found.stats += stats;
            }
            stopped.resume();
            assert!(found.seen.contains(&!o.a), "in the loop's register");
            assert!(found.seen.contains(&!o.rbx));
            assert!(!found.stats.to_base, "{:?}", found.stats);
        }
        LEAVE_HOOK.store(true, SeqCst);
        FLAG.store(1, SeqCst);
    });
    drop(guard);
    world.stop().unwrap().resume();
}
