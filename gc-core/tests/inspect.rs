//! What a heap holds and why: the census, and the paths from roots.

mod common;

use common::{cell, cons, heap, list};
use gc_core::raw::{Encoding, Kind};
use gc_core::{Field, Heap, RootPlace, Trace};

#[derive(Default, Trace)]
struct Node {
    next: Field<Node>,
}

/// The census counts exactly the cells that the program has, and not those that its runs hold
/// ready.
#[test]
fn a_census_counts_the_cells_of_each_kind() {
    let heap = Heap::builder().build().unwrap();
    let m = heap.attach().unwrap();
    let (small, large) = (Kind::leaf("small"), Kind::leaf("large"));
    let small = heap.kind(small).unwrap();
    let large = heap.kind(large).unwrap();
    let mut roots = Vec::new();
    for _ in 0..100 {
        // SAFETY: the cell gets a root at once.
        roots.push(unsafe { m.root_raw(m.alloc_raw(small, 16).unwrap()) }.unwrap());
    }
    for _ in 0..3 {
        // SAFETY: as above.
        roots.push(unsafe { m.root_raw(m.alloc_raw(large, 1 << 20).unwrap()) }.unwrap());
    }
    m.collect();
    let census = heap.census().unwrap();
    let counts = |at: usize| {
        let kind = &census.kinds[at];
        (kind.name.as_str(), kind.cells, kind.bytes)
    };
    assert_eq!(census.kinds.len(), 2);
    assert_eq!(counts(0), ("large", 3, 3 << 20));
    assert_eq!(counts(1), ("small", 100, 1600));
    let table = census.to_string();
    assert!(table.contains("3145728            3  large"), "{table}");
    assert!(table.ends_with("3147328          103  all"), "{table}");
}

/// A path is a shortest one, and the asking handle is not the answer while there is another.
#[test]
fn a_path_leads_from_a_root_that_is_not_the_asking_handle() {
    let heap = Heap::builder().exact(true).build().unwrap();
    let m = heap.attach().unwrap();
    m.with_scope(|s| {
        let nodes: Vec<_> = (0..10).map(|_| s.alloc(Node::default()).unwrap()).collect();
        for pair in nodes.windows(2) {
            pair[0].next.set(s, &pair[1]);
        }
        let why = heap.why_alive(&nodes[0]).unwrap().unwrap();
        assert!(matches!(why.root, RootPlace::Handle(_)), "{why}");
        assert_eq!(why.path.len(), 1);
        let root = heap.root(&nodes[7]);
        let why = heap.why_alive(&nodes[9]).unwrap().unwrap();
        // The handle of the cell before it is as good as any.
        assert_eq!(why.path.len(), 2, "{why}");
        let why = heap.why_alive(&nodes[7]).unwrap().unwrap();
        assert_eq!((why.root, why.path.len()), (RootPlace::Root, 1));
        drop(root);
    });
    // With no handle but one, the path leads from the root through all cells between.
    let root = m
        .scope(|s| {
            let head = s.alloc(Node::default())?;
            let mut last = head;
            for _ in 0..5 {
                let next = s.alloc(Node::default())?;
                last.next.set(s, &next);
                last = next;
            }
            Ok(heap.root(&head))
        })
        .unwrap();
    let address = |node: &Node| std::ptr::from_ref(node) as usize;
    let last = m.with_scope(|s| {
        let mut node = root.get(s);
        while let Some(next) = node.next.get(s) {
            node = next;
        }
        address(node.as_ref())
    });
    let why = heap.why_alive_raw(cell(last)).unwrap().unwrap();
    assert_eq!((why.root, why.path.len()), (RootPlace::Root, 6), "{why}");
    assert_eq!(why.path[5].address, last);
    assert!(why.path.iter().all(|step| step.bytes == 16), "{why}");
    assert_eq!(why.to_string().lines().count(), 7);
}

/// Ranges and stacks of the raw tier are named, and dead cells have no path.
#[test]
fn the_raw_tier_names_ranges_and_finds_no_path_to_the_dead() {
    let (heap, k) = heap();
    let m = heap.attach().unwrap();
    let global = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let root = global.clone();
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    // SAFETY: the callback reads one atomic word.
    let _guard = unsafe {
        heap.add_root_callback(move |roots| roots.word(root.load(relaxed), Encoding::RAW))
    }
    .unwrap();
    let head = list(&m, k, 4);
    let top = cons(&m, k, head, 99);
    global.store(top, relaxed);
    let why = heap.why_alive_raw(cell(head)).unwrap().unwrap();
    let at: Vec<usize> = why.path.iter().map(|step| step.address).collect();
    // The stack may have a word that leads to either cell.
    assert!(at == [top, head] || at == [head], "{why}");
    if at.len() == 2 {
        let text = why.to_string();
        assert!(text.contains(&format!("{head:#x}")), "{text}");
    }
    assert_eq!(heap.why_alive_raw(cell(head + 1)).unwrap(), None);
}

/// Inspectors run beside collections and mutators.
#[test]
fn inspectors_run_in_each_phase() {
    let (heap, k) = common::continuous();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let m = heap.attach().unwrap();
            let head = list(&m, k, 300);
            // SAFETY: a live cell of this heap.
            let root = unsafe { m.root_raw(cell(head)) }.unwrap();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                common::garbage(&m, k, 500);
            }
            common::check_list(root.get().unwrap().as_ptr() as usize, 300);
        });
        for _ in 0..30 {
            heap.census().unwrap();
            let mut json = Vec::new();
            heap.snapshot(&mut json).unwrap();
            assert!(json.ends_with(b"]}\n"));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
