//! Tests of `handles.rs`.

use super::*;

/// The handles that a collector finds if it begins to read now.
fn all(handles: &Handles) -> Vec<usize> {
    handles.begin_reading();
    let mut all = Vec::new();
    let mut from = Some(0);
    while let Some(at) = from {
        from = handles.read_piece(at, 4096, |word| all.push(word));
    }
    handles.all_read();
    all.sort_unstable();
    all
}

fn with_table(f: impl FnOnce(&gc_preempt::Mutator, &Handles)) {
    let world = gc_preempt::World::new(gc_preempt::Config::default()).unwrap();
    let thread = world.attach(core::ptr::null_mut()).unwrap();
    f(&thread, &Handles::new().unwrap());
}

fn push(chain: &Chain<'_>, handle: usize) {
    chain.push(handle * 16).unwrap();
}

fn end(chain: Chain<'_>) {
    chain.end(|word| panic!("{word:#x} is logged though nothing is to be read"));
}

/// The handles of a scope are read until it ends, whether it ends before or after an inner one,
/// and holes are filled.
#[test]
fn a_scope_s_handles_are_read_until_it_ends_in_whatever_order() {
    with_table(|thread, handles| {
        let outer = Chain::new(handles, thread);
        push(&outer, 1);
        let inner = Chain::new(handles, thread);
        (0..1000).for_each(|i| push(&inner, 1000 + i));
        // These handles are made while the inner scope is open, and live after it. They need
        // chunks above those of the inner scope.
        (0..200).for_each(|i| push(&outer, 100 + i));
        assert_eq!(all(handles).len(), 1201);
        end(inner);
        let kept: Vec<usize> = [1].into_iter().chain(100..300).map(|i| i * 16).collect();
        assert_eq!(all(handles), kept);
        let high = handles.top.load(Ordering::Relaxed);
        let again = Chain::new(handles, thread);
        (0..1000).for_each(|i| push(&again, 1 + i));
        assert_eq!(
            handles.top.load(Ordering::Relaxed),
            high,
            "holes are filled"
        );
        end(outer);
        assert_eq!(all(handles).len(), 1000);
        end(again);
        assert!(all(handles).is_empty());
        assert!(!handles.begin_reading(), "the stack is empty");
    });
}

/// Scopes that open and end in random order keep their handles, and leave an empty table.
#[test]
fn scopes_that_come_and_go_at_random_keep_what_they_hold_and_leave_nothing() {
    with_table(|thread, handles| {
        let mut open: Vec<(Chain<'_>, Vec<usize>)> = Vec::new();
        let (mut random, mut next) = (11u64, 1);
        for step in 0..40_000 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let choice = (random >> 33) as usize;
            match choice % 8 {
                0 => open.push((Chain::new(handles, thread), Vec::new())),
                1 if !open.is_empty() => {
                    // Innermost first in most cases.
                    let at = if choice.is_multiple_of(5) {
                        choice % open.len()
                    } else {
                        open.len() - 1
                    };
                    end(open.remove(at).0);
                }
                _ if !open.is_empty() => {
                    let at = choice / 64 % open.len();
                    for _ in 0..choice / 8 % 40 {
                        push(&open[at].0, next);
                        open[at].1.push(next * 16);
                        next += 1;
                    }
                }
                _ => {}
            }
            if step % 1999 == 0 {
                let mut held: Vec<usize> = open.iter().flat_map(|(_, held)| held.clone()).collect();
                held.sort_unstable();
                assert_eq!(all(handles), held);
                handles.lower();
                handles.trim();
            }
        }
        open.drain(..).for_each(|(chain, _)| end(chain));
        assert!(!handles.begin_reading());
    });
}

/// An empty scope takes no chunk, and a scope with one handle takes four words.
#[test]
fn an_empty_scope_takes_no_chunk_and_one_handle_four_words() {
    with_table(|thread, handles| {
        let top = handles.top.load(Ordering::Relaxed);
        end(Chain::new(handles, thread));
        let chain = Chain::new(handles, thread);
        push(&chain, 1);
        assert_eq!(handles.top.load(Ordering::Relaxed), top + 4 * WORD);
        end(chain);
        assert_eq!(handles.top.load(Ordering::Relaxed), top);
    });
}

/// The memory of a peak goes back, and can be mapped again.
#[test]
fn a_peak_s_memory_goes_back_and_can_be_had_again() {
    with_table(|thread, handles| {
        let outer = Chain::new(handles, thread);
        push(&outer, 7);
        for _ in 0..3 {
            let peak = Chain::new(handles, thread);
            (0..1_000_000).for_each(|i| push(&peak, 1 + i));
            assert!(handles.current.load(Ordering::Relaxed) > 5);
            assert_eq!(all(handles).len(), 1_000_001);
            end(peak);
            assert!(handles.lower(), "there is something to give back");
            handles.trim();
            assert!(!handles.lower(), "it has been given back");
            let mapped = handles
                .segments
                .iter()
                .filter(|s| s.base.load(Ordering::Relaxed) != 0);
            assert_eq!(mapped.count(), 1);
            assert_eq!(all(handles), [7 * 16]);
        }
        end(outer);
    });
}

/// The handles of a scope that ends before the collector has read them are logged. Those of a
/// scope that ends later are not.
#[test]
fn a_scope_that_ends_before_it_was_read_is_logged_and_later_ones_are_not() {
    with_table(|thread, handles| {
        let outer = Chain::new(handles, thread);
        push(&outer, 1);
        let inner = Chain::new(handles, thread);
        (0..100).for_each(|i| push(&inner, 100 + i));
        assert!(handles.begin_reading());
        let mut logged = Vec::with_capacity(200); // the closure must not call malloc
        inner.end(|word| logged.push(word));
        logged.sort_unstable();
        assert_eq!(logged, (100..200).map(|i| i * 16).collect::<Vec<_>>());
        let mut read = Vec::new();
        handles.for_each(|word| read.push(word));
        assert!(read.contains(&16));
        handles.all_read();
        end(outer);
    });
}
