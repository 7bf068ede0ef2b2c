//! H25, H26, H27: stops at every instruction of the barrier, of the weak load and of an allocation.
//!
//! The thread under test single-steps itself by the trap flag. Where a stop is to hit a certain
//! instruction, the trap's handler lets another thread ask for it and returns once SIGURG is
//! pending: it is then delivered at exactly that instruction.

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

/// Runs `unit` once for each of its instructions, with a stop there in which `stopped` runs.
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
                    // SAFETY: a word of ours.
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
                // SAFETY: no arguments. What rax holds from here on is not the word.
                std::hint::black_box(unsafe { libc::getpid() });
                // SAFETY: a word of ours.
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
                    // Stop 1: a scan finds what is in rax, where the result is.
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

static WANTED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
/// Instructions in `blocking`.
static BLOCKED: AtomicU64 = AtomicU64::new(0);
/// The stepping thread's attachment.
static STEPPING: AtomicUsize = AtomicUsize::new(0);

/// Has a whole collection done after each instruction, unless the thread may not be stopped there.
/// In `blocking` (to have the system back memory) after each 64th: it leaves that only when no stop
/// comes between some ten of its instructions. The thread is stopped in this handler: what the
/// interrupted code holds is found behind it.
extern "C" fn collect_at_each(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
    // SAFETY: set before stepping begins, alive until it ends.
    let thread = unsafe { &*(STEPPING.load(Relaxed) as *const gc_preempt::Mutator) };
    if thread.in_no_preempt() {
        return;
    }
    if thread.is_blocking() && !BLOCKED.fetch_add(1, Relaxed).is_multiple_of(64) {
        return;
    }
    // SAFETY: lets the collection's signal through, which `on_step` holds back.
    unsafe {
        let mut urg: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut urg, libc::SIGURG);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const urg, std::ptr::null_mut());
    }
    let number = WANTED.fetch_add(1, SeqCst) + 1;
    while DONE.load(SeqCst) < number {
        // SAFETY: a system call; the thread that is waited for may need this core.
        unsafe { libc::sched_yield() };
    }
}

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
                    // SAFETY: a node has two words; the list is on the stack.
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
