//! A collection at each instruction of the allocation's fast path, and the loss of cells without
//! each of the four rules that make the path safe (H26).
//!
//! 1. The collector never changes a stopped mutator's run.
//! 2. In the stop, the tail of every run is marked.
//! 3. A cell is zero until it is written.
//! 4. The advanced cursor is in memory before the first word of the cell is written.
//!
//! The sequence is written in assembly, as a language's compiler would emit it: once right, and
//! once with rule 4 broken. The thread steps through it by the trap flag. After each instruction it
//! waits for another thread to collect.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use common::hazard;
use gc_core::jit::Run;
use gc_core::raw::{Encoding, Kind};
use gc_core::{Heap, Mutator};

/// `fn(run, cells) -> head`: builds a list of 16-byte cells, each with the next cell and its
/// number. Returns 0 if the run is too short.
type Build = unsafe extern "C" fn(*mut Run, usize) -> usize;

macro_rules! build {
    ($name:ident $end:literal $end_name:ident: $($store:literal)*) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(_: *mut Run, _: usize) -> usize {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "xor edx, edx",
                "2: mov rax, [rdi]",
                "lea rcx, [rax + 16]",
                "cmp rcx, [rdi + 8]",
                "ja 3f",
                $($store,)*
                "mov rdx, rax",
                "dec rsi",
                "jnz 2b",
                "ret",
                "3: xor eax, eax",
                "ret",
                ".cfi_endproc",
                concat!(".globl ", $end),
                concat!($end, ":"),
            )
        }
        unsafe extern "C" {
            #[link_name = $end]
            static $end_name: u8;
        }
    };
}

build! { right "urge_test_right_end" RIGHT_END:
    "mov [rdi], rcx" // the cursor
    "mov [rax], rdx"
    "mov [rax + 8], rsi"
}

// When the cursor is advanced, only the new cell holds the list's former head.
build! { late_cursor "urge_test_late_cursor_end" LATE_CURSOR_END:
    "mov [rax], rdx"
    "mov [rax + 8], rsi"
    "xor edx, edx"
    "mov [rdi], rcx"
}

static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
static WANTED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// After each instruction: waits in the handler until another thread has collected. The collection
/// finds the interrupted code's references behind the handler's frame.
extern "C" fn stepped(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel's context of this signal.
    let pc = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] } as usize;
    if !(START.load(SeqCst)..END.load(SeqCst)).contains(&pc) {
        return;
    }
    let number = WANTED.fetch_add(1, SeqCst) + 1;
    while DONE.load(SeqCst) < number {
        // SAFETY: a system call. The collecting thread may need this core.
        unsafe { libc::sched_yield() };
    }
}

/// Clears the words that earlier calls have left on the stack below: no stale head may be found
/// there.
#[inline(never)]
fn wipe_stack() {
    let mut words = [0usize; 4096];
    std::hint::black_box(&mut words);
}

/// Allocates cells that are dead at once, each with an edge and a number.
#[inline(never)]
fn garbage(mutator: &Mutator, site: gc_core::raw::Site, cells: usize) {
    let mut last = 0;
    for _ in 0..cells {
        // SAFETY: the cell has the kind's two words; the last cell is on the stack.
        unsafe {
            let cell = mutator.alloc_at(site).expect("room").as_ptr() as *mut usize;
            cell.write(last);
            cell.add(1).write(usize::MAX);
            last = cell as usize;
        }
    }
}

/// Builds a list with a collection at each instruction. Then allocates many other cells and checks
/// that the list is complete.
fn build_stepping() {
    const CELLS: usize = 40;
    let heap = Heap::builder().reserve(1 << 30).build().expect("a heap");
    let node = Kind::words_at("node", &[0], Encoding::RAW);
    let node = heap.kind(node).expect("a kind");
    let site = heap.site(node, 16).expect("a site");
    let (build, end): (Build, *const u8) = if gc_preempt::faults::planted("late-cursor") {
        (late_cursor, &raw const LATE_CURSOR_END)
    } else {
        (right, &raw const RIGHT_END)
    };
    START.store(build as usize, SeqCst);
    END.store(end as usize, SeqCst);
    // SAFETY: the handler waits only for a thread that does not wait for it, and runs on the
    // thread's own stack.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = stepped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let installed = libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut());
        assert_eq!(installed, 0);
    }
    /// Sets the flag also when the thread panics: otherwise the collecting thread would wait for
    /// ever.
    struct Finished<'a>(&'a AtomicBool);
    impl Drop for Finished<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let finished = AtomicBool::new(false);
    let (mut most_live, mut fewer) = (0, false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let _finished = Finished(&finished);
            let mutator = heap.attach().expect("attaches");
            for _ in 0..3 {
                // Runs then consist of freed cells that hold old edges.
                garbage(&mutator, site, 20_000);
                wipe_stack();
                heap.collect();
            }
            // SAFETY: the site's run is this thread's.
            let run = unsafe { mutator.runs().add(site.index()) };
            // SAFETY: as above.
            let room = || unsafe { (run.read_volatile()).limit - run.read_volatile().cursor };
            while room() < CELLS * 16 {
                garbage(&mutator, site, 1);
            }
            wipe_stack();
            // SAFETY: the assembly sets and clears the trap flag. The run has room for the cells of
            // two words each.
            let head = unsafe {
                std::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
                let head = build(run, CELLS);
                std::arch::asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq");
                head
            };
            for _ in 0..4 {
                heap.collect();
                garbage(&mutator, site, 20_000);
            }
            let mut at = head;
            for i in 1..=CELLS {
                assert_ne!(at, 0, "the list ends before {i}");
                // SAFETY: a live cell, or the test fails.
                let [next, number] = unsafe { (at as *const [usize; 2]).read() };
                assert_eq!(number, i, "a live cell was allocated again");
                at = next;
            }
            assert_eq!(at, 0);
        });
        while !finished.load(SeqCst) {
            let wanted = WANTED.load(SeqCst);
            if wanted > DONE.load(SeqCst) {
                heap.collect();
                let live = heap.stats().last.cells_live;
                if !finished.load(SeqCst) {
                    fewer |= live < most_live;
                    most_live = most_live.max(live);
                }
                DONE.store(wanted, SeqCst);
            }
            std::thread::yield_now();
        }
    });
    let collections = WANTED.load(SeqCst);
    assert!(collections >= 9 * CELLS as u64, "{collections}");
    // `fewer` compares each collection with those before: a cell that one collection has freed by
    // mistake may be found alive by a later one, if no thread has overwritten it.
    assert!(!fewer, "a collection has freed a part of the list");
    // The list and a few stale words of the stack, but no chain of cells that died long ago.
    assert!(most_live < 3 * CELLS as u64, "{most_live} cells alive");
}

#[test]
fn h26_rule_1_the_collector_leaves_a_stopped_mutators_run_alone() {
    let name = "h26_rule_1_the_collector_leaves_a_stopped_mutators_run_alone";
    hazard(name, "runs-taken-back", build_stepping);
}

#[test]
fn h26_rule_2_the_tail_of_a_run_is_marked() {
    let name = "h26_rule_2_the_tail_of_a_run_is_marked";
    hazard(name, "white-tails", build_stepping);
}

#[test]
fn h26_rule_3_a_cell_is_zero_until_it_is_written() {
    let name = "h26_rule_3_a_cell_is_zero_until_it_is_written";
    hazard(name, "no-clear", build_stepping);
}

#[test]
fn h26_rule_4_the_cursor_is_stored_before_the_cell_is_written() {
    let name = "h26_rule_4_the_cursor_is_stored_before_the_cell_is_written";
    hazard(name, "late-cursor", build_stepping);
}
