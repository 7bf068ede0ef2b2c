//! Collections while threads are in code of the system: inside malloc, in the loader, with stdout's
//! lock, in the vDSO, in libc's assembly, or in code of no known module.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::ffi::c_void;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};

use common::{hazard, hazard_with};
use gc_core::jit::CodeGuard;
use gc_core::raw::{Encoding, Kind, KindId};
use gc_core::{Heap, Mutator};
use gc_test_harness::kernels::codegen::Arena;
use gc_test_harness::kernels::deep::{Frames, deep_oracle};
use gc_test_harness::kernels::loops::NODE_VALUE;

const _: () = assert!(NODE_VALUE == 8, "the second word of a node");

fn heap() -> (Heap, KindId) {
    let heap = Heap::builder().reserve(1 << 30).build().expect("a heap");
    let node = Kind::words_at("node", &[0], Encoding::RAW);
    let node = heap.kind(node).expect("a kind");
    (heap, node)
}

fn node(mutator: &Mutator, kind: KindId, next: usize, value: u64) -> usize {
    // SAFETY: the cell has the kind's two words; the caller keeps it on its stack.
    unsafe {
        let cell = mutator.alloc_raw(kind, 16).expect("room").as_ptr();
        cell.cast::<usize>().write(next);
        cell.cast::<u64>().add(1).write(value);
        cell as usize
    }
}

/// Collects 50 times. Each time, the thread is stopped inside the function that `hold` gets, which
/// `hold` calls while it holds some lock.
fn collect_while_held(hold: impl Fn(&dyn Fn()) + Sync) {
    let (heap, _) = heap();
    let (held, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let _mutator = heap.attach().expect("attaches");
            while !done.load(SeqCst) {
                hold(&|| {
                    held.store(true, SeqCst);
                    // The collecting thread clears the flag.
                    while held.load(SeqCst) {
                        std::hint::spin_loop();
                    }
                });
            }
        });
        for round in 0..50 {
            while !held.load(SeqCst) {
                std::hint::spin_loop();
            }
            heap.collect();
            done.store(round == 49, SeqCst);
            held.store(false, SeqCst);
        }
    });
}

/// A mutator repeats `work` during `collections` collections. A list that it holds all the time
/// must stay complete.
fn collect_during(work: fn(), collections: u32) {
    const LENGTH: u64 = 20;
    let (heap, kind) = heap();
    let (rounds, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let mutator = heap.attach().expect("attaches");
            let list = (0..LENGTH).fold(0, |next, i| node(&mutator, kind, next, i));
            while !done.load(SeqCst) {
                work();
                node(&mutator, kind, 0, u64::MAX); // dead at once: its memory is allocated again
                rounds.fetch_add(1, SeqCst);
            }
            let mut at = black_box(list);
            for i in (0..LENGTH).rev() {
                // SAFETY: a live node, or the test fails.
                let (next, value) = unsafe { (at as *const (usize, u64)).read() };
                assert_eq!(value, i, "a live cell was allocated again");
                at = next;
            }
        });
        for _ in 0..collections {
            let seen = rounds.load(SeqCst);
            heap.collect();
            while rounds.load(SeqCst) == seen {
                std::thread::yield_now();
            }
        }
        done.store(true, SeqCst);
    });
}

#[test]
fn h11_a_collection_completes_while_a_thread_is_stopped_inside_malloc() {
    let name = "h11_a_collection_completes_while_a_thread_is_stopped_inside_malloc";
    hazard_with(name, "malloc-in-stop", &[("MALLOC_ARENA_MAX", "1")], || {
        collect_during(
            || {
                for i in 0..100 {
                    black_box(vec![0u8; 64 + i * 40]);
                }
            },
            200,
        );
    });
}

#[test]
fn h11_a_collection_completes_while_a_thread_is_stopped_inside_the_loader() {
    let name = "h11_a_collection_completes_while_a_thread_is_stopped_inside_the_loader";
    hazard(name, "ask-the-loader", || {
        // The callback runs with the loader's lock held, as a constructor inside `dlopen` does.
        unsafe extern "C" fn module(
            _: *mut libc::dl_phdr_info,
            _: usize,
            held: *mut libc::c_void,
        ) -> i32 {
            // SAFETY: the caller below passes a reference to its own variable.
            unsafe { (*held.cast::<&dyn Fn()>())() };
            1 // no further module
        }
        collect_while_held(|mut held| {
            // SAFETY: the callback has the right signature, and its data outlives the call.
            unsafe { libc::dl_iterate_phdr(Some(module), (&raw mut held).cast()) };
        });
    });
}

#[test]
fn h11_a_collection_completes_while_a_stopped_thread_holds_stdout() {
    let name = "h11_a_collection_completes_while_a_stopped_thread_holds_stdout";
    hazard(name, "print-in-stop", || {
        collect_while_held(|held| {
            let lock = std::io::stdout().lock();
            held();
            drop(lock);
        });
    });
}

/// Sends signals that no stop requested to threads that never attached, to threads that attach and
/// detach, and to threads that have ended.
#[test]
fn h6_a_signal_at_a_thread_without_record_changes_nothing() {
    let name = "h6_a_signal_at_a_thread_without_record_changes_nothing";
    hazard(name, "stray-stops", || {
        const STRAYS: u32 = 20_000;
        let (heap, kind) = heap();
        let tids = [const { AtomicI32::new(0) }; 3];
        let rounds = [const { AtomicU64::new(0) }; 3];
        let done = AtomicBool::new(false);
        // SAFETY: a system call without arguments.
        let own_tid = || unsafe { libc::gettid() };
        std::thread::scope(|s| {
            // A thread that never attaches.
            s.spawn(|| {
                tids[0].store(own_tid(), SeqCst);
                while !done.load(SeqCst) {
                    // SAFETY: errno's address is valid. The call fails and sets it.
                    unsafe {
                        libc::close(-1);
                        let before = *libc::__errno_location();
                        for i in 0..1000 {
                            black_box(i);
                        }
                        assert_eq!(before, libc::EBADF);
                        assert_eq!(*libc::__errno_location(), before, "a handler changed errno");
                    }
                    rounds[0].fetch_add(1, SeqCst);
                }
            });
            // A thread that attaches and detaches all the time.
            s.spawn(|| {
                tids[1].store(own_tid(), SeqCst);
                while !done.load(SeqCst) {
                    let mutator = heap.attach().expect("attaches");
                    black_box(node(&mutator, kind, 0, 1));
                    drop(mutator);
                    rounds[1].fetch_add(1, SeqCst);
                }
            });
            // Threads that end, attached or not. Their numbers get signals after they have ended.
            s.spawn(|| {
                while !done.load(SeqCst) {
                    let attached = rounds[2].fetch_add(1, SeqCst) % 2 == 0;
                    let heap = &heap;
                    let tid = s
                        .spawn(move || {
                            if attached {
                                // Leaked: the thread detaches at its end.
                                std::mem::forget(heap.attach().expect("attaches"));
                            }
                            own_tid()
                        })
                        .join();
                    tids[2].store(tid.expect("no panic"), SeqCst);
                }
            });
            let pelt = |strays: u32| {
                for i in 0..strays {
                    let tid = tids[i as usize % 3].load(SeqCst);
                    if tid != 0 {
                        // SAFETY: the call sends a signal to a thread of this process, or fails.
                        unsafe {
                            libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGURG)
                        };
                    }
                }
            };
            let all_get_on = || {
                let before: Vec<u64> = rounds.iter().map(|r| r.load(SeqCst)).collect();
                while rounds
                    .iter()
                    .zip(&before)
                    .any(|(r, b)| r.load(SeqCst) < b + 5)
                {
                    pelt(10);
                    std::thread::yield_now();
                }
            };
            all_get_on();
            pelt(STRAYS);
            all_get_on();
            for _ in 0..50 {
                heap.collect();
                pelt(100);
            }
            all_get_on();
            done.store(true, SeqCst);
        });
    });
}

/// Compiled code with frames of Cranelift, registered with a heap.
struct Managed {
    frames: Frames,
    _guards: Vec<CodeGuard>,
}

impl Managed {
    fn new(heap: &Heap) -> Managed {
        let frames = Frames::compile(&mut Arena::new().expect("an arena")).expect("compiles");
        let register = |code: &gc_test_harness::kernels::codegen::Code| {
            code.register_with(heap, Encoding::RAW).expect("registers")
        };
        let guards = frames.code.iter().map(register).collect();
        Managed {
            frames,
            _guards: guards,
        }
    }
}

/// The data of the callbacks of managed frames.
struct Shared<'a> {
    mutator: &'a Mutator,
    kind: KindId,
    rounds: &'a AtomicU64,
    done: &'a AtomicBool,
    work: fn(),
}

unsafe extern "C" fn fresh(data: *mut c_void, depth: u64) -> usize {
    // SAFETY: `walk_over` passes a Shared that outlives the call.
    let shared = unsafe { &*data.cast::<Shared<'_>>() };
    node(shared.mutator, shared.kind, 0, depth * 3)
}

unsafe extern "C" fn bottom(data: *mut c_void) {
    // SAFETY: as in `fresh`.
    let shared = unsafe { &*data.cast::<Shared<'_>>() };
    while !shared.done.load(SeqCst) {
        (shared.work)();
        node(shared.mutator, shared.kind, 0, u64::MAX);
        shared.rounds.fetch_add(1, SeqCst);
    }
}

/// Native code repeats `work` below managed frames that hold the only references to their nodes.
/// The frames must be scanned by their maps, and no node may be lost, at whatever instruction of
/// the work the thread is stopped.
fn walk_over(work: fn()) {
    const DEPTH: u64 = 30;
    const COLLECTIONS: u32 = 200;
    let (heap, kind) = heap();
    let managed = Managed::new(&heap);
    let (rounds, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut exact = 0;
    std::thread::scope(|s| {
        s.spawn(|| {
            let mutator = heap.attach().expect("attaches");
            let shared = Shared {
                mutator: &mutator,
                kind,
                rounds: &rounds,
                done: &done,
                work,
            };
            let data = (&raw const shared).cast_mut().cast();
            let outermost = node(&mutator, kind, 0, (DEPTH + 1) * 3);
            // SAFETY: the callbacks take the type that `data` points to; the node is a live cell.
            let sum =
                unsafe { (managed.frames.deep)(DEPTH, fresh, bottom, data, 1, 2, outermost, 3) };
            let oracle = deep_oracle(DEPTH, 1, 2, 3, |depth| depth * 3);
            assert_eq!(sum, oracle, "a frame's node was allocated again");
        });
        for _ in 0..COLLECTIONS {
            let seen = rounds.load(SeqCst);
            heap.collect();
            exact += u32::from(u64::from(heap.stats().last.frames_precise) > DEPTH);
            while rounds.load(SeqCst) == seen {
                std::thread::yield_now();
            }
        }
        done.store(true, SeqCst);
    });
    // Not in every collection: some of libc's assembly has no unwind tables, and the first
    // collections may find the recursion at its beginning.
    assert!(exact * 10 > COLLECTIONS * 8, "{exact} of {COLLECTIONS}");
}

#[test]
fn h12_managed_frames_are_walked_exactly_from_within_the_vdso() {
    let name = "h12_managed_frames_are_walked_exactly_from_within_the_vdso";
    hazard(name, "no-unwind-tables", || {
        walk_over(|| {
            for _ in 0..300 {
                black_box(std::time::Instant::now());
            }
        });
    });
}

#[test]
fn h12_managed_frames_are_walked_exactly_from_within_libcs_assembly_and_stubs() {
    let name = "h12_managed_frames_are_walked_exactly_from_within_libcs_assembly_and_stubs";
    hazard(name, "no-unwind-tables", || {
        walk_over(|| {
            let mut bytes = [1u8; 8192];
            for length in [100, 1000, 8191] {
                // SAFETY: both halves lie in the buffer.
                unsafe {
                    let at = bytes.as_mut_ptr();
                    libc::memcpy(at.cast(), at.add(1).cast(), length.min(4000));
                    libc::memset(at.cast(), 1, length);
                    black_box(libc::memchr(at.cast(), 0, length));
                    black_box(libc::getpid());
                    black_box(libc::strtol(
                        c"-123456789".as_ptr(),
                        std::ptr::null_mut(),
                        10,
                    ));
                }
            }
            black_box(&bytes);
        });
    });
}
