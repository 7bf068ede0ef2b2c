//! Values that need `Drop`. Each is dropped once, when a mutator asks, after no reference leads to
//! it; and no safe code in a `Drop` can make a reference dangle.

mod common;

use common::nodes::{Node, apart, churn, heap, message, node};
use common::wipe_stack;
use gc_core::{Field, Heap, Mutator, Stress, Trace, WeakMap};
use std::cell::{Cell, OnceCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

static DROPPED: Mutex<Vec<u64>> = Mutex::new(Vec::new());

#[derive(Trace)]
struct Named {
    name: String,
    friend: Field<Named>,
    id: u64,
}

impl Drop for Named {
    fn drop(&mut self) {
        assert!(self.friend.is_null(), "an edge of a dying value may dangle");
        assert_eq!(self.name, format!("number {}", self.id));
        DROPPED.lock().unwrap().push(self.id);
    }
}

fn named(id: u64) -> Named {
    Named {
        name: format!("number {id}"),
        friend: Field::null(),
        id,
    }
}

/// Lets a cycle of values that need `Drop` die. Checks that weak references do not give them and
/// that each is dropped once.
fn dying_values() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let (root, weak) = apart(&heap, |s| {
        // A cycle of values; a live value that leads into it; a weak reference into the cycle.
        let all = (0..100)
            .map(|id| s.alloc(named(id)))
            .collect::<Result<Vec<_>, _>>()?;
        for i in 0..100 {
            all[i].friend.set(s, &all[(i + 1) % 99]);
        }
        Ok((heap.root(&all[99]), heap.root(&s.alloc_weak(&all[50])?)))
    });
    // The live value 99 leads to 1, and so to the whole cycle: no value dies.
    churn(&mutator);
    assert_eq!(mutator.drop_dead_values(), 0);
    apart(&heap, |s| {
        assert_eq!(weak.upgrade(s).unwrap().id, 50);
        root.friend.clear(s);
        Ok(())
    });
    // From the first collection that finds the cycle dead, no reference leads to it, although its
    // values are still whole.
    churn(&mutator);
    churn(&mutator);
    assert!(DROPPED.lock().unwrap().is_empty());
    mutator.with_scope(|s| assert!(weak.upgrade(s).is_none()));
    let n = mutator.drop_dead_values();
    assert_eq!(n, 99);
    churn(&mutator);
    assert_eq!(mutator.drop_dead_values(), 0);
    let mut dropped = DROPPED.lock().unwrap().clone();
    dropped.sort_unstable();
    let count = dropped.len();
    dropped.dedup();
    assert_eq!(dropped.len(), count, "dropped twice");
    assert!(!dropped.contains(&99));
    assert_eq!(root.name, "number 99");
}

/// Weak references to dead values are cleared before the values are queued for drop. With
/// `queued-first` planted, they give such values.
#[test]
fn a_weak_reference_never_finds_a_value_that_is_about_to_be_dropped() {
    common::hazard(
        "a_weak_reference_never_finds_a_value_that_is_about_to_be_dropped",
        "queued-first",
        dying_values,
    );
}

/// The fields of a value are null when its `Drop` runs. With `drop-with-edges` planted, they lead
/// to values that may have been dropped already.
#[test]
fn a_value_s_drop_finds_no_edges_to_values_that_were_dropped_before() {
    common::hazard(
        "a_value_s_drop_finds_no_edges_to_values_that_were_dropped_before",
        "drop-with-edges",
        dying_values,
    );
}

/// The collector takes back the memory of an empty table, also where a thread has just mapped that
/// memory and not used it yet. The thread then maps it again. With `trimmed-is-full` planted, the
/// thread takes the table for full.
#[test]
fn h101_a_value_finds_room_though_the_tables_memory_is_taken_back_at_that_moment() {
    common::hazard(
        "h101_a_value_finds_room_though_the_tables_memory_is_taken_back_at_that_moment",
        "trimmed-is-full",
        || {
            let heap = Heap::builder().reserve(1 << 30).stress(Stress::CONTINUOUS);
            let heap = heap.build().unwrap();
            let mutator = heap.attach().unwrap();
            for _ in 0..5 {
                // Each round fills several pieces of the table. A new piece is empty at first.
                mutator.with_scope(|s| {
                    let held: Result<Vec<_>, _> = (0..40_000).map(|n| s.alloc(vec![n])).collect();
                    assert_eq!(held.err(), None);
                });
                churn(&mutator);
                mutator.drop_dead_values();
            }
        },
    );
}

thread_local!(static MINE: OnceCell<&'static Mutator> = const { OnceCell::new() });

/// This thread's mutator. A `Drop` has no other way to reach it.
fn mine() -> &'static Mutator {
    MINE.with(|m| *m.get().unwrap())
}

/// Makes values and lets them die until the `Drop` of one has run.
fn let_die<T: Trace>(mut make: impl FnMut() -> T) {
    for _ in 0..20 {
        let made: &mut dyn FnMut() = &mut || {
            mine().scope(|s| s.alloc(make()).map(drop)).unwrap();
        };
        made();
        wipe_stack();
        churn(mine());
        if mine().drop_dead_values() > 0 {
            return;
        }
    }
    panic!("nothing died");
}

/// For each attempt to store an edge into a value whose `Drop` runs: the expected message, and the
/// message of the panic.
static REFUSED: Mutex<Vec<(&str, String)>> = Mutex::new(Vec::new());

const DYING: &str = "whose Drop runs";
const OUTSIDE: &str = "does not lie in the scope's heap";

/// Stores an edge to a new node into `edge`, and notes the result.
fn try_to_store(mutator: &Mutator, edge: &Field<Node>, wanted: &'static str) {
    mutator.with_scope(|s| {
        let target = s.alloc(node(0x1111)).unwrap();
        note(wanted, || edge.set(s, &target));
    });
}

fn note(wanted: &'static str, store: impl FnOnce()) {
    let stored = catch_unwind(AssertUnwindSafe(store));
    let said = stored.map_or_else(message, |()| "it was stored".into());
    REFUSED.lock().unwrap().push((wanted, said));
}

/// A member with an edge and a `Drop` of its own.
#[derive(Trace)]
struct Inner(Field<Node>);

impl Drop for Inner {
    fn drop(&mut self) {
        try_to_store(mine(), &self.0, DYING);
    }
}

/// A value whose `Drop` tries each way to store an edge into itself.
#[derive(Trace)]
struct Thief {
    edge: Field<Node>,
    many: [Field<Node>; 3],
    map: WeakMap<Node, Node>,
    inner: Inner,
}

impl Drop for Thief {
    fn drop(&mut self) {
        let mutator = mine();
        try_to_store(mutator, &self.edge, DYING);
        try_to_store(mutator, &self.many[2], DYING);
        // A field that was made outside of the heap and now lies in the dying value.
        self.edge = Field::null();
        try_to_store(mutator, &self.edge, DYING);
        // A field that is moved out lies outside of the heap.
        let moved = std::mem::take(&mut self.edge);
        try_to_store(mutator, &moved, OUTSIDE);
        // A store by another thread.
        let (heap, edge) = (mutator.heap(), &self.edge);
        mutator.blocking(|| {
            std::thread::scope(|threads| {
                threads.spawn(|| try_to_store(&heap.attach().unwrap(), edge, DYING));
            });
        });
        // A store after another value was dropped inside of this `Drop`.
        mutator.drop_dead_values();
        try_to_store(mutator, &self.edge, DYING);
        mutator.with_scope(|s| {
            let key = s.alloc(node(1)).unwrap();
            note(DYING, || {
                self.map.insert(s, &key, &key).unwrap();
            });
            // Clearing an edge is allowed.
            self.edge.clear(s);
            assert!(self.map.is_empty(s) && self.edge.get(s).is_none());
        });
    }
}

/// No edge can be stored into a value whose `Drop` runs. With `stores-while-dying` planted, the
/// stores succeed.
#[test]
fn h58_no_edge_is_stored_into_a_value_whose_drop_runs() {
    common::hazard(
        "h58_no_edge_is_stored_into_a_value_whose_drop_runs",
        "stores-while-dying",
        || {
            MINE.with(|m| {
                m.set(Box::leak(Box::new(heap().attach().unwrap())))
                    .unwrap()
            });
            let_die(|| Thief {
                edge: Field::null(),
                many: Default::default(),
                map: WeakMap::new(),
                inner: Inner(Field::null()),
            });
            let refused = REFUSED.lock().unwrap();
            assert!(refused.len() >= 8);
            for (wanted, said) in &*refused {
                assert!(said.contains(wanted), "{wanted}: {said}");
            }
        },
    );
}

/// A value whose `Drop` takes its edge out, and puts it into the next value that dies.
#[derive(Trace)]
struct Courier {
    edge: Field<Node>,
    text: String,
}

static CARRIED: Mutex<Option<Field<Node>>> = Mutex::new(None);

impl Drop for Courier {
    fn drop(&mut self) {
        let mutator = mine();
        let carried = CARRIED.lock().unwrap().take();
        let Some(edge) = carried else {
            try_to_store(mutator, &self.edge, DYING);
            *CARRIED.lock().unwrap() = Some(std::mem::take(&mut self.edge));
            return;
        };
        wipe_stack();
        churn(mutator);
        churn(mutator);
        self.edge = edge;
        mutator.with_scope(|s| {
            if let Some(node) = self.edge.get(s) {
                assert_eq!(node.value, 0x1111, "{}: a freed cell was read", self.text);
            }
        });
    }
}

/// No edge is carried from one dying value into another. With `stores-while-dying` planted, the
/// second value reads a freed cell.
#[test]
fn h58_no_edge_is_carried_from_one_dying_value_into_another() {
    common::hazard(
        "h58_no_edge_is_carried_from_one_dying_value_into_another",
        "stores-while-dying",
        || {
            MINE.with(|m| {
                m.set(Box::leak(Box::new(heap().attach().unwrap())))
                    .unwrap()
            });
            for text in ["first", "second"] {
                let_die(|| Courier {
                    edge: Field::null(),
                    text: text.into(),
                });
            }
        },
    );
}

/// A field that is not null is refused outside of its cell, both in a load and in a new value.
#[test]
fn a_field_that_is_not_null_is_of_no_use_outside_of_its_cell() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let field = || {
        let node = node(1);
        // SAFETY: only this closure has the field. Safe code cannot do this.
        unsafe { node.next.address().write(mutator.heap().reserved().start) };
        node
    };
    mutator.with_scope(|s| {
        let get = catch_unwind(AssertUnwindSafe(|| field().next.get(s).is_some()));
        assert!(message(get.unwrap_err()).contains("does not lie in"));
        let put = catch_unwind(AssertUnwindSafe(|| s.alloc(field()).is_ok()));
        assert!(message(put.unwrap_err()).contains("field that is not null"));
    });
}

/// An allocation in a full heap returns an error value and drops the value that it was given.
#[test]
fn a_full_heap_is_an_error_value_and_drops_the_value() {
    let heap = Heap::builder()
        .reserve(1 << 30)
        .hard_limit(8 << 20)
        .build()
        .unwrap();
    let mutator = heap.attach().unwrap();
    #[derive(Trace)]
    struct Counted(Arc<()>, [u64; 100], Field<Node>);
    let count = Arc::new(());
    let made = mutator.with_scope(|s| {
        (0..100_000)
            .take_while(|_| {
                let value = Counted(count.clone(), [0; 100], Field::null());
                s.alloc(value).is_ok()
            })
            .count()
    });
    assert!((5_000..11_000).contains(&made), "{made} fitted");
    assert_eq!(Arc::strong_count(&count), made + 1);
    let array = mutator.scope(|s| s.alloc_array::<Node>(usize::MAX / 4).map(|a| a.len()));
    assert!(array.is_err());
    wipe_stack();
    mutator.collect();
    mutator.drop_dead_values();
    assert!(Arc::strong_count(&count) < 100);
}

/// The edges of a dead value that waits for its `Drop` are made null and not followed, so the cells
/// behind them are freed before the `Drop`. With `drop-with-edges` planted, they are kept.
#[test]
fn h79_what_a_dead_value_led_to_is_freed_before_the_value_is_dropped() {
    #[derive(Trace)]
    struct Held {
        name: String,
        first: Field<Node>,
        id: u64,
    }
    impl Drop for Held {
        fn drop(&mut self) {
            assert!(self.first.is_null());
            assert_eq!(self.name, self.id.to_string());
        }
    }
    let name = "h79_what_a_dead_value_led_to_is_freed_before_the_value_is_dropped";
    common::hazard(name, "drop-with-edges", || {
        let heap = heap();
        let mutator = heap.attach().unwrap();
        const N: u64 = 3000;
        for n in [10, N] {
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    let mutator = heap.attach().unwrap();
                    for id in 0..n {
                        mutator.with_scope(|s| {
                            let held = Held {
                                name: id.to_string(),
                                first: Field::null(),
                                id,
                            };
                            let held = s.alloc(held).unwrap();
                            for value in 0..10 {
                                let next = s.alloc(node(value)).unwrap();
                                if let Some(first) = held.first.get(s) {
                                    next.next.set(s, &first);
                                }
                                held.first.set(s, &next);
                            }
                        });
                    }
                });
            });
            churn(&mutator);
            let live = heap.stats().last.cells_live;
            assert!((n..n + 20).contains(&live), "{live} cells for {n} values");
            assert_eq!(mutator.drop_dead_values(), n);
            mutator.collect();
            assert!(heap.stats().last.cells_live < 20);
        }
    });
}

/// `drop_dead_values` inside `Drop` nests as deep as the table of running drops. The innermost call
/// then returns, and the outer calls drop the remaining values.
#[test]
fn drops_within_drops_wait_where_their_table_is_full() {
    const COUNT: u64 = 70_000;
    thread_local! {
        static MUTATOR: OnceCell<Mutator> = const { OnceCell::new() };
        static LEVELS: Cell<[u64; 2]> = const { Cell::new([0, 0]) };
    }

    #[derive(Trace)]
    struct Deep {
        id: u64,
    }

    impl Drop for Deep {
        fn drop(&mut self) {
            let [now, most] = LEVELS.get();
            LEVELS.set([now + 1, most.max(now + 1)]);
            MUTATOR.with(|m| m.get().unwrap().drop_dead_values());
            let [_, most] = LEVELS.get();
            LEVELS.set([now, most]);
            DEEP.fetch_add(self.id, Relaxed);
        }
    }

    static DEEP: AtomicU64 = AtomicU64::new(0);
    let run = || {
        let heap = heap();
        MUTATOR.with(|m| assert!(m.set(heap.attach().unwrap()).is_ok()));
        MUTATOR.with(|m| {
            let m = m.get().unwrap();
            for id in 1..=COUNT {
                m.with_scope(|s| assert!(s.alloc(Deep { id }).is_ok()));
            }
            churn(m);
            churn(m);
            wipe_stack();
            m.collect();
            // Stale words on the stack keep a few values at most.
            m.drop_dead_values();
        });
        let [now, most] = LEVELS.get();
        assert!(now == 0 && most == 1 << 16, "{now} {most}");
        let all = COUNT * (COUNT + 1) / 2;
        assert!(DEEP.load(Relaxed) > all - 10 * COUNT);
    };
    let deep = std::thread::Builder::new().stack_size(1 << 30);
    deep.spawn(run).unwrap().join().unwrap();
}
