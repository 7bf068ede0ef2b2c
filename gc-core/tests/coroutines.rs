//! Coroutines: what a suspended stack holds lives, whether the collector or its resumer scans it.

mod common;

use common::nodes::{Node, apart, node};
use common::{
    Kinds, check_list, garbage, hazard, hazard_given, heap_with, in_a_child, in_child, is_child,
    list, resident, run_child, until,
};
use corosensei::Coroutine;
use corosensei::stack::{DefaultStack, Stack as _};
use gc_core::coroutine::{
    Resumed, Stack, StackError, StackPool, StackState, suspend, suspend_with,
};
use gc_core::{Heap, HeapBuilder, Leaf, Mutator, Stress, Young};
use gc_preempt::faults::while_held;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Bytes of the tests' stacks.
const BYTES: usize = 64 << 10;

/// More stacks than a stop scans itself.
const MANY: usize = 20;

/// Nodes of each coroutine's list.
const LENGTH: usize = 30;

/// A heap that fills freed cells.
fn poisoned(set_up: impl FnOnce(HeapBuilder) -> HeapBuilder) -> (Heap, Kinds) {
    heap_with(|builder| set_up(builder.poison(true)))
}

fn stacks(heap: &Heap, count: usize) -> Vec<Stack> {
    let pool = StackPool::new(BYTES);
    (0..count)
        .map(|_| heap.stack(pool.take().unwrap()).unwrap())
        .collect()
}

/// Starts a function on each stack that holds a list over a suspension, and runs it so far.
fn hold_lists(m: &Mutator, k: Kinds, stacks: &[Stack]) {
    for stack in stacks {
        m.start(stack, move |m| {
            let head = list(m, k, LENGTH);
            suspend().unwrap();
            check_list(head, LENGTH);
        })
        .unwrap();
        assert_eq!(m.resume(stack), Ok(Resumed::Suspended));
    }
}

fn finish(m: &Mutator, stacks: &[Stack]) {
    for stack in stacks {
        assert_eq!(m.resume(stack), Ok(Resumed::Finished));
    }
}

/// Has coroutines hold lists over some collections. Returns the figures of the last one.
fn held_over_collections(heap: &Heap, k: Kinds, count: usize) -> gc_core::CollectionStats {
    let m = heap.attach().unwrap();
    let stacks = stacks(heap, count);
    hold_lists(&m, k, &stacks);
    for _ in 0..4 {
        m.collect();
        garbage(&m, k, 300);
    }
    m.collect();
    let last = heap.stats().last;
    finish(&m, &stacks);
    last
}

/// The collector scans suspended stacks beside the program. With `suspended-unscanned` planted, it
/// does not, and frees what they hold.
#[test]
fn h121_what_a_suspended_stack_holds_lives() {
    hazard(
        "h121_what_a_suspended_stack_holds_lives",
        "suspended-unscanned",
        || {
            let (heap, k) = poisoned(|builder| builder);
            let last = held_over_collections(&heap, k, MANY);
            assert_eq!((last.stacks_beside, last.stacks_in_stops), (MANY as u32, 0));
        },
    );
}

/// Each collection scans the stacks again. With `epoch-kept` planted, they count as scanned.
#[test]
fn h121_a_stack_that_stays_suspended_is_scanned_by_each_collection() {
    hazard(
        "h121_a_stack_that_stays_suspended_is_scanned_by_each_collection",
        "epoch-kept",
        || {
            let (heap, k) = poisoned(|builder| builder);
            held_over_collections(&heap, k, MANY);
        },
    );
}

/// Few stacks are scanned in the stop.
#[test]
fn few_suspended_stacks_are_scanned_in_the_stop() {
    let (heap, k) = poisoned(|builder| builder);
    let last = held_over_collections(&heap, k, 2);
    assert_eq!((last.stacks_beside, last.stacks_in_stops), (0, 2));
}

/// Heaps that mark in a stop, and heaps that verify, scan suspended stacks in the stop.
#[test]
fn a_heap_without_concurrency_scans_suspended_stacks_in_the_stop() {
    for heap in [
        poisoned(|builder| builder.stop_the_world(true)),
        poisoned(|builder| builder.verify(true)),
        poisoned(|builder| builder.verify(true).stop_the_world(true)),
    ] {
        let last = held_over_collections(&heap.0, heap.1, MANY);
        assert_eq!((last.stacks_beside, last.stacks_in_stops), (0, MANY as u32));
    }
}

/// Young collections scan all suspended stacks.
#[test]
fn a_young_collection_keeps_what_suspended_stacks_hold() {
    let (heap, k) = poisoned(|builder| builder.young_collections(Young::Always));
    let m = heap.attach().unwrap();
    let stacks = stacks(&heap, MANY);
    m.collect();
    for _ in 0..3 {
        hold_lists(&m, k, &stacks);
        for _ in 0..3 {
            m.blocking(|| heap.collect_young());
            garbage(&m, k, 300);
        }
        finish(&m, &stacks);
    }
    assert!(heap.stats().young_collections > 0);
}

/// A coroutine that is resumed while a cycle marks, before the collector has come to its stack,
/// hands what it holds to the thread that has resumed it, whose stack has been scanned already. Its
/// resumer scans it first. With `resume-unscanned` planted, the cells are freed. `held-suspended`
/// holds the collector before it scans suspended stacks.
#[test]
fn h122_a_stack_that_is_resumed_before_its_scan_is_scanned_first() {
    let name = "h122_a_stack_that_is_resumed_before_its_scan_is_scanned_first";
    hazard_given(name, "held-suspended", "resume-unscanned", &[], || {
        let (heap, k) = poisoned(|builder| builder);
        let m = heap.attach().unwrap();
        let stacks = stacks(&heap, MANY);
        // The collector does not scan this memory.
        let handed = Rc::new(Cell::new(0));
        for stack in &stacks {
            let handed = handed.clone();
            m.start(stack, move |m| {
                let head = list(m, k, LENGTH);
                suspend().unwrap();
                handed.set(head);
            })
            .unwrap();
            assert_eq!(m.resume(stack), Ok(Resumed::Suspended));
        }
        let mut heads = [0; MANY];
        let asked = Cell::new(0);
        let begin = || asked.set(heap.request_collection());
        while_held(begin, || {
            for (head, stack) in heads.iter_mut().zip(&stacks) {
                assert_eq!(m.resume(stack), Ok(Resumed::Finished));
                *head = handed.take();
            }
        });
        until(|| heap.stats().collections >= asked.get());
        assert_eq!(heap.stats().last.stacks_resumed, MANY as u32);
        assert_eq!(heap.stats().last.stacks_beside, 0);
        garbage(&m, k, 1000);
        for head in heads {
            check_list(head, LENGTH);
        }
    });
}

/// The child of a fork while the collector is about to scan suspended stacks resumes them, collects
/// and finds what they hold.
#[test]
fn a_child_forked_while_a_cycle_marks_goes_on_with_its_suspended_stacks() {
    let name = "a_child_forked_while_a_cycle_marks_goes_on_with_its_suspended_stacks";
    if !is_child() {
        let output = run_child(name, "held-suspended", &[]).expect("it hangs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        return;
    }
    let (heap, k) = poisoned(|builder| builder);
    let m = heap.attach().unwrap();
    let stacks = stacks(&heap, 2 * MANY);
    hold_lists(&m, k, &stacks);
    let (first, others) = stacks.split_at(MANY);
    while_held(
        || _ = heap.request_collection(),
        || {
            in_child(|| {
                finish(&m, first);
                m.collect();
                garbage(&m, k, 300);
                m.collect();
                finish(&m, others);
            });
        },
    );
    m.collect();
    garbage(&m, k, 300);
    finish(&m, &stacks);
}

/// A cell that a coroutine holds lives as long as the coroutine holds it: by a local of an open
/// scope, or by a bare pointer.
#[test]
fn what_a_coroutine_held_dies_when_its_function_has_ended() {
    for bare in [false, true] {
        let heap = common::nodes::heap();
        let m = heap.attach().unwrap();
        let weak = m.with_scope(|s| heap.root(&s.alloc_weak_array::<Node>(1).unwrap()));
        // On another stack, so that no stale word of this one keeps the cell.
        let is_alive = || m.blocking(|| apart(&heap, |s| Ok(weak.upgrade(0, s).is_some())));
        let stack = stacks(&heap, 1).remove(0);
        let to = weak.clone();
        m.start(&stack, move |m| match bare {
            false => m.with_scope(|s| {
                let local = s.alloc(node(5)).unwrap();
                to.set(0, s, &local);
                suspend().unwrap();
                assert_eq!(local.value, 5);
            }),
            true => {
                // SAFETY: the pointer stays on this stack.
                let gc = unsafe { m.alloc_gc(node(5)) }.unwrap();
                // SAFETY: the cell is alive.
                m.with_scope(|s| to.set(0, s, &unsafe { s.hold_gc(gc) }));
                suspend().unwrap();
                assert_eq!(gc.value, 5);
            }
        })
        .unwrap();
        assert_eq!(m.resume(&stack), Ok(Resumed::Suspended));
        m.collect();
        m.collect();
        assert!(is_alive(), "bare: {bare}");
        assert_eq!(m.resume(&stack), Ok(Resumed::Finished));
        m.collect();
        assert!(!is_alive(), "bare: {bare}");
    }
}

/// Coroutines with open scopes suspend themselves and end in any order, in a heap whose stacks are
/// not scanned.
#[test]
fn scopes_of_coroutines_end_in_any_order() {
    let heap = Heap::builder().reserve(1 << 30).poison(true).exact(true);
    let heap = heap.build().unwrap();
    let m = heap.attach().unwrap();
    let stacks = stacks(&heap, 50);
    for (number, stack) in stacks.iter().enumerate() {
        m.start(stack, move |m| {
            m.with_scope(|outer| {
                let mut all = Vec::new();
                for step in 0..2 + number % 7 {
                    m.with_scope(|s| {
                        let value = (number * 100 + step) as u64;
                        let inner = s.alloc(node(value)).unwrap();
                        suspend().unwrap();
                        assert_eq!(inner.value, value);
                        all.push(outer.hold(&inner));
                    });
                    suspend().unwrap();
                }
                for (step, local) in all.iter().enumerate() {
                    assert_eq!(local.value, (number * 100 + step) as u64);
                }
            });
        })
        .unwrap();
    }
    let (mut left, mut at) = ((0..stacks.len()).collect::<Vec<_>>(), 0usize);
    while !left.is_empty() {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let next = (at >> 33) % left.len();
        if m.resume(&stacks[left[next]]) == Ok(Resumed::Finished) {
            left.swap_remove(next);
        }
        m.with_scope(|s| assert!(s.alloc(node(u64::MAX)).unwrap().next.is_null()));
        if at % 8 == 0 {
            m.collect();
        }
    }
}

/// A value whose `Drop` suspends itself. Only the coroutine's stack names the value meanwhile.
#[derive(Leaf)]
struct Slow([u64; 2]);

impl Drop for Slow {
    fn drop(&mut self) {
        suspend().unwrap();
        assert_eq!(self.0, [7, 8], "the value has been freed");
    }
}

/// In a heap whose stacks are not roots, a value whose `Drop` has suspended itself lives. With
/// `suspended-drop-unscanned` planted, its cell is freed.
#[test]
fn h120_a_value_whose_drop_is_suspended_lives() {
    hazard(
        "h120_a_value_whose_drop_is_suspended_lives",
        "suspended-drop-unscanned",
        || {
            for count in [1, MANY] {
                let heap = Heap::builder().reserve(1 << 30).poison(true).exact(true);
                let heap = heap.build().unwrap();
                let m = heap.attach().unwrap();
                let stacks = stacks(&heap, count);
                // On another stack, so that no stale word of this one keeps them.
                m.blocking(|| {
                    apart(&heap, |s| {
                        (0..count).try_for_each(|_| s.alloc(Slow([7, 8])).map(drop))
                    });
                });
                m.collect();
                for stack in &stacks {
                    m.start(stack, |m| assert_eq!(m.drop_dead_values(), 1))
                        .unwrap();
                    assert_eq!(m.resume(stack), Ok(Resumed::Suspended));
                }
                common::nodes::churn(&m);
                finish(&m, &stacks);
            }
        },
    );
}

/// Coroutines that any thread resumes keep what they hold, while cycles run all along.
#[test]
fn stacks_that_go_from_thread_to_thread_keep_what_they_hold() {
    const STEPS: usize = 12;
    for heap in [
        poisoned(|builder| builder.stress(Stress::PHASES)),
        poisoned(|builder| builder.stress(Stress::CONTINUOUS)),
        poisoned(|builder| builder.stop_the_world(true)),
        poisoned(|builder| builder.verify(true)),
    ] {
        let (heap, k) = heap;
        let stacks = stacks(&heap, 60);
        let (ready, ended) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
        for stack in &stacks {
            // SAFETY: each step uses the mutator of its thread only, and a list is no thread's.
            unsafe {
                stack.start_anywhere(move || {
                    let mut head = with_mutator(|m| list(m, k, LENGTH));
                    for _ in 0..STEPS {
                        suspend().unwrap();
                        check_list(head, LENGTH);
                        head = with_mutator(|m| list(m, k, LENGTH));
                    }
                    suspend().unwrap();
                    check_list(head, LENGTH);
                })
            }
            .unwrap();
            ready.lock().unwrap().push(stack);
        }
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    let m = heap.attach().unwrap();
                    HERE.set(&raw const m);
                    while ended.load(SeqCst) < stacks.len() {
                        let next = m.blocking(|| {
                            let mut ready = ready.lock().unwrap();
                            let at = ready.len() / 2;
                            (!ready.is_empty()).then(|| ready.swap_remove(at))
                        });
                        let Some(stack) = next else { continue };
                        match m.resume(stack) {
                            Ok(Resumed::Suspended) => {
                                m.blocking(|| ready.lock().unwrap().push(stack));
                            }
                            Ok(Resumed::Finished) => _ = ended.fetch_add(1, SeqCst),
                            Err(error) => panic!("{error}"),
                        }
                    }
                    HERE.set(std::ptr::null());
                });
            }
            while ended.load(SeqCst) < stacks.len() {
                heap.collect();
                std::thread::yield_now();
            }
        });
    }
}

thread_local! {
    /// The running thread's mutator.
    static HERE: Cell<*const Mutator> = const { Cell::new(std::ptr::null()) };
}

/// Calls `f` with the mutator of the running thread.
#[inline(never)]
fn with_mutator<R>(f: impl FnOnce(&Mutator) -> R) -> R {
    // SAFETY: each thread of the test sets its own, which lives while the thread resumes stacks.
    // `f` does not suspend itself.
    f(unsafe { HERE.get().as_ref() }.unwrap())
}

/// Coroutines of another library, whose stacks are registered and whose switches are wrapped, keep
/// what they hold, whether the collector or their resumer scans them.
#[test]
fn coroutines_of_another_library_keep_what_they_hold() {
    let (heap, k) = poisoned(|builder| builder.stress(Stress::PHASES));
    let m = heap.attach().unwrap();
    HERE.set(&raw const m);
    let mut all: Vec<_> = (0..MANY)
        .map(|_| {
            let memory = DefaultStack::new(BYTES).unwrap();
            // The limit is that of the guard page.
            let range = memory.limit().get() + 4096..memory.base().get();
            // SAFETY: the coroutine, which owns the memory, is dropped after the registration.
            let stack = unsafe { heap.register_stack(range, ()) }.unwrap();
            let coroutine = Coroutine::with_stack(memory, move |yielder, ()| {
                for _ in 0..6 {
                    let head = with_mutator(|m| list(m, k, LENGTH));
                    // SAFETY: switches to the resumer.
                    unsafe { suspend_with(|| yielder.suspend(())) }.unwrap();
                    check_list(head, LENGTH);
                }
            });
            (stack, coroutine)
        })
        .collect();
    for turn in 0..7 {
        for (stack, coroutine) in &mut all {
            // SAFETY: the coroutine leaves by `suspend_with`, or ends.
            let result = unsafe { m.resume_with(stack, || coroutine.resume(())) }.unwrap();
            assert_eq!(result.as_yield().is_none(), turn == 6);
        }
        heap.request_collection();
        garbage(&m, k, 300);
        if turn % 2 == 0 {
            m.collect();
        }
    }
    for (stack, _coroutine) in all {
        assert_eq!(stack.state(), StackState::Finished);
        stack.release().unwrap();
    }
    HERE.set(std::ptr::null());
}

/// Ten thousand suspended stacks are scanned beside the program, take few pages each, and keep what
/// they hold. Those that run are scanned by their resumers, or have been before.
#[test]
fn ten_thousand_stacks_take_little_memory_and_keep_what_they_hold() {
    let name = "ten_thousand_stacks_take_little_memory_and_keep_what_they_hold";
    in_a_child(name, || {
        const COUNT: usize = 10_000;
        let (heap, k) = heap_with(|builder| builder);
        let m = heap.attach().unwrap();
        m.collect();
        let before = resident();
        let pool = StackPool::new(32 << 10);
        let stacks: Vec<_> = (0..COUNT)
            .map(|_| heap.stack(pool.take().unwrap()).unwrap())
            .collect();
        for (number, stack) in stacks.iter().enumerate() {
            m.start(stack, move |m| {
                loop {
                    let head = list(m, k, 2 + number % 3);
                    suspend().unwrap();
                    check_list(head, 2 + number % 3);
                    if number % 2 == 0 {
                        break;
                    }
                }
                suspend().unwrap();
            })
            .unwrap();
            assert_eq!(m.resume(stack), Ok(Resumed::Suspended));
        }
        let each = (resident() - before) / COUNT;
        assert!(each < 16 << 10, "{each} bytes a stack");
        m.collect();
        let last = heap.stats().last;
        assert_eq!(last.stacks_beside, COUNT as u32);
        let asked = heap.request_collection();
        for stack in &stacks {
            assert_eq!(m.resume(stack), Ok(Resumed::Suspended));
        }
        until(|| heap.stats().collections >= asked);
        m.collect();
        for stack in stacks {
            assert_eq!(stack.state(), StackState::Suspended);
            // SAFETY: nothing refers to its frames.
            unsafe { stack.abandon() }
                .map_err(|(error, _)| error)
                .unwrap();
        }
        m.collect();
        assert_eq!(heap.stats().last.stacks_beside, 0);
    });
}

/// What the heap's slow paths and a nested resume need of a stack: see `coroutine.rs`.
#[test]
fn the_heap_needs_few_kibibytes_of_a_stack() {
    const WORDS: usize = (256 << 10) / size_of::<usize>();
    let (heap, k) = heap_with(|builder| builder.stress(Stress::CONTINUOUS).gc_percent(20));
    let m = heap.attach().unwrap();
    let inner = stacks(&heap, 1).remove(0);
    m.start(&inner, |_| while suspend() == Ok(()) {}).unwrap();
    let mut memory = vec![0u128; WORDS / 2];
    let start = memory.as_mut_ptr() as usize;
    // SAFETY: the vector outlives the registration.
    let stack = unsafe { heap.register_stack(start..start + WORDS * size_of::<usize>(), ()) };
    let stack = stack.unwrap();
    let inner = Rc::new(inner);
    let again = inner.clone();
    m.start(&stack, move |m| {
        for round in 0..200 {
            garbage(m, k, 100);
            m.with_scope(|s| {
                for _ in 0..100 {
                    s.alloc(node(7)).unwrap();
                }
                _ = s.alloc_array::<Node>(5000).unwrap();
            });
            m.resume(&again).unwrap();
            if round % 50 == 0 {
                m.collect();
            }
            m.drop_dead_values();
        }
    })
    .unwrap();
    assert_eq!(m.resume(&stack), Ok(Resumed::Finished));
    stack.release().unwrap();
    // SAFETY: nothing refers to its frames.
    unsafe { Rc::into_inner(inner).unwrap().abandon() }.unwrap();
    let unused = memory.iter().take_while(|words| **words == 0).count() * 16;
    let used = WORDS * size_of::<usize>() - unused;
    assert!(used < 24 << 10, "{used} bytes");
}

/// A stack is used by the mutator that has started its function, in the stack's heap, outside of
/// `blocking` and `no_preempt`, and only while it is suspended. Everything else is an error that
/// changes nothing.
#[test]
fn misuse_is_an_error() {
    use gc_preempt::StackError as Switch;
    let (heap, _) = heap_with(|builder| builder);
    let (other, _) = heap_with(|builder| builder);
    let m = heap.attach().unwrap();
    let stack = stacks(&heap, 1).remove(0);
    assert_eq!(suspend(), Err(Switch::NotOnAStack));
    assert_eq!(m.resume(&stack), Err(Switch::Idle.into()));
    m.start(&stack, |m| {
        assert_eq!(
            m.blocking(suspend),
            Err(Switch::Blocking),
            "a stop would not see the switch"
        );
        assert_eq!(m.no_preempt(suspend), Err(Switch::InNoPreempt));
        suspend().unwrap();
    })
    .unwrap();
    assert_eq!(m.start(&stack, |_| ()), Err(Switch::Suspended.into()));
    // SAFETY: the function does nothing.
    let anywhere = unsafe { stack.start_anywhere(|| ()) };
    assert_eq!(anywhere, Err(StackError::OtherMutator));
    assert_eq!(
        m.blocking(|| m.resume(&stack)),
        Err(Switch::Blocking.into())
    );
    assert_eq!(
        m.no_preempt(|| m.resume(&stack)),
        Err(Switch::InNoPreempt.into())
    );
    assert_eq!(
        other.attach().unwrap().resume(&stack),
        Err(StackError::OtherHeap)
    );
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let m = heap.attach().unwrap();
            assert_eq!(m.resume(&stack), Err(StackError::OtherMutator));
            assert_eq!(m.start(&stack, |_| ()), Err(StackError::OtherMutator));
        });
    });
    assert_eq!(m.resume(&stack), Ok(Resumed::Suspended));
    let (error, stack) = stack.release().unwrap_err();
    assert_eq!(error, Switch::Suspended.into());
    // The stack has not been released, so it may not be registered again.
    // SAFETY: refused.
    let again = unsafe { heap.register_stack(stack.memory(), ()) };
    assert_eq!(again.unwrap_err(), Switch::Overlaps.into());
    assert_eq!(m.resume(&stack), Ok(Resumed::Finished));
    assert_eq!(m.resume(&stack), Err(Switch::Finished.into()));
    m.start(&stack, |_| panic!("on the stack")).unwrap();
    let panics = std::panic::AssertUnwindSafe(|| m.resume(&stack));
    let payload = std::panic::catch_unwind(panics).unwrap_err();
    assert_eq!(common::nodes::message(payload), "on the stack");
    stack.release().unwrap();
}

/// A mutator whose coroutines are suspended may detach. No mutator resumes them then, not even one
/// whose record lies at the same address.
#[test]
fn a_coroutine_does_not_go_on_in_a_later_mutator_of_its_thread() {
    let (heap, k) = poisoned(|builder| builder);
    let stacks = stacks(&heap, 3);
    let m = heap.attach().unwrap();
    hold_lists(&m, k, &stacks);
    drop(m);
    for _ in 0..4 {
        let m = heap.attach().unwrap();
        for stack in &stacks {
            assert_eq!(m.resume(stack), Err(StackError::OtherMutator));
        }
        m.collect();
    }
    for stack in stacks {
        // SAFETY: nothing refers to its frames.
        unsafe { stack.abandon() }
            .map_err(|(error, _)| error)
            .unwrap();
    }
}

/// A heap lives as long as its stacks, and ends after them though one is suspended.
#[test]
fn a_heap_ends_after_its_stacks() {
    let (heap, k) = poisoned(|builder| builder);
    let stacks = stacks(&heap, MANY);
    let m = heap.attach().unwrap();
    hold_lists(&m, k, &stacks);
    drop(heap);
    m.collect();
    finish(&m, &stacks[..MANY / 2]);
    drop(m);
    let heap = stacks[0].heap().clone();
    heap.collect();
    drop(heap);
    for stack in stacks {
        // SAFETY: nothing refers to its frames.
        unsafe { stack.abandon() }
            .map_err(|(error, _)| error)
            .unwrap();
    }
}
