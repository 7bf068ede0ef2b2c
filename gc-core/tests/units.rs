//! H25, H26, H27: stops at each instruction of the barrier's store, of the weak load and of an
//! allocation.
//!
//! The thread under test single-steps itself by the trap flag. Where a stop must hit a certain
//! instruction, the trap's handler has another thread request the stop, and returns once SIGURG is
//! pending. The kernel then delivers SIGURG at exactly that instruction.

mod common;

use common::step::{
    Outcome, Over, Record, at_each, instructions, meets_target, on_step, stepping, that,
    until_a_stop_is_pending,
};
use common::{check_list, garbage, hazard, heap};
use gc_core::{Heap, jit};
use gc_preempt::Stopped;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

/// True if a stop is requested.
static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn stop_at_target(
    _: libc::c_int,
    _: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: the kernel's context of this signal.
    if unsafe { meets_target(context) } {
        ASKED.store(true, SeqCst);
        until_a_stop_is_pending();
    }
}

/// Runs `unit` once for each of its instructions, with a stop at that instruction in which
/// `stopped` runs. Returns the number of instructions.
fn stop_at_each(
    heap: &Heap,
    start: usize,
    mut unit: impl FnMut() -> Outcome,
    stopped: impl Fn(&Stopped<'_>) + Sync,
) -> usize {
    on_step(stop_at_target, &[libc::SIGURG]);
    let (outcome, offsets) = instructions(start, &mut unit);
    outcome.unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Relaxed) {
                if ASKED.swap(false, SeqCst) {
                    heap.with_stopped(&stopped).unwrap();
                }
                std::thread::yield_now();
            }
        });
        let _over = Over(&done);
        at_each(start, &offsets, &mut unit);
    });
    offsets.len()
}

const OLD: usize = 0x5a5a_0000_0000_0101;
const NEW: usize = 0x5a5a_0000_0000_0202;

/// A store that marking interrupts at any instruction is logged or not in the snapshot: the store
/// is a restart range. Without the restart, an old value is lost.
#[test]
fn h25_marking_that_begins_at_any_instruction_of_a_store_loses_nothing() {
    hazard(
        "h25_marking_that_begins_at_any_instruction_of_a_store_loses_nothing",
        "no-restart",
        || {
            let (heap, _) = heap();
            let m = heap.attach().unwrap();
            let record = Record::of(&m);
            let slot = AtomicUsize::new(OLD);
            let snapshot = AtomicUsize::new(0);
            for marking in [0, 1] {
                let unit = || {
                    record.reset(marking);
                    slot.store(OLD, Relaxed);
                    snapshot.store(if marking == 1 { OLD } else { NEW }, Relaxed);
                    // SAFETY: a word of this test, which the store treats as a word of a cell.
                    unsafe { m.write(slot.as_ptr(), NEW) };
                    that(slot.load(Relaxed) == NEW, "not stored")?;
                    that(
                        snapshot.load(Relaxed) == NEW || record.logged(OLD),
                        "overwritten, in the snapshot, and not logged",
                    )?;
                    record.reset(0);
                    Ok(())
                };
                let n = stop_at_each(&heap, jit::store_address(), unit, |_| {
                    snapshot.store(slot.load(Relaxed), Relaxed);
                    record.marking().store(1, Relaxed);
                });
                assert!(n >= [4, 11][marking as usize], "{n} instructions");
            }
        },
    );
}

/// A weak load that the beginning or end of marking interrupts at any instruction gives a value
/// that the scan found or the log has, or nothing. Without the restart, it gives a dead cell.
#[test]
fn h27_marking_that_begins_or_ends_at_any_instruction_of_a_weak_load_loses_nothing() {
    let name = "h27_marking_that_begins_or_ends_at_any_instruction_of_a_weak_load_loses_nothing";
    hazard(name, "no-restart", || {
        let (heap, _) = heap();
        let m = heap.attach().unwrap();
        let record = Record::of(&m);
        let slot = AtomicUsize::new(0);
        let (dead, found) = (AtomicBool::new(false), AtomicBool::new(false));
        for marking in [0, 1] {
            let unit = || {
                record.reset(marking);
                slot.store(OLD, Relaxed);
                dead.store(false, Relaxed);
                found.store(false, Relaxed);
                // SAFETY: a system call without arguments. RAX then does not hold the word.
                std::hint::black_box(unsafe { libc::getpid() });
                // SAFETY: a word of this test, which the load treats as a word of a weak cell.
                let got = unsafe { m.load_weak(slot.as_ptr()) };
                that(got == 0 || got == OLD, "a word that was never there")?;
                that(
                    got == 0 || !dead.load(Relaxed),
                    "a weak load gave what had been found dead before it returned",
                )?;
                that(
                    got == 0
                        || record.marking().load(Relaxed) == 0
                        || found.load(Relaxed)
                        || record.logged(OLD),
                    "a weak load gave what no root scan has found and no log holds",
                )?;
                record.reset(0);
                Ok(())
            };
            let n = stop_at_each(&heap, jit::load_weak_address(), unit, |stopped| {
                if marking == 0 {
                    // Stop 1: a scan would find the word in RAX, where the result is.
                    let rax = |m: gc_preempt::StoppedMutator<'_>| m.snapshot().registers.gpr[0];
                    found.store(stopped.mutators().map(rax).any(|word| word == OLD), Relaxed);
                    record.marking().store(1, Relaxed);
                    return;
                }
                if !record.logged(OLD) {
                    dead.store(true, Relaxed);
                    slot.store(0, Relaxed);
                }
                record.marking().store(0, Relaxed);
            });
            assert!(n >= [4, 12][marking as usize], "{n} instructions");
        }
    });
}

// ---- allocation ---------------------------------------------------------------------------------

/// The number of the last collection that was requested.
static WANTED: AtomicU64 = AtomicU64::new(0);
/// The number of the last collection that is done.
static DONE: AtomicU64 = AtomicU64::new(0);
/// Instructions inside `blocking`.
static BLOCKED: AtomicU64 = AtomicU64::new(0);
/// The address of the stepping thread's attachment.
static STEPPING: AtomicUsize = AtomicUsize::new(0);

/// Requests a whole collection after each instruction, except where the thread must not be stopped.
/// Inside `blocking`, where the system backs memory, only each 64th instruction counts: the thread
/// can leave it only if no stop falls between some ten of its instructions. The thread is stopped
/// in this handler, and the walk finds the interrupted code's registers behind it.
extern "C" fn collect_at_each(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
    // SAFETY: the address is set before stepping begins, and valid until it ends.
    let thread = unsafe { &*(STEPPING.load(Relaxed) as *const gc_preempt::Mutator) };
    if thread.in_no_preempt() {
        return;
    }
    if thread.is_blocking() && !BLOCKED.fetch_add(1, Relaxed).is_multiple_of(64) {
        return;
    }
    // SAFETY: unblocks the collection's signal, which `on_step` has blocked.
    unsafe {
        let mut urg: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut urg, libc::SIGURG);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const urg, std::ptr::null_mut());
    }
    let number = WANTED.fetch_add(1, SeqCst) + 1;
    while DONE.load(SeqCst) < number {
        // SAFETY: a system call. The collecting thread may need this processor.
        unsafe { libc::sched_yield() };
    }
}

/// A list whose cells are allocated with a collection at each instruction is whole. With
/// `white-tails` planted, cells are freed.
#[test]
fn h26_a_collection_at_every_instruction_of_an_allocation_loses_nothing() {
    let name = "h26_a_collection_at_every_instruction_of_an_allocation_loses_nothing";
    hazard(name, "white-tails", || {
        const CELLS: usize = 60;
        let (heap, k) = heap();
        let m = heap.attach().unwrap();
        let site = heap.site(k.node, 16).unwrap();
        on_step(collect_at_each, &[libc::SIGURG]);
        STEPPING.store(std::ptr::from_ref(m.thread()) as usize, SeqCst);
        let finished = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !finished.load(Relaxed) {
                    let wanted = WANTED.load(SeqCst);
                    if wanted > DONE.load(SeqCst) {
                        heap.collect();
                        DONE.store(wanted, SeqCst);
                    }
                    std::thread::yield_now();
                }
            });
            let head = stepping(|| {
                (0..CELLS).fold(0, |head, i| {
                    // SAFETY: a node has two words, and the list is on the stack.
                    unsafe {
                        let cell = m.alloc_at(site).unwrap().as_ptr().cast::<usize>();
                        cell.write(head);
                        cell.add(1).write(i);
                        cell as usize
                    }
                })
            });
            finished.store(true, Relaxed);
            for _ in 0..3 {
                m.collect();
                garbage(&m, k, 3000);
            }
            check_list(head, CELLS);
        });
        let collections = WANTED.load(Relaxed);
        assert!(collections > 10 * CELLS as u64, "{collections}");
        assert_ne!(BLOCKED.load(Relaxed), 0, "it had to ask for memory");
    });
}
