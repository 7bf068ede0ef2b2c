//! H25, H27: whole cycles whose first stop falls on each instruction of the barrier's store, or
//! whose last stop falls on each instruction of the weak load.
//!
//! `units.rs` steps through the same code with a flag that is changed by hand. Here a real cycle
//! changes it, and the test checks which cells the cycle frees. Collections stay in each phase for
//! a while, so the thread's next steps come before any tracing.

mod common;

use common::step::{
    Over, Record, TARGET, instructions, meets_target, on_step, stepping, until_a_stop_is_pending,
};
use common::{Kinds, cell, cons, garbage, hazard, stress_phases, until, wipe_stack};
use gc_core::raw::RawRoot;
use gc_core::{Heap, Mutator, jit};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Cycles for each instruction. In every other cycle the markers begin late.
const ROUNDS: usize = 8;

/// True if a collection is requested.
static ASKED: AtomicBool = AtomicBool::new(false);
/// The address of the stepping mutator's marking flag, where the awaited stop comes only while the
/// flag is set; otherwise 0.
static FLAG: AtomicUsize = AtomicUsize::new(0);

extern "C" fn wait_at_target(
    _: libc::c_int,
    _: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: the kernel's context of this signal.
    if !unsafe { meets_target(context) } {
        return;
    }
    let flag = FLAG.load(Relaxed) as *const std::sync::atomic::AtomicU32;
    if flag.is_null() {
        ASKED.store(true, SeqCst);
    // SAFETY: the flag of the stepping mutator's own record.
    } else if unsafe { (*flag).load(Relaxed) } == 0 {
        // The last stop of the cycle is over already.
        return;
    }
    until_a_stop_is_pending();
}

/// A new cell with a root.
fn rooted(m: &Mutator, kind: gc_core::raw::KindId) -> RawRoot {
    // SAFETY: the cell stays on the stack until it has a root.
    unsafe { m.root_raw(m.alloc_raw(kind, 16).unwrap()).unwrap() }
}

/// Makes a node to which only `slot` leads, on a thread that has ended on return, so that no stack
/// names the node. Returns the complement of its address.
fn hide(heap: &Heap, k: Kinds, slot: *mut usize) -> usize {
    let slot = slot as usize;
    std::thread::scope(|s| {
        s.spawn(move || {
            let m = heap.attach().unwrap();
            let node = cons(&m, k, 0, NUMBER);
            // SAFETY: a word of a live cell.
            unsafe { m.write(slot as *mut usize, node) };
            !node
        })
        .join()
        .unwrap()
    })
}

/// The number of a hidden node.
const NUMBER: usize = 0x5a5a_0000_0000_0101;

/// A store that the first stop of a cycle interrupts at any instruction keeps the snapshot: an old
/// value that the scan of the roots would have found lives through the cycle. Without the restart,
/// it is freed.
#[test]
fn h25_a_cycle_that_begins_at_any_instruction_of_a_store_keeps_its_snapshot() {
    hazard(
        "h25_a_cycle_that_begins_at_any_instruction_of_a_store_keeps_its_snapshot",
        "no-restart",
        || {
            let (heap, k) = stress_phases();
            let m = heap.attach().unwrap();
            let root = rooted(&m, k.node);
            let slot = root.get().unwrap().cast::<usize>().as_ptr();
            let address = slot as usize;
            // The complement of the word that the slot held when the roots were scanned.
            let snapshot = Arc::new(AtomicUsize::new(0));
            let theirs = snapshot.clone();
            // SAFETY: the callback reads a word of a cell that a root keeps, and reports nothing.
            let _callback = unsafe {
                heap.add_root_callback(move |_| {
                    theirs.store(!(address as *const usize).read_volatile(), Relaxed);
                })
                .expect("room for a callback")
            };
            // SAFETY: a word of a live cell.
            let unit = || unsafe { m.write(slot, 0) };
            on_step(wait_at_target, &[libc::SIGURG]);
            let ((), offsets) = instructions(jit::store_address(), unit);
            assert!(offsets.len() >= 4, "{offsets:?}");
            let (hidden, over) = (AtomicUsize::new(0), AtomicBool::new(false));
            // 1: the cycle is over. 2: the cycle has also freed a node of the snapshot.
            let outcome = AtomicUsize::new(0);
            std::thread::scope(|s| {
                let _over = Over(&over);
                s.spawn(|| {
                    while !over.load(Relaxed) {
                        if ASKED.swap(false, SeqCst) {
                            heap.collect();
                            let hidden = hidden.load(Relaxed);
                            let mut lives = false;
                            heap.for_each_cell(|cell| lives |= cell.base == !hidden)
                                .unwrap();
                            let lost = snapshot.load(Relaxed) == hidden && !lives;
                            outcome.store(if lost { 2 } else { 1 }, SeqCst);
                        }
                        std::thread::yield_now();
                    }
                });
                let mut in_snapshot = 0;
                for offset in &offsets {
                    for _ in 0..ROUNDS {
                        hidden.store(hide(&heap, k, slot), Relaxed);
                        wipe_stack();
                        outcome.store(0, Relaxed);
                        TARGET.store(jit::store_address() + offset, Relaxed);
                        stepping(unit);
                        until(|| outcome.load(SeqCst) != 0);
                        assert_eq!(
                            outcome.load(Relaxed),
                            1,
                            "overwritten at the cycle's beginning, and lost"
                        );
                        in_snapshot += usize::from(snapshot.load(Relaxed) == hidden.load(Relaxed));
                    }
                }
                assert!(in_snapshot >= 3 * ROUNDS, "{in_snapshot}");
            });
        },
    );
}

/// A weak load that the first or last stop of a cycle interrupts at any instruction gives a node
/// that lives, or nothing. Without the restart, it gives a freed one.
#[test]
fn h27_a_cycle_that_begins_or_ends_at_any_instruction_of_a_weak_load_leaves_what_it_gives() {
    let name =
        "h27_a_cycle_that_begins_or_ends_at_any_instruction_of_a_weak_load_leaves_what_it_gives";
    hazard(name, "no-restart", || {
        let (heap, k) = stress_phases();
        let m = heap.attach().unwrap();
        let root = rooted(&m, k.weak);
        let slot = root.get().unwrap().cast::<usize>().as_ptr();
        let record = Record::of(&m);
        // SAFETY: a word of a live weak cell.
        let unit = || unsafe { m.load_weak(slot) };
        let over = AtomicBool::new(false);
        let ended = AtomicUsize::new(0);
        std::thread::scope(|s| {
            let _over = Over(&over);
            s.spawn(|| {
                while !over.load(Relaxed) {
                    if ASKED.swap(false, SeqCst) {
                        heap.collect();
                        ended.fetch_add(1, SeqCst);
                    }
                    std::thread::yield_now();
                }
            });
            for at_its_end in [false, true] {
                // The offsets of the path of this case. The flag is set by hand to record them.
                record.reset(at_its_end.into());
                on_step(wait_at_target, &[libc::SIGURG]);
                let (_, offsets) = instructions(jit::load_weak_address(), unit);
                record.reset(0);
                let (mut met, mut cleared, mut kept) = (0, 0, 0);
                for (offset, _) in offsets
                    .iter()
                    .flat_map(|o| (0..ROUNDS).map(move |r| (o, r)))
                {
                    hide(&heap, k, slot);
                    wipe_stack();
                    let before = ended.load(SeqCst);
                    if at_its_end {
                        ASKED.store(true, SeqCst);
                        until(|| {
                            record.marking().load(Acquire) != 0 || ended.load(SeqCst) != before
                        });
                        FLAG.store(std::ptr::from_ref(record.marking()) as usize, Relaxed);
                    }
                    TARGET.store(jit::load_weak_address() + offset, Relaxed);
                    let got = stepping(unit);
                    // A load that found the flag clear again took the other path.
                    let missed = TARGET.swap(0, Relaxed) != 0;
                    FLAG.store(0, Relaxed);
                    met += usize::from(!missed);
                    assert!(
                        at_its_end || !missed,
                        "the instruction at {offset} was not met"
                    );
                    until(|| ended.load(SeqCst) != before);
                    garbage(&m, k, 4000);
                    if got == 0 {
                        cleared += 1;
                        continue;
                    }
                    kept += 1;
                    // SAFETY: a live node; where it is not, the test has found a fault.
                    let number = unsafe { cell(got).cast::<usize>().add(1).read() };
                    assert_eq!(number, NUMBER, "a weak load gave what was freed");
                }
                let n = offsets.len() * ROUNDS;
                assert!(met > n / 4 && kept >= ROUNDS, "{met} of {n}, {kept} kept");
                assert!(!at_its_end || cleared > 0, "{n}, but none was cleared");
            }
        });
    });
}
