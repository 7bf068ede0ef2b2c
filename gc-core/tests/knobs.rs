//! Settings that change while a heap is in use: limits, growth, pauses of collections, huge pages.

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::{garbage, heap_with, kinds, list, until};
use gc_core::raw::RawRoot;
use gc_core::{AllocError, Heap, HugePages, MINIMUM_LIMIT, Mutator, Root};

const BLOCK: usize = 1 << 20;

fn keep(m: &Mutator) -> Result<Root<gc_core::Bytes>, AllocError> {
    m.scope(|s| Ok(m.heap().root(&s.alloc_bytes(&vec![7; BLOCK])?)))
}

fn fill(m: &Mutator) -> Vec<Root<gc_core::Bytes>> {
    let mut all = Vec::new();
    loop {
        match keep(m) {
            Ok(root) => all.push(root),
            Err(AllocError::HeapLimit { .. }) => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A heap that collects when it is asked to only, or at a limit.
fn by_hand() -> Heap {
    let build = |b: gc_core::HeapBuilder| b.gc_percent(u32::MAX).idle_collection(Duration::ZERO);
    heap_with(build).0
}

/// A program whose heap is full raises its limit, cleans up, and lowers it: what is alive stays,
/// allocations fail until enough has died, and then succeed.
#[test]
fn a_full_heap_is_raised_cleaned_up_and_lowered() {
    let heap = Heap::builder().hard_limit(8 << 20).build().unwrap();
    let m = heap.attach().unwrap();
    let mut all = fill(&m);
    let full = all.len();
    assert!((5..=8).contains(&full), "{full} blocks in 8 MiB");
    heap.set_hard_limit(Some(16 << 20)).unwrap();
    all.extend(fill(&m));
    assert!(all.len() > full + 4, "{} blocks in 16 MiB", all.len());
    // Below what is alive: nothing is lost, and allocations fail.
    heap.set_hard_limit(Some(8 << 20)).unwrap();
    assert_eq!(heap.hard_limit(), Some(8 << 20));
    assert!(matches!(
        keep(&m),
        Err(AllocError::HeapLimit { limit, .. }) if limit == 8 << 20
    ));
    m.with_scope(|s| assert!(all.iter().all(|root| root.get(s).len() == BLOCK)));
    all.truncate(2);
    heap.trim();
    let again = fill(&m);
    assert!(again.len() + 2 == full, "{} and 2 of {full}", again.len());
    heap.set_hard_limit(None).unwrap();
    for _ in 0..20 {
        all.push(keep(&m).unwrap());
    }
}

#[test]
fn limits_that_are_too_small_are_refused_and_change_nothing() {
    let heap = Heap::builder().hard_limit(8 << 20).build().unwrap();
    let error = heap.set_hard_limit(Some(MINIMUM_LIMIT - 1)).unwrap_err();
    assert!(error.to_string().contains("hard_limit"), "{error}");
    let error = heap.set_memory_limit(Some(1)).unwrap_err();
    assert!(error.to_string().contains("memory_limit"), "{error}");
    assert_eq!(
        (heap.hard_limit(), heap.memory_limit()),
        (Some(8 << 20), None)
    );
}

/// A new soft limit and a new percentage make a collection due without a further allocation.
#[test]
fn a_tighter_setting_collects_at_once() {
    for tighten in [
        (|heap| heap.set_memory_limit(Some(4 << 20)).unwrap()) as fn(&Heap),
        |heap| heap.set_gc_percent(10),
    ] {
        let heap = by_hand();
        let (k, m) = (kinds(&heap), heap.attach().unwrap());
        garbage(&m, k, 400_000);
        assert_eq!(heap.stats().collections, 0);
        tighten(&heap);
        m.blocking(|| until(|| heap.stats().collections > 0));
    }
}

/// While a guard exists, growth and idleness collect nothing. With the last guard's drop the
/// collection comes that has become due.
#[test]
fn nothing_is_collected_while_collections_are_paused() {
    // Such a heap waits for a collection that becomes due, so one would be counted.
    let (heap, k) = heap_with(|b| b.stop_the_world(true).idle_collection(Duration::ZERO));
    let m = heap.attach().unwrap();
    m.collect();
    let quiet = heap.pause_collections();
    let other = heap.pause_collections();
    let before = heap.stats().collections;
    heap.set_idle_collection(Duration::from_millis(1));
    garbage(&m, k, 400_000);
    m.blocking(|| std::thread::sleep(Duration::from_millis(30)));
    drop(other);
    garbage(&m, k, 400_000);
    assert_eq!(heap.stats().collections, before, "one was not paused");
    m.collect();
    assert_eq!(heap.stats().collections, before + 1, "it was not asked for");
    garbage(&m, k, 400_000);
    heap.set_idle_collection(Duration::ZERO);
    drop(quiet);
    m.blocking(|| until(|| heap.stats().collections > before + 1));
}

/// At the hard limit a paused heap collects rather than fails.
#[test]
fn a_pause_does_not_make_an_allocation_fail() {
    let heap = Heap::builder().hard_limit(8 << 20).build().unwrap();
    let m = heap.attach().unwrap();
    let _quiet = heap.pause_collections();
    for _ in 0..40 {
        keep(&m).unwrap();
    }
}

/// Settings change while collections follow each other and threads allocate.
#[test]
fn settings_change_in_each_phase() {
    let (heap, k) = common::continuous();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let m = heap.attach().unwrap();
            let head = list(&m, k, 500);
            // SAFETY: a live cell of this heap.
            let root: RawRoot = unsafe { m.root_raw(common::cell(head)) }.unwrap();
            while !done.load(Relaxed) {
                garbage(&m, k, 1000);
                common::check_list(root.get().unwrap().as_ptr() as usize, 500);
            }
        });
        for round in 0..300u64 {
            let _quiet = heap.pause_collections();
            heap.set_hard_limit(Some((64 + round % 7) << 20)).unwrap();
            heap.set_memory_limit((round % 3 != 0).then_some((8 + round % 5) << 20))
                .unwrap();
            heap.set_gc_percent([0, 100, u32::MAX][round as usize % 3]);
            heap.set_idle_collection(Duration::from_millis(round % 2));
            std::thread::sleep(Duration::from_micros(300));
        }
        done.store(true, Relaxed);
    });
    heap.set_gc_percent(100);
    heap.collect();
}

/// What the kernel was told about the heap's range.
#[test]
fn huge_pages_are_asked_for_or_refused() {
    let flags = |heap: &Heap| {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", heap.reserved().start);
        let at = maps.find(&start).expect("the heap's first mapping");
        let line = maps[at..].lines().find(|line| line.starts_with("VmFlags"));
        line.expect("VmFlags").to_owned() + " "
    };
    let built = |when| Heap::builder().huge_pages(when).build().unwrap();
    if !flags(&built(HugePages::Always)).contains(" hg ") {
        eprintln!("skipped: this kernel has no huge pages");
        return;
    }
    assert!(flags(&built(HugePages::Never)).contains(" nh "));
    assert!(flags(&built(HugePages::Automatic)).contains(" hg "));
    let small = Heap::builder().hard_limit(8 << 20).build().unwrap();
    assert!(flags(&small).contains(" nh "));
}
