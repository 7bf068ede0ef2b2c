//! Stacks that are registered: switching by this crate, by corosensei and by hand, stops on them,
//! panics, and their memory. Misuse is in `stack_misuse.rs`.

mod common;

use common::stacks::{attached, held_by_callee, stack, start};
use common::{Find, bare_thread, beside, spin, stop_running, wait_for, world};
use corosensei::stack::{DefaultStack, Stack as _};
use corosensei::{Coroutine, CoroutineResult};
use gc_preempt::{
    Resumed, Stack, StackError, StackPool, StackState, blocking_here, data_here,
    in_no_preempt_here, suspend, suspend_with,
};
use std::arch::naked_asm;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

#[test]
fn a_function_runs_on_a_stack_of_its_own_and_suspends_itself() {
    let (world, _mutator) = attached();
    let stack = stack(&world);
    stack.set_data(8 as *mut ());
    let steps = Arc::new(AtomicUsize::new(0));
    start(&stack, {
        let (steps, memory) = (steps.clone(), stack.memory());
        move || {
            for _ in 0..3 {
                let here = 0u8;
                assert!(memory.contains(&(&raw const here as usize)));
                assert_eq!(data_here(), Some(8 as *mut ()));
                steps.fetch_add(1, SeqCst);
                suspend().unwrap();
            }
        }
    });
    assert_eq!(data_here(), None);
    for step in 1..=3 {
        assert_eq!(stack.resume(), Ok(Resumed::Suspended));
        assert_eq!(
            (steps.load(SeqCst), stack.state()),
            (step, StackState::Suspended)
        );
    }
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    assert_eq!(stack.state(), StackState::Finished);
    // The function was dropped at its end, and the stack may be used again.
    assert_eq!(Arc::strong_count(&steps), 1);
    start(&stack, || ());
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    stack.release().unwrap();
}

#[test]
fn a_function_with_a_large_alignment_and_many_words_is_moved_to_the_stack() {
    #[repr(align(128))]
    #[derive(Clone, Copy)]
    struct Words([usize; 48]);
    let (world, _mutator) = attached();
    let stack = stack(&world);
    let (words, sum) = (Words([7; 48]), Arc::new(AtomicUsize::new(0)));
    start(&stack, {
        let sum = sum.clone();
        move || {
            assert!((&raw const words as usize).is_multiple_of(128));
            sum.store(words.0.iter().sum(), SeqCst);
        }
    });
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    assert_eq!(sum.load(SeqCst), 7 * 48);
    let large = [0u8; 200 << 10];
    // SAFETY: it is not run.
    let too_large = unsafe { stack.start(move || _ = std::hint::black_box(large)) };
    assert_eq!(too_large, Err(StackError::Memory));
}

#[test]
fn control_words_of_floating_point_belong_to_the_stack() {
    fn control() -> u32 {
        let mut word = 0u32;
        // SAFETY: writes the word.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack)) };
        word
    }
    fn set(word: u32) {
        // SAFETY: rounding modes are restored by this test.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack)) };
    }
    const TO_ZERO: u32 = 0x6000;
    let (world, _mutator) = attached();
    let stack = stack(&world);
    let before = control();
    start(&stack, move || {
        set(before | TO_ZERO);
        suspend().unwrap();
        assert_eq!(control(), before | TO_ZERO);
    });
    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
    assert_eq!(control(), before);
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    assert_eq!(control(), before);
}

// ---- stops on a stack ---------------------------------------------------------------------------

/// A mutator spins on a stack that was resumed from another, while each stack holds one word.
/// `words` are found in each walk, and nothing of them afterwards.
#[test]
fn a_thread_in_a_loop_on_a_nested_stack_is_stopped_and_its_whole_chain_is_walked() {
    const WORDS: [usize; 3] = [0x5a5a_0001, 0x5a5a_0002, 0x5a5a_0003];
    static DONE: AtomicBool = AtomicBool::new(false);
    static DEEP: AtomicBool = AtomicBool::new(false);
    static STACKS: std::sync::Mutex<Vec<Stack>> = std::sync::Mutex::new(Vec::new());
    fn resume_next() -> Stack {
        let next = STACKS.lock().unwrap().pop().unwrap();
        assert_eq!(next.resume(), Ok(Resumed::Finished));
        next
    }
    extern "C-unwind" fn deeper() {
        drop(resume_next());
    }
    let world = world();
    let (inner, outer) = (stack(&world), stack(&world));
    let memory = inner.memory();
    start(&inner, || {
        DEEP.store(true, SeqCst);
        spin(&DONE);
        std::hint::black_box(!WORDS[2]);
    });
    start(&outer, || {
        assert_eq!(held_by_callee(!WORDS[1], deeper), !WORDS[1]);
    });
    STACKS.lock().unwrap().extend([inner, outer]);
    beside(
        &world,
        |_| {
            assert_eq!(held_by_callee(!WORDS[0], deeper), !WORDS[0]);
        },
        || {
            wait_for(&DEEP);
            stop_running(&world, 20, |stopped| {
                assert_eq!(stopped.suspended().count(), 0);
                for m in stopped.mutators() {
                    assert_eq!(m.stack(), memory);
                    assert!(memory.contains(&m.snapshot().registers.sp()));
                    for word in &WORDS[..2] {
                        let mut found = Find::complement_of(!word);
                        let stats = m.walk(&mut found);
                        assert!(found.count > 0, "{stats:?}");
                        assert!(!stats.to_base, "{stats:?}");
                    }
                    let mut found = Find::complement_of(!WORDS[2]);
                    m.walk(&mut found);
                    assert_eq!(found.count, 0, "a word that no stack holds");
                }
            });
            DONE.store(true, SeqCst);
        },
    );
}

#[test]
fn a_thread_may_block_on_a_stack_and_is_walked_there() {
    const WORD: usize = 0x5a5a_0004;
    static BLOCKED: AtomicBool = AtomicBool::new(false);
    static DONE: AtomicBool = AtomicBool::new(false);
    extern "C-unwind" fn blocks() {
        blocking_here(|| {
            BLOCKED.store(true, SeqCst);
            wait_for(&DONE);
        });
    }
    let world = world();
    let stack = stack(&world);
    start(&stack, || {
        assert_eq!(held_by_callee(!WORD, blocks), !WORD);
    });
    beside(
        &world,
        |_| assert_eq!(stack.resume(), Ok(Resumed::Finished)),
        || {
            wait_for(&BLOCKED);
            let stopped = world.stop().unwrap();
            let m = stopped.mutators().next().unwrap();
            let mut found = Find::complement_of(!WORD);
            m.walk(&mut found);
            let (is_blocked, its) = (m.is_blocked(), m.stack());
            drop(stopped);
            DONE.store(true, SeqCst);
            assert_eq!(
                (is_blocked, its, found.count > 0),
                (true, stack.memory(), true)
            );
        },
    );
}

// ---- threads ------------------------------------------------------------------------------------

#[test]
fn a_stack_goes_from_thread_to_thread() {
    let world = world();
    let stack = stack(&world);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    start(&stack, {
        let seen = seen.clone();
        move || {
            for _ in 0..8 {
                // SAFETY: a system call without arguments.
                seen.lock().unwrap().push(unsafe { libc::gettid() });
                assert!(!in_no_preempt_here());
                suspend().unwrap();
            }
        }
    });
    let mut ran = Vec::new();
    for _ in 0..4 {
        let tid = std::thread::scope(|s| {
            s.spawn(|| {
                let mutator = world.attach(std::ptr::null_mut()).unwrap();
                for _ in 0..2 {
                    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
                    assert!(!mutator.in_no_preempt());
                }
                mutator.id().0 as i32
            })
            .join()
            .unwrap()
        });
        ran.extend([tid; 2]);
        drop(world.stop().unwrap());
    }
    assert_eq!(*seen.lock().unwrap(), ran);
    let _mutator = world.attach(std::ptr::null_mut()).unwrap();
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
}

#[test]
fn threads_that_hand_stacks_around_are_stopped_all_along() {
    const TURNS: usize = 2_000;
    let world = world();
    let sum = Arc::new(AtomicUsize::new(0));
    let stacks: Vec<_> = (0..4).map(|_| stack(&world)).collect();
    for stack in &stacks {
        let sum = sum.clone();
        start(stack, move || {
            for _ in 0..TURNS {
                sum.fetch_add(1, SeqCst);
                suspend().unwrap();
            }
        });
    }
    std::thread::scope(|s| {
        let runners: Vec<_> = (0..3)
            .map(|_| {
                s.spawn(|| {
                    let _mutator = world.attach(std::ptr::null_mut()).unwrap();
                    loop {
                        let mut finished = 0;
                        for stack in &stacks {
                            match stack.resume() {
                                Ok(_) | Err(StackError::Running) => {}
                                Err(error) => {
                                    assert_eq!(error, StackError::Finished);
                                    finished += 1;
                                }
                            }
                        }
                        if finished == stacks.len() {
                            return;
                        }
                    }
                })
            })
            .collect();
        while !runners
            .iter()
            .all(std::thread::ScopedJoinHandle::is_finished)
        {
            let stopped = world.stop().unwrap();
            for m in stopped.mutators() {
                m.walk(&mut Find::complement_of(1));
            }
            for suspended in stopped.suspended() {
                suspended.walk(&mut Find::complement_of(1));
            }
            drop(stopped);
        }
    });
    assert_eq!(sum.load(SeqCst), TURNS * 4);
}

// ---- panics -------------------------------------------------------------------------------------

#[test]
fn a_panic_of_the_function_is_raised_in_its_resumer() {
    let (world, mutator) = attached();
    let stack = stack(&world);
    start(&stack, || {
        suspend().unwrap();
        std::panic::resume_unwind(Box::new(17u8));
    });
    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
    let raised = catch_unwind(AssertUnwindSafe(|| stack.resume())).unwrap_err();
    assert_eq!(*raised.downcast::<u8>().unwrap(), 17);
    assert_eq!(stack.state(), StackState::Finished);
    assert!(!mutator.in_no_preempt() && mutator.may_block());
    assert_eq!(data_here(), None);
    start(&stack, || ());
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
}

// ---- switches of the host's ---------------------------------------------------------------------

fn of_default_stack(stack: &DefaultStack) -> Range<usize> {
    // The limit is that of the guard page.
    stack.limit().get() + 4096..stack.base().get()
}

#[test]
fn corosenseis_coroutines_run_on_registered_stacks() {
    const WORD: usize = 0x5a5a_0005;
    static DONE: AtomicBool = AtomicBool::new(false);
    static LOOPS: AtomicBool = AtomicBool::new(false);
    let world = world();
    let memory = DefaultStack::new(128 << 10).unwrap();
    // SAFETY: the memory outlives the runs of the coroutines, and the registration is not used
    // after.
    let stack = unsafe { world.register_stack(of_default_stack(&memory), ()) }.unwrap();
    beside(
        &world,
        |_| {
            let mut coroutine = Coroutine::with_stack(memory, |yielder, first: usize| {
                // SAFETY: `suspend` switches to the resumer.
                let second = unsafe { suspend_with(|| yielder.suspend(first + 1)) }.unwrap();
                LOOPS.store(true, SeqCst);
                spin(&DONE);
                second + 1
            });
            // SAFETY: the coroutine leaves by `suspend_with`.
            let yielded = unsafe { stack.resume_with(|| coroutine.resume(1)) };
            assert!(matches!(yielded, Ok(CoroutineResult::Yield(2))));
            assert_eq!(stack.state(), StackState::Suspended);
            // SAFETY: as above.
            let ended = unsafe { stack.resume_with(|| coroutine.resume(5)) };
            assert!(matches!(ended, Ok(CoroutineResult::Return(6))));
            assert_eq!(stack.state(), StackState::Finished);
            std::mem::forget(coroutine); // its memory stays registered
        },
        || {
            wait_for(&LOOPS);
            stop_running(&world, 5, |stopped| {
                for m in stopped.mutators() {
                    assert_eq!(m.stack(), stack.memory());
                    m.walk(&mut Find::complement_of(!WORD));
                }
            });
            DONE.store(true, SeqCst);
        },
    );
    stack.release().unwrap();
}

#[test]
fn corosenseis_panics_and_drops_come_through() {
    let (world, mutator) = attached();
    let memory = DefaultStack::new(128 << 10).unwrap();
    // SAFETY: the memory outlives the runs of the coroutines, and the registration is not used
    // after.
    let stack = unsafe { world.register_stack(of_default_stack(&memory), ()) }.unwrap();
    let mut panics = Coroutine::with_stack(memory, |yielder, ()| {
        // SAFETY: `suspend` switches to the resumer.
        unsafe { suspend_with(|| yielder.suspend(())) }.unwrap();
        std::panic::resume_unwind(Box::new(18u8));
    });
    // SAFETY: the coroutine leaves by `suspend_with`.
    let mut resume = || unsafe { stack.resume_with(|| panics.resume(()).as_yield()) };
    assert_eq!(resume(), Ok(Some(())));
    let raised = catch_unwind(AssertUnwindSafe(resume)).unwrap_err();
    assert_eq!(*raised.downcast::<u8>().unwrap(), 18);
    assert!(!mutator.in_no_preempt() && mutator.may_block());
    let memory = panics.into_stack();

    // A suspended coroutine that is dropped unwinds its stack.
    let held = Arc::new(());
    let mut dropped = Coroutine::with_stack(memory, {
        let held = held.clone();
        move |yielder, ()| {
            // SAFETY: `suspend` switches to the resumer.
            unsafe { suspend_with(|| yielder.suspend(())) }.unwrap();
            drop(held);
        }
    });
    // SAFETY: the coroutine leaves by `suspend_with`.
    unsafe { stack.resume_with(|| dropped.resume(()).as_yield()) }.unwrap();
    // SAFETY: switches to the stack, and returns when that has unwound.
    unsafe { stack.resume_with(|| dropped.force_unwind()) }.unwrap();
    assert_eq!(
        (Arc::strong_count(&held), stack.state()),
        (1, StackState::Finished)
    );
    stack.release().unwrap();
}

/// Exchanges SP, with the registers that callees preserve: rdi: where to store SP, rsi: the other
/// SP.
#[unsafe(naked)]
unsafe extern "C-unwind" fn by_hand(save: *mut usize, to: usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    );
}

#[test]
fn a_switch_made_by_hand_runs_on_a_registered_stack() {
    const WORD: usize = 0x5a5a_0006;
    static RESUMER: AtomicUsize = AtomicUsize::new(0);
    static OWN: AtomicUsize = AtomicUsize::new(0);
    static TURNS: AtomicUsize = AtomicUsize::new(0);
    extern "C-unwind" fn leaves() {
        // SAFETY: switches to the resumer, whose SP it has stored.
        unsafe { suspend_with(|| by_hand(OWN.as_ptr(), RESUMER.load(SeqCst))) }.unwrap();
    }
    extern "C-unwind" fn body() -> ! {
        loop {
            TURNS.fetch_add(1, SeqCst);
            assert_eq!(held_by_callee(!WORD, leaves), !WORD);
        }
    }
    let world = world();
    let mut memory = vec![0u128; 8 << 10];
    OWN.store(by_hand_at(&mut memory, body), SeqCst);
    let range = memory.as_mut_ptr_range();
    let range = range.start as usize..range.end as usize;
    // SAFETY: the memory is the registration's.
    let stack = unsafe { world.register_stack(range, memory) }.unwrap();
    std::thread::scope(|s| {
        s.spawn(|| {
            let mutator = world.attach(std::ptr::null_mut()).unwrap();
            for turn in 1..=3 {
                // SAFETY: `body` leaves by `suspend_with`.
                unsafe { stack.resume_with(|| by_hand(RESUMER.as_ptr(), OWN.load(SeqCst))) }
                    .unwrap();
                assert_eq!(TURNS.load(SeqCst), turn);
                mutator.poll();
            }
        });
    });
    let stopped = world.stop().unwrap();
    let mut found = Find::complement_of(!WORD);
    let mut count = 0;
    for suspended in stopped.suspended() {
        suspended.walk(&mut found);
        count += 1;
    }
    drop(stopped);
    assert_eq!((count, found.count > 0), (1, true));
    // SAFETY: `body` is not resumed again.
    unsafe { stack.abandon() }.unwrap();
}

/// Makes the first words of a stack for `by_hand`, which enters `body`. Returns its SP.
fn by_hand_at(memory: &mut [u128], body: extern "C-unwind" fn() -> !) -> usize {
    let end = memory.as_mut_ptr_range().end.cast::<usize>();
    // The registers, `body` as the address to return to, and its missing caller.
    // SAFETY: inside the memory.
    unsafe { end.sub(2).write(body as *const () as usize) };
    end as usize - 8 * 8
}

/// `pthread_exit` unwinds a stack, and goes on on the thread's own.
#[test]
fn a_thread_that_ends_on_a_stack_is_detached_and_the_stack_is_lost() {
    static RESUMER: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C-unwind" {
        fn pthread_exit(value: *mut libc::c_void) -> !;
    }
    extern "C-unwind" fn body() -> ! {
        // SAFETY: nothing on this stack or on the thread's own has to be dropped.
        unsafe { pthread_exit(std::ptr::null_mut()) }
    }
    let world = world();
    let mut memory = vec![0u128; 8 << 10];
    let sp = by_hand_at(&mut memory, body);
    let range = memory.as_mut_ptr_range();
    let range = range.start as usize..range.end as usize;
    // SAFETY: the memory is the registration's.
    let stack = unsafe { world.register_stack(range, memory) }.unwrap();
    bare_thread(|| {
        std::mem::forget(world.attach(std::ptr::null_mut()).unwrap());
        // SAFETY: `body` ends its thread.
        let _ = unsafe { stack.resume_with(|| by_hand(RESUMER.as_ptr(), sp)) };
    })
    .join();
    assert_eq!(stack.state(), StackState::Lost);
    assert_eq!(world.stop().unwrap().mutators().count(), 0);
    stack.release().unwrap();
}

// ---- memory -------------------------------------------------------------------------------------

#[test]
fn memory_that_was_given_back_is_used_again_and_is_zero() {
    let pool = StackPool::new(10_000);
    assert_eq!(pool.stack_bytes(), 12_288);
    let first = pool.take().unwrap();
    let range = first.range();
    assert_eq!(range.len(), 12_288);
    let word = range.start as *mut usize;
    // SAFETY: the memory is this test's.
    unsafe { word.write(7) };
    drop(first);
    let second = pool.take().unwrap();
    assert_eq!(second.range(), range);
    // SAFETY: as above.
    assert_eq!(unsafe { word.read() }, 0);
    let third = pool.take().unwrap();
    assert!(third.range().start >= range.end + 4096);
    drop(pool);
    drop((second, third));
}
