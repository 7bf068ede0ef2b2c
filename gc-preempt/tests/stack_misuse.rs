//! Each misuse of a registered stack is an error or a panic, and leaves the stack as it was.

mod common;

use common::stacks::{attached, stack, start};
use common::{spin, wait_for, world};
use gc_preempt::{
    AttachError, Mutator, Resumed, Stack, StackError, StackMemory, StackPool, World, blocking_here,
    no_preempt_here, suspend, suspend_with,
};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

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
    // SAFETY: it is not resumed again.
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
