//! Tests of `barrier.rs`.

use super::*;
use crate::satb_log::{LOG_WORDS, SharedLog};
use core::sync::atomic::Ordering;

fn all_of(log: &SharedLog) -> Vec<usize> {
    let mut all = Vec::new();
    while log.take(100, |word| all.push(word)) != 0 {}
    all
}

/// Calls `f` on a heap's thread, with its record; the test sets the marking flag itself.
fn with_context(f: impl FnOnce(&crate::Mutator, &Context)) {
    let heap = crate::Heap::builder().reserve(1 << 30).build().unwrap();
    let mutator = heap.attach().unwrap();
    // SAFETY: the context lives as long as the mutator.
    let context = unsafe { &*mutator.context() };
    f(&mutator, context);
    context.marking.store(0, Ordering::Relaxed);
}

#[test]
fn a_store_logs_the_old_value_while_marking_and_only_then() {
    with_context(|m, context| {
        let mut word = 1usize;
        for (marking, value, log) in [
            (0, 2, &[][..]),
            (1, 3, &[2]),
            (1, 4, &[2, 3]),
            (0, 5, &[2, 3]),
        ] {
            context.marking.store(marking, Ordering::Relaxed);
            // SAFETY: a word of ours.
            unsafe { m.write(&raw mut word, value) };
            assert_eq!(word, value);
            assert_eq!(context.logged().collect::<Vec<_>>(), log);
        }
    });
}

#[test]
fn a_weak_load_logs_what_it_loads_while_marking_and_only_then() {
    with_context(|m, context| {
        let word = 77usize;
        for (marking, log) in [(0, &[][..]), (1, &[77]), (1, &[77, 77]), (0, &[77, 77])] {
            context.marking.store(marking, Ordering::Relaxed);
            // SAFETY: a word of ours.
            assert_eq!(unsafe { m.load_weak(&raw const word) }, 77);
            assert_eq!(context.logged().collect::<Vec<_>>(), log);
        }
    });
}

#[test]
fn a_full_log_moves_to_the_heap_and_what_finds_no_room_there_is_marked() {
    with_context(|m, context| {
        let heap = m.heap();
        let leaf = heap.kind(crate::raw::Kind::leaf("leaf")).unwrap();
        // SAFETY: no collection happens.
        let cell = || unsafe { m.alloc_raw(leaf, 16) }.unwrap().as_ptr() as usize;
        let cells: Vec<usize> = (0..5 * LOG_WORDS + 3).map(|_| cell()).collect();
        let (space, log) = (&context.shared.space, &context.shared.log);
        context.marking.store(1, Ordering::Relaxed);
        let mut word = 0usize;
        let mut store_all = || {
            for cell in &cells {
                // SAFETY: a word of ours.
                unsafe { m.write(&raw mut word, *cell) };
            }
        };
        store_all();
        // The first overwritten word is null, which is not logged; the last word is not
        // overwritten yet.
        let mut all = all_of(log);
        assert_eq!(all.len(), 5 * LOG_WORDS - 1);
        all.extend(context.logged());
        assert_eq!(all, cells[..cells.len() - 1]);
        context.reset_log();

        // If the heap's log is full, nothing is lost.
        while log.append(&[1; LOG_WORDS]) {}
        store_all();
        let marked = log.overflowed_marks();
        // The first overwritten word is the last one of the round before.
        assert_eq!(marked.cells, 5 * LOG_WORDS as u64);
        assert_eq!(marked.bytes, 16 * marked.cells);
        assert!(
            cells[..5 * LOG_WORDS - 1]
                .iter()
                .all(|cell| space.is_marked(*cell))
        );
        // Words that name marked cells do not go into the heap's log.
        log.reset();
        store_all();
        assert!(all_of(log).len() <= 3);
    });
}

#[test]
fn what_was_overwritten_or_loaded_weakly_while_marking_lives() {
    with_context(|m, context| {
        let heap = m.heap();
        let node = heap
            .kind(crate::raw::Kind::words_at(
                "node",
                &[0],
                crate::raw::Encoding::low_bits(1),
            ))
            .unwrap();
        let table = heap
            .kind(crate::raw::Kind::weak(
                "table",
                0,
                crate::raw::Encoding::RAW,
                0,
            ))
            .unwrap();
        const ENTRIES: usize = 64;
        #[inline(never)]
        fn fill(
            m: &crate::Mutator,
            node: crate::raw::KindId,
            holder: *mut usize,
            weak: *mut usize,
        ) {
            // SAFETY: live cells of the sizes asked for.
            unsafe {
                m.write(holder, m.alloc_raw(node, 16).unwrap().as_ptr() as usize | 1);
                m.write(weak, m.alloc_raw(node, 32).unwrap().as_ptr() as usize);
                for i in 1..ENTRIES {
                    m.write(
                        weak.add(i),
                        m.alloc_raw(node, 64).unwrap().as_ptr() as usize,
                    );
                }
            }
        }
        // SAFETY: live cells of the sizes asked for, on this stack.
        unsafe {
            let holder = m.alloc_raw(node, 16).unwrap().as_ptr().cast::<usize>();
            let weak = m
                .alloc_raw(table, 8 * ENTRIES)
                .unwrap()
                .as_ptr()
                .cast::<usize>();
            fill(m, node, holder, weak);
            let wipe = core::hint::black_box([0usize; 1024]);
            assert_eq!(wipe[5], 0);
            context.marking.store(1, Ordering::Relaxed);
            m.write(holder, 0);
            let complement = !m.load_weak(weak);
            context.marking.store(0, Ordering::Relaxed);
            core::hint::black_box([0usize; 1024]);
            m.collect();
            // The overwritten cell and the loaded cell are kept, since the log names them.
            // Cells that only the table names are not kept, except one or two that a stale word
            // of this thread's stack may name.
            assert_eq!(weak.read(), !complement);
            let stale = (1..ENTRIES).filter(|&i| weak.add(i).read() != 0).count();
            assert!(
                stale <= 3,
                "{stale} cells that only the table knows are kept"
            );
            let last = heap.stats().last;
            assert_eq!(last.cells_live, 4 + stale as u64, "{last:?}");
            // Both cells are used here, so they stay on the stack until here.
            core::hint::black_box((holder, weak));
        }
    });
}

#[test]
fn the_units_are_short_and_apart() {
    let [store, weak] = restart_ranges();
    assert!(store.len() < 64 && weak.len() < 64, "{store:?} {weak:?}");
    assert!(store.end <= weak.start || weak.end <= store.start);
}
