//! Measures whether stops grow with the program's roots, handles, weak words and so on. For each of
//! these kinds, the bench takes the longest stop of a collection with none and with two numbers of
//! them (mostly 10^4 and 10^6), as ratios to the first.
//!
//! `cargo bench -p benches --bench stop_growth [-- NAME]`. Each ratio should be at most 3. Each
//! kind has a heap of its own, in which the collections with none come first. A figure is the
//! median of the longest stops of some collections. One mutator runs in a loop meanwhile, so that
//! each stop sends a signal; the thread that measures waits in `blocking`. The first row is for
//! comparison: between its collections the measuring thread reads other memory, as the marking of a
//! million cells does. Its ratios show the cost of cold processor caches in a stop. The largest
//! numbers are 60,000 sites (a heap has at most 65,536) and 1,000 threads.
//!
//! The last rows are suspended stacks, 10^2 to 10^5 of them, each number in a heap of its own. One
//! in a hundred of them runs between two collections. Their ratios are to 10^2 stacks, and should
//! be at most 2 in a heap with two million other cells, whose marking leaves the caches cold
//! whatever the number of stacks. In a heap without other cells the scan of 10^5 stacks beside the
//! program costs the next stop what the first row shows.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::time::Duration;

use benches::{Mode, wanted};
use gc_core::coroutine::{Stack, StackPool, suspend};
use gc_core::raw::{Encoding, Kind};
use gc_core::{Field, Heap, Leaf, Mutator, Root, Trace, Weak};

#[derive(Trace, Default)]
struct Node {
    next: Field<Node>,
    number: u64,
}

/// A value that needs `Drop`.
#[derive(Leaf)]
struct Text(String); // needs `Drop`

/// One kind, and its numbers.
struct Row {
    name: &'static str,
    counts: [usize; 2],
    /// Measures the longest stops with this number of the kind.
    stops: fn(&Heap, &Mutator, usize, rounds: usize) -> Vec<Duration>,
}

const MANY: [usize; 2] = [10_000, 1_000_000];

const ROWS: [Row; 16] = [
    row("nothing, MiB read between", [16, 64], memory_read),
    row("Roots", MANY, roots),
    row("Roots, dropped", MANY, roots_dropped),
    row("open handles", MANY, handles),
    row("open handles, scope ended", MANY, handles_ended),
    row("open scopes", [1_000, 10_000], scopes),
    row("root ranges, dropped", MANY, ranges_dropped),
    row("values that need Drop", MANY, drops),
    row("values that need Drop, dying", MANY, drops_dying),
    row("finalizers", MANY, finalizers),
    row("finalizers, dying", MANY, finalizers_dying),
    row("weak words", MANY, weak_words),
    row("weak words, dying", MANY, weak_words_dying),
    row("sites", [10_000, 60_000], sites),
    row("idle threads", [100, 1_000], idle_threads),
    row(
        "idle threads that allocated",
        [100, 1_000],
        threads_that_allocated,
    ),
];

type Stops = fn(&Heap, &Mutator, usize, usize) -> Vec<Duration>;

const fn row(name: &'static str, counts: [usize; 2], stops: Stops) -> Row {
    Row {
        name,
        counts,
        stops,
    }
}

fn main() {
    let mode = Mode::from_args();
    if mode == Mode::List {
        return;
    }
    let rounds = mode.pick(11, 1);
    println!(
        "{:<30}{:>10}{:>12}{:>10}",
        "stop_growth", "of them", "stop", "ratio"
    );
    for row in ROWS.iter().filter(|row| wanted(row.name)) {
        let counts = row.counts.map(|count| mode.pick(count, 20));
        let heap = Heap::builder().build().expect("a heap");
        beside_a_loop(&heap, || measure(row, &heap, counts, rounds));
    }
    for (name, cells) in SUSPENDED.into_iter().filter(|(name, _)| wanted(name)) {
        let mut first = None;
        for count in [100, 1_000, 10_000, 100_000] {
            let (count, cells) = (mode.pick(count, 20), mode.pick(cells, 20));
            let heap = Heap::builder().build().expect("a heap");
            let mut stop = Duration::ZERO;
            let measured = || stop = median(suspended_stacks(&heap, count, cells, rounds));
            beside_a_loop(&heap, measured);
            let ratio = stop.as_secs_f64() / first.get_or_insert(stop).as_secs_f64();
            println!("{name:<30}{count:>10}{stop:>12.1?}{ratio:>10.2}");
        }
    }
}

/// The rows of suspended stacks, and the numbers of other cells in their heaps.
const SUSPENDED: [(&str, usize); 2] = [
    ("suspended stacks", 0),
    ("suspended stacks, other cells", 2_000_000),
];

/// Iterations of the loop.
static TURNS: AtomicUsize = AtomicUsize::new(0);

/// Calls `f` while one mutator runs in a loop.
fn beside_a_loop(heap: &Heap, f: impl FnOnce()) {
    let (attached, done) = (&Barrier::new(2), &AtomicBool::new(false));
    std::thread::scope(|threads| {
        threads.spawn(move || {
            let _mutator = heap.attach().expect("attaches");
            attached.wait();
            // Relaxed, all of `done` and `TURNS`: no other data is published by them.
            while !done.load(Ordering::Relaxed) {
                TURNS.fetch_add(1, Ordering::Relaxed);
                core::hint::spin_loop();
            }
        });
        attached.wait();
        f();
        done.store(true, Ordering::Relaxed);
    });
}

fn measure(row: &Row, heap: &Heap, counts: [usize; 2], rounds: usize) {
    let mutator = heap.attach().expect("attaches");
    let none = median(ordinary(heap, &mutator, 3 * rounds));
    println!("{:<30}{:>10}{:>12.1?}", row.name, 0, none);
    for count in counts {
        let stop = median((row.stops)(heap, &mutator, count, rounds));
        let ratio = stop.as_secs_f64() / none.as_secs_f64();
        println!("{:<30}{count:>10}{stop:>12.1?}{ratio:>10.2}", "");
    }
}

fn median(mut stops: Vec<Duration>) -> Duration {
    stops.sort_unstable();
    stops[stops.len() / 2]
}

/// The longest stop of a collection. The collection begins when the loop runs again, since a thread
/// that is still parked in the last stop is stopped without a signal.
fn stop(heap: &Heap, mutator: &Mutator) -> Duration {
    mutator.blocking(|| {
        let turns = TURNS.load(Ordering::Relaxed);
        while TURNS.load(Ordering::Relaxed) == turns {
            std::thread::yield_now();
        }
    });
    mutator.collect();
    heap.stats().last.pause
}

/// The longest stops of successive collections. One collection precedes them, which does the extra
/// work that a peak leaves behind.
fn ordinary(heap: &Heap, mutator: &Mutator, rounds: usize) -> Vec<Duration> {
    mutator.collect();
    (0..rounds).map(|_| stop(heap, mutator)).collect()
}

/// The longest stops of the collections in which the cells of `make` die. `settle` drains the
/// queues that they leave.
fn dying(
    heap: &Heap,
    mutator: &Mutator,
    rounds: usize,
    make: impl Fn(),
    settle: impl Fn(),
) -> Vec<Duration> {
    (0..rounds)
        .map(|_| {
            make();
            let longest = stop(heap, mutator);
            settle();
            mutator.collect();
            settle();
            longest
        })
        .collect()
}

fn memory_read(heap: &Heap, mutator: &Mutator, mib: usize, rounds: usize) -> Vec<Duration> {
    let memory = vec![1u8; mib << 20];
    (0..rounds)
        .map(|_| {
            let read = mutator.blocking(|| {
                memory
                    .iter()
                    .step_by(64)
                    .map(|byte| u64::from(*byte))
                    .sum::<u64>()
            });
            std::hint::black_box(read);
            stop(heap, mutator)
        })
        .collect()
}

fn make_roots(heap: &Heap, mutator: &Mutator, count: usize) -> Vec<Root<Node>> {
    let root = |_| mutator.with_scope(|s| heap.root(&s.alloc(Node::default()).expect("room")));
    (0..count).map(root).collect()
}

fn roots(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    let roots = make_roots(heap, mutator, count);
    let stops = ordinary(heap, mutator, rounds);
    drop(roots);
    stops
}

fn roots_dropped(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    drop(make_roots(heap, mutator, count));
    ordinary(heap, mutator, rounds)
}

fn handles(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    mutator.with_scope(|s| {
        for _ in 0..count {
            s.alloc(Node::default()).expect("room");
        }
        ordinary(heap, mutator, rounds)
    })
}

fn handles_ended(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    handles(heap, mutator, count, 1);
    ordinary(heap, mutator, rounds)
}

/// Nested scopes, each with a handle. Their stack frames are scanned in the stop as well.
fn scopes(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    fn nest(heap: &Heap, mutator: &Mutator, left: usize, rounds: usize) -> Vec<Duration> {
        if left == 0 {
            return ordinary(heap, mutator, rounds);
        }
        mutator.with_scope(|s| {
            s.alloc(Node::default()).expect("room");
            nest(heap, mutator, left - 1, rounds)
        })
    }
    nest(heap, mutator, count, rounds)
}

fn ranges_dropped(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    let words = [0usize; 4];
    let limit = AtomicUsize::new(words.as_ptr_range().end as usize);
    // SAFETY: words and limit outlive the ranges.
    let range = |_| unsafe {
        mutator
            .root_range(words.as_ptr(), &raw const limit, Encoding::RAW)
            .expect("room for a range")
    };
    drop((0..count).map(range).collect::<Vec<_>>());
    ordinary(heap, mutator, rounds)
}

/// Makes values that need `Drop`. They are dead when the function returns.
fn make_texts(mutator: &Mutator, count: usize) {
    for _ in 0..count {
        mutator.with_scope(|s| assert!(s.alloc(Text(String::new())).is_ok()));
    }
}

fn drops(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    let stops = mutator.with_scope(|s| {
        for _ in 0..count {
            s.alloc(Text(String::new())).expect("room");
        }
        ordinary(heap, mutator, rounds)
    });
    mutator.collect();
    mutator.drop_dead_values();
    stops
}

fn drops_dying(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    let make = || make_texts(mutator, count);
    dying(heap, mutator, rounds, make, || {
        mutator.drop_dead_values();
    })
}

/// Makes cells with finalizers, and calls `keep` with each.
fn make_finalizers(
    heap: &Heap,
    mutator: &Mutator,
    count: usize,
    mut keep: impl FnMut(usize, usize),
) {
    let kind = heap.kind(Kind::leaf("finalizable")).expect("a kind");
    for i in 0..count {
        // SAFETY: the cell is in this thread's registers until `keep` has returned.
        unsafe {
            let cell = mutator.alloc_raw(kind, 16).expect("room");
            assert!(mutator.register_finalizer(cell, i).is_ok());
            keep(i, cell.as_ptr() as usize);
        }
    }
}

fn finalizers(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    let table = heap
        .kind(Kind::array("table", 0, Encoding::RAW))
        .expect("a kind");
    // SAFETY: the table is rooted before it is filled, and each of its words is written by the
    // barrier.
    let stops = unsafe {
        let table = mutator.alloc_raw(table, 8 * count.max(1)).expect("room");
        let root = mutator.root_raw(table).expect("a root");
        let word = table.as_ptr().cast::<usize>();
        make_finalizers(heap, mutator, count, |i, cell| {
            mutator.write(word.add(i), cell)
        });
        let stops = ordinary(heap, mutator, rounds);
        mutator.fill_words(word, 0, count);
        drop(root);
        stops
    };
    mutator.collect();
    mutator.drain_finalizers(|_, _| ());
    stops
}

fn finalizers_dying(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    let make = || make_finalizers(heap, mutator, count, |_, _| ());
    dying(heap, mutator, rounds, make, || {
        mutator.drain_finalizers(|_, _| ());
    })
}

/// Calls `then` with `count` weak words alive. Their targets are kept alive by strong references if
/// `alive` is set.
fn with_weak_words<R>(mutator: &Mutator, count: usize, alive: bool, then: impl FnOnce() -> R) -> R {
    mutator.with_scope(|s| {
        let weak = s.alloc_array::<Weak<Node>>(count).expect("room");
        let strong = s.alloc_array::<Node>(count).expect("room");
        for i in 0..count {
            mutator.with_scope(|t| {
                let node = t
                    .alloc(Node {
                        number: i as u64,
                        ..Node::default()
                    })
                    .expect("room");
                weak.set(i, t, &t.alloc_weak(&node).expect("room"));
                if alive {
                    strong.set(i, t, &node);
                }
            });
        }
        then()
    })
}

fn weak_words(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    with_weak_words(mutator, count, true, || ordinary(heap, mutator, rounds))
}

fn weak_words_dying(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    let once = |_| with_weak_words(mutator, count, false, || stop(heap, mutator));
    (0..rounds).map(once).collect()
}

fn sites(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: only this thread uses the counter.
    for _ in NUMBER.load(Ordering::Relaxed)..count {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let kind = heap
            .kind(Kind::leaf(format!("kind {number}")))
            .expect("a kind");
        // SAFETY: the cell is dead at once.
        unsafe { mutator.alloc_raw(kind, 16).expect("room") };
    }
    ordinary(heap, mutator, rounds)
}

fn idle_threads(heap: &Heap, mutator: &Mutator, count: usize, rounds: usize) -> Vec<Duration> {
    beside_threads(heap, mutator, count, rounds, false)
}

fn threads_that_allocated(
    heap: &Heap,
    mutator: &Mutator,
    count: usize,
    rounds: usize,
) -> Vec<Duration> {
    beside_threads(heap, mutator, count, rounds, true)
}

/// The stops beside threads that wait in `blocking`. With `allocate`, each has allocated a cell
/// with a handle before.
fn beside_threads(
    heap: &Heap,
    mutator: &Mutator,
    count: usize,
    rounds: usize,
    allocate: bool,
) -> Vec<Duration> {
    const STACK: usize = 128 << 10;
    let start = &Barrier::new(count + 1);
    std::thread::scope(|threads| {
        let ends: Vec<_> = (0..count)
            .map(|_| {
                let (end, wait) = mpsc::channel::<()>();
                let body = move || {
                    let mutator = heap.attach().expect("attaches");
                    mutator.with_scope(|s| {
                        let node = allocate.then(|| s.alloc(Node::default()).expect("room"));
                        mutator.blocking(|| {
                            start.wait();
                            let _ = wait.recv();
                        });
                        node.map(|node| node.next.is_null())
                    });
                };
                let thread = std::thread::Builder::new().stack_size(STACK);
                thread.spawn_scoped(threads, body).expect("a thread");
                end
            })
            .collect();
        mutator.blocking(|| start.wait());
        let stops = ordinary(heap, mutator, rounds);
        // Nothing is measured any more, so the threads may take part in stops as they end.
        mutator.blocking(|| drop(ends));
        stops
    })
}

/// The stops beside suspended stacks, one in a hundred of which runs between two collections.
fn suspended_stacks(heap: &Heap, count: usize, cells: usize, rounds: usize) -> Vec<Duration> {
    /// A stack runs once in so many collections.
    const TURNS_OF: usize = 100;
    let mutator = heap.attach().expect("attaches");
    let pool = StackPool::new(16 << 10);
    let start = |_| {
        let stack = heap.stack(pool.take().expect("memory")).expect("a stack");
        let start = mutator.start(&stack, |mutator| {
            loop {
                // SAFETY: the pointer stays on this stack.
                let node = unsafe { mutator.alloc_gc(Node::default()) }.expect("room");
                suspend().expect("on a stack");
                gc_core::keep_alive(node);
            }
        });
        start.expect("a stack that is not used");
        mutator.resume(&stack).expect("started");
        stack
    };
    let stacks: Vec<Stack> = (0..count).map(start).collect();
    let _cells = mutator.with_scope(|s| {
        let all = s.alloc_array::<Node>(cells).expect("room");
        for i in 0..cells {
            mutator.with_scope(|t| all.set(i, t, &t.alloc(Node::default()).expect("room")));
        }
        heap.root(&all)
    });
    mutator.collect();
    let stops = (0..rounds)
        .map(|round| {
            for stack in stacks.iter().skip(round % TURNS_OF).step_by(TURNS_OF) {
                mutator.resume(stack).expect("suspended");
            }
            stop(heap, &mutator)
        })
        .collect();
    for stack in stacks {
        // SAFETY: nothing refers to the frames.
        unsafe { stack.abandon() }.expect("suspended");
    }
    stops
}
