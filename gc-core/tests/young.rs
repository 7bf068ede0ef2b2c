//! Young collections. They keep old cells without following immutable ones, find each young cell
//! that an old cell leads to, and free cells that died young.

mod common;

use common::{
    Kinds, check_list, garbage, hazard, hazard_given, is_child, kinds, run_child, wipe_stack,
};
use gc_core::raw::{Encoding, Kind, KindId};
use gc_core::{Heap, Mutator, Young};

const WORD: usize = size_of::<usize>();

/// A heap that collects on request only.
fn heap() -> (Heap, Kinds, KindId) {
    heap_with(Young::Always, u32::MAX)
}

fn heap_with(young: Young, percent: u32) -> (Heap, Kinds, KindId) {
    let heap = Heap::builder()
        .reserve(1 << 30)
        .young_collections(young)
        .gc_percent(percent)
        .poison(true)
        .build()
        .unwrap();
    let kinds = kinds(&heap);
    let pair = Kind::words_at("pair", &[0], Encoding::RAW).immutable();
    let pair = heap.kind(pair).unwrap();
    (heap, kinds, pair)
}

/// A cell of an immutable kind: an edge and a number.
fn pair(m: &Mutator, kind: KindId, next: usize, number: usize) -> usize {
    // SAFETY: a new cell of two words, which the caller keeps. Its edge is stored at once, and
    // leads to an older cell.
    unsafe {
        let cell = m
            .alloc_raw(kind, 2 * WORD)
            .unwrap()
            .as_ptr()
            .cast::<usize>();
        cell.write(next);
        cell.add(1).write(number);
        cell as usize
    }
}

/// A list of cells of an immutable kind, of the form that [`check_list`] checks.
#[inline(never)]
fn pairs(m: &Mutator, kind: KindId, n: usize) -> usize {
    (0..n).fold(0, |next, i| pair(m, kind, next, i))
}

/// A new cell of `n` words.
fn words(m: &Mutator, kind: KindId, n: usize) -> *mut usize {
    // SAFETY: the caller keeps the cell on its stack.
    unsafe { m.alloc_raw(kind, n * WORD).unwrap().as_ptr().cast() }
}

/// The word `n` of a cell.
///
/// # Safety
/// `cell` is a live cell of more than `n` words.
unsafe fn word(cell: *mut usize, n: usize) -> usize {
    // SAFETY: by this function's contract.
    unsafe { cell.add(n).read_volatile() }
}

/// Runs a young collection, after it has wiped the stack of earlier calls. Panics if the collection
/// was not a young one.
fn collect_young(m: &Mutator) {
    wipe_stack();
    m.heap().collect_young();
    assert!(m.heap().stats().last.young, "not a young collection");
}

/// Runs a whole collection, after it has wiped the stack of earlier calls.
fn collect(m: &Mutator) {
    wipe_stack();
    m.collect();
    assert!(!m.heap().stats().last.young);
}

/// Young collections follow old cells of kinds that may change, small and large ones. With
/// `old-unfollowed` planted, the lists that they lead to are freed.
#[test]
fn h36_old_cells_that_may_change_are_followed() {
    hazard(
        "h36_old_cells_that_may_change_are_followed",
        "old-unfollowed",
        || {
            let (heap, k, _) = heap();
            let m = heap.attach().unwrap();
            let node = heap.kind(Kind::conservative("anything")).unwrap();
            // A small cell and a large one of each way to hold edges.
            let cells = [
                (words(&m, k.array, 4), 3),
                (words(&m, k.array, 9000), 8000),
                (words(&m, node, 4), 1),
                (words(&m, node, 9000), 8999),
                (words(&m, k.node, 2), 0),
            ];
            collect(&m);
            for round in 0..3 {
                for (n, (cell, at)) in cells.iter().enumerate() {
                    store_list(&m, k, *cell, *at, 9000 + n + round);
                }
                collect_young(&m);
                garbage(&m, k, 20_000);
                for (n, (cell, at)) in cells.iter().enumerate() {
                    // SAFETY: words of live cells.
                    check_list(unsafe { word(*cell, *at) }, 9000 + n + round);
                }
            }
        },
    );
}

#[inline(never)]
fn store_list(m: &Mutator, k: Kinds, cell: *mut usize, at: usize, n: usize) {
    let list = common::list(m, k, n);
    // SAFETY: a word of a live cell.
    unsafe { m.write(cell.add(at), list) };
}

/// Young collections clear the weak words and pairs of old cells whose targets or keys died. With
/// `old-unfollowed` planted, they do not.
#[test]
fn h36_weak_words_and_ephemerons_of_old_cells_are_cleared() {
    hazard(
        "h36_weak_words_and_ephemerons_of_old_cells_are_cleared",
        "old-unfollowed",
        || {
            const N: usize = 200;
            let (heap, k, _) = heap();
            let m = heap.attach().unwrap();
            let table = heap
                .kind(Kind::ephemeron("table", 0, Encoding::RAW, 0))
                .unwrap();
            let (weak, keys) = (words(&m, k.weak, N), words(&m, k.array, N));
            let table = words(&m, table, 2 * N);
            collect(&m);
            fill(&m, k, weak, keys, table, N);
            collect_young(&m);
            garbage(&m, k, 2000);
            // Every other key lives, and its value with it. Stale words on the stack may keep a few
            // of the others.
            let mut dead = [0; 2];
            for n in 0..N {
                // SAFETY: words of live cells.
                let [weak, key, value] =
                    unsafe { [word(weak, n), word(table, 2 * n), word(table, 2 * n + 1)] };
                dead[0] += usize::from(weak == 0);
                dead[1] += usize::from(key == 0 && value == 0);
                if n % 2 == 0 {
                    // SAFETY: a word of a live cell.
                    assert_eq!(key, unsafe { word(keys, n) });
                    check_list(key, 3);
                    check_list(value, 5);
                    check_list(weak, 3);
                }
            }
            for dead in dead {
                assert!((N / 2 - 5..=N / 2).contains(&dead), "{dead} of {N}");
            }
        },
    );
}

#[inline(never)]
fn fill(m: &Mutator, k: Kinds, weak: *mut usize, keys: *mut usize, table: *mut usize, n: usize) {
    for at in 0..n {
        // SAFETY: words of live cells.
        unsafe {
            let key = common::list(m, k, 3);
            m.write(weak.add(at), key);
            m.write_pair(table.add(2 * at), key, common::list(m, k, 5));
            if at % 2 == 0 {
                m.write(keys.add(at), key);
            }
        }
    }
}

/// Checks lists that lie behind immutable cells. An immutable cell that is marked counts as old and
/// is not followed, so a stale mark on a young one loses its list.
fn young_pairs_of_the_rest_of_a_run() {
    let (heap, k, kind) = heap();
    let m = heap.attach().unwrap();
    let heads = words(&m, k.array, 64);
    for _ in 0..100 {
        // The runs that these cells leave serve the allocations below. They are more cells than a
        // run has: a run that is not refilled goes back.
        std::hint::black_box(pairs(&m, kind, 520));
        collect(&m);
        lead_to_young(&m, k, kind, heads);
        collect_young(&m);
        garbage(&m, k, 2000);
        for n in 0..64 {
            // SAFETY: words of live cells.
            let pair = unsafe { word(heads, n) } as *mut usize;
            // SAFETY: words of live cells.
            unsafe {
                assert_eq!(word(pair, 1), n);
                check_list(word(pair, 0), 5);
            }
        }
    }
}

#[inline(never)]
fn lead_to_young(m: &Mutator, k: Kinds, kind: KindId, heads: *mut usize) {
    // The nodes' own run is used up, so the nodes below are young whatever the tails of runs count
    // as.
    garbage(m, k, 60);
    for n in 0..64 {
        let list = common::list(m, k, 5);
        let pair = pair(m, kind, list, n);
        // SAFETY: a word of a live cell.
        unsafe { m.write(heads.add(n), pair) };
    }
}

/// The cells of a run's tail are young although they were marked when the run's mutator was
/// stopped. With `old-tails` planted, they count as old, and the lists behind them are freed.
#[test]
fn h36_the_rest_of_a_run_is_young() {
    hazard(
        "h36_the_rest_of_a_run_is_young",
        "old-tails",
        young_pairs_of_the_rest_of_a_run,
    );
}

/// A heap that cannot note all cells allocated black makes the next collection a whole one. With
/// `allocated-black-forgotten` planted, the collection stays young, and lists are freed.
#[test]
fn h36_more_cells_allocated_black_than_can_be_noted_are_noticed() {
    hazard_given(
        "h36_more_cells_allocated_black_than_can_be_noted_are_noticed",
        "short-allocated-black",
        "allocated-black-forgotten",
        &[],
        || {
            let (heap, k, kind) = heap();
            let m = heap.attach().unwrap();
            let heads = words(&m, k.array, 64);
            for _ in 0..5 {
                // Each of these kinds and sizes leaves a tail of a run. They are more cells than a
                // run has: a run that is not refilled goes back.
                std::hint::black_box((pairs(&m, kind, 520), common::list(&m, k, 520)));
                for _ in 0..520 {
                    std::hint::black_box((
                        words(&m, k.leaf, 2),
                        words(&m, k.leaf, 9),
                        words(&m, k.leaf, 20),
                    ));
                }
                collect(&m);
                lead_to_young(&m, k, kind, heads);
                wipe_stack();
                heap.collect_young();
                assert!(
                    !heap.stats().last.young,
                    "not all cells allocated black are noted"
                );
                for n in 0..64 {
                    // SAFETY: words of live cells.
                    check_list(unsafe { word(word(heads, n) as *mut usize, 0) }, 5);
                }
            }
        },
    );
}

/// Stale mark bits of a span that a mutator owns are replaced before the mutator allocates there.
/// With `owned-unkept` planted, young cells count as old, and the lists behind them are freed.
/// `late-sweep` leaves the sweep to the mutator, so it owns a span with holes at each collection.
#[test]
fn h36_stale_marks_in_a_span_that_is_owned_are_replaced() {
    hazard_given(
        "h36_stale_marks_in_a_span_that_is_owned_are_replaced",
        "late-sweep",
        "owned-unkept",
        &[],
        || {
            let (heap, k, kind) = heap();
            let m = heap.attach().unwrap();
            let heads = words(&m, k.array, 64);
            for _ in 0..80 {
                // Spans full of cells. All but the first few die, while the mutator has begun to
                // fill the holes between them.
                let kept = spread(&m, k, kind);
                collect(&m);
                std::hint::black_box(pairs(&m, kind, 30));
                // SAFETY: a word of a live cell.
                unsafe { m.write(kept.add(1), 0) };
                collect(&m);
                for _ in 0..10 {
                    lead_to_young(&m, k, kind, heads);
                }
                collect_young(&m);
                garbage(&m, k, 2000);
                for n in 0..64 {
                    // SAFETY: words of live cells.
                    check_list(unsafe { word(word(heads, n) as *mut usize, 0) }, 5);
                }
                std::hint::black_box(kept);
            }
        },
    );
}

/// Two lists whose cells alternate in memory, with a dead cell between each two. Returns an array
/// with the heads of both.
#[inline(never)]
fn spread(m: &Mutator, k: Kinds, kind: KindId) -> *mut usize {
    let heads = words(m, k.array, 2);
    let mut lists = [0; 2];
    for n in 0..8000 {
        lists[n % 2] = pair(m, kind, lists[n % 2], n / 2);
        std::hint::black_box(pair(m, kind, 0, 0));
    }
    // SAFETY: words of a live cell.
    unsafe {
        m.write(heads, lists[0]);
        m.write(heads.add(1), lists[1]);
    }
    heads
}

/// A span that a mutator takes unswept has its stale mark bits replaced first. With
/// `unswept-unkept` planted, young cells count as old, and the leaves behind them are freed.
/// `late-sweep` leaves the sweep to the mutator.
#[test]
fn h36_a_span_is_swept_by_who_allocates_in_it() {
    hazard_given(
        "h36_a_span_is_swept_by_who_allocates_in_it",
        "late-sweep",
        "unswept-unkept",
        &[],
        || {
            let (heap, k, kind) = heap();
            let m = heap.attach().unwrap();
            const MANY: usize = 200_000;
            let heads = words(&m, k.array, MANY);
            for _ in 0..4 {
                // Cells that fill many spans die, except one in sixteen. The first thread that
                // takes such a span finds stale bits.
                fill_spans(&m, kind, heads, MANY);
                collect(&m);
                for n in (0..MANY).filter(|n| n % 16 != 0) {
                    // SAFETY: words of a live cell.
                    unsafe { m.write(heads.add(n), 0) };
                }
                collect(&m);
                for n in (0..MANY).filter(|n| n % 16 != 0).take(MANY / 8) {
                    let leaf = young_leaf(&m, k, n);
                    let pair = pair(&m, kind, leaf, n);
                    // SAFETY: a word of a live cell.
                    unsafe { m.write(heads.add(n), pair) };
                }
                collect_young(&m);
                for n in 0..MANY {
                    std::hint::black_box(young_leaf(&m, k, n + MANY));
                }
                for n in (0..MANY).filter(|n| n % 16 != 0).take(MANY / 8) {
                    // SAFETY: words of live cells.
                    let leaf = unsafe { word(word(heads, n) as *mut usize, 0) };
                    // SAFETY: a word of a live leaf.
                    assert_eq!(unsafe { word(leaf as *mut usize, 0) }, n);
                }
            }
        },
    );
}

#[inline(never)]
fn fill_spans(m: &Mutator, kind: KindId, heads: *mut usize, n: usize) {
    for at in 0..n {
        // SAFETY: a word of a live cell.
        unsafe { m.write(heads.add(at), pair(m, kind, 0, at)) };
    }
}

fn young_leaf(m: &Mutator, k: Kinds, number: usize) -> usize {
    let leaf = words(m, k.leaf, 2);
    // SAFETY: a new cell of two words.
    unsafe { leaf.write(number) };
    leaf as usize
}

/// A young collection frees cells that died young and keeps old dead ones; a whole collection frees
/// both.
#[test]
fn what_dies_young_goes_at_once_and_what_dies_old_when_all_is_looked_at() {
    let (heap, k, kind) = heap();
    let m = heap.attach().unwrap();
    let heads = words(&m, k.array, 3);
    // SAFETY: words of a live cell.
    unsafe { m.write(heads, pairs(&m, kind, 1000)) };
    // SAFETY: a word of a live cell.
    unsafe { m.write(heads.add(1), pairs(&m, kind, 2000)) };
    collect(&m);
    let live = |expected: u64| {
        let live = heap.stats().last.cells_live;
        // Stale words on the stack may keep a list of ten.
        assert!(
            (expected..expected + 40).contains(&live),
            "{live} cells, not {expected}"
        );
    };
    live(3001);
    // SAFETY: a word of a live cell.
    unsafe { m.write(heads.add(1), 0) };
    for _ in 0..2 {
        garbage(&m, k, 1000);
        collect_young(&m);
        live(3001);
    }
    assert!(heap.stats().last.cells_freed >= 9_000);
    // SAFETY: a word of a live cell.
    unsafe { check_list(word(heads, 0), 1000) };
    collect(&m);
    live(1001);
    assert_eq!(heap.stats().young_collections, 2);
}

/// The numbers of young and of all collections of a program that allocates 200 MiB of cells which
/// die young, beside 8 MiB that live.
fn young_of(young: Young, kind: impl Fn() -> Kind) -> (u64, u64) {
    let (heap, k, _) = heap_with(young, 100);
    let kind = heap.kind(kind()).unwrap();
    let m = heap.attach().unwrap();
    let root = words(&m, k.array, 1);
    // SAFETY: a word of a live cell.
    unsafe { m.write(root, pairs(&m, kind, 512 << 10)) };
    for _ in 0..200 {
        std::hint::black_box(pairs(&m, kind, 64 << 10));
    }
    // SAFETY: a word of a live cell.
    check_list(unsafe { word(root, 0) }, 512 << 10);
    let stats = heap.stats();
    (stats.young_collections, stats.collections)
}

/// `Young::WherePays` collects young only where most cells are immutable; `Young::Never` never
/// does.
#[test]
fn only_where_most_cells_cannot_change_are_collections_young() {
    let may_change = || Kind::words_at("node", &[0], Encoding::RAW);
    let (young, all) = young_of(Young::WherePays, || may_change().immutable());
    assert!(young > all / 2 && young < all, "{young} of {all}");
    let (young, all) = young_of(Young::WherePays, may_change);
    assert!(young == 0 && all > 5, "{young} of {all}");
    let (young, all) = young_of(Young::Never, || may_change().immutable());
    assert!(young == 0 && all > 5, "{young} of {all}");
}

/// Old cells that die are freed after a bounded number of young collections.
#[test]
fn what_was_dropped_when_old_goes_in_the_end() {
    let (heap, k, kind) = heap_with(Young::WherePays, 100);
    let m = heap.attach().unwrap();
    let root = words(&m, k.array, 2);
    // SAFETY: words of a live cell.
    unsafe {
        m.write(root, pairs(&m, kind, 1 << 20));
        m.write(root.add(1), pairs(&m, kind, 100 << 10));
    }
    // Few of these cells are alive at a time, so almost none become old.
    let counts = || {
        for _ in 0..1000 {
            std::hint::black_box(pairs(&m, kind, 64));
        }
        let stats = heap.stats();
        (stats.young_collections, stats.collections)
    };
    // Runs until three young collections follow each other.
    let (mut young, mut all) = counts();
    while young + 3 != counts().0 {
        let now = counts();
        if now.1 - all != now.0 - young {
            (young, all) = now;
        }
    }
    // SAFETY: a word of a live cell.
    unsafe { m.write(root, 0) };
    let (first, _) = counts();
    while heap.stats().last.cells_live > 1 << 20 && counts().0 < first + 1000 {}
    young = heap.stats().young_collections - first;
    assert!(young < 1000, "16 MiB of dead cells stay");
    // SAFETY: a word of a live cell.
    check_list(unsafe { word(root, 1) }, 100 << 10);
}

/// The first collection of a forked child is a whole one, because the child cannot rely on the
/// parent's mark bits. With `marks-kept-in-child` planted, it is a young one.
#[test]
fn the_child_of_a_fork_looks_at_all_cells_first() {
    hazard(
        "the_child_of_a_fork_looks_at_all_cells_first",
        "marks-kept-in-child",
        || {
            let (heap, k, kind) = heap();
            let m = heap.attach().unwrap();
            let root = words(&m, k.array, 1);
            // SAFETY: a word of a live cell.
            unsafe { m.write(root, pairs(&m, kind, 1000)) };
            collect(&m);
            // SAFETY: the crate knows all threads that use the heap, and the child only collects
            // and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                heap.collect_young();
                let first = heap.stats().last.young;
                heap.collect_young();
                let second = heap.stats().last.young;
                // SAFETY: ends the child at once, without destructors.
                unsafe { libc::_exit(if !first && second { 0 } else { 1 }) };
            }
            let mut status = 0;
            // SAFETY: waits for the child that was forked above.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
            collect_young(&m);
        },
    );
}

/// With `URGE_VERIFY=1`, an immutable cell that was changed is named by the second marking, which
/// aborts.
#[test]
fn an_immutable_cell_that_was_changed_is_named_by_the_second_marking() {
    const CELLS: usize = 50;
    if is_child() {
        let (heap, k, kind) = heap();
        let m = heap.attach().unwrap();
        let heads = words(&m, k.array, CELLS);
        fill_spans(&m, kind, heads, CELLS);
        collect(&m);
        change(&m, kind, heads, CELLS);
        collect_young(&m);
        std::hint::black_box(heads);
        return;
    }
    let name = "an_immutable_cell_that_was_changed_is_named_by_the_second_marking";
    let output = run_child(name, "", &[("URGE_VERIFY", "1")]).expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for part in [
        "collection 2 was about to free",
        "\"pair\", 16 bytes, word 0",
        "immutable kind that was changed",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

/// Breaks the promise of an immutable kind: changes words of old cells.
#[inline(never)]
fn change(m: &Mutator, kind: KindId, heads: *mut usize, n: usize) {
    for at in 0..n {
        // SAFETY: words of live cells.
        unsafe { m.write(word(heads, at) as *mut usize, pairs(m, kind, 7)) };
    }
}
