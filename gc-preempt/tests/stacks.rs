//! Stacks that are not the thread's own, or only for a while: alternate signal stacks, stacks
//! inside the thread's stack, and words that a long jump leaves there.

mod common;

use common::{Find, beside, hazard, register, spin, stop_running, wait_for, world};
use gc_preempt::{
    CodeGuard, CodeWhat, Config, FrameRule, Origin, StopHook, World, stackmap::StackMaps,
};
use std::arch::global_asm;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

global_asm!(
    // rdi: *const AtomicBool done, rsi: *mut u64 mismatches. A pattern fills YMM0.
    ".globl s_vector_loop",
    ".globl s_vector_loop_end",
    "s_vector_loop:",
    "push rbp",
    "mov rbp, rsp",
    "mov rax, 0x0123456789abcdef",
    "vmovq xmm0, rax",
    "vpbroadcastq ymm0, xmm0",
    "1:",
    "vextracti128 xmm2, ymm0, 1",
    "vmovq rdx, xmm2",
    "cmp rdx, rax",
    "jne 2f",
    "vmovq rdx, xmm0",
    "cmp rdx, rax",
    "jne 2f",
    "cmp byte ptr [rdi], 0",
    "je 1b",
    "jmp 3f",
    "2:",
    "inc qword ptr [rsi]",
    "3:",
    "vzeroupper",
    "pop rbp",
    "ret",
    "s_vector_loop_end:",
    // rdi, rsi: for the loop; rdx: the offset of SP from a multiple of 64.
    ".globl s_at_offset",
    "s_at_offset:",
    "push rbp",
    "mov rbp, rsp",
    "and rsp, -64",
    "sub rsp, rdx",
    "call s_vector_loop",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    // rdi, rsi: for the loop; rdx: a function that is called with rcx once `s_leave` has jumped out
    // of the loop's stop hook.
    ".globl s_drive",
    "s_drive:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov rbx, rdx",
    "mov r12, rcx",
    "mov [rip + s_saved], rsp",
    "call s_vector_loop",
    "s_landed:",
    "mov rdi, r12",
    "call rbx",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    // A stop hook that leaves as `longjmp` does.
    ".globl s_leave",
    "s_leave:",
    "mov rsp, [rip + s_saved]",
    "mov rbx, [rip + s_second]",
    "mov r12, [rip + s_argument]",
    "jmp s_landed",
    ".bss",
    ".p2align 3",
    "s_saved: .quad 0",
    ".globl s_second",
    "s_second: .quad 0",
    ".globl s_argument",
    "s_argument: .quad 0",
    ".text",
);

unsafe extern "C" {
    fn s_vector_loop(done: *const AtomicBool, mismatches: *mut u64);
    fn s_vector_loop_end();
    fn s_at_offset(done: *const AtomicBool, mismatches: *mut u64, offset: usize);
    fn s_drive(
        done: *const AtomicBool,
        mismatches: *mut u64,
        second: extern "C" fn(*const AtomicBool),
        argument: *const AtomicBool,
    );
    fn s_leave(data: *mut ());
    static s_second: AtomicUsize;
    static s_argument: AtomicUsize;
}

fn managed_loop(world: &World) -> CodeGuard {
    let range = s_vector_loop as *const () as usize..s_vector_loop_end as *const () as usize;
    let what = CodeWhat::Managed {
        frames: FrameRule::Rbp,
        maps: StackMaps::default(),
        encoding: 0,
    };
    // SAFETY: the range is this program's text. The loop has an RBP frame and makes no calls.
    unsafe { register(world, range, what) }
}

/// The alternate stack of the calling thread.
fn setting() -> libc::stack_t {
    let mut now = MaybeUninit::<libc::stack_t>::uninit();
    // SAFETY: a null stack only reads the setting, and the call fills `now`.
    unsafe {
        libc::sigaltstack(std::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    }
}

fn set(stack: &libc::stack_t) {
    // SAFETY: the callers keep the memory for longer than the thread uses it.
    let result = unsafe { libc::sigaltstack(stack, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

const NONE: libc::stack_t = libc::stack_t {
    ss_sp: std::ptr::null_mut(),
    ss_flags: libc::SS_DISABLE,
    ss_size: 0,
};

fn of(memory: &mut [u8]) -> libc::stack_t {
    libc::stack_t {
        ss_sp: memory.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: memory.len(),
    }
}

// ---- the stack that the handler runs on ---------------------------------------------------------

#[test]
fn h46_a_call_is_injected_only_from_the_threads_alternate_stack() {
    hazard(
        "h46_a_call_is_injected_only_from_the_threads_alternate_stack",
        "injects-anywhere",
        || {
            let world = World::new(Config {
                inject: true,
                ..Config::default()
            })
            .unwrap();
            let _code = managed_loop(&world);
            let mut injected = 0;
            for offset in (0..64).step_by(8) {
                let mut mismatches = 0u64;
                let bad = AtomicUsize::new((&raw mut mismatches) as usize);
                beside(
                    &world,
                    |done| {
                        set(&NONE);
                        // SAFETY: the assembly writes only through its second argument.
                        unsafe { s_at_offset(done, bad.load(Relaxed) as *mut u64, offset) };
                    },
                    || {
                        std::thread::sleep(Duration::from_millis(5));
                        stop_running(&world, 100, |stopped| {
                            let m = stopped.mutators().next().unwrap();
                            injected += u32::from(m.snapshot().origin == Origin::Injected);
                        });
                    },
                );
                assert_eq!(mismatches, 0, "a vector register was changed by a stop");
            }
            assert_eq!(injected, 0);
        },
    );
}

/// A host sets its own small alternate stack after it has attached. A stop must not write below
/// that stack.
#[test]
fn h47_the_handler_does_not_run_on_a_hosts_small_alternate_stack() {
    hazard(
        "h47_the_handler_does_not_run_on_a_hosts_small_alternate_stack",
        "stays-on-stack",
        || {
            const BELOW: usize = 64 << 10;
            // SAFETY: the call only reads.
            let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
            let mut memory = vec![0xAA_u8; BELOW + frame + 2048];
            let world = world();
            let memory_of_thread = &mut memory;
            let checked = AtomicBool::new(false);
            beside(
                &world,
                |done| {
                    let (below, small) = memory_of_thread.split_at_mut(BELOW);
                    let theirs = of(small);
                    set(&theirs);
                    // A blocked signal requires a walk, which takes the largest part of a handler's
                    // stack.
                    // SAFETY: the first call fills the set.
                    unsafe {
                        let mut mask = std::mem::zeroed();
                        libc::sigemptyset(&raw mut mask);
                        libc::sigaddset(&raw mut mask, libc::SIGUSR2);
                        libc::pthread_sigmask(
                            libc::SIG_BLOCK,
                            &raw const mask,
                            std::ptr::null_mut(),
                        );
                    }
                    spin(done);
                    assert_eq!(setting().ss_sp, theirs.ss_sp, "it stays the host's");
                    set(&NONE);
                    assert!(
                        below.iter().all(|b| *b == 0xAA),
                        "a handler ran below the host's stack"
                    );
                    checked.store(true, SeqCst);
                },
                || {
                    std::thread::sleep(Duration::from_millis(5));
                    stop_running(&world, 50, |_| {});
                },
            );
            assert!(checked.load(SeqCst));
        },
    );
}

// ---- the owners of alternate stacks -------------------------------------------------------------

/// A host sets its own alternate stack before a detach, and afterwards restores the old one, which
/// is Urge's.
#[test]
fn h47_an_alternate_stack_that_a_host_restores_is_still_its_threads() {
    hazard(
        "h47_an_alternate_stack_that_a_host_restores_is_still_its_threads",
        "alternate-given-back",
        || {
            let world = world();
            let mut memory = vec![0u8; 64 << 10];
            let before = setting();
            let mutator = world.attach(std::ptr::null_mut()).unwrap();
            let old = setting();
            set(&of(&mut memory));
            drop(mutator);
            set(&old);
            let base = old.ss_sp as usize;
            std::thread::scope(|s| {
                s.spawn(|| {
                    let _m = world.attach(std::ptr::null_mut()).unwrap();
                    assert_ne!(setting().ss_sp as usize, base, "two threads have one stack");
                });
            });
            // A second attach finds that stack, and the detach restores the host's first one.
            let mutator = world.attach(std::ptr::null_mut()).unwrap();
            assert_eq!(setting().ss_sp, old.ss_sp);
            drop(mutator);
            assert_eq!(setting().ss_sp, before.ss_sp);
        },
    );
}

/// Go's runtime remembers the alternate stack that it has seen on a thread, and ends the process
/// when that stack is disabled.
#[test]
fn h47_an_alternate_stack_where_there_was_none_stays_until_the_thread_ends() {
    hazard(
        "h47_an_alternate_stack_where_there_was_none_stays_until_the_thread_ends",
        "disables-alternate",
        || {
            let world = world();
            set(&NONE);
            drop(world.attach(std::ptr::null_mut()).unwrap());
            let seen = setting();
            assert_eq!(seen.ss_flags & libc::SS_DISABLE, 0);
            drop(world.attach(std::ptr::null_mut()).unwrap());
            assert_eq!(setting().ss_sp, seen.ss_sp);
        },
    );
}

#[test]
fn h47_the_alternate_stack_of_a_thread_that_has_ended_is_used_again() {
    let world = world();
    let mut seen = Vec::new();
    for _ in 0..100 {
        let world = world.clone();
        // Not a scoped thread, because a scope ends before its threads' key destructors run.
        let stack = std::thread::spawn(move || {
            set(&NONE);
            drop(world.attach(std::ptr::null_mut()).unwrap());
            setting().ss_sp as usize
        });
        seen.push(stack.join().unwrap());
    }
    seen.sort_unstable();
    seen.dedup();
    // Threads of other tests take some stacks at the same time.
    assert!(seen.len() < 20, "{} stacks for 100 threads", seen.len());
}

/// A handler that uses 300 KB of stack.
extern "C" fn large_handler(_: i32) {
    #[inline(never)]
    fn deep(n: u32) -> u32 {
        let here = std::hint::black_box([1u8; 4096]);
        if n == 0 {
            return 0;
        }
        deep(n - 1) + u32::from(std::hint::black_box(here)[5])
    }
    std::hint::black_box(deep(75));
}

/// On a thread without an alternate stack, handlers may use as much of the thread's own stack as
/// they need, with SA_ONSTACK or without.
#[test]
fn h47_a_hosts_large_handler_has_room_after_attaching_as_before() {
    hazard(
        "h47_a_hosts_large_handler_has_room_after_attaching_as_before",
        "small-alternate",
        || {
            // SAFETY: the handler is async-signal-safe.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = large_handler as *const () as usize;
                action.sa_flags = libc::SA_ONSTACK;
                libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
            }
            let world = world();
            std::thread::spawn(move || {
                set(&NONE);
                // SAFETY: a signal to this thread, which has a handler.
                unsafe { libc::raise(libc::SIGUSR1) };
                let _m = world.attach(std::ptr::null_mut()).unwrap();
                // SAFETY: a signal to this thread, which has a handler.
                unsafe { libc::raise(libc::SIGUSR1) };
            })
            .join()
            .unwrap();
        },
    );
}

// ---- other stacks inside the thread's own, and words left on it ---------------------------------

/// The complement of the word that the walks count, so that the word itself lies in no other place.
const ROOT: usize = !0x00ab_cdef_1234_5678;

unsafe extern "C" {
    fn getcontext(context: *mut libc::ucontext_t) -> i32;
    fn makecontext(context: *mut libc::ucontext_t, f: extern "C" fn(), n: i32, ...);
    fn swapcontext(from: *mut libc::ucontext_t, to: *const libc::ucontext_t) -> i32;
}

static IN_COROUTINE: AtomicBool = AtomicBool::new(false);
static LEAVE: AtomicBool = AtomicBool::new(false);

extern "C" fn coroutine() {
    IN_COROUTINE.store(true, SeqCst);
    spin(&LEAVE);
}

/// Holds the only copies of a root while `f` runs.
#[inline(never)]
fn holding(f: &mut dyn FnMut()) {
    let root = std::hint::black_box([!ROOT; 4]);
    f();
    std::hint::black_box(&root);
}

/// Runs the coroutine on a stack in a local array. The frame that holds the root lies either
/// further in than the array or further out.
#[inline(never)]
fn on_a_local_array(further_in: bool) {
    let mut array = [0u64; 32 << 10];
    // SAFETY: `getcontext` fills the contexts before their use, and the array outlives the
    // coroutine.
    unsafe {
        let (mut back, mut there) = (std::mem::zeroed(), std::mem::zeroed::<libc::ucontext_t>());
        getcontext(&raw mut there);
        there.uc_stack.ss_sp = array.as_mut_ptr().cast();
        there.uc_stack.ss_size = size_of_val(&array);
        there.uc_link = &raw mut back;
        makecontext(&raw mut there, coroutine, 0);
        let mut run = || {
            swapcontext(&raw mut back, &raw const there);
        };
        if further_in {
            holding(&mut run);
        } else {
            run();
        }
    }
    std::hint::black_box(&mut array);
}

#[test]
fn h49_frames_around_a_coroutine_on_a_local_array_are_scanned() {
    hazard(
        "h49_frames_around_a_coroutine_on_a_local_array_are_scanned",
        "ends-anywhere",
        || {
            for further_in in [false, true] {
                let world = world();
                IN_COROUTINE.store(false, SeqCst);
                LEAVE.store(false, SeqCst);
                beside(
                    &world,
                    |_| {
                        if further_in {
                            on_a_local_array(true);
                        } else {
                            holding(&mut || on_a_local_array(false));
                        }
                    },
                    || {
                        wait_for(&IN_COROUTINE);
                        let stopped = world.stop().unwrap();
                        let mut find = Find::complement_of(ROOT);
                        stopped.mutators().next().unwrap().walk(&mut find);
                        drop(stopped);
                        LEAVE.store(true, SeqCst);
                        assert!(
                            find.count >= 4,
                            "found {} of 4, further in: {further_in}",
                            find.count
                        );
                    },
                );
            }
        },
    );
}

static AFTER: AtomicBool = AtomicBool::new(false);

/// Overwrites the stack that the injected call used, with words of its own.
#[inline(never)]
extern "C" fn after_the_jump(done: *const AtomicBool) {
    let words = std::hint::black_box([!ROOT; 8 << 10]);
    AFTER.store(true, SeqCst);
    // SAFETY: the caller's flag outlives this call.
    spin(unsafe { &*done });
    std::hint::black_box(&words);
}

/// A list of running hooks that was kept on their stack would now lead into these words.
#[test]
fn h48_a_stop_hook_that_is_left_by_a_long_jump_leaves_nothing_behind() {
    let world = world();
    let _code = managed_loop(&world);
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let mutator = world.attach(std::ptr::null_mut()).unwrap();
            let mut mismatches = 0;
            // SAFETY: the hook jumps to `s_drive`, and only the loop's frame lies between the two.
            unsafe {
                mutator.set_stop_hook(Some(StopHook {
                    f: s_leave,
                    data: std::ptr::null_mut(),
                }));
                s_second.store(after_the_jump as *const () as usize, SeqCst);
                s_argument.store((&raw const done) as usize, SeqCst);
                ready.store(true, SeqCst);
                s_drive(
                    &raw const done,
                    &raw mut mismatches,
                    after_the_jump,
                    &raw const done,
                );
            }
        });
        wait_for(&ready);
        while !AFTER.load(SeqCst) {
            drop(world.stop().unwrap());
            std::thread::yield_now();
        }
        for _ in 0..20 {
            let stopped = world.stop().unwrap();
            let mut find = Find::complement_of(ROOT);
            let stats = stopped.mutators().next().unwrap().walk(&mut find);
            drop(stopped);
            assert_eq!(stats.injected, 0);
            assert!(find.count >= 8 << 10, "found {}", find.count);
        }
        done.store(true, SeqCst);
    });
}
