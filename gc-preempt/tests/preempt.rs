//! Requests to preempt one thread: in loops without polls, beside stops, at each instruction of a
//! function, and at threads that must not be preempted.

mod common;

use common::{hazard, is_child, register, stop_running, wait_for, world};
use gc_preempt::{
    CodeGuard, CodeWhat, Config, FrameRule, Mutator, PreemptHook, Preempter, StopHook, World,
    preempt_wanted_here, stackmap::StackMaps, take_preempt_request_here,
};
use std::arch::{asm, global_asm};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

global_asm!(
    // rdi: *const AtomicBool done, rsi: *mut u64 mismatches. Holds patterns in vector registers,
    // the red zone and the flags, and checks them in each turn.
    ".globl p_loop",
    ".globl p_loop_end",
    "p_loop:",
    "push rbp",
    "mov rbp, rsp",
    "push r12",
    "push r13",
    "mov r13, 0x0123456789abcdef",
    "vmovq xmm0, r13",
    "vpbroadcastq ymm7, xmm0",
    "mov r12, 1",
    "1:",
    "vextracti128 xmm2, ymm7, 1",
    "vmovq rdx, xmm2",
    "cmp rdx, r13",
    "jne 2f",
    "mov qword ptr [rsp - 8], r12",
    "mov qword ptr [rsp - 128], r12",
    "cmp qword ptr [rsp - 8], r12",
    "jne 2f",
    "cmp qword ptr [rsp - 128], r12",
    "jne 2f",
    "inc r12",
    "cmp byte ptr [rdi], 0",
    "je 1b",
    "jmp 3f",
    "2:",
    "inc qword ptr [rsi]",
    "3:",
    "vzeroupper",
    "pop r13",
    "pop r12",
    "pop rbp",
    "ret",
    "p_loop_end:",
    // rdi: *const AtomicBool done, rsi: *mut [u64; 2]. Both words grow together.
    ".globl p_pair",
    ".globl p_pair_begin",
    ".globl p_pair_done",
    ".globl p_pair_end",
    "p_pair:",
    "push rbp",
    "mov rbp, rsp",
    "1:",
    "pause",
    "mov rax, [rsi]",
    "inc rax",
    "p_pair_begin:",
    "mov [rsi], rax",
    "pause",
    "mov [rsi + 8], rax",
    "p_pair_done:",
    "cmp byte ptr [rdi], 0",
    "je 1b",
    "pop rbp",
    "ret",
    "p_pair_end:",
    // p_steps(n): a prologue, a loop of n turns and an epilogue, with values in registers of each
    // sort, the red zone, the carry flag and a vector register.
    ".globl p_steps",
    ".globl p_steps_end",
    "p_steps:",
    "push rbp",
    "mov rbp, rsp",
    "push rbx",
    "push r14",
    "sub rsp, 16",
    "xor eax, eax",
    "xor ebx, ebx",
    "mov r14, 0x1111111111111111",
    "vpxor xmm3, xmm3, xmm3",
    "vmovq xmm4, r14",
    "vpbroadcastq ymm4, xmm4",
    "mov [rsp], rdi",
    "1:",
    "vpaddq ymm3, ymm3, ymm4",
    "mov [rsp - 16], r14",
    "mov rdx, -1",
    "add rdx, r14", // sets the carry
    "adc rax, [rsp - 16]",
    "rol rax, 7",
    "lea rbx, [rbx + rax]",
    "dec qword ptr [rsp]",
    "jnz 1b",
    "vextracti128 xmm3, ymm3, 1",
    "vmovq rcx, xmm3",
    "vzeroupper",
    "xor rax, rcx",
    "add rax, rbx",
    "add rsp, 16",
    "pop r14",
    "pop rbx",
    "pop rbp",
    "ret",
    "p_steps_end:",
);

unsafe extern "C" {
    fn p_loop(done: *const AtomicBool, mismatches: *mut u64);
    fn p_loop_end();
    fn p_pair(done: *const AtomicBool, pair: *const [AtomicU64; 2]);
    fn p_pair_begin();
    fn p_pair_done();
    fn p_pair_end();
    fn p_steps(turns: u64) -> u64;
    fn p_steps_end();
}

fn at(f: unsafe extern "C" fn()) -> usize {
    f as *const () as usize
}

fn loop_range() -> Range<usize> {
    p_loop as *const () as usize..at(p_loop_end)
}

fn managed(world: &World, range: Range<usize>) -> CodeGuard {
    let what = CodeWhat::Managed {
        frames: FrameRule::Rbp,
        maps: StackMaps::default(),
        encoding: 0,
    };
    // SAFETY: the range is this program's text. The assembly has RBP frames and makes no calls.
    unsafe { register(world, range, what) }
}

/// The tests share the assembly, which one world at a time may register, and the counts.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    HOOKED.store(0, SeqCst);
    alone
}

static HOOKED: AtomicU64 = AtomicU64::new(0);

/// Counts, and overwrites what a call may overwrite.
unsafe extern "C" fn count(data: *mut ()) {
    HOOKED.fetch_add(data as u64, SeqCst);
    // SAFETY: changes registers only.
    unsafe {
        asm!("vpcmpeqd ymm7, ymm7, ymm7", "vpcmpeqd ymm3, ymm3, ymm3", "vzeroupper",
            out("ymm3") _, out("ymm7") _, clobber_abi("C"));
    }
}

fn set_hook(m: &Mutator, f: unsafe extern "C" fn(*mut ()), data: *mut ()) {
    // SAFETY: the hooks of these tests may run anywhere, and their data lives long enough.
    unsafe { m.set_preempt_hook(Some(PreemptHook { f, data })) };
}

const ONE: *mut () = std::ptr::without_provenance_mut(1);

/// Runs `body` on an attached thread with the counting hook, and `requester` on this thread.
/// `body` must return after the flag was set.
fn preempted(
    world: &World,
    body: impl FnOnce(&AtomicBool, &Mutator) + Send,
    requester: impl FnOnce(&Preempter),
) {
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let handle = OnceLock::new();
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = world.attach(std::ptr::null_mut()).unwrap();
            set_hook(&m, count, ONE);
            handle.set(m.preempter()).unwrap();
            ready.store(true, SeqCst);
            body(&done, &m);
        });
        wait_for(&ready);
        requester(handle.get().unwrap());
        done.store(true, SeqCst);
    });
}

/// Requests until the hook has run so often.
fn request(preempter: &Preempter, times: u64) {
    while HOOKED.load(SeqCst) < times {
        assert!(preempter.preempt());
        std::thread::yield_now();
    }
}

#[test]
fn a_loop_without_polls_is_preempted_and_keeps_every_register() {
    if is_child() {
        return;
    }
    let _alone = alone();
    let world = world();
    let _code = managed(&world, loop_range());
    let mut mismatches = 0u64;
    let bad = AtomicUsize::new((&raw mut mismatches) as usize);
    preempted(
        &world,
        // SAFETY: the assembly keeps the System V convention and writes only through its arguments.
        |done, _| unsafe { p_loop(done, bad.load(Relaxed) as *mut u64) },
        |preempter| request(preempter, 3_000),
    );
    assert_eq!(mismatches, 0);
}

#[test]
fn requests_and_stops_meet_without_harm() {
    if is_child() {
        return;
    }
    let _alone = alone();
    for inject in [false, true] {
        HOOKED.store(0, SeqCst);
        static STOPS: AtomicU64 = AtomicU64::new(0);
        unsafe extern "C" fn stopped(_: *mut ()) {
            STOPS.fetch_add(1, SeqCst);
        }
        let config = Config {
            inject,
            ..Config::default()
        };
        let world = World::new(config).unwrap();
        let _code = managed(&world, loop_range());
        let mut mismatches = 0u64;
        let bad = AtomicUsize::new((&raw mut mismatches) as usize);
        let over = AtomicBool::new(false);
        preempted(
            &world,
            |done, m| {
                if inject {
                    let hook = StopHook {
                        f: stopped,
                        data: std::ptr::null_mut(),
                    };
                    // SAFETY: the hook counts.
                    unsafe { m.set_stop_hook(Some(hook)) };
                }
                // SAFETY: as above.
                unsafe { p_loop(done, bad.load(Relaxed) as *mut u64) };
            },
            |preempter| {
                std::thread::scope(|s| {
                    s.spawn(|| {
                        while !over.load(SeqCst) {
                            stop_running(&world, 1, |stopped| {
                                assert_eq!(stopped.mutators().count(), 1);
                            });
                        }
                    });
                    request(preempter, 1_000);
                    over.store(true, SeqCst);
                });
            },
        );
        assert_eq!(mismatches, 0);
        assert_eq!(STOPS.load(SeqCst) > 0, inject);
    }
}

static PAIR: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static TORN: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn compare(data: *mut ()) {
    let torn = PAIR[0].load(SeqCst) != PAIR[1].load(SeqCst);
    TORN.fetch_add(u64::from(torn), SeqCst);
    HOOKED.fetch_add(data as u64, SeqCst);
}

/// Says whether a preemption ever found the pair half done.
fn is_ever_torn(what: CodeWhat) -> bool {
    let _alone = alone();
    TORN.store(0, SeqCst);
    let world = world();
    let _code = managed(&world, p_pair as *const () as usize..at(p_pair_end));
    // SAFETY: the range may begin again, because its inputs do not change.
    let _pair = unsafe { register(&world, at(p_pair_begin)..at(p_pair_done), what) };
    preempted(
        &world,
        |done, m| {
            set_hook(m, compare, ONE);
            // SAFETY: the assembly writes only through its second argument. A preempted loop begins
            // its range again with the values that it has loaded.
            unsafe { p_pair(done, &raw const PAIR) };
        },
        |preempter| request(preempter, 500),
    );
    TORN.load(SeqCst) != 0
}

#[test]
fn a_preemption_waits_outside_of_unsafe_ranges() {
    hazard(
        "a_preemption_waits_outside_of_unsafe_ranges",
        "no-unsafe-ranges",
        || assert!(!is_ever_torn(CodeWhat::Unsafe)),
    );
}

#[test]
fn a_request_leaves_a_blocked_thread_alone() {
    hazard(
        "a_request_leaves_a_blocked_thread_alone",
        "preempts-blocked",
        || {
            let _alone = alone();
            let world = world();
            let (sleeps, over) = (AtomicBool::new(false), AtomicBool::new(false));
            preempted(
                &world,
                |_, m| {
                    m.blocking(|| {
                        sleeps.store(true, SeqCst);
                        let time = libc::timespec {
                            tv_sec: 0,
                            tv_nsec: 300_000_000,
                        };
                        // SAFETY: sleeps, and writes nothing.
                        let slept =
                            unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
                        over.store(true, SeqCst);
                        assert_eq!(slept, 0, "EINTR");
                    });
                    assert!(m.preempt_wanted());
                },
                |preempter| {
                    wait_for(&sleeps);
                    while !over.load(SeqCst) {
                        assert!(preempter.preempt());
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                },
            );
            assert_eq!(HOOKED.load(SeqCst), 0);
        },
    );
}

#[test]
fn a_request_to_a_thread_that_has_ended_does_nothing() {
    hazard(
        "a_request_to_a_thread_that_has_ended_does_nothing",
        "preempts-successor",
        || {
            let _alone = alone();
            let world = world();
            let attach = || world.attach(std::ptr::null_mut()).unwrap();
            let gone = std::thread::scope(|s| s.spawn(|| attach().preempter()).join().unwrap());
            assert!(!gone.preempt());
            // This thread gets the record that was given back last.
            let m = attach();
            assert!(!gone.preempt());
            assert!(!m.preempt_wanted());
            assert!(m.preempter().preempt());
            assert!(take_preempt_request_here());
            assert!(!preempt_wanted_here());
        },
    );
}

#[test]
fn a_request_inside_no_preempt_stays_marked_until_the_thread_may_be_preempted() {
    if is_child() {
        return;
    }
    let _alone = alone();
    let world = world();
    let _code = managed(&world, loop_range());
    let inner_done = AtomicBool::new(false);
    let mut mismatches = 0u64;
    let bad = AtomicUsize::new((&raw mut mismatches) as usize);
    preempted(
        &world,
        |done, m| {
            // SAFETY: the assembly writes only through its arguments.
            m.no_preempt(|| unsafe {
                p_loop(&raw const inner_done, bad.load(Relaxed) as *mut u64)
            });
            assert!(preempt_wanted_here());
            // SAFETY: as above.
            unsafe { p_loop(done, bad.load(Relaxed) as *mut u64) };
        },
        |preempter| {
            for _ in 0..100 {
                assert!(preempter.preempt());
                std::thread::yield_now();
            }
            assert_eq!(HOOKED.load(SeqCst), 0);
            inner_done.store(true, SeqCst);
            request(preempter, 1);
        },
    );
    assert_eq!(mismatches, 0);
}

#[test]
fn a_stop_serves_a_request_that_found_the_thread_in_native_code() {
    if is_child() {
        return;
    }
    let _alone = alone();
    let world = world();
    let _code = managed(&world, loop_range());
    let mut mismatches = 0u64;
    let bad = AtomicUsize::new((&raw mut mismatches) as usize);
    let marked = AtomicBool::new(false);
    preempted(
        &world,
        |done, m| {
            assert!(m.preempter().preempt()); // native code, so it only marks
            marked.store(true, SeqCst);
            // SAFETY: the assembly writes only through its arguments.
            unsafe { p_loop(done, bad.load(Relaxed) as *mut u64) };
        },
        |_| {
            wait_for(&marked);
            while HOOKED.load(SeqCst) == 0 {
                drop(world.stop().unwrap());
                std::thread::yield_now();
            }
        },
    );
    assert_eq!((mismatches, HOOKED.load(SeqCst)), (0, 1));
}

#[test]
fn the_child_of_a_fork_has_no_request() {
    if is_child() {
        return;
    }
    let _alone = alone();
    let world = world();
    let m = world.attach(std::ptr::null_mut()).unwrap();
    assert!(m.preempter().preempt());
    // SAFETY: the child only reads and exits.
    let status = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::_exit(i32::from(preempt_wanted_here()));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        status
    };
    assert_eq!(status, 0);
    assert!(take_preempt_request_here());
}

// ---- single steps -------------------------------------------------------------------------------

/// The steps in the stepped function so far, and the step at which the trap handler preempts.
static STEP: AtomicU64 = AtomicU64::new(0);
static TARGET: AtomicU64 = AtomicU64::new(u64::MAX);
static OWN: OnceLock<Preempter> = OnceLock::new();

/// Runs after each instruction. SIGURG is blocked in it, and delivered at that instruction.
extern "C" fn step(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel's context of this signal.
    let pc = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] as usize };
    if !(p_steps as *const () as usize..at(p_steps_end)).contains(&pc) {
        return;
    }
    if STEP.fetch_add(1, Relaxed) == TARGET.load(Relaxed) {
        OWN.get().unwrap().preempt(); // marks
        // SAFETY: SIGURG has a handler.
        unsafe { libc::raise(libc::SIGURG) };
    }
}

/// Calls the function with a trap after each instruction.
fn stepped(turns: u64) -> u64 {
    STEP.store(0, Relaxed);
    // SAFETY: the trap flag causes a SIGTRAP after each instruction, which has a handler.
    unsafe {
        asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
        let answer = p_steps(turns);
        asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq");
        answer
    }
}

#[test]
fn a_function_is_preempted_at_each_instruction_of_its_prologue_loop_and_epilogue() {
    let name = "a_function_is_preempted_at_each_instruction_of_its_prologue_loop_and_epilogue";
    hazard(name, "no-vector-save", || {
        let world = world();
        let _code = managed(&world, p_steps as *const () as usize..at(p_steps_end));
        let m = world.attach(std::ptr::null_mut()).unwrap();
        set_hook(&m, count, ONE);
        OWN.set(m.preempter()).unwrap();
        // SAFETY: the handler is async-signal-safe: no other thread takes the registry lock.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = step as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigaddset(&raw mut action.sa_mask, libc::SIGURG);
            libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut());
        }
        // SAFETY: computes.
        let wanted = unsafe { p_steps(3) };
        assert_eq!(stepped(3), wanted);
        let steps = STEP.load(Relaxed);
        assert!(steps > 40, "{steps}");
        for target in 0..steps {
            TARGET.store(target, Relaxed);
            assert_eq!(stepped(3), wanted, "preempted at step {target}");
            assert_eq!(HOOKED.load(SeqCst), target + 1);
        }
    });
}
