//! Values that need `Drop` are dropped once, when asked, after nobody can find them any more; and what their `Drop` does can harm nobody.

mod common;

use gc_core::{Field, Heap, Mutator, Trace};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

#[derive(Trace, Default)]
struct Node {
    next: Field<Node>,
    value: u64,
}

fn node(value: u64) -> Node {
    Node {
        value,
        ..Node::default()
    }
}

fn heap() -> Heap {
    Heap::builder().reserve(1 << 30).build().unwrap()
}

/// Runs `f` in a scope of a thread of its own, so that no stale word of this stack keeps what it leaves behind.
fn apart<R: Send>(
    heap: &Heap,
    f: impl FnOnce(&gc_core::Scope<'_>) -> Result<R, gc_core::AllocError> + Send,
) -> R {
    std::thread::scope(|threads| {
        threads
            .spawn(|| heap.attach().unwrap().scope(f).unwrap())
            .join()
            .unwrap()
    })
}

/// Overwrites the stack below, where stale words of earlier calls lie.
#[inline(never)]
fn wipe_stack() {
    std::hint::black_box([0usize; 2048]);
}

/// Allocates enough to reuse what was freed.
fn churn(mutator: &Mutator) {
    mutator.collect();
    for _ in 0..20 {
        mutator
            .scope(|s| {
                for i in 0..1000 {
                    s.alloc(node(u64::MAX - i))?;
                }
                Ok(())
            })
            .unwrap();
    }
    mutator.collect();
}

fn message(panic: Box<dyn std::any::Any + Send>) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()))
        .unwrap_or_default()
}

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

/// Cycles of values that need `Drop` die, are found no more, and are dropped once.
fn dying_values() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let (root, weak) = apart(&heap, |s| {
        // A cycle, and one that leads into it and lives; a weak reference into the cycle.
        let all = (0..100)
            .map(|id| s.alloc(named(id)))
            .collect::<Result<Vec<_>, _>>()?;
        for i in 0..100 {
            all[i].friend.set(s, &all[(i + 1) % 99]);
        }
        Ok((heap.root(&all[99]), heap.root(&s.alloc_weak(&all[50])?)))
    });
    // 99 leads to 1, and so to the whole cycle: nothing dies.
    churn(&mutator);
    assert_eq!(mutator.drop_dead_values(), 0);
    apart(&heap, |s| {
        assert_eq!(weak.upgrade(s).unwrap().id, 50);
        root.friend.clear(s);
        Ok(())
    });
    // The cycle is dead from the first collection on that finds it so; nobody gets at it, though its values are still whole.
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

#[test]
fn a_weak_reference_never_finds_a_value_that_is_about_to_be_dropped() {
    common::hazard(
        "a_weak_reference_never_finds_a_value_that_is_about_to_be_dropped",
        "condemn-first",
        dying_values,
    );
}

#[test]
fn a_value_s_drop_finds_no_edges_to_values_that_were_dropped_before() {
    common::hazard(
        "a_value_s_drop_finds_no_edges_to_values_that_were_dropped_before",
        "drop-with-edges",
        dying_values,
    );
}

#[test]
fn an_edge_that_a_drop_smuggles_out_is_refused_everywhere() {
    static STOLEN: Mutex<Vec<Field<Thief>>> = Mutex::new(Vec::new());
    thread_local!(static MINE: std::cell::OnceCell<Mutator> = const { std::cell::OnceCell::new() });
    #[derive(Trace)]
    struct Thief {
        edge: Field<Thief>,
        steals: bool,
    }
    impl Drop for Thief {
        fn drop(&mut self) {
            if self.steals {
                MINE.with(|m| {
                    m.get().unwrap().with_scope(|s| {
                        let other = Thief {
                            edge: Field::null(),
                            steals: false,
                        };
                        self.edge.set(s, &s.alloc(other).unwrap());
                    });
                });
                STOLEN.lock().unwrap().push(std::mem::take(&mut self.edge));
            }
        }
    }
    let heap = heap();
    MINE.with(|m| {
        let mutator = m.get_or_init(|| heap.attach().unwrap());
        for _ in 0..5 {
            mutator
                .scope(|s| {
                    s.alloc(Thief {
                        edge: Field::null(),
                        steals: true,
                    })?;
                    Ok(())
                })
                .unwrap();
        }
        wipe_stack();
        churn(mutator);
        assert!(mutator.drop_dead_values() > 0);
        churn(mutator);
        let edge = STOLEN.lock().unwrap().pop().unwrap();
        assert!(!edge.is_null());
        mutator.with_scope(|s| {
            let get = catch_unwind(AssertUnwindSafe(|| edge.get(s).is_some()));
            assert!(message(get.unwrap_err()).contains("does not lie in"));
            let put = catch_unwind(AssertUnwindSafe(|| {
                s.alloc(Thief {
                    edge,
                    steals: false,
                })
                .is_ok()
            }));
            assert!(message(put.unwrap_err()).contains("field that is not null"));
        });
    });
}

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
