//! Stops in code that declares how it may be stopped: injected calls, restart and unsafe ranges,
//! hooks, and the edges of stacks and blocking regions.

mod common;

use common::{
    Find, beside, hazard, hazard_with, is_child, register, stop_running_for_a_while, wait_for,
    world,
};
use gc_preempt::{
    CodeGuard, CodeWhat, Config, FrameRule, Origin, StopHook, World, stackmap::StackMaps,
};
use std::arch::global_asm;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

global_asm!(
    // rdi: *const AtomicBool done, rsi: *mut u64 mismatches. Holds patterns in the low and high
    // half of each vector register, and checks them in each turn.
    ".globl t_vector_loop",
    ".globl t_vector_loop_end",
    "t_vector_loop:",
    "push rbp",
    "mov rbp, rsp",
    "push rbx",
    "push r12",
    "mov rax, 0x0123456789abcdef",
    "vmovq xmm0, rax",
    "vpbroadcastq ymm0, xmm0",
    "mov r12, 0xfedcba9876543210",
    "vmovq xmm1, r12",
    "vpbroadcastq ymm15, xmm1",
    "mov rcx, 1",
    "1:",
    "vextracti128 xmm2, ymm0, 1",
    "vmovq rdx, xmm2",
    "cmp rdx, rax",
    "jne 2f",
    "vmovq rdx, xmm0",
    "cmp rdx, rax",
    "jne 2f",
    "vextracti128 xmm3, ymm15, 1",
    "vmovq rdx, xmm3",
    "cmp rdx, r12",
    "jne 2f",
    // The red zone must keep its value, and the flags theirs from a cmp to its jump.
    "mov qword ptr [rsp - 8], rcx",
    "mov qword ptr [rsp - 128], rcx",
    "cmp qword ptr [rsp - 8], rcx",
    "jne 2f",
    "cmp qword ptr [rsp - 128], rcx",
    "jne 2f",
    "inc rcx",
    "cmp byte ptr [rdi], 0",
    "je 1b",
    "jmp 3f",
    "2:",
    "inc qword ptr [rsi]",
    "3:",
    "vzeroupper",
    "mov rax, rcx",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    "t_vector_loop_end:",
    // rdi: *const AtomicBool done, rsi: *mut [u64; 2]. A restart range of two stores. Both words
    // increase together, or a stop shows that the range was left half done.
    ".globl t_pair_loop",
    ".globl t_pair_loop_end",
    ".globl t_pair_range",
    ".globl t_pair_range_end",
    "t_pair_loop:",
    "push rbp",
    "mov rbp, rsp",
    "1:",
    "pause",
    "pause",
    "pause",
    "mov rax, [rsi]",
    "inc rax",
    "t_pair_range:",
    "mov [rsi], rax",
    // Some processors retire two stores together and are hardly ever interrupted between them. So
    // the loop spends some of its time here, and more of it outside of the range, where the thread
    // can be stopped.
    "pause",
    "mov [rsi + 8], rax",
    "t_pair_range_end:",
    "cmp byte ptr [rdi], 0",
    "je 1b",
    "pop rbp",
    "ret",
    "t_pair_loop_end:",
);

unsafe extern "C" {
    fn t_vector_loop(done: *const AtomicBool, mismatches: *mut u64) -> u64;
    fn t_vector_loop_end();
    fn t_pair_loop(done: *const AtomicBool, pair: *mut [AtomicU64; 2]);
    fn t_pair_loop_end();
    fn t_pair_range();
    fn t_pair_range_end();
}

fn at(f: unsafe extern "C" fn()) -> usize {
    f as *const () as usize
}

fn managed(world: &World, range: std::ops::Range<usize>) -> CodeGuard {
    let what = CodeWhat::Managed {
        frames: FrameRule::Rbp,
        maps: StackMaps::default(),
        encoding: 0,
    };
    // SAFETY: the range is this program's text. The assembly has RBP frames and makes no calls.
    unsafe { register(world, range, what) }
}

fn vector_loop_range() -> std::ops::Range<usize> {
    t_vector_loop as *const () as usize..at(t_vector_loop_end)
}

/// Only one test at a time may register the vector loop. A test takes the lock before it makes its
/// world, so that the lock is released after the world's end.
static VECTOR_LOOP: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn vector_loop_alone() -> std::sync::MutexGuard<'static, ()> {
    VECTOR_LOOP
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Stops the vector loop until stops have met it running and have stopped it as `wanted`: 5,000
/// times, or after two seconds 200 times. A thread that is still parked from the stop before, or on
/// its way out of it, does not count.
fn stop_the_vector_loop(config: Config, wanted: Origin) {
    let _alone = vector_loop_alone();
    let world = World::new(config).unwrap();
    let _code = managed(&world, vector_loop_range());
    let mut mismatches = 0u64;
    let bad = AtomicUsize::new((&raw mut mismatches) as usize);
    beside(
        &world,
        |done| {
            // SAFETY: the assembly keeps the System V convention and writes only through its two
            // arguments.
            unsafe { t_vector_loop(done, bad.load(Relaxed) as *mut u64) };
        },
        || {
            let begun = Instant::now();
            let mut met = 0;
            while met < 200 || met < 5_000 && begun.elapsed() < Duration::from_secs(2) {
                let stopped = world.stop().unwrap();
                let origin = stopped.mutators().next().unwrap().snapshot().origin;
                assert!(config.inject || origin != Origin::Injected);
                let report = stopped.resume();
                if report.signalled == 1 && origin == wanted {
                    met += 1;
                } else {
                    std::thread::yield_now();
                }
            }
        },
    );
    assert_eq!(
        mismatches, 0,
        "a register, the red zone or a flag was changed by a stop"
    );
}

#[test]
fn h13_an_injected_stop_keeps_every_register_and_the_red_zone() {
    hazard(
        "h13_an_injected_stop_keeps_every_register_and_the_red_zone",
        "no-vector-save",
        || {
            stop_the_vector_loop(
                Config {
                    inject: true,
                    ..Config::default()
                },
                Origin::Injected,
            );
        },
    );
}

#[test]
fn h13_a_parked_stop_keeps_every_register_and_the_red_zone() {
    if is_child() {
        return;
    }
    stop_the_vector_loop(Config::default(), Origin::Signal);
}

#[test]
fn h13_a_word_only_in_a_vector_registers_high_half_is_found() {
    hazard(
        "h13_a_word_only_in_a_vector_registers_high_half_is_found",
        "no-vectors",
        || {
            let world = world();
            let mut mismatches = 0u64;
            let bad = AtomicUsize::new((&raw mut mismatches) as usize);
            beside(
                &world,
                |done| {
                    // SAFETY: the assembly keeps the System V convention and writes only through
                    // its two arguments.
                    unsafe { t_vector_loop(done, bad.load(Relaxed) as *mut u64) };
                },
                || {
                    let mut seen = 0;
                    while seen < 200 {
                        let stopped = world.stop().unwrap();
                        let m = stopped.mutators().next().unwrap();
                        if !vector_loop_range().contains(&m.snapshot().registers.pc) {
                            continue;
                        }
                        let v = m.snapshot().vectors.clone();
                        let mut find = Find::complement_of(!0x0123_4567_89ab_cdef);
                        if !v.is_empty() {
                            gc_preempt::RootSink::conservative(&mut find, v);
                        }
                        assert!(find.count > 0);
                        seen += 1;
                    }
                },
            );
        },
    );
}

/// Stops the pair loop, and says whether a stop ever saw its restart range half done.
fn pair_is_ever_torn(what: CodeWhat) -> bool {
    let world = world();
    let _code = managed(
        &world,
        t_pair_loop as *const () as usize..at(t_pair_loop_end),
    );
    let range = at(t_pair_range)..at(t_pair_range_end);
    // SAFETY: the range may restart from any of its instructions, because its inputs do not change.
    let _pair = unsafe { register(&world, range.clone(), what) };
    let pair = [AtomicU64::new(0), AtomicU64::new(0)];
    let target = AtomicUsize::new((&raw const pair) as usize);
    let mut torn = false;
    beside(
        &world,
        // SAFETY: the assembly writes only through its second argument.
        |done| unsafe { t_pair_loop(done, target.load(Relaxed) as *mut _) },
        || {
            // A stop meets the thread in the range a quarter of the time.
            stop_running_for_a_while(&world, 200, 5_000, |stopped| {
                let pc = stopped.mutators().next().unwrap().snapshot().registers.pc;
                torn |= pc > range.start && pc < range.end;
            });
        },
    );
    torn
}

#[test]
fn a_thread_is_never_stopped_inside_an_unsafe_range() {
    hazard(
        "a_thread_is_never_stopped_inside_an_unsafe_range",
        "no-unsafe-ranges",
        || {
            assert!(!pair_is_ever_torn(CodeWhat::Unsafe));
        },
    );
}

#[test]
fn a_thread_inside_a_restart_range_is_moved_to_its_start() {
    hazard(
        "a_thread_inside_a_restart_range_is_moved_to_its_start",
        "no-restart",
        || {
            assert!(!pair_is_ever_torn(CodeWhat::Restart));
        },
    );
}

/// The address of the interrupted PC in the context of the host's handler; 0 while the handler does
/// not run.
static HOSTS_PC: AtomicUsize = AtomicUsize::new(0);

/// The host's handler, which runs long enough to be stopped in.
extern "C" fn hosts(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel's context of this signal.
    let pc = unsafe { &raw mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize] };
    HOSTS_PC.store(pc as usize, SeqCst);
    for _ in 0..1_000 {
        std::hint::spin_loop();
    }
    HOSTS_PC.store(0, SeqCst);
}

/// The trap handler, which runs after each instruction. In the restart range it raises SIGUSR1,
/// which is delivered at that instruction when the handler returns.
extern "C" fn step(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel's context of this signal. The raised signal has a handler.
    unsafe {
        let pc = (*context).uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
        if pc > at(t_pair_range) && pc < at(t_pair_range_end) {
            libc::raise(libc::SIGUSR1);
        }
    }
}

/// Stops the pair loop in a host's handler, and says whether a stop ever saw the interrupted
/// restart range half done.
fn pair_is_ever_torn_behind_a_handler(what: CodeWhat) -> bool {
    for (signal, handler) in [
        (libc::SIGUSR1, hosts as *const ()),
        (libc::SIGTRAP, step as *const ()),
    ] {
        // SAFETY: the handlers are async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            if signal == libc::SIGTRAP {
                libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR1);
                libc::sigaddset(&raw mut action.sa_mask, libc::SIGURG);
            }
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
    let world = world();
    let _code = managed(
        &world,
        t_pair_loop as *const () as usize..at(t_pair_loop_end),
    );
    let range = at(t_pair_range)..at(t_pair_range_end);
    let is_unsafe = matches!(what, CodeWhat::Unsafe);
    // SAFETY: the range may restart from any of its instructions, because its inputs do not change.
    let _pair = unsafe { register(&world, range.clone(), what) };
    let pair = [AtomicU64::new(0), AtomicU64::new(0)];
    let target = AtomicUsize::new((&raw const pair) as usize);
    let (mut torn, mut inside) = (false, 0);
    beside(
        &world,
        // SAFETY: the assembly writes only through its second argument. The trap flag causes a
        // SIGTRAP after each instruction, which has a handler.
        |done| unsafe {
            std::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
            t_pair_loop(done, target.load(Relaxed) as *mut _);
            std::arch::asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq");
        },
        || {
            let begun = pair[0].load(Relaxed);
            while inside < 100 && !torn {
                let stopped = world.stop().unwrap();
                let saved = HOSTS_PC.load(SeqCst) as *const usize;
                if !saved.is_null() {
                    // SAFETY: the thread is stopped inside the handler whose context this is.
                    let pc = unsafe { saved.read_volatile() };
                    torn |= pc > range.start && pc < range.end;
                    inside += 1;
                }
                drop(stopped);
                if is_unsafe && pair[0].load(Relaxed) > begun + 1_000 {
                    break; // an unsafe range is never stopped inside
                }
                std::thread::yield_now();
            }
        },
    );
    torn
}

#[test]
fn a_handler_that_interrupted_an_unsafe_range_is_not_stopped() {
    hazard(
        "a_handler_that_interrupted_an_unsafe_range_is_not_stopped",
        "handlers-unmoved",
        || assert!(!pair_is_ever_torn_behind_a_handler(CodeWhat::Unsafe)),
    );
}

#[test]
fn what_a_handler_interrupted_in_a_restart_range_is_moved_to_its_start() {
    hazard(
        "what_a_handler_interrupted_in_a_restart_range_is_moved_to_its_start",
        "handlers-unmoved",
        || assert!(!pair_is_ever_torn_behind_a_handler(CodeWhat::Restart)),
    );
}

static HOOKED: AtomicU64 = AtomicU64::new(0);

/// A stop has met a running hook.
static MET: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn hook(data: *mut ()) {
    // One hook runs until a stop has met it, which is a stop inside an injected call.
    if HOOKED.fetch_add(data as u64, SeqCst) == 10 {
        while !MET.load(SeqCst) {
            std::hint::spin_loop();
        }
    }
    for _ in 0..3_000 {
        std::hint::spin_loop();
    }
}

#[test]
fn a_stop_hook_runs_on_the_mutators_own_stack_and_may_be_stopped_itself() {
    if is_child() {
        return;
    }
    let _alone = vector_loop_alone();
    let world = world();
    let _code = managed(&world, vector_loop_range());
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut mismatches = 0u64;
    let bad = AtomicUsize::new((&raw mut mismatches) as usize);
    let (mut stops, mut nested, mut walked) = (0u64, 0u64, 0u64);
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = world.attach(std::ptr::null_mut()).unwrap();
            // SAFETY: the hook counts and spins.
            unsafe {
                m.set_stop_hook(Some(StopHook {
                    f: hook,
                    data: std::ptr::without_provenance_mut(1),
                }))
            };
            ready.store(true, SeqCst);
            // SAFETY: the assembly keeps the System V convention and writes only through its two
            // arguments.
            unsafe { t_vector_loop(&raw const done, bad.load(Relaxed) as *mut u64) };
        });
        wait_for(&ready);
        stop_running_for_a_while(&world, 500, 5_000, |stopped| {
            let m = stopped.mutators().next().unwrap();
            stops += 1;
            let mut find = Find::complement_of(!0x0123_4567_89ab_cdef);
            nested += u64::from(m.walk(&mut find).injected);
            MET.store(nested > 0, SeqCst);
            walked += u64::from(find.count > 0);
        });
        done.store(true, SeqCst);
    });
    assert_eq!(mismatches, 0);
    assert!(HOOKED.load(SeqCst) > 100);
    assert!(nested > 0, "no stop ever met a running hook");
    assert!(
        walked * 100 > stops * 98,
        "the vector register behind the hook was found in {walked} of {stops} stops"
    );
}

#[test]
fn a_stop_is_not_injected_where_the_stack_has_no_room() {
    hazard_with(
        "a_stop_is_not_injected_where_the_stack_has_no_room",
        "no-room-check",
        &[("URGE_INJECT", "1")],
        || {
            let world = World::new(Config::from_env().unwrap()).unwrap();
            let _code = managed(&world, vector_loop_range());
            let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
            #[inline(never)]
            fn down(low: usize, done: &AtomicBool, ready: &AtomicBool) -> u64 {
                let here = [1u8; 512];
                let at = std::hint::black_box(&here).as_ptr() as usize;
                if at - low > 3072 {
                    let mismatches = down(low, done, ready);
                    std::hint::black_box(&here); // the frame lives until here
                    return mismatches;
                }
                ready.store(true, SeqCst);
                let mut mismatches = 0;
                // SAFETY: the assembly keeps the System V convention and writes only through its
                // two arguments.
                unsafe { t_vector_loop(done, &raw mut mismatches) };
                mismatches
            }
            std::thread::scope(|s| {
                let (world, done, ready) = (&world, &done, &ready);
                s.spawn(move || {
                    let m = world.attach(std::ptr::null_mut()).unwrap();
                    let id = m.id();
                    let low = m.blocking(|| {
                        std::thread::scope(|s| {
                            s.spawn(|| world.handshake(id, |m| m.stack().start).unwrap())
                                .join()
                                .unwrap()
                        })
                    });
                    assert_eq!(down(low, done, ready), 0);
                });
                wait_for(ready);
                let mut parked = 0;
                while parked < 200 {
                    let stopped = world.stop().unwrap();
                    parked += u32::from(
                        stopped.mutators().next().unwrap().snapshot().origin == Origin::Signal,
                    );
                }
                done.store(true, SeqCst);
            });
        },
    );
}

// ---- stacks that are not the thread's own, and the edge of a blocking region --------------------

global_asm!(
    // t_on_stack(f, data, top): calls f(data) on another stack, as a coroutine library does.
    ".globl t_on_stack",
    "t_on_stack:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rsp, rdx",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "mov rsp, rbp",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
);

unsafe extern "C" {
    fn t_on_stack(f: extern "C" fn(*mut ()), data: *mut (), top: usize);
}

fn on_another_stack(f: &mut dyn FnMut()) {
    extern "C" fn call(data: *mut ()) {
        // SAFETY: the caller passes its own closure.
        let f = unsafe { &mut *data.cast::<&mut dyn FnMut()>() };
        f();
    }
    let mut stack = vec![0u8; 256 * 1024];
    let top = (stack.as_mut_ptr() as usize + stack.len()) & !15;
    let mut f = f;
    // SAFETY: the memory is large enough and lives until the call returns. The closure does not
    // unwind.
    unsafe { t_on_stack(call, (&raw mut f).cast(), top) };
}

#[test]
fn a_poll_on_another_stack_waits_until_the_thread_is_back_on_its_own() {
    let name = "a_poll_on_another_stack_waits_until_the_thread_is_back_on_its_own";
    hazard(name, "no-stack-check", || {
        let world = world();
        let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| {
                let m = world.attach(std::ptr::null_mut()).unwrap();
                while !done.load(Relaxed) {
                    on_another_stack(&mut || {
                        for _ in 0..500 {
                            m.no_preempt(|| ready.store(true, SeqCst));
                        }
                    });
                    for _ in 0..2_000 {
                        std::hint::spin_loop();
                    }
                }
            });
            wait_for(&ready);
            // A tenth of the stops meets the thread on the other stack.
            stop_running_for_a_while(&world, 150, 1_000, |stopped| {
                let m = stopped.mutators().next().unwrap();
                assert!(m.stack().contains(&m.snapshot().registers.sp()));
            });
            done.store(true, SeqCst);
        });
    });
}

#[test]
fn blocking_on_another_stack_is_refused() {
    if is_child() {
        return;
    }
    let world = world();
    let m = world.attach(std::ptr::null_mut()).unwrap();
    let mut refused = false;
    on_another_stack(&mut || {
        let blocked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| m.blocking(|| ())));
        refused = blocked.is_err();
    });
    assert!(refused);
    m.blocking(|| ());
}

#[test]
fn a_blocked_thread_is_seen_where_it_entered() {
    // Without the section that `blocking` publishes, a stop between publishing and entering leaves
    // the handler's snapshot.
    hazard(
        "a_blocked_thread_is_seen_where_it_entered",
        "no-blocking-section,slow-blocking",
        || {
            let world = world();
            let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    let m = world.attach(std::ptr::null_mut()).unwrap();
                    ready.store(true, SeqCst);
                    while !done.load(Relaxed) {
                        m.blocking(|| {
                            // The region lasts much longer than the window before it, so that the
                            // stop after a stop in the window finds the thread in the region.
                            for _ in 0..20_000 {
                                std::hint::spin_loop();
                            }
                        });
                    }
                });
                wait_for(&ready);
                let mut held = 0;
                while held < 2_000 {
                    let stopped = world.stop().unwrap();
                    let m = stopped.mutators().next().unwrap();
                    if m.is_blocked() {
                        assert_eq!(m.snapshot().origin, Origin::Call);
                        held += 1;
                    }
                    drop(stopped);
                    // A held thread leaves the region only if no stop follows at once.
                    std::thread::sleep(Duration::from_micros(50));
                }
                done.store(true, SeqCst);
            });
        },
    );
}
