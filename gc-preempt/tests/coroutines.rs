//! Stacks that are registered: switching by this crate, by corosensei and by hand, stops on them,
//! panics, and each misuse.

mod common;

use common::stacks::{held_by_callee, stack, start};
use common::{Find, bare_thread, beside, spin, stop_running, wait_for, world};
use corosensei::stack::{DefaultStack, Stack as _};
use corosensei::{Coroutine, CoroutineResult};
use gc_preempt::{
    AttachError, Mutator, Resumed, Stack, StackError, StackMemory, StackPool, StackState, World,
    blocking_here, data_here, in_no_preempt_here, no_preempt_here, suspend, suspend_with,
};
use std::arch::naked_asm;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

fn attached() -> (World, Mutator) {
    let world = world();
    let mutator = world.attach(std::ptr::null_mut()).unwrap();
    (world, mutator)
}

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
                    assert_eq!(found.count, 0, "a word that nobody holds");
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
    // SAFETY: nobody resumes `body` again.
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

// ---- misuse -------------------------------------------------------------------------------------

#[test]
fn memory_that_overlaps_or_is_no_stack_is_refused() {
    let (world, _mutator) = attached();
    let first = stack(&world);
    let memory = first.memory();
    let other = common::world();
    let try_range = |range: Range<usize>| {
        // SAFETY: a registration that is refused uses nothing.
        let result = unsafe { other.register_stack(range, ()) };
        result.map(drop).unwrap_err()
    };
    let (low, high) = (memory.start, memory.end);
    for range in [
        memory.clone(),
        low - 8192..low + 16,
        high - 16..high + 8192,
        low + 4096..high - 4096,
        low - 4096..high + 4096,
    ] {
        assert_eq!(try_range(range), StackError::Overlaps);
    }
    for range in [
        0..1 << 20,
        low..low,
        low..low + 4080,
        low + 8..high,
        low..high - 8,
        Range {
            start: high,
            end: low,
        },
    ] {
        assert_eq!(try_range(range), StackError::Memory);
    }
    let mut own = [0u128; 1024];
    let own = own.as_mut_ptr_range();
    assert_eq!(
        try_range(own.start as usize..own.end as usize),
        StackError::Overlaps
    );
    // A neighbour is none.
    let pool = StackPool::new(8192);
    let pair = [pool.take().unwrap(), pool.take().unwrap()];
    let pair = pair.map(|m| {
        // SAFETY: the memory is the registration's own.
        unsafe { world.register_stack(m.range(), m) }.unwrap()
    });
    drop(pair);
    // The end of a registration frees the range.
    first.release().unwrap();
    drop(stack(&world));
}

#[test]
fn a_stack_that_has_nothing_to_run_is_not_resumed() {
    let (world, _mutator) = attached();
    let stack = stack(&world);
    assert_eq!(stack.resume(), Err(StackError::Idle));
    start(&stack, || ());
    // SAFETY: it is refused.
    assert_eq!(unsafe { stack.start(|| ()) }, Err(StackError::Suspended));
    // SAFETY: as above.
    let host = unsafe { stack.resume_with(|| ()) };
    assert_eq!(host, Err(StackError::OtherSwitch));
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    assert_eq!(stack.resume(), Err(StackError::Finished));
}

#[test]
fn a_stack_that_runs_is_neither_resumed_nor_released() {
    static DONE: AtomicBool = AtomicBool::new(false);
    static RUNS: AtomicBool = AtomicBool::new(false);
    let world = world();
    let stack = stack(&world);
    start(&stack, || {
        RUNS.store(true, SeqCst);
        spin(&DONE);
    });
    std::thread::scope(|s| {
        s.spawn(|| {
            let _mutator = world.attach(std::ptr::null_mut()).unwrap();
            assert_eq!(stack.resume(), Ok(Resumed::Finished));
        });
        wait_for(&RUNS);
        assert_eq!(stack.resume(), Err(StackError::NotAttached));
        let _mutator = world.attach(std::ptr::null_mut()).unwrap();
        assert_eq!(stack.resume(), Err(StackError::Running));
        // SAFETY: it is refused.
        assert_eq!(unsafe { stack.start(|| ()) }, Err(StackError::Running));
        DONE.store(true, SeqCst);
    });
}

#[test]
fn a_stack_is_no_mutators_of_another_world() {
    let (world, _mutator) = attached();
    let other = common::world();
    let stack = stack(&other);
    start(&stack, || ());
    assert_eq!(stack.resume(), Err(StackError::NotAttached));
    let second = other.attach(std::ptr::null_mut()).unwrap();
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    drop(second);
    start(&stack, || ());
    assert_eq!(stack.resume(), Err(StackError::NotAttached));
    drop(world);
    let _second = other.attach(std::ptr::null_mut()).unwrap();
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
}

/// Keeps a stack where its own function finds it.
fn shared(world: &World) -> &'static Stack {
    Box::leak(Box::new(stack(world)))
}

#[test]
fn a_stack_is_not_resumed_from_itself() {
    let (world, _mutator) = attached();
    let (outer, inner) = (shared(&world), shared(&world));
    start(inner, || {
        assert_eq!(outer.resume(), Err(StackError::Ancestor));
        assert_eq!(inner.resume(), Err(StackError::Ancestor));
    });
    start(outer, || assert_eq!(inner.resume(), Ok(Resumed::Finished)));
    assert_eq!(outer.resume(), Ok(Resumed::Finished));
}

#[test]
fn no_switch_leaves_no_preempt_or_blocking_or_a_stop() {
    let (world, mutator) = attached();
    let stack = shared(&world);
    start(stack, || {
        assert_eq!(no_preempt_here(suspend), Err(StackError::InNoPreempt));
        assert_eq!(blocking_here(suspend), Err(StackError::Blocking));
        // SAFETY: it is refused.
        assert_eq!(unsafe { suspend_with(|| ()) }, Err(StackError::OtherSwitch));
        let other = common::world();
        let stopped = other.stop().unwrap();
        let refused = suspend();
        drop(stopped);
        assert_eq!(refused, Err(StackError::HoldsAStop));
        suspend().unwrap();
    });
    assert_eq!(
        mutator.no_preempt(|| stack.resume()),
        Err(StackError::InNoPreempt)
    );
    assert_eq!(
        mutator.blocking(|| stack.resume()),
        Err(StackError::Blocking)
    );
    let other = common::world();
    let stopped = other.stop().unwrap();
    let refused = stack.resume();
    drop(stopped);
    assert_eq!(refused, Err(StackError::HoldsAStop));
    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
}

#[test]
fn no_switch_leaves_a_stack_that_is_not_registered() {
    static STACK: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn elsewhere() {
        // SAFETY: `shared` keeps it for ever.
        let stack = unsafe { &*(STACK.load(SeqCst) as *const Stack) };
        assert_eq!(stack.resume(), Err(StackError::ElsewhereNow));
    }
    let (world, _mutator) = attached();
    let stack = shared(&world);
    start(stack, || ());
    STACK.store(std::ptr::from_ref(stack) as usize, SeqCst);
    common::on_stack(&mut vec![0; 8192], elsewhere);
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
}

#[test]
fn nothing_suspends_the_threads_own_stack() {
    assert_eq!(suspend(), Err(StackError::NotOnAStack));
    let (_world, _mutator) = attached();
    assert_eq!(suspend(), Err(StackError::NotOnAStack));
    // SAFETY: it is refused.
    let host = unsafe { suspend_with(|| ()) };
    assert_eq!(host, Err(StackError::NotOnAStack));
}

#[test]
fn a_thread_neither_attaches_nor_detaches_on_a_stack() {
    struct Moved(Mutator);
    // SAFETY: the test's functions run on one thread.
    unsafe impl Send for Moved {}
    let world = world();
    let mutator = Moved(world.attach(std::ptr::null_mut()).unwrap());
    let stack = stack(&world);
    start(&stack, {
        let world = world.clone();
        move || {
            let again = world.attach(std::ptr::null_mut()).map(drop);
            assert!(matches!(again, Err(AttachError::OnAStack)));
            let mutator = mutator;
            let Moved(mutator) = mutator;
            let panicked = catch_unwind(AssertUnwindSafe(|| drop(mutator)));
            assert!(panicked.is_err());
        }
    });
    std::panic::set_hook(Box::new(|_| ()));
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    let _ = std::panic::take_hook();
    // The thread is attached still.
    start(&stack, || ());
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    let stopped =
        std::thread::scope(|s| s.spawn(|| world.stop().unwrap().mutators().count()).join());
    assert_eq!(stopped.unwrap(), 1);
}

#[test]
fn a_stack_with_frames_is_not_released_and_stays_registered_when_it_is_dropped() {
    let (world, _mutator) = attached();
    let stack = stack(&world);
    start(&stack, || suspend().unwrap());
    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
    let (error, stack) = stack.release().unwrap_err();
    assert_eq!(error, StackError::Suspended);
    let memory = stack.memory();
    let dropped = std::thread::spawn(move || drop(stack)).join().unwrap_err();
    let message = dropped.downcast::<String>().unwrap();
    assert!(message.contains("is suspended"), "{message}");
    // SAFETY: a registration that is refused uses nothing.
    let again = unsafe { world.register_stack(memory, ()) }.map(drop);
    assert_eq!(again, Err(StackError::Overlaps));
    drop(_mutator);
    assert_eq!(world.stop().unwrap().suspended().count(), 1);
}

#[test]
fn an_abandoned_stack_is_given_back() {
    struct Owner(Arc<()>);
    let (world, _mutator) = attached();
    let (memory, held) = (StackMemory::new(64 << 10).unwrap(), Arc::new(()));
    let range = memory.range();
    let owner = (memory, Owner(held.clone()));
    // SAFETY: the memory is the registration's own.
    let stack = unsafe { world.register_stack(range, owner) }.unwrap();
    start(&stack, || suspend().unwrap());
    assert_eq!(stack.resume(), Ok(Resumed::Suspended));
    // SAFETY: nobody resumes it again.
    unsafe { stack.abandon() }.unwrap();
    assert_eq!(Arc::strong_count(&held), 1);
    let _ = |owner: Owner| owner.0;
}

#[test]
fn a_stack_that_is_dropped_in_a_stop_ends_with_its_world() {
    let world = world();
    let held = Arc::new(());
    let memory = StackMemory::new(64 << 10).unwrap();
    let range = memory.range();
    // SAFETY: the memory is the registration's own.
    let stack = unsafe { world.register_stack(range, (memory, held.clone())) }.unwrap();
    let stopped = world.stop().unwrap();
    let (error, stack) = stack.release().unwrap_err();
    assert_eq!(error, StackError::HoldsAStop);
    drop(stack);
    drop(stopped);
    assert_eq!(Arc::strong_count(&held), 2);
    drop(world);
    assert_eq!(Arc::strong_count(&held), 1);
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
