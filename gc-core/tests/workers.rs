//! Several markers over one heap: no cell is lost at the end of marking, a small heap wakes no
//! helper, and the helpers' threads block signals and end with their heap.

mod common;

use common::{Kinds, hazard, kinds};
use gc_core::raw::RawRoot;
use gc_core::{Heap, Mutator};

fn heap(markers: u32) -> (Heap, Kinds) {
    let heap = Heap::builder().reserve(1 << 30).markers(markers);
    let heap = heap.build().unwrap();
    let kinds = kinds(&heap);
    (heap, kinds)
}

/// A table of `cells` arrays, each with edges to two older cells of the table, and the table's
/// root.
fn graph(m: &Mutator, k: Kinds, cells: usize) -> RawRoot {
    // SAFETY: arrays of as many words as are used. The table is on the stack until its root keeps
    // it; `write` gets a word of a live cell and a live cell.
    unsafe {
        let table = m.alloc_raw(k.array, cells * 8).unwrap();
        let root = m.root_raw(table).unwrap();
        let table = table.cast::<usize>();
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        for n in 0..cells {
            let cell = m.alloc_raw(k.array, 32).unwrap().cast::<usize>();
            for word in 0..2 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let older = table.add((random >> 33) as usize % (n + 1)).read();
                m.write(cell.add(word).as_ptr(), older);
            }
            m.write(table.add(n).as_ptr(), cell.as_ptr() as usize);
        }
        root
    }
}

/// Collects until helpers have marked in `times` collections. Checks each time that all cells live.
fn collect_with_helpers(heap: &Heap, m: &Mutator, cells: u64, times: u32) {
    let mut helped = 0;
    // On a busy machine the helpers may come too late.
    for _ in 0..1000 {
        m.collect();
        let last = heap.stats().last;
        assert!(
            (cells..cells + 10).contains(&last.cells_live),
            "{} of {cells} cells alive",
            last.cells_live
        );
        helped += u32::from(last.markers > 1);
        if helped == times {
            return;
        }
    }
    panic!("helpers took part {helped} times: the test has no effect");
}

/// Marking does not end while a helper has marked cells in its local queue. With `closed-over-work`
/// planted, cells are lost.
#[test]
fn h28_marking_does_not_end_while_a_helper_has_work() {
    hazard(
        "h28_marking_does_not_end_while_a_helper_has_work",
        "closed-over-work",
        || {
            let (heap, k) = heap(4);
            let m = heap.attach().unwrap();
            let _root = graph(&m, k, 100_000);
            collect_with_helpers(&heap, &m, 100_001, 30);
        },
    );
}

/// The signal masks of this process's marker threads.
fn marker_threads() -> Vec<u64> {
    let mut masks = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(path.join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].trim().to_owned()
        };
        if field("Name:").starts_with("urge-marker-") {
            masks.push(u64::from_str_radix(&field("SigBlk:"), 16).unwrap());
        }
    }
    masks
}

/// A heap of few cells wakes no helper. With `wakes-for-little` planted, it does.
#[test]
fn h33_a_small_heap_wakes_nobody() {
    hazard("h33_a_small_heap_wakes_nobody", "wakes-for-little", || {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let (heap, k) = heap(4);
        let m = heap.attach().unwrap();
        let _root = graph(&m, k, 5_000);
        for _ in 0..20 {
            m.collect();
            assert_eq!(heap.stats().last.markers, 1);
        }
        // The collector's own thread, and no helper, even if none has come in time to mark.
        assert_eq!(threads(), before + 1);
    });
}

/// Marker threads block all signals that a program may use, and end with their heap.
#[test]
fn markers_block_all_signals_and_end_with_their_heap() {
    // The test runs in a child: heaps of other tests have markers, too.
    if !common::is_child() {
        let name = "markers_block_all_signals_and_end_with_their_heap";
        let output = common::run_child(name, "", &[]).expect("the child hung");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let (heap, k) = heap(3);
    let m = heap.attach().unwrap();
    let _root = graph(&m, k, 100_000);
    collect_with_helpers(&heap, &m, 100_001, 1);
    let mut masks = marker_threads();
    // A thread sets its name when it first runs.
    while masks.len() < 2 {
        std::thread::sleep(std::time::Duration::from_millis(1));
        masks = marker_threads();
    }
    assert_eq!(masks.len(), 2);
    for mask in masks {
        for signal in [
            libc::SIGURG,
            libc::SIGPROF,
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGCHLD,
        ] {
            assert!(mask & 1 << (signal - 1) != 0, "{signal} reaches a marker");
        }
    }
    drop((_root, m));
    drop(heap);
    assert_eq!(marker_threads().len(), 0);
}

/// A forked child marks with helpers of its own, also when the fork falls into marking.
#[test]
fn a_forked_child_marks_with_helpers_of_its_own() {
    let (heap, k) = heap(3);
    let m = heap.attach().unwrap();
    let _root = graph(&m, k, 100_000);
    collect_with_helpers(&heap, &m, 100_001, 1);
    // Cycles that no thread waits for, so that some forks fall into marking.
    for _ in 0..5 {
        heap.request_collection();
        // SAFETY: the child calls functions of this library that are documented to work there, and
        // ends without destructors.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: a system call. The alarm ends a child that hangs.
            unsafe { libc::alarm(10) };
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                collect_with_helpers(&heap, &m, 100_001, 2);
            }));
            // SAFETY: a system call, which runs no destructors.
            unsafe { libc::_exit(i32::from(ran.is_err())) };
        }
        let mut status = 0;
        // SAFETY: waits for the child that was forked above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "the child failed");
    }
    collect_with_helpers(&heap, &m, 100_001, 1);
}
