//! A host's handler interrupts a unit (H25, H27), and the stop finds the thread inside that
//! handler.
//!
//! The thread under test single-steps itself. At the instruction that is meant, the trap's handler
//! raises SIGUSR1, which is then delivered at exactly that instruction; its handler, the host's,
//! does what [`Wait`] says until a stop has come and gone.

mod common;

use common::step::{Outcome, Over, Record, at_each, instructions, meets_target, on_step, that};
use common::{hazard, heap, is_child, run_child};
use gc_core::jit;
use gc_preempt::RootSink;
use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// How the host's handler waits for the stop to be over.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// It spins, and is stopped by the signal.
    Spin,
    /// The same, installed with SA_NODEFER: the mask is empty while it runs.
    SpinNodefer,
    /// In `blocking`: it is held without a signal.
    Block,
    /// In `no_preempt` sections, at whose ends it parks.
    Poll,
}

/// Which of a cycle's stops it was.
#[derive(PartialEq)]
enum Stop {
    /// Marking began: stacks are walked.
    First,
    /// Marking ended: they are not.
    Second,
}

static ASKED: AtomicBool = AtomicBool::new(false);
static OVER: AtomicBool = AtomicBool::new(false);
static WAIT: AtomicUsize = AtomicUsize::new(0);
/// The attachment of the thread under test.
static THREAD: AtomicUsize = AtomicUsize::new(0);

extern "C" fn raise_at_target(
    _: libc::c_int,
    _: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: the kernel's context of this signal.
    if unsafe { meets_target(context) } {
        // SAFETY: a signal with a handler to this thread; it is blocked until this handler returns.
        unsafe { libc::raise(libc::SIGUSR1) };
    }
}

extern "C" fn hosts(_: libc::c_int) {
    // SAFETY: set before, alive until the test ends.
    let thread = unsafe { &*(THREAD.load(Relaxed) as *const gc_preempt::Mutator) };
    let spin = |turns: u32| {
        for _ in 0..turns {
            if OVER.load(SeqCst) {
                break;
            }
            // SAFETY: a system call; the stopper may need this core.
            unsafe { libc::sched_yield() };
        }
    };
    let wait = WAIT.load(Relaxed);
    OVER.store(false, SeqCst);
    ASKED.store(true, SeqCst);
    if wait == Wait::Block as usize {
        thread.blocking(|| spin(u32::MAX));
    } else if wait == Wait::Poll as usize {
        while !OVER.load(SeqCst) {
            thread.no_preempt(|| spin(100));
        }
    } else {
        spin(u32::MAX);
    }
}

struct Nothing;

impl RootSink for Nothing {
    fn conservative(&mut self, _: Range<usize>) {}
    fn exact(&mut self, _: usize, _: u32) {}
    fn derived(&mut self, _: usize, _: usize, _: u32) {}
}

/// Runs `unit` once for each of its instructions, with the host's handler there, and a stop in that
/// in which `stopped` runs. Gives the number of instructions.
fn stop_in_a_handler_at_each(
    m: &gc_core::Mutator,
    wait: Wait,
    start: usize,
    mut unit: impl FnMut() -> Outcome,
    stopped: impl Fn() -> Stop + Sync,
) -> usize {
    let heap = m.heap();
    THREAD.store(std::ptr::from_ref(m.thread()) as usize, Relaxed);
    WAIT.store(wait as usize, Relaxed);
    // SAFETY: the handler is async-signal-safe here: what it interrupts is a unit, or the test's
    // own loop.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = hosts as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        if wait == Wait::SpinNodefer {
            action.sa_flags |= libc::SA_NODEFER;
        }
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
    on_step(raise_at_target, &[libc::SIGURG, libc::SIGUSR1]);
    let (outcome, offsets) = instructions(start, &mut unit);
    outcome.unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Relaxed) {
                if ASKED.swap(false, SeqCst) {
                    heap.with_stopped(|all| {
                        // A thread that could settle what it has interrupted has done so: no walk
                        // is needed.
                        let walked = matches!(wait, Wait::SpinNodefer | Wait::Block);
                        if stopped() == Stop::First && walked {
                            for mutator in all.mutators() {
                                mutator.walk(&mut Nothing);
                            }
                        }
                    })
                    .unwrap();
                    OVER.store(true, SeqCst);
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

fn marking_begins(wait: Wait) {
    let (heap, _) = heap();
    let m = heap.attach().unwrap();
    let record = Record::of(&m);
    let slot = AtomicUsize::new(OLD);
    let snapshot = AtomicUsize::new(0);
    let unit = || {
        record.reset(0);
        slot.store(OLD, Relaxed);
        snapshot.store(NEW, Relaxed);
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
    let n = stop_in_a_handler_at_each(&m, wait, jit::store_address(), unit, || {
        snapshot.store(slot.load(Relaxed), Relaxed);
        record.marking().store(1, Relaxed);
        Stop::First
    });
    assert!(n >= 4, "{n} instructions");
}

fn marking_ends(wait: Wait) {
    let (heap, _) = heap();
    let m = heap.attach().unwrap();
    let record = Record::of(&m);
    let slot = AtomicUsize::new(0);
    let dead = AtomicBool::new(false);
    let unit = || {
        record.reset(1);
        slot.store(OLD, Relaxed);
        dead.store(false, Relaxed);
        // SAFETY: a word of ours.
        let got = unsafe { m.load_weak(slot.as_ptr()) };
        that(got == 0 || got == OLD, "a word that was never there")?;
        that(
            got == 0 || !dead.load(Relaxed),
            "a weak load gave what had been found dead before it returned",
        )?;
        record.reset(0);
        Ok(())
    };
    let n = stop_in_a_handler_at_each(&m, wait, jit::load_weak_address(), unit, || {
        if !record.logged(OLD) {
            dead.store(true, Relaxed);
            slot.store(0, Relaxed);
        }
        record.marking().store(0, Relaxed);
        Stop::Second
    });
    assert!(n >= 10, "{n} instructions");
}

#[test]
fn h25_a_stop_in_a_handler_that_interrupted_a_store_loses_nothing() {
    let name = "h25_a_stop_in_a_handler_that_interrupted_a_store_loses_nothing";
    hazard(name, "handlers-unmoved", || marking_begins(Wait::Spin));
}

#[test]
fn h25_a_stop_in_a_handler_without_a_mask_that_interrupted_a_store_loses_nothing() {
    let name = "h25_a_stop_in_a_handler_without_a_mask_that_interrupted_a_store_loses_nothing";
    hazard(name, "no-outer-restart", || {
        marking_begins(Wait::SpinNodefer)
    });
}

#[test]
fn h25_a_signal_frame_is_found_where_no_table_leads_to_it() {
    let name = "h25_a_signal_frame_is_found_where_no_table_leads_to_it";
    if is_child() {
        return marking_begins(Wait::SpinNodefer);
    }
    for (faults, sound) in [
        ("no-unwind-tables", true),
        ("no-unwind-tables,no-outer-restart", false),
    ] {
        let output = run_child(name, faults, &[]).expect("it hung");
        assert_eq!(output.status.success(), sound, "{output:?}");
    }
}

#[test]
fn h25_a_stop_in_a_blocking_handler_that_interrupted_a_store_loses_nothing() {
    let name = "h25_a_stop_in_a_blocking_handler_that_interrupted_a_store_loses_nothing";
    hazard(name, "no-outer-restart", || marking_begins(Wait::Block));
}

#[test]
fn h25_a_stop_at_a_poll_of_a_handler_that_interrupted_a_store_loses_nothing() {
    let name = "h25_a_stop_at_a_poll_of_a_handler_that_interrupted_a_store_loses_nothing";
    hazard(name, "handlers-unmoved", || marking_begins(Wait::Poll));
}

/// Without the second look of the unit at its word, each of these fails. It cannot be switched off:
/// it is assembly.
#[test]
fn h27_a_stop_in_a_handler_that_interrupted_a_weak_load_loses_nothing() {
    for wait in [Wait::Spin, Wait::SpinNodefer, Wait::Block, Wait::Poll] {
        marking_ends(wait);
    }
}
