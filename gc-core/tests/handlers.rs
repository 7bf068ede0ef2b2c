//! H25, H27: a host's handler interrupts a restart range, and the stop finds the thread inside that
//! handler.
//!
//! The thread under test single-steps itself. At the target instruction, the trap's handler raises
//! SIGUSR1, which the kernel then delivers at exactly that instruction. The host's handler of
//! SIGUSR1 waits as [`Wait`] says until a stop is over.

mod common;

use common::step::{Outcome, Over, Record, at_each, instructions, meets_target, on_step, that};
use common::{hazard, heap, is_child, run_child};
use gc_core::jit;
use gc_preempt::RootSink;
use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// How the host's handler waits until the stop is over.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// The handler spins, and is stopped by the signal.
    Spin,
    /// The handler spins, and was installed with SA_NODEFER: no signal is blocked while it runs.
    SpinNodefer,
    /// The handler waits in `blocking`, and is held without a signal.
    Block,
    /// The handler runs `no_preempt` sections, and parks at the end of one.
    Poll,
}

/// The stop of a cycle that a test stands for.
#[derive(PartialEq)]
enum Stop {
    /// The stop that begins marking and walks stacks.
    First,
    /// The stop that ends marking and does not walk stacks.
    Second,
}

/// True if a stop is requested.
static ASKED: AtomicBool = AtomicBool::new(false);
/// True once the stop is over.
static OVER: AtomicBool = AtomicBool::new(false);
/// The [`Wait`] of the host's handler.
static WAIT: AtomicUsize = AtomicUsize::new(0);
/// The address of the attachment of the thread under test.
static THREAD: AtomicUsize = AtomicUsize::new(0);

extern "C" fn raise_at_target(
    _: libc::c_int,
    _: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: the kernel's context of this signal.
    if unsafe { meets_target(context) } {
        // SAFETY: sends this thread a signal that has a handler. It is blocked until this handler
        // returns.
        unsafe { libc::raise(libc::SIGUSR1) };
    }
}

extern "C" fn hosts(_: libc::c_int) {
    // SAFETY: the address is set before the handler is installed, and valid until the test ends.
    let thread = unsafe { &*(THREAD.load(Relaxed) as *const gc_preempt::Mutator) };
    let spin = |turns: u32| {
        for _ in 0..turns {
            if OVER.load(SeqCst) {
                break;
            }
            // SAFETY: a system call. The stopper may need this processor.
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

/// Runs `unit` once for each of its instructions. At that instruction the host's handler runs, and
/// a stop in the handler runs `stopped`. Returns the number of instructions.
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
    // SAFETY: the handler is async-signal-safe here: it interrupts a restart range or the test's
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
                        // A thread that could move its handlers out of restart ranges has done so
                        // before it acknowledged, and needs no walk.
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

/// Stops the thread in a handler that interrupted a store, and begins marking in that stop.
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
    let n = stop_in_a_handler_at_each(&m, wait, jit::store_address(), unit, || {
        snapshot.store(slot.load(Relaxed), Relaxed);
        record.marking().store(1, Relaxed);
        Stop::First
    });
    assert!(n >= 4, "{n} instructions");
}

/// Stops the thread in a handler that interrupted a weak load, and ends marking in that stop.
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
        // SAFETY: a word of this test, which the load treats as a word of a weak cell.
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

/// A thread that is stopped in a handler moves the store that the handler interrupted to its start.
/// With `handlers-unmoved` planted, an overwritten value is lost.
#[test]
fn h25_a_stop_in_a_handler_that_interrupted_a_store_loses_nothing() {
    let name = "h25_a_stop_in_a_handler_that_interrupted_a_store_loses_nothing";
    hazard(name, "handlers-unmoved", || marking_begins(Wait::Spin));
}

/// A handler with an empty mask interrupted a store: the stopper's walk moves the store to its
/// start. With `no-outer-restart` planted, an overwritten value is lost.
#[test]
fn h25_a_stop_in_a_handler_without_a_mask_that_interrupted_a_store_loses_nothing() {
    let name = "h25_a_stop_in_a_handler_without_a_mask_that_interrupted_a_store_loses_nothing";
    hazard(name, "no-outer-restart", || {
        marking_begins(Wait::SpinNodefer)
    });
}

/// The walk finds a signal frame also where no unwind table leads to it.
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
        let output = run_child(name, faults, &[]).expect("the child hung");
        assert_eq!(output.status.success(), sound, "{output:?}");
    }
}

/// A handler that waits in `blocking` interrupted a store: the stopper's walk moves the store to
/// its start. With `no-outer-restart` planted, an overwritten value is lost.
#[test]
fn h25_a_stop_in_a_blocking_handler_that_interrupted_a_store_loses_nothing() {
    let name = "h25_a_stop_in_a_blocking_handler_that_interrupted_a_store_loses_nothing";
    hazard(name, "no-outer-restart", || marking_begins(Wait::Block));
}

/// A handler that parks at the end of a `no_preempt` section interrupted a store: the thread moves
/// the store to its start. With `handlers-unmoved` planted, an overwritten value is lost.
#[test]
fn h25_a_stop_at_a_poll_of_a_handler_that_interrupted_a_store_loses_nothing() {
    let name = "h25_a_stop_at_a_poll_of_a_handler_that_interrupted_a_store_loses_nothing";
    hazard(name, "handlers-unmoved", || marking_begins(Wait::Poll));
}

/// A weak load that a handler interrupted reads its word again after it has logged it. Without that
/// second read, each of these cases fails. No fault can switch it off, because it is assembly.
#[test]
fn h27_a_stop_in_a_handler_that_interrupted_a_weak_load_loses_nothing() {
    for wait in [Wait::Spin, Wait::SpinNodefer, Wait::Block, Wait::Poll] {
        marking_ends(wait);
    }
}
