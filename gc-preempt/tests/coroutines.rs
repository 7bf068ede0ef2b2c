//! Stacks that are registered: switching, stops and walks of suspended ones.

mod common;

use gc_preempt::{Config, Mutator, Resumed, Stack, StackMemory, StackState, World, suspend};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

fn attached() -> (World, Mutator) {
    let world = World::new(Config::default()).unwrap();
    let mutator = world.attach(std::ptr::null_mut()).unwrap();
    (world, mutator)
}

fn stack(world: &World) -> Stack {
    let memory = StackMemory::new(256 << 10).unwrap();
    // SAFETY: the memory is the registration's own.
    unsafe { world.register_stack(memory.range(), memory) }.unwrap()
}

#[test]
fn a_function_runs_on_a_stack_of_its_own_and_suspends_itself() {
    let (world, _mutator) = attached();
    let stack = stack(&world);
    let steps = Arc::new(AtomicUsize::new(0));
    // SAFETY: the counter may be used on any thread.
    unsafe {
        let steps = steps.clone();
        stack.start(move || {
            for _ in 0..3 {
                steps.fetch_add(1, SeqCst);
                suspend().unwrap();
            }
        })
    }
    .unwrap();
    for step in 1..=3 {
        assert_eq!(stack.resume(), Ok(Resumed::Suspended));
        assert_eq!(steps.load(SeqCst), step);
    }
    assert_eq!(stack.resume(), Ok(Resumed::Finished));
    assert_eq!(stack.state(), StackState::Finished);
    assert_eq!(Arc::strong_count(&steps), 1);
    stack.release().unwrap();
}
