//! H25, H26, H27: stops at every instruction of the barrier, of the weak load and of an allocation.
//!
//! The thread under test single-steps itself by the trap flag. Where a stop is to hit a certain instruction, the trap's handler lets
//! another thread ask for it and returns once SIGURG is pending: it is then delivered at exactly that instruction.

mod common;

use common::{check_list, garbage, hazard, heap};
use gc_core::context::{CONTEXT_LOG_CURSOR, CONTEXT_MARKING};
use gc_core::{Context, Heap, Mutator, barrier};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

// ---- stepping -------------------------------------------------------------------------------------------------------------------

/// Sets or clears the trap flag.
macro_rules! trap_flag {
    ($instruction:literal) => {
        // SAFETY: changes nothing but the flag, below the red zone.
        unsafe {
            std::arch::asm!(
                "lea rsp, [rsp - 128]",
                "pushfq",
                $instruction,
                "popfq",
                "lea rsp, [rsp + 128]"
            )
        }
    };
}

fn stepping<R>(f: impl FnOnce() -> R) -> R {
    trap_flag!("or qword ptr [rsp], 0x100");
    let result = f();
    trap_flag!("and qword ptr [rsp], ~0x100");
    result
}

/// Installs what runs after each instruction.
fn on_step(handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::ucontext_t)) {
    // SAFETY: the handlers here call nothing that is not async-signal-safe, and run on the thread's own stack.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaddset(&raw mut action.sa_mask, libc::SIGURG);
        assert_eq!(
            libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()),
            0
        );
    }
}

/// A unit is shorter than this.
const UNIT: usize = 64;
static START: AtomicUsize = AtomicUsize::new(0);
/// A bit for each offset in the unit at which an instruction began.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// The instruction to be stopped at.
static TARGET: AtomicUsize = AtomicUsize::new(0);
static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn stop_at_target(
    _: libc::c_int,
    _: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: the kernel's context of this signal.
    let pc = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] } as usize;
    let start = START.load(Relaxed);
    if (start..start + UNIT).contains(&pc) {
        SEEN.fetch_or(1 << (pc - start), Relaxed);
    }
    if TARGET.load(Relaxed) == pc {
        TARGET.store(0, Relaxed);
        ASKED.store(true, SeqCst);
        // SAFETY: asks for this thread's pending signals, as the handler's mask holds SIGURG back.
        unsafe {
            let mut pending: libc::sigset_t = std::mem::zeroed();
            while libc::sigismember(&raw const pending, libc::SIGURG) != 1 {
                libc::sched_yield();
                libc::sigpending(&raw mut pending);
            }
        }
    }
}

/// A mutator's record, as the documented offsets show it.
#[derive(Clone, Copy)]
struct Record {
    context: *const Context,
    log: usize,
}

// SAFETY: the words are atomics.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

impl Record {
    fn of(m: &Mutator) -> Self {
        let mut record = Self {
            context: m.context(),
            log: 0,
        };
        record.log = record.cursor().load(Relaxed);
        record
    }

    fn marking(&self) -> &AtomicU32 {
        // SAFETY: the documented offset of a live record.
        unsafe { &*self.context.byte_add(CONTEXT_MARKING).cast() }
    }

    fn cursor(&self) -> &AtomicUsize {
        // SAFETY: as above.
        unsafe { &*self.context.byte_add(CONTEXT_LOG_CURSOR).cast() }
    }

    fn logged(&self, word: usize) -> bool {
        // SAFETY: the log up to its cursor, whose owner stands still or is this thread.
        (self.log..self.cursor().load(Relaxed))
            .step_by(8)
            .any(|at| unsafe { (at as *const usize).read_volatile() } == word)
    }

    fn reset(&self, marking: u32) {
        self.cursor().store(self.log, Relaxed);
        self.marking().store(marking, Relaxed);
    }
}

/// Runs `unit` once for each of its instructions, with a stop there in which `stopped` runs.
fn stop_at_each(
    heap: &Heap,
    start: usize,
    mut unit: impl FnMut(),
    stopped: impl Fn() + Sync,
) -> usize {
    on_step(stop_at_target);
    START.store(start, Relaxed);
    SEEN.store(0, Relaxed);
    stepping(&mut unit);
    let offsets: Vec<_> = (0..UNIT)
        .filter(|o| SEEN.load(Relaxed) & 1 << o != 0)
        .collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Relaxed) {
                if ASKED.swap(false, SeqCst) {
                    heap.with_stopped(|_| stopped()).unwrap();
                }
                std::thread::yield_now();
            }
        });
        for offset in &offsets {
            TARGET.store(start + offset, Relaxed);
            stepping(&mut unit);
            assert_eq!(
                TARGET.load(Relaxed),
                0,
                "the instruction at {offset} was not met again"
            );
        }
        done.store(true, Relaxed);
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
                    assert_eq!(slot.load(Relaxed), NEW);
                    assert!(
                        snapshot.load(Relaxed) == NEW || record.logged(OLD),
                        "overwritten, in the snapshot, and not logged"
                    );
                    record.reset(0);
                };
                let n = stop_at_each(&heap, barrier::store_address(), unit, || {
                    snapshot.store(slot.load(Relaxed), Relaxed);
                    record.marking().store(1, Relaxed);
                });
                assert!(n >= [4, 11][marking as usize], "{n} instructions");
            }
        },
    );
}

#[test]
fn h27_marking_that_ends_at_any_instruction_of_a_weak_load_loses_nothing() {
    hazard(
        "h27_marking_that_ends_at_any_instruction_of_a_weak_load_loses_nothing",
        "no-restart",
        || {
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
                assert!(got == 0 || got == OLD);
                assert!(
                    got == 0 || !dead.load(Relaxed),
                    "a weak load gave what had been found dead before it returned"
                );
                record.reset(0);
            };
            let n = stop_at_each(&heap, barrier::load_weak_address(), unit, || {
                if !record.logged(OLD) {
                    dead.store(true, Relaxed);
                    slot.store(0, Relaxed);
                }
                record.marking().store(0, Relaxed);
            });
            assert!(n >= 10, "{n} instructions");
        },
    );
}

// ---- allocation -----------------------------------------------------------------------------------------------------------------

static WANTED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
/// The stepping thread's attachment.
static STEPPING: AtomicUsize = AtomicUsize::new(0);

/// Has a whole collection done after each instruction, unless the thread may not be stopped there. The thread is stopped in this handler:
/// what the interrupted code holds is found behind it.
extern "C" fn collect_at_each(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
    // SAFETY: set before stepping begins, alive until it ends.
    let thread = unsafe { &*(STEPPING.load(Relaxed) as *const gc_preempt::Mutator) };
    if thread.in_no_preempt() {
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
        on_step(collect_at_each);
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
    });
}
