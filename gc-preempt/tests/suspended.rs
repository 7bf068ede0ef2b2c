//! Suspended stacks: what a walk finds on them, when they are reported, and what becomes of them.

mod common;

use common::stacks::{
    HELD, c_held_in_a_loop, c_held_in_a_loop_end, clear_below, held_by_callee, stack, start,
    suspended,
};
use common::{Find, bare_thread, hazard, hazard_under, is_child, register, spin, wait_for, world};
use gc_preempt::faults::while_held;
use gc_preempt::stackmap::StackMaps;
use gc_preempt::{
    CodeSpec, CodeWhat, FrameRule, Resumed, Stack, StackError, StackHooks, StackMemory, StackPool,
    StackState, StopHook, SuspendedStack, World, in_no_preempt_here, suspend,
};
use std::arch::global_asm;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};

/// Starts a function that holds the word in a saved register, and suspends itself.
fn holding(world: &World, word: usize) -> Stack {
    let stack = stack(world);
    let not = !word;
    start(&stack, move || {
        assert_eq!(held_by_callee(not, suspended), not);
        clear_below();
        suspended();
    });
    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
    stack
}

fn count(stack: &SuspendedStack<'_>, word: usize) -> usize {
    let mut found = Find::complement_of(!word);
    let stats = stack.walk(&mut found);
    assert!(!stats.to_base, "{stats:?}");
    found.count
}

/// How often a stop finds the word on suspended stacks. The calling thread is no mutator.
fn in_a_stop(world: &World, word: usize) -> usize {
    let stopped = world.stop().unwrap();
    let mut sum = 0;
    for stack in stopped.suspended() {
        sum += count(&stack, word);
    }
    drop(stopped);
    sum
}

fn on_a_mutator<R: Send>(world: &World, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            let _mutator = world.attach(std::ptr::null_mut()).unwrap();
            f()
        });
        thread.join().unwrap()
    })
}

// ---- what a walk finds --------------------------------------------------------------------------

#[test]
fn h111_a_word_in_a_saved_register_of_a_suspended_stack_is_found() {
    const WORD: usize = 0x6b6b_0001;
    hazard(
        "h111_a_word_in_a_saved_register_of_a_suspended_stack_is_found",
        "left-above-saves",
        || {
            let world = world();
            let stack = on_a_mutator(&world, || holding(&world, WORD));
            assert!(in_a_stop(&world, WORD) >= HELD);
            on_a_mutator(&world, || {
                assert_eq!(stack.resume(), Ok(Resumed::Suspended));
            });
            assert_eq!(in_a_stop(&world, WORD), 0);
            on_a_mutator(&world, || {
                assert_eq!(stack.resume(), Ok(Resumed::Finished));
            });
        },
    );
}

#[test]
fn a_function_that_has_not_run_yet_is_found_with_what_it_has_captured() {
    const WORD: usize = 0x6b6b_0002;
    let world = world();
    let stack = stack(&world);
    let not = std::hint::black_box(!WORD);
    let sum = Arc::new(AtomicUsize::new(0));
    let (word, to) = (!not, sum.clone());
    start(&stack, move || to.store(word, SeqCst));
    assert_eq!(in_a_stop(&world, WORD), 1);
    on_a_mutator(&world, || {
        assert_eq!(stack.resume(), Ok(Resumed::Finished));
    });
    assert_eq!((sum.load(SeqCst), in_a_stop(&world, WORD)), (WORD, 0));
}

/// A loop without calls holds a word in one register. A stop injects a call there, whose hook
/// suspends the stack.
#[test]
fn a_loop_that_was_suspended_between_two_instructions_keeps_its_registers() {
    const WORD: usize = 0x6b6b_0003;
    static DONE: AtomicBool = AtomicBool::new(false);
    static LOOPS: AtomicBool = AtomicBool::new(false);
    static SUSPENDED: AtomicBool = AtomicBool::new(false);
    unsafe extern "C" fn hook(_: *mut ()) {
        suspend().unwrap();
    }
    let world = world();
    let range = c_held_in_a_loop as *const () as usize..c_held_in_a_loop_end as *const () as usize;
    let what = CodeWhat::Managed {
        frames: FrameRule::Rbp,
        maps: StackMaps::default(),
        encoding: 0,
    };
    // SAFETY: the range is this program's text. The loop has an RBP frame and makes no calls.
    let _code = unsafe { register(&world, range, what) };
    let stack = stack(&world);
    start(&stack, || {
        LOOPS.store(true, SeqCst);
        // SAFETY: the loop keeps the System V convention.
        let word = unsafe { c_held_in_a_loop(!WORD, DONE.as_ptr().cast()) };
        assert_eq!(!word, !WORD);
    });
    std::thread::scope(|s| {
        s.spawn(|| {
            let mutator = world.attach(std::ptr::null_mut()).unwrap();
            let hook = StopHook {
                f: hook,
                data: std::ptr::null_mut(),
            };
            // SAFETY: the hook is a function of this test.
            unsafe { mutator.set_stop_hook(Some(hook)) };
            assert_eq!(stack.resume(), Ok(Resumed::Suspended));
            SUSPENDED.store(true, SeqCst);
        });
        wait_for(&LOOPS);
        while !SUSPENDED.load(SeqCst) {
            drop(world.stop().unwrap());
        }
    });
    let stopped = world.stop().unwrap();
    let suspended = stopped.suspended().next().unwrap();
    let mut found = Find::complement_of(!WORD);
    let stats = suspended.walk(&mut found);
    drop(stopped);
    assert!(found.count > 0 && stats.injected == 1, "{stats:?}");
    // Another thread goes on in the loop.
    DONE.store(true, SeqCst);
    on_a_mutator(&world, || {
        assert_eq!(stack.resume(), Ok(Resumed::Finished));
    });
}

#[test]
fn h112_words_on_the_stacks_of_resumers_are_found() {
    const WORD: usize = 0x6b6b_0004;
    static DONE: AtomicBool = AtomicBool::new(false);
    static DEEP: AtomicBool = AtomicBool::new(false);
    static INNER: std::sync::Mutex<Option<Stack>> = std::sync::Mutex::new(None);
    extern "C-unwind" fn deeper() {
        let inner = INNER.lock().unwrap().take().unwrap();
        assert_eq!(inner.resume(), Ok(Resumed::Finished));
    }
    hazard(
        "h112_words_on_the_stacks_of_resumers_are_found",
        "innermost-stack-only",
        || {
            let world = world();
            let inner = stack(&world);
            start(&inner, || {
                DEEP.store(true, SeqCst);
                spin(&DONE);
            });
            *INNER.lock().unwrap() = Some(inner);
            std::thread::scope(|s| {
                s.spawn(|| {
                    let _mutator = world.attach(std::ptr::null_mut()).unwrap();
                    assert_eq!(held_by_callee(!WORD, deeper), !WORD);
                });
                wait_for(&DEEP);
                let stopped = world.stop().unwrap();
                let mut found = Find::complement_of(!WORD);
                stopped.mutators().next().unwrap().walk(&mut found);
                drop(stopped);
                DONE.store(true, SeqCst);
                // The compiler may have left another copy in a frame.
                assert!(found.count >= HELD, "{}", found.count);
            });
        },
    );
}

// ---- switches -----------------------------------------------------------------------------------

/// A thread has claimed a stack and has not switched yet: the stack is neither suspended nor in the
/// thread's chain.
#[test]
fn h110_no_stop_finds_a_thread_between_two_stacks() {
    const WORD: usize = 0x6b6b_0005;
    static SIGNALS: AtomicUsize = AtomicUsize::new(0);
    static STOPPED: AtomicBool = AtomicBool::new(false);
    extern "C" fn count(_: libc::c_int) {
        SIGNALS.fetch_add(1, SeqCst);
    }
    hazard_under(
        "h110_no_stop_finds_a_thread_between_two_stacks",
        "held-claim",
        "half-switched",
        || {
            // Ours goes on top of it, and passes each signal on once it has decided.
            // SAFETY: the handler adds to a number.
            unsafe { libc::signal(libc::SIGURG, count as *const () as usize) };
            let world = world();
            let stack = on_a_mutator(&world, || holding(&world, WORD));
            let go = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    let _mutator = world.attach(std::ptr::null_mut()).unwrap();
                    wait_for(&go);
                    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
                });
                let begin = || go.store(true, SeqCst);
                let stopper = while_held(begin, || {
                    let world = &world;
                    let before = SIGNALS.load(SeqCst);
                    let stopper = s.spawn(move || {
                        let stopped = world.stop().unwrap();
                        STOPPED.store(true, SeqCst);
                        let mut found = Find::complement_of(!WORD);
                        for stack in stopped.suspended() {
                            stack.walk(&mut found);
                        }
                        for m in stopped.mutators() {
                            m.walk(&mut found);
                        }
                        found.count
                    });
                    // The thread has seen the signal and goes on, or is stopped.
                    while SIGNALS.load(SeqCst) == before && !STOPPED.load(SeqCst) {
                        std::thread::yield_now();
                    }
                    stopper
                });
                // The thread is stopped where it arrives, with the word in its registers.
                assert!(stopper.join().unwrap() > 0, "stopped between two stacks");
            });
            on_a_mutator(&world, || {
                assert_eq!(stack.resume(), Ok(Resumed::Finished));
            });
        },
    );
}

#[test]
fn h113_a_stack_that_goes_on_on_another_thread_arrives_there() {
    hazard(
        "h113_a_stack_that_goes_on_on_another_thread_arrives_there",
        "keeps-record",
        || {
            let world = world();
            let stack = stack(&world);
            let arrived = Arc::new(AtomicUsize::new(0));
            start(&stack, {
                let arrived = arrived.clone();
                move || {
                    suspend().unwrap();
                    arrived.store(1 + usize::from(in_no_preempt_here()), SeqCst);
                }
            });
            let _here = world.attach(std::ptr::null_mut()).unwrap();
            assert_eq!(stack.resume(), Ok(Resumed::Suspended));
            on_a_mutator(&world, || {
                assert_eq!(stack.resume(), Ok(Resumed::Finished));
            });
            assert_eq!(arrived.load(SeqCst), 1);
        },
    );
}

// ---- epochs -------------------------------------------------------------------------------------

static REPORTS: AtomicUsize = AtomicUsize::new(0);
const REPORTED: usize = 0x6b6b_0006;

fn report(world: &World) {
    unsafe fn before_resume(_: *mut (), stack: &SuspendedStack<'_>) {
        let is_whole = count(stack, REPORTED) >= HELD;
        REPORTS.fetch_add(1 + 100 * usize::from(is_whole), SeqCst);
    }
    let hooks = StackHooks {
        before_resume,
        data: std::ptr::null_mut(),
    };
    // SAFETY: the hook counts.
    unsafe { world.set_stack_hooks(Some(hooks)) };
}

/// The stacks that a pass beside the program reports, in pieces.
fn pass(world: &World) -> usize {
    let (mut at, mut sum) = (usize::MAX, 0);
    while let Some(next) = world.for_each_suspended(at, 2, |_| sum += 1) {
        at = next;
    }
    sum
}

#[test]
fn h114_a_suspended_stack_is_reported_before_it_runs() {
    hazard(
        "h114_a_suspended_stack_is_reported_before_it_runs",
        "resumes-unreported",
        || {
            let world = world();
            report(&world);
            let [first, second, third] =
                [(); 3].map(|()| on_a_mutator(&world, || holding(&world, REPORTED)));
            assert_eq!(pass(&world), 0, "no epoch has begun");
            let stopped = world.stop().unwrap();
            stopped.begin_stack_epoch();
            drop(stopped);
            on_a_mutator(&world, || {
                let later = stack(&world);
                start(&later, || suspend().unwrap());
                assert_eq!(later.resume(), Ok(Resumed::Suspended));
                assert_eq!(REPORTS.load(SeqCst), 0, "it was started in this epoch");
                assert_eq!(first.resume(), Ok(Resumed::Suspended));
                assert_eq!(REPORTS.load(SeqCst), 101, "once, with its word");
                assert_eq!(pass(&world), 2, "the others");
                assert_eq!(second.resume(), Ok(Resumed::Suspended));
                assert_eq!(first.resume(), Ok(Resumed::Finished));
                assert_eq!(REPORTS.load(SeqCst), 101, "none is reported twice");
                assert_eq!(later.resume(), Ok(Resumed::Finished));
            });
            assert_eq!(pass(&world), 0);
            world.stop().unwrap().begin_stack_epoch();
            on_a_mutator(&world, || {
                for rest in [second, third] {
                    while rest.resume() == Ok(Resumed::Suspended) {}
                }
            });
            assert_eq!(REPORTS.load(SeqCst), 101 + 1 + 101);
        },
    );
}

/// A stack on which a mutator runs at the begin of the epoch was walked with the mutator.
#[test]
fn a_stack_that_runs_when_an_epoch_begins_counts_as_reported() {
    static RUNS: AtomicBool = AtomicBool::new(false);
    static DONE: AtomicBool = AtomicBool::new(false);
    let world = world();
    let stack = stack(&world);
    start(&stack, || {
        RUNS.store(true, SeqCst);
        spin(&DONE);
        suspend().unwrap();
    });
    std::thread::scope(|s| {
        s.spawn(|| {
            let _mutator = world.attach(std::ptr::null_mut()).unwrap();
            assert_eq!(stack.resume(), Ok(Resumed::Suspended));
        });
        wait_for(&RUNS);
        world.stop().unwrap().begin_stack_epoch();
        DONE.store(true, SeqCst);
    });
    assert_eq!(pass(&world), 0);
    world.stop().unwrap().begin_stack_epoch();
    assert_eq!(pass(&world), 1);
    on_a_mutator(&world, || {
        assert_eq!(stack.resume(), Ok(Resumed::Finished));
    });
}

/// Does a thread of this process sleep in the kernel?
fn sleeps(tid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
    let state = stat.rsplit(')').next().unwrap();
    state.trim_start().starts_with('S')
}

/// A pass walks a stack, and meanwhile a mutator wants to resume it.
#[test]
fn h115_a_stack_does_not_run_while_it_is_walked_beside_the_program() {
    static RAN: AtomicBool = AtomicBool::new(false);
    hazard(
        "h115_a_stack_does_not_run_while_it_is_walked_beside_the_program",
        "reported-early",
        || {
            let world = world();
            let stack = stack(&world);
            start(&stack, || {
                suspend().unwrap();
                RAN.store(true, SeqCst);
            });
            let (go, tid) = (AtomicBool::new(false), AtomicUsize::new(0));
            std::thread::scope(|s| {
                s.spawn(|| {
                    let mutator = world.attach(std::ptr::null_mut()).unwrap();
                    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
                    tid.store(mutator.id().0 as usize, SeqCst);
                    while !go.load(SeqCst) {
                        std::hint::spin_loop();
                    }
                    assert_eq!(stack.resume(), Ok(Resumed::Finished));
                });
                while tid.load(SeqCst) == 0 {
                    std::thread::yield_now();
                }
                world.stop().unwrap().begin_stack_epoch();
                let mut walks = 0;
                world.for_each_suspended(usize::MAX, usize::MAX, |_| {
                    walks += 1;
                    go.store(true, SeqCst);
                    // It runs, or waits for the registry.
                    while !RAN.load(SeqCst) && !sleeps(tid.load(SeqCst) as i32) {
                        std::thread::yield_now();
                    }
                    assert!(!RAN.load(SeqCst), "the stack runs while it is walked");
                });
                assert_eq!(walks, 1);
            });
            assert!(RAN.load(SeqCst));
        },
    );
}

// ---- ends ---------------------------------------------------------------------------------------

/// Runs `child` in a forked child, and checks that it returns true.
fn forked(child: impl FnOnce() -> bool) {
    // SAFETY: glibc and this crate keep malloc and the registry usable in the child.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
        // SAFETY: ends the child without the parent's destructors.
        unsafe { libc::_exit(i32::from(!matches!(ok, Ok(true)))) };
    }
    let mut status = 0;
    // SAFETY: waits for the child that was forked above.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0, "the child failed");
}

#[test]
fn h116_a_forked_child_loses_the_stacks_of_other_threads_alone() {
    const WORD: usize = 0x6b6b_0007;
    static RUNS: AtomicBool = AtomicBool::new(false);
    static DONE: AtomicBool = AtomicBool::new(false);
    hazard(
        "h116_a_forked_child_loses_the_stacks_of_other_threads_alone",
        "nothing-lost",
        || {
            let world = world();
            let (runs, mine) = (stack(&world), stack(&world));
            let kept = on_a_mutator(&world, || holding(&world, WORD));
            start(&runs, || {
                RUNS.store(true, SeqCst);
                spin(&DONE);
            });
            let runs = Arc::new(runs);
            std::thread::scope(|s| {
                let other = runs.clone();
                let its = &world;
                s.spawn(move || {
                    let _mutator = its.attach(std::ptr::null_mut()).unwrap();
                    assert_eq!(other.resume(), Ok(Resumed::Finished));
                    drop(other);
                });
                wait_for(&RUNS);
                let _mutator = world.attach(std::ptr::null_mut()).unwrap();
                // The child goes on on the stack on which its thread has forked.
                let (state, in_child) = (runs.clone(), AtomicBool::new(false));
                let in_child = Arc::new(in_child);
                start(&mine, {
                    let in_child = in_child.clone();
                    move || {
                        forked(|| {
                            in_child.store(true, SeqCst);
                            assert_eq!(state.state(), StackState::Lost);
                            assert_eq!(state.resume(), Err(StackError::Lost));
                            suspend().unwrap();
                            true
                        });
                        suspend().unwrap();
                    }
                });
                assert_eq!(mine.resume(), Ok(Resumed::Suspended));
                if in_child.load(SeqCst) {
                    while kept.resume() == Ok(Resumed::Suspended) {}
                    assert_eq!(mine.resume(), Ok(Resumed::Finished));
                    unreachable!("the child ends on its stack");
                }
                while kept.resume() == Ok(Resumed::Suspended) {}
                assert_eq!(runs.state(), StackState::Running);
                DONE.store(true, SeqCst);
                assert_eq!(mine.resume(), Ok(Resumed::Finished));
            });
        },
    );
}

#[test]
fn h116_a_thread_that_ends_by_the_bare_system_call_loses_its_stack() {
    static STACK: std::sync::Mutex<Option<Arc<Stack>>> = std::sync::Mutex::new(None);
    hazard(
        "h116_a_thread_that_ends_by_the_bare_system_call_loses_its_stack",
        "nothing-lost",
        || {
            let world = world();
            let stack = Arc::new(stack(&world));
            start(&stack, || {
                // SAFETY: ends the thread, on whose stacks nothing has to be dropped.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            });
            *STACK.lock().unwrap() = Some(stack.clone());
            let its = world.clone();
            bare_thread(move || {
                std::mem::forget(its.attach(std::ptr::null_mut()).unwrap());
                let stack = STACK.lock().unwrap().take().unwrap();
                let stack = std::mem::ManuallyDrop::new(stack);
                let _ = stack.resume();
            })
            .join();
            assert_eq!(stack.state(), StackState::Running);
            drop(world.stop().unwrap());
            assert_eq!(stack.state(), StackState::Lost);
            assert_eq!(world.stop().unwrap().suspended().count(), 0);
        },
    );
}

#[test]
fn h117_a_stack_that_is_dropped_while_it_is_suspended_stays_registered() {
    const WORD: usize = 0x6b6b_0008;
    hazard(
        "h117_a_stack_that_is_dropped_while_it_is_suspended_stays_registered",
        "drops-suspended",
        || {
            let world = world();
            let stack = on_a_mutator(&world, || holding(&world, WORD));
            let dropped = std::thread::spawn(move || drop(stack)).join();
            assert!(in_a_stop(&world, WORD) >= HELD);
            let message = dropped.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains("is suspended"), "{message}");
        },
    );
}

global_asm!(
    // rdi: a function. Calls it.
    ".globl c_calls",
    ".globl c_calls_end",
    "c_calls:",
    "push rbp",
    "mov rbp, rsp",
    "call rdi",
    "pop rbp",
    "ret",
    "c_calls_end:",
);

unsafe extern "C-unwind" {
    fn c_calls(f: extern "C-unwind" fn());
    fn c_calls_end();
}

#[test]
fn h118_code_into_which_a_suspended_stack_returns_is_kept() {
    struct Owner(Arc<AtomicBool>);
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    hazard(
        "h118_code_into_which_a_suspended_stack_returns_is_kept",
        "reaps-behind-suspended",
        || {
            let world = world();
            let gone = Arc::new(AtomicBool::new(false));
            let spec = CodeSpec {
                range: c_calls as *const () as usize..c_calls_end as *const () as usize,
                what: CodeWhat::Managed {
                    frames: FrameRule::Rbp,
                    maps: StackMaps::default(),
                    encoding: 0,
                },
                owner: Some(Box::new(Owner(gone.clone()))),
            };
            // SAFETY: the range is this program's text, and has an RBP frame.
            let code = unsafe { world.register_code(spec) }.unwrap();
            let stack = stack(&world);
            // SAFETY: the assembly keeps the System V convention.
            start(&stack, || unsafe { c_calls(suspended) });
            let stack = &stack;
            on_a_mutator(&world, || {
                assert_eq!(stack.resume(), Ok(Resumed::Suspended));
            });
            drop(code);
            drop(world.stop().unwrap());
            assert!(!gone.load(SeqCst), "a stack returns into it");
            on_a_mutator(&world, || {
                assert_eq!(stack.resume(), Ok(Resumed::Finished));
            });
            drop(world.stop().unwrap());
            assert!(gone.load(SeqCst));
        },
    );
}

// ---- memory -------------------------------------------------------------------------------------

#[test]
fn h119_an_overflow_of_a_stack_ends_the_process() {
    hazard(
        "h119_an_overflow_of_a_stack_ends_the_process",
        "no-guard-page",
        || {
            let pool = StackPool::new(16 << 10);
            let memory = [pool.take().unwrap(), pool.take().unwrap()];
            for memory in &memory {
                // SAFETY: the child writes below its stack, and ends.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    // SAFETY: as above.
                    unsafe {
                        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                        ((memory.range().start - 8) as *mut usize).write_volatile(1);
                        libc::_exit(0);
                    }
                }
                let mut status = 0;
                // SAFETY: waits for the child that was forked above.
                unsafe { libc::waitpid(pid, &raw mut status, 0) };
                assert!(libc::WIFSIGNALED(status), "{status}");
                assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
            }
        },
    );
}

/// Is this a kernel with `MADV_GUARD_INSTALL`?
fn has_guard_install() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(13))
}

#[test]
fn h119_a_hundred_thousand_stacks_are_suspended_walked_and_finished() {
    if has_guard_install() {
        hazard(
            "h119_a_hundred_thousand_stacks_are_suspended_walked_and_finished",
            "guard-by-mapping",
            suspend_a_hundred_thousand,
        );
    } else {
        println!("skipped: this kernel has no MADV_GUARD_INSTALL");
    }
}

fn suspend_a_hundred_thousand() {
    const MANY: usize = 100_000;
    let world = world();
    let pool = StackPool::new(16 << 10);
    let left = Arc::new(AtomicUsize::new(MANY));
    let stacks: Vec<Stack> = on_a_mutator(&world, || {
        let made = (0..MANY).map(|_| {
            let memory = pool.take().unwrap();
            // SAFETY: the memory is the registration's own.
            let stack = unsafe { world.register_stack(memory.range(), memory) }.unwrap();
            let left = left.clone();
            start(&stack, move || {
                suspend().unwrap();
                left.fetch_sub(1, SeqCst);
            });
            assert_eq!(stack.resume(), Ok(Resumed::Suspended));
            stack
        });
        made.collect()
    });
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps.lines().count() < 10_000);
    let stopped = world.stop().unwrap();
    let (mut walked, mut frames) = (0, 0);
    for stack in stopped.suspended() {
        let stats = stack.walk(&mut Find::complement_of(1));
        assert!(!stats.to_base);
        walked += 1;
        frames += stats.conservative;
    }
    stopped.begin_stack_epoch();
    drop(stopped);
    assert_eq!(walked, MANY);
    assert!(frames as usize > 3 * MANY);
    on_a_mutator(&world, || {
        // One in a hundred runs before the pass comes to it.
        for stack in stacks.iter().step_by(100) {
            assert_eq!(stack.resume(), Ok(Resumed::Finished));
        }
        let (mut at, mut passed) = (usize::MAX, 0);
        while let Some(next) = world.for_each_suspended(at, 1000, |_| passed += 1) {
            at = next;
        }
        assert_eq!(passed, MANY - MANY / 100);
        for stack in &stacks {
            let resumed = stack.resume();
            assert!(matches!(
                resumed,
                Ok(Resumed::Finished) | Err(StackError::Finished)
            ));
        }
        stacks
            .into_iter()
            .for_each(|stack| stack.release().unwrap());
    });
    assert_eq!(left.load(SeqCst), 0);
}

/// As on an old kernel.
#[test]
fn guard_pages_are_mappings_of_their_own_where_the_kernel_has_no_better() {
    const NAME: &str = "guard_pages_are_mappings_of_their_own_where_the_kernel_has_no_better";
    if !is_child() {
        let output = common::run_child(NAME, "guard-by-mapping", &[]).expect("the child hung");
        assert!(output.status.success());
        return;
    }
    let memory = StackMemory::new(16 << 10).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let end = memory.range().start;
    let guard = format!("{:x}-{end:x} ---p", end - 4096);
    assert!(maps.contains(&guard), "{guard} in {maps}");
}

/// A thread forks while another one has locked a pool of stacks. The fork waits for the pool;
/// without that the child would wait for ever for a thread that it does not have.
#[test]
fn h8_the_child_of_a_fork_takes_stacks_from_its_pools() {
    static FORKER: AtomicI32 = AtomicI32::new(0);
    static CHILD: AtomicI32 = AtomicI32::new(0);
    hazard_under(
        "h8_the_child_of_a_fork_takes_stacks_from_its_pools",
        "held-pool",
        "pools-unlocked",
        || {
            let pool = &StackPool::new(64 << 10);
            std::thread::scope(|s| {
                let begin = || {
                    s.spawn(|| drop(pool.take().unwrap()));
                };
                while_held(begin, || {
                    s.spawn(|| {
                        // SAFETY: no arguments. The child calls what may be called after a fork.
                        unsafe {
                            FORKER.store(libc::gettid(), SeqCst);
                            let child = libc::fork();
                            if child == 0 {
                                libc::alarm(3);
                                libc::_exit(i32::from(pool.take().is_err()));
                            }
                            CHILD.store(child, SeqCst);
                        }
                    });
                    // The forking thread has forked, or waits before that.
                    while FORKER.load(SeqCst) == 0
                        || CHILD.load(SeqCst) == 0 && !sleeps(FORKER.load(SeqCst))
                    {
                        std::thread::yield_now();
                    }
                });
            });
            let mut status = 0;
            // SAFETY: waits for the child that was forked above.
            unsafe { libc::waitpid(CHILD.load(SeqCst), &raw mut status, 0) };
            assert_eq!(status, 0, "the child has no stack");
        },
    );
}
