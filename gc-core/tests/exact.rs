//! Heaps that only the safe tier uses: handles name all roots, and stale words on stacks keep no
//! cell.

mod common;

use common::{hazard, in_a_child};
use gc_core::raw::{Encoding, Kind, SiteError};
use gc_core::{AllocError, Bytes, Field, Heap, Leaf, Mutator, Stress, Trace};
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

#[derive(Trace, Default)]
struct Node {
    next: Field<Node>,
    number: usize,
}

fn node(number: usize) -> Node {
    Node {
        number,
        ..Node::default()
    }
}

/// A large node, so that a freed cell is soon used again.
#[derive(Trace)]
struct Big {
    next: Field<Big>,
    number: usize,
    _room: [u64; 250],
}

fn big(number: usize) -> Big {
    Big {
        next: Field::null(),
        number,
        _room: [0; 250],
    }
}

/// The addresses of a table with a thousand nodes and of its first node. No handle holds them.
#[inline(never)]
fn dead_table(mutator: &Mutator) -> [usize; 2] {
    mutator.with_scope(|s| {
        let table = s.alloc_array::<Node>(1000).unwrap();
        for i in 0..1000 {
            table.set(i, s, &s.alloc(node(i)).unwrap());
        }
        let first = table.get(0, s).unwrap();
        [&raw const *table as usize, first.next.address() as usize]
    })
}

fn live(heap: &Heap) -> u64 {
    heap.collect();
    heap.stats().last.cells_live
}

/// A use of the heap that can give out a bare cell.
type Way = fn(&Heap, &Mutator);

/// Stacks are not scanned until the fast tier is used or a `Gc` is made, for each heap separately.
#[test]
fn stale_words_keep_nothing_until_the_fast_tier_is_used() {
    let name = "stale_words_keep_nothing_until_the_fast_tier_is_used";
    in_a_child(name, || {
        let heap = Heap::builder().reserve(1 << 30).build().unwrap();
        let mutator = heap.attach().unwrap();
        let stale = dead_table(&mutator);
        assert_eq!(live(&heap), 0);
        black_box(&stale);
        // Each heap decides separately.
        let other = Heap::builder().reserve(1 << 30).build().unwrap();
        let others = other.attach().unwrap();
        // SAFETY: the cell is on this stack.
        let raw = unsafe { mutator.alloc_gc(node(7)) }.unwrap();
        let stale = (dead_table(&mutator), dead_table(&others));
        assert!(live(&heap) > 1000, "stacks are scanned from now on");
        assert_eq!(live(&other), 0);
        black_box(&stale);
        assert_eq!(raw.number, 7);
        let stale = dead_table(&others);
        let kept = others.with_scope(|s| {
            let local = s.alloc(node(8)).unwrap();
            // SAFETY: the cell is on this stack.
            unsafe { local.as_gc() }
        });
        assert!(live(&other) > 1000, "a Gc was made");
        black_box(&stale);
        assert_eq!(kept.number, 8);
    });
}

/// The first use of each function that can give out a bare cell has stacks scanned from then on.
#[test]
fn each_way_to_a_bare_cell_has_stacks_scanned() {
    let name = "each_way_to_a_bare_cell_has_stacks_scanned";
    in_a_child(name, || {
        let ways: [(&str, Way); 6] = [
            ("alloc", |heap, mutator| {
                let kind = heap.kind(Kind::leaf("leaf")).unwrap();
                // SAFETY: the cell is not used.
                assert!(unsafe { mutator.alloc_raw(kind, 16) }.is_ok());
            }),
            ("site", |heap, _| {
                let kind = heap.kind(Kind::leaf("leaf")).unwrap();
                heap.site(kind, 16).unwrap();
            }),
            ("alloc_gc", |_, mutator| {
                // The mutator's cache knows the type, and its run has cells.
                mutator.with_scope(|s| assert!(s.alloc(node(1)).is_ok()));
                // SAFETY: the cell is not used.
                assert!(unsafe { mutator.alloc_gc(node(1)) }.is_ok());
            }),
            ("runs", |_, mutator| assert!(!mutator.runs().is_null())),
            ("root_raw", |heap, mutator| {
                mutator.with_scope(|s| {
                    let cell = s.alloc(node(1)).unwrap().next.address();
                    let cell = core::ptr::NonNull::new(cell.cast()).unwrap();
                    // SAFETY: a handle's cell.
                    assert!(unsafe { heap.root_raw(cell) }.is_ok());
                });
            }),
            ("root_range", |_, mutator| {
                let limit = std::sync::atomic::AtomicUsize::new(0);
                // SAFETY: the range is empty, and its guard is dropped at once.
                drop(unsafe {
                    mutator
                        .root_range(core::ptr::null(), &raw const limit, Encoding::RAW)
                        .expect("room for a range")
                });
            }),
        ];
        for (name, way) in ways {
            let heap = Heap::builder().reserve(1 << 30).build().unwrap();
            let mutator = heap.attach().unwrap();
            let stale = dead_table(&mutator);
            assert!(live(&heap) < 10, "{name}");
            black_box(&stale);
            way(&heap, &mutator);
            let stale = dead_table(&mutator);
            assert!(live(&heap) >= 1000, "{name}");
            black_box(&stale);
        }
    });
}

/// A heap that was built exact refuses the fast tier with an error value.
#[test]
fn an_exact_heap_refuses_the_fast_tier() {
    let heap = exact_heap();
    let mutator = heap.attach().unwrap();
    let kind = heap.kind(Kind::leaf("leaf")).unwrap();
    let refused = |error| assert_eq!(error, AllocError::Site(SiteError::FastTier));
    assert_eq!(heap.site(kind, 16), Err(SiteError::FastTier));
    // SAFETY: the results are errors.
    unsafe {
        refused(mutator.alloc_raw(kind, 16).unwrap_err());
        refused(mutator.alloc_gc(node(1)).unwrap_err());
    }
    let stale = dead_table(&mutator);
    assert_eq!(live(&heap), 0);
    black_box(&stale);
}

/// A heap that is built exact: it refuses the fast tier.
fn exact_heap() -> Heap {
    Heap::builder()
        .reserve(1 << 30)
        .exact(true)
        .build()
        .unwrap()
}

/// Collects beside other threads, 3000 times or for five seconds, and then sets `done`.
fn collect_beside(heap: &Heap, done: &AtomicBool) {
    let until = Instant::now() + Duration::from_secs(5);
    for _ in 0..3000 {
        if Instant::now() > until {
            break;
        }
        heap.collect();
        std::thread::sleep(Duration::from_micros(100));
    }
    done.store(true, Relaxed);
}

/// A cell lives between its allocation and its handle, where only a register names it: a stop that
/// finds the thread's window open scans its stack. With `no-window` planted, the cell is freed.
#[test]
fn h72_a_cell_lives_between_its_allocation_and_its_handle() {
    let name = "h72_a_cell_lives_between_its_allocation_and_its_handle";
    hazard(name, "no-window", || {
        let heap = &exact_heap();
        let done = &AtomicBool::new(false);
        std::thread::scope(|threads| {
            for thread in 0..2usize {
                threads.spawn(move || {
                    let mutator = heap.attach().unwrap();
                    while !done.load(Relaxed) {
                        mutator.with_scope(|s| {
                            let number = |i: usize| thread << 32 | i;
                            let all: Vec<_> =
                                (0..60).map(|i| s.alloc(big(number(i))).unwrap()).collect();
                            for (i, big) in all.iter().enumerate() {
                                assert_eq!(big.number, number(i));
                            }
                        });
                    }
                });
            }
            collect_beside(heap, done);
        });
    });
}

/// A cell that is loaded from a field lives until it has a handle, although another thread changes
/// the field. With `no-window` planted, it is freed.
#[test]
fn h72_a_cell_lives_between_a_field_and_its_handle_whoever_changes_the_field() {
    let name = "h72_a_cell_lives_between_a_field_and_its_handle_whoever_changes_the_field";
    hazard(name, "no-window", || {
        let heap = &exact_heap();
        let done = &AtomicBool::new(false);
        let mutator = heap.attach().unwrap();
        let shared = &mutator.with_scope(|s| heap.root(&s.alloc(big(0)).unwrap()));
        drop(mutator);
        std::thread::scope(|threads| {
            threads.spawn(move || {
                let mutator = heap.attach().unwrap();
                for number in 0.. {
                    mutator.with_scope(|s| shared.next.set(s, &s.alloc(big(number)).unwrap()));
                    if done.load(Relaxed) {
                        break;
                    }
                }
            });
            threads.spawn(move || {
                let mutator = heap.attach().unwrap();
                while !done.load(Relaxed) {
                    mutator.with_scope(|s| {
                        let found: Vec<_> = (0..60)
                            .filter_map(|_| shared.next.get(s))
                            .map(|big| (big, big.number))
                            .collect();
                        for (big, number) in found {
                            assert_eq!(big.number, number, "its cell was given to another");
                        }
                    });
                }
            });
            collect_beside(heap, done);
        });
    });
}

/// A value whose `Drop` runs collections and allocations while no handle names the value.
#[derive(Leaf)]
struct Dying {
    number: usize,
    works: bool,
    _room: [u64; 250],
}

fn dying(number: usize, works: bool) -> Dying {
    let _room = [0; 250];
    Dying {
        number,
        works,
        _room,
    }
}

static HEAP: OnceLock<Heap> = OnceLock::new();

impl Drop for Dying {
    fn drop(&mut self) {
        let Some(heap) = HEAP.get().filter(|_| self.works) else {
            return;
        };
        for _ in 0..2 {
            heap.collect();
        }
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let mutator = heap.attach().unwrap();
                for number in 100..2000 {
                    mutator.with_scope(|s| assert!(s.alloc(dying(number, false)).is_ok()));
                }
            });
        });
        assert_eq!(self.number, 7, "its cell was given to another");
    }
}

/// The cell of a value is not freed while its `Drop` runs: the stack of the thread that drops it is
/// scanned. With `drops-unheld` planted, another value gets the cell.
#[test]
fn h73_a_value_lives_while_its_drop_runs() {
    hazard(
        "h73_a_value_lives_while_its_drop_runs",
        "drops-unheld",
        || {
            let builder = Heap::builder().reserve(1 << 30).exact(true);
            let heap = HEAP.get_or_init(|| builder.build().unwrap());
            let mutator = heap.attach().unwrap();
            mutator.with_scope(|s| assert!(s.alloc(dying(7, true)).is_ok()));
            // The mutator leaves the value's span, so that other mutators may allocate there.
            for number in 10..100 {
                mutator.with_scope(|s| assert!(s.alloc(dying(number, false)).is_ok()));
            }
            heap.collect();
            assert!(mutator.drop_dead_values() >= 91);
        },
    );
}

/// All of the safe tier, with continuous collections and a second marking. A weak load reads the
/// mode again before it judges its target: since its first test, a stop may have ended the cycle
/// and another may have begun one, in which most live cells are not marked yet. With `judged-late`
/// planted, the load takes a live target for dead.
#[test]
fn the_safe_tier_loses_nothing_under_continuous_collection() {
    let name = "the_safe_tier_loses_nothing_under_continuous_collection";
    hazard(name, "judged-late", work_for_a_while);
}

fn work_for_a_while() {
    let heap = Heap::builder().reserve(1 << 30).exact(true);
    let heap = &heap
        .stress(Stress::CONTINUOUS)
        .verify(true)
        .build()
        .unwrap();
    std::thread::scope(|threads| {
        for thread in 0..2 {
            threads.spawn(move || {
                let mutator = heap.attach().unwrap();
                let until = Instant::now() + Duration::from_secs(2);
                while Instant::now() < until {
                    mutator.scope(|s| work(s, thread)).unwrap();
                }
            });
        }
    });
}

fn work(s: &gc_core::Scope<'_>, thread: usize) -> Result<(), AllocError> {
    let map = s.alloc(gc_core::WeakMap::<Node, Bytes>::new())?;
    let table = s.alloc_array::<Node>(64)?;
    for i in 0..64 {
        s.mutator().scope(|inner| {
            let key = inner.alloc(node(thread << 32 | i))?;
            table.set(i, inner, &key);
            map.insert(inner, &key, &inner.alloc_bytes(&[i as u8; 100])?)?;
            Ok(())
        })?;
    }
    let grown = table.grown(100, s)?;
    for i in 0..64 {
        s.mutator().scope(|inner| {
            let key = grown.get(i, inner).expect("it was set");
            assert_eq!(key.number, thread << 32 | i);
            let value = map.get(inner, &key).expect("its key lives");
            assert_eq!(&value[..], [i as u8; 100]);
            let weak = inner.alloc_weak(&key)?;
            assert!(weak.upgrade(inner).is_some_and(|again| again.same(key)));
            let root = inner.mutator().heap().root(&key);
            assert_eq!(root.get(inner).number, key.number);
            Ok(())
        })?;
    }
    Ok(())
}
