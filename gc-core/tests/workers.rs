//! Several markers over one heap: nothing is lost however their work ends, nobody is woken for
//! little, and their threads keep out of the way.

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

/// A table of `cells` arrays with edges to two cells of the table each, and its handle.
fn graph(m: &Mutator, k: Kinds, cells: usize) -> RawRoot {
    // SAFETY: arrays of words, the table on the stack until the handle keeps it; `write` is told a
    // word of it and a live cell.
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

/// Collects until helpers have taken part `times` times; each time all of `cells` must be alive.
fn collect_with_helpers(heap: &Heap, m: &Mutator, cells: u64, times: u32) {
    let mut helped = 0;
    // On a busy machine they may come too late.
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
    panic!("helpers took part {helped} times: the test tests nothing");
}

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

/// Of each marker's thread of this process: which signals it blocks.
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

#[test]
fn h33_a_small_heap_wakes_nobody() {
    hazard("h33_a_small_heap_wakes_nobody", "wakes-for-little", || {
        let (heap, k) = heap(4);
        let m = heap.attach().unwrap();
        let _root = graph(&m, k, 5_000);
        for _ in 0..20 {
            m.collect();
            assert_eq!(heap.stats().last.markers, 1);
        }
        assert_eq!(marker_threads().len(), 0);
    });
}

#[test]
fn markers_block_all_signals_and_end_with_their_heap() {
    // In a child: other tests' heaps have markers, too.
    if !common::is_child() {
        let name = "markers_block_all_signals_and_end_with_their_heap";
        let output = common::run_child(name, "", &[]).expect("it hung");
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
    // A thread names itself when it first runs.
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

#[test]
fn a_forked_child_marks_with_helpers_of_its_own() {
    let (heap, k) = heap(3);
    let m = heap.attach().unwrap();
    let _root = graph(&m, k, 100_000);
    collect_with_helpers(&heap, &m, 100_001, 1);
    // Cycles that nobody waits for, so that some forks meet markers at work.
    for _ in 0..5 {
        heap.request_collection();
        // SAFETY: the child calls what this library promises to work there, and ends without
        // destructors.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: system calls. A child that hangs is ended by the alarm.
            unsafe { libc::alarm(10) };
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                collect_with_helpers(&heap, &m, 100_001, 2);
            }));
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(ran.is_err())) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "the child failed");
    }
    collect_with_helpers(&heap, &m, 100_001, 1);
}
