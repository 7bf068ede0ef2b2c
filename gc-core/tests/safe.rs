//! The promises of the safe tier: whatever safe code does, no reference dangles. One test for each
//! promise.

mod common;

use common::nodes::{Node, apart, churn, heap, message, node};
use common::wipe_stack;
use gc_core::{Array, Bytes, Field, Heap, Leaf, Local, Mutator, Root, Trace, Weak};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The message of the panic of `f`. Panics itself if `f` returns.
fn refusal<R>(f: impl FnOnce() -> R) -> String {
    let result = catch_unwind(AssertUnwindSafe(|| {
        f();
    }));
    message(result.expect_err("must be refused"))
}

/// A list of `n` nodes, whose head has the number `n - 1`. It is built from its end.
fn list<'s>(s: &gc_core::Scope<'s>, n: u64) -> Local<'s, Node> {
    let head = s.mutator().scope(|inner| {
        let mut head = inner.alloc(node(0))?;
        for value in 1..n {
            let new = inner.alloc(node(value))?;
            new.next.set(inner, &head);
            head = new;
        }
        Ok(s.hold(&head))
    });
    head.unwrap()
}

fn length(mutator: &Mutator, head: &Local<'_, Node>) -> u64 {
    mutator.with_scope(|s| {
        let (mut n, mut at) = (0, Some(s.hold(head)));
        while let Some(node) = at {
            assert_eq!(node.value, length_from(node, n, head));
            n += 1;
            at = node.next.get(s);
        }
        n
    })
}

fn length_from(_: Local<'_, Node>, n: u64, head: &Local<'_, Node>) -> u64 {
    head.value - n
}

/// A trait that resolves only for types that are not `Send`: a `Send` type has two candidates.
trait StaysOnItsThread<Choice> {
    fn check() {}
}
impl<T: ?Sized> StaysOnItsThread<()> for T {}
impl<T: ?Sized + Send> StaysOnItsThread<u8> for T {}

/// `Mutator`, `Scope`, `Local` and `Gc` are not `Send`; `Heap`, `Root` and `Field` are `Send` and
/// `Sync`.
#[test]
fn mutators_scopes_and_handles_stay_on_their_thread_and_roots_do_not() {
    <Mutator as StaysOnItsThread<_>>::check();
    <&Mutator as StaysOnItsThread<_>>::check();
    <gc_core::Scope<'_> as StaysOnItsThread<_>>::check();
    <&gc_core::Scope<'_> as StaysOnItsThread<_>>::check();
    <Local<'_, Node> as StaysOnItsThread<_>>::check();
    <&Local<'_, Node> as StaysOnItsThread<_>>::check();
    <gc_core::Gc<Node> as StaysOnItsThread<_>>::check();
    fn anywhere<T: Send + Sync>() {}
    anywhere::<Heap>();
    anywhere::<Root<Node>>();
    anywhere::<Field<Node>>();
}

/// A new field is null. A field outside of the heap refuses loads and stores.
#[test]
fn a_field_is_born_null_and_refuses_a_store_before_it_lies_in_the_heap() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    mutator
        .scope(|s| {
            let outside = node(1);
            assert!(outside.next.is_null());
            let inside = s.alloc(node(2))?;
            assert!(inside.next.get(s).is_none());
            let set = catch_unwind(AssertUnwindSafe(|| outside.next.set(s, &inside)));
            assert!(message(set.unwrap_err()).contains("does not lie in the scope's heap"));
            let get = catch_unwind(AssertUnwindSafe(|| outside.next.get(s).is_none()));
            assert!(message(get.unwrap_err()).contains("does not lie in the scope's heap"));
            assert!(outside.next.is_null());
            Ok(())
        })
        .unwrap();
}

/// Fields, scopes and roots refuse values of another heap, with a panic that says so.
#[test]
fn a_field_refuses_a_value_and_a_scope_of_another_heap() {
    let (one, two) = (heap(), heap());
    let (m1, m2) = (one.attach().unwrap(), two.attach().unwrap());
    m1.with_scope(|s1| {
        m2.with_scope(|s2| {
            let a = s1.alloc(node(1)).unwrap();
            let b = s2.alloc(node(2)).unwrap();
            for text in [
                refusal(|| a.next.set(s1, &b)),
                refusal(|| a.next.set(s2, &b)),
                refusal(|| a.next.clear(s2)),
                refusal(|| a.next.get(s2).is_none()),
                refusal(|| s1.hold(&b).value),
                refusal(|| s1.alloc_weak(&b).is_ok()),
                refusal(|| one.root(&b)),
                refusal(|| one.root(&a).get(s2).value),
            ] {
                assert!(text.contains("does not lie in"), "{text}");
            }
            assert!(a.next.is_null());
        });
    });
}

/// Locals that lie in a `Vec` live until their scope ends, and are freed after it. With
/// `handles-unscanned` planted, they are freed before.
#[test]
fn locals_in_malloc_s_memory_live_until_their_scope_ends_and_no_longer() {
    common::hazard(
        "locals_in_malloc_s_memory_live_until_their_scope_ends_and_no_longer",
        "handles-unscanned",
        || {
            let heap = heap();
            let mutator = heap.attach().unwrap();
            mutator
                .scope(|s| {
                    let mut all = Vec::new();
                    for value in 0..5000 {
                        all.push(s.alloc(node(value))?);
                    }
                    wipe_stack();
                    churn(s.mutator());
                    assert!((0..).zip(&all).all(|(i, n)| n.value == i));
                    Ok(())
                })
                .unwrap();
            wipe_stack();
            mutator.collect();
            let live = heap.stats().last.cells_live;
            assert!(live < 100, "{live} cells are alive after their scope");
        },
    );
}

/// A cell that is allocated or held in an outer scope, while an inner scope is open, outlives the
/// inner scope.
#[test]
fn what_an_outer_scope_makes_inside_an_inner_one_outlives_it() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    mutator
        .scope(|outer| {
            let mut kept = Vec::new();
            for round in 0..100 {
                mutator.scope(|inner| {
                    for i in 0..100 {
                        let short = inner.alloc(node(i))?;
                        kept.push(outer.alloc(node(round * 100 + i))?);
                        kept.last().unwrap().next.set(inner, &short);
                    }
                    let held = outer.hold(&inner.alloc(node(7))?);
                    assert_eq!(held.value, 7);
                    Ok(())
                })?;
            }
            wipe_stack();
            churn(&mutator);
            for (i, node) in (0..).zip(&kept) {
                assert_eq!(node.value, i);
                assert_eq!(node.next.get(outer).unwrap().value, i % 100);
            }
            Ok(())
        })
        .unwrap();
}

/// A panic that leaves a scope ends the scope's handles.
#[test]
fn a_panic_ends_a_scope_like_a_return() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    for _ in 0..3 {
        let panic = catch_unwind(AssertUnwindSafe(|| {
            mutator.scope(|s| {
                let _all = (0..3000).map(|i| s.alloc(node(i))).collect::<Vec<_>>();
                if _all.len() == 3000 {
                    panic!("on purpose");
                }
                Ok(())
            })
        }));
        assert_eq!(message(panic.unwrap_err()), "on purpose");
    }
    wipe_stack();
    mutator.collect();
    assert!(heap.stats().last.cells_live < 100);
}

/// A root keeps its cell and its heap, and any thread may read it.
#[test]
fn a_root_keeps_its_cell_and_its_heap_and_is_read_from_anywhere() {
    let root: Root<Node> = {
        let heap = heap();
        let mutator = heap.attach().unwrap();
        let root = mutator
            .scope(|s| {
                let head = list(s, 100);
                Ok(heap.root(&head))
            })
            .unwrap();
        churn(&mutator);
        root
    };
    // Only the root leads to the heap from here on.
    let twin = root.clone();
    drop(root);
    std::thread::spawn(move || {
        assert_eq!(twin.value, 99);
        let mutator = twin.heap().attach().unwrap();
        churn(&mutator);
        mutator.with_scope(|s| assert_eq!(length(&mutator, &twin.get(s)), 100));
        drop(twin);
        wipe_stack();
        mutator.collect();
        assert!(mutator.heap().stats().last.cells_live < 110);
    })
    .join()
    .unwrap();
}

/// A mutator keeps its heap alive after the heap's own handle was dropped.
#[test]
fn a_mutator_keeps_its_heap_alive() {
    let mutator = heap().attach().unwrap();
    mutator.with_scope(|s| {
        let head = list(s, 1000);
        churn(&mutator);
        assert_eq!(length(&mutator, &head), 1000);
    });
}

/// The end of a thread detaches a mutator that was leaked.
#[test]
fn a_leaked_mutator_detaches_at_its_thread_s_end() {
    let heap = heap();
    let root = std::thread::scope(|threads| {
        let leak = || {
            let mutator = heap.attach().unwrap();
            let root = mutator.scope(|s| Ok(heap.root(&list(s, 50)))).unwrap();
            std::mem::forget(mutator);
            assert!(heap.attach().is_err(), "still attached");
            root
        };
        threads.spawn(leak).join().unwrap()
    });
    let first = heap.collect();
    assert!(heap.collect() > first);
    assert_eq!(heap.stats().last.mutators, 0);
    let mutator = heap.attach().unwrap();
    churn(&mutator);
    mutator.with_scope(|s| assert_eq!(length(&mutator, &root.get(s)), 50));
}

/// A mutator in a thread-local variable is detached at the thread's end.
#[test]
fn a_mutator_in_a_thread_local_detaches_with_its_thread() {
    thread_local!(static MINE: std::cell::RefCell<Option<Mutator>> = const { std::cell::RefCell::new(None) });
    let heap = heap();
    for _ in 0..3 {
        let heap = heap.clone();
        std::thread::spawn(move || {
            MINE.set(Some(heap.attach().unwrap()));
            MINE.with_borrow(|m| {
                m.as_ref()
                    .unwrap()
                    .with_scope(|s| assert_eq!(length(s.mutator(), &list(s, 9)), 9));
            });
        })
        .join()
        .unwrap();
    }
    heap.collect();
    assert_eq!(heap.stats().last.mutators, 0);
}

/// Inside `blocking`, each function that uses the heap panics, also through a mutator in a
/// thread-local variable. Reading a value is allowed.
#[test]
fn the_heap_cannot_be_used_inside_blocking_by_whatever_way() {
    thread_local!(static MINE: std::cell::RefCell<Option<Mutator>> = const { std::cell::RefCell::new(None) });
    let heap = heap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let a = s.alloc(node(1)).unwrap();
        let root = heap.root(&a);
        let weak = s.alloc_weak(&a).unwrap();
        mutator.blocking(|| {
            assert_eq!((a.value, root.value), (1, 1), "reading is harmless");
            for text in [
                refusal(|| s.alloc(node(2)).is_ok()),
                refusal(|| a.next.set(s, &a)),
                refusal(|| root.get(s).value),
                refusal(|| weak.upgrade(s).is_some()),
                refusal(|| s.alloc_array::<Node>(2).is_ok()),
                refusal(|| mutator.with_scope(|_| ())),
                refusal(|| mutator.drop_dead_values()),
            ] {
                assert!(text.contains("inside blocking"), "{text}");
            }
        });
        assert!(a.next.get(s).is_none());
    });
    drop(mutator);
    MINE.set(Some(heap.attach().unwrap()));
    let smuggled = catch_unwind(|| {
        MINE.with_borrow(|m| {
            m.as_ref()
                .unwrap()
                .blocking(|| MINE.with_borrow(|m| m.as_ref().unwrap().with_scope(|_| ())));
        });
    });
    assert!(message(smuggled.unwrap_err()).contains("inside blocking"));
    MINE.set(None);
}

#[derive(Trace, Default)]
struct Table {
    slots: Field<Array<Node>>,
}

/// A table grows by one store of a larger array while another thread reads it and a third one
/// collects.
#[test]
fn a_table_grows_by_one_store_while_others_read_it() {
    let heap = heap();
    let table = {
        let mutator = heap.attach().unwrap();
        mutator
            .scope(|s| {
                let table = s.alloc(Table::default())?;
                table.slots.set(s, &s.alloc_array(1)?);
                Ok(heap.root(&table))
            })
            .unwrap()
    };
    let done = AtomicU64::new(0);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mutator = heap.attach().unwrap();
            for i in 0..2000u64 {
                mutator
                    .scope(|s| {
                        let mut slots = table.slots.get(s).unwrap();
                        if i as usize == slots.len() {
                            slots = slots.grown(slots.len() * 2, s)?;
                            table.slots.set(s, &slots);
                        }
                        slots.set(i as usize, s, &list(s, i % 7 + 1));
                        Ok(())
                    })
                    .unwrap();
            }
            done.store(1, Relaxed);
        });
        threads.spawn(|| {
            let mutator = heap.attach().unwrap();
            while done.load(Relaxed) == 0 {
                mutator.with_scope(|s| {
                    let slots = table.slots.get(s).unwrap();
                    for (i, slot) in (0..).zip(slots.fields()) {
                        if let Some(head) = slot.get(s) {
                            assert_eq!(length(&mutator, &head), i % 7 + 1);
                        }
                    }
                });
            }
        });
        threads.spawn(|| {
            while done.load(Relaxed) == 0 {
                heap.collect();
            }
        });
    });
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let slots = table.slots.get(s).unwrap();
        assert_eq!(slots.len(), 2048);
        assert_eq!(slots.fields().iter().filter(|f| !f.is_null()).count(), 2000);
        let past = catch_unwind(AssertUnwindSafe(|| slots.get(2048, s).is_none()));
        assert!(past.is_err());
    });
}

/// A weak reference gives its target while that lives, and nothing after it died.
#[test]
fn a_weak_reference_is_null_once_its_target_died_and_not_before() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let (kept, weak_kept, weak_lost) = apart(&heap, |s| {
        let (kept, lost) = (s.alloc(node(1))?, s.alloc(node(2))?);
        Ok((
            heap.root(&kept),
            heap.root(&s.alloc_weak(&kept)?),
            heap.root(&s.alloc_weak(&lost)?),
        ))
    });
    churn(&mutator);
    mutator.with_scope(|s| {
        assert_eq!(weak_kept.upgrade(s).unwrap().value, 1);
        assert!(weak_kept.upgrade(s).unwrap().same(kept.get(s)));
        assert!(weak_lost.upgrade(s).is_none());
    });
    let _: &Root<Weak<Node>> = &weak_lost;
}

/// The fields of a new array are null although its cell was used before. With `no-clear` planted,
/// they hold old edges.
#[test]
fn h23_a_new_array_is_null_though_its_cell_was_used_before() {
    common::hazard(
        "h23_a_new_array_is_null_though_its_cell_was_used_before",
        "no-clear",
        || {
            let heap = heap();
            let mutator = heap.attach().unwrap();
            for _ in 0..5 {
                mutator
                    .scope(|s| {
                        let node = s.alloc(node(1))?;
                        for len in 0..3000 {
                            let array = s.alloc_array::<Node>(len % 40)?;
                            for field in array.fields() {
                                assert!(field.get(s).is_none(), "an edge before the first store");
                                field.set(s, &node);
                            }
                        }
                        Ok(())
                    })
                    .unwrap();
                mutator.collect();
            }
        },
    );
}

#[derive(Trace, Default)]
struct Tree {
    left: Field<Tree>,
    right: Field<Tree>,
    depth: u64,
}

fn tree<'s>(s: &gc_core::Scope<'s>, depth: u64) -> Result<Local<'s, Tree>, gc_core::AllocError> {
    if depth == 0 {
        return s.alloc(Tree::default());
    }
    s.mutator().scope(|inner| {
        let (left, right) = (tree(inner, depth - 1)?, tree(inner, depth - 1)?);
        let new = s.alloc(Tree {
            depth,
            ..Tree::default()
        })?;
        new.left.set(inner, &left);
        new.right.set(inner, &right);
        Ok(new)
    })
}

fn count(s: &gc_core::Scope<'_>, at: Local<'_, Tree>) -> u64 {
    s.mutator().with_scope(|inner| {
        let below = [&at.left, &at.right]
            .into_iter()
            .filter_map(|field| field.get(inner))
            .map(|child| {
                assert_eq!(child.depth + 1, at.depth);
                count(inner, child)
            })
            .sum::<u64>();
        below + 1
    })
}

/// Trees are whole although other threads collect at any instruction of their construction.
#[test]
fn trees_stay_whole_whatever_instruction_of_their_making_a_collection_meets() {
    let heap = heap();
    let (done, made) = (AtomicU64::new(0), AtomicU64::new(0));
    let make = || {
        let mutator = heap.attach().unwrap();
        while done.load(Relaxed) == 0 {
            mutator
                .scope(|s| {
                    assert_eq!(count(s, tree(s, 12)?), (1 << 13) - 1);
                    made.fetch_add(1, Relaxed);
                    Ok(())
                })
                .unwrap();
        }
    };
    std::thread::scope(|threads| {
        let makers = [(); 3].map(|()| threads.spawn(make));
        while (made.load(Relaxed) < 100 || heap.stats().collections < 100)
            && !makers.iter().any(|m| m.is_finished())
        {
            heap.collect();
        }
        done.store(1, Relaxed);
    });
}

/// Cells that are allocated from a run after a collection live, although the run was taken before
/// it: stops mark the tails of runs. With `white-tails` planted, the cells are freed.
#[test]
fn h23_locals_from_a_run_that_was_begun_before_a_collection_live() {
    common::hazard(
        "h23_locals_from_a_run_that_was_begun_before_a_collection_live",
        "white-tails",
        || {
            let heap = heap();
            let mutator = heap.attach().unwrap();
            mutator
                .scope(|s| {
                    let mut kept = Vec::new();
                    for value in 0..2000 {
                        kept.push(s.alloc(node(value))?);
                        if value % 100 == 50 {
                            mutator.collect();
                        }
                    }
                    wipe_stack();
                    // Twice: the first time other runs are used up, the second time the free cells
                    // of this run's span are found.
                    churn(&mutator);
                    churn(&mutator);
                    assert!((0..).zip(&kept).all(|(i, n)| n.value == i));
                    Ok(())
                })
                .unwrap();
        },
    );
}

#[derive(Leaf, Debug, PartialEq, Clone)]
enum Token {
    Number(f64),
    Name(String),
    Pair(Box<Token>, Vec<Token>),
}

#[derive(Trace)]
struct Generic<A: Trace, const N: usize> {
    edges: [Field<Generic<A, N>>; N],
    inner: Inner<A>,
    token: Option<Token>,
}

#[derive(Trace, Default)]
struct Inner<A> {
    first: u8,
    value: A,
    edge: Field<Node>,
}

#[derive(Trace)]
struct Tuple(Field<Node>, u32, Field<Node>);

#[derive(Trace)]
struct Unit;

/// Edges in nested, generic and tuple structs are found by the derived `Trace`.
#[test]
fn derived_edges_keep_what_they_lead_to_in_nested_generic_and_tuple_structs() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let generic = || Generic::<u64, 3> {
        edges: Default::default(),
        inner: Inner::default(),
        token: Some(Token::Pair(
            Box::new(Token::Name("x".into())),
            vec![Token::Number(1.0)],
        )),
    };
    let (g, t) = mutator
        .scope(|s| {
            let g = s.alloc(generic())?;
            for (i, edge) in g.edges.iter().enumerate() {
                let other = s.alloc(generic())?;
                other.inner.edge.set(s, &list(s, i as u64 + 2));
                edge.set(s, &other);
            }
            g.inner.edge.set(s, &list(s, 20));
            let t = s.alloc(Tuple(Field::null(), 5, Field::null()))?;
            t.0.set(s, &list(s, 30));
            t.2.set(s, &list(s, 31));
            s.alloc(Unit)?;
            Ok((heap.root(&g), heap.root(&t)))
        })
        .unwrap();
    wipe_stack();
    churn(&mutator);
    mutator.with_scope(|s| {
        for (i, edge) in g.edges.iter().enumerate() {
            let other = edge.get(s).unwrap();
            assert_eq!(other.token, generic().token);
            assert_eq!(
                length(&mutator, &other.inner.edge.get(s).unwrap()),
                i as u64 + 2
            );
        }
        assert_eq!(length(&mutator, &g.inner.edge.get(s).unwrap()), 20);
        assert_eq!(length(&mutator, &t.0.get(s).unwrap()), 30);
        assert_eq!(length(&mutator, &t.2.get(s).unwrap()), 31);
        assert_eq!((g.inner.first, g.inner.value, t.1), (0, 0, 5));
    });
}

#[derive(Trace)]
struct Big {
    head: Field<Node>,
    _middle: [u64; 6000],
    tail: Field<Node>,
}

/// Edges at both ends of a large object are found.
#[test]
fn a_type_larger_than_a_span_s_cells_keeps_its_edges() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let big = mutator
        .scope(|s| {
            let big = s.alloc(Big {
                head: Field::null(),
                _middle: [7; 6000],
                tail: Field::null(),
            })?;
            big.head.set(s, &list(s, 3));
            big.tail.set(s, &list(s, 4));
            Ok(heap.root(&big))
        })
        .unwrap();
    wipe_stack();
    churn(&mutator);
    mutator.with_scope(|s| {
        assert_eq!(length(&mutator, &big.head.get(s).unwrap()), 3);
        assert_eq!(length(&mutator, &big.tail.get(s).unwrap()), 4);
    });
}

/// Byte cells of all sizes keep their content, which was copied at allocation.
#[test]
fn bytes_are_copied_and_do_not_change() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let all: Vec<Root<Bytes>> = mutator
        .scope(|s| {
            (0..1000usize)
                .map(|n| Ok(heap.root(&s.alloc_bytes(&vec![n as u8; n * 50])?)))
                .collect()
        })
        .unwrap();
    churn(&mutator);
    for (n, bytes) in all.iter().enumerate() {
        assert_eq!(bytes.len(), n * 50);
        assert!(bytes.iter().all(|b| *b == n as u8));
    }
}

/// An object of two fields takes 16 bytes: cells have no header.
#[test]
fn a_two_word_object_takes_16_bytes() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    #[derive(Trace, Default)]
    struct Pair(Field<Pair>, Field<Pair>);
    // SAFETY: both cells stay on the stack.
    let (a, b) = unsafe {
        let a = mutator.alloc_gc(Pair::default()).unwrap();
        (a, mutator.alloc_gc(Pair::default()).unwrap())
    };
    assert_eq!(b.cell().as_ptr() as usize - a.cell().as_ptr() as usize, 16);
    // SAFETY: both cells are alive.
    unsafe { a.0.set_gc(&mutator, Some(b)) };
    gc_core::keep_alive(a);
    // SAFETY: `a` is alive.
    assert!(unsafe { a.0.get_gc() }.unwrap().same(b));
}

/// Threads push onto one stack by exchanges: each node is there once.
#[test]
fn threads_that_exchange_a_field_lose_no_node() {
    let heap = &heap();
    let stack = &heap
        .attach()
        .unwrap()
        .with_scope(|s| heap.root(&s.alloc(node(0)).unwrap()));
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(move || {
                let mutator = heap.attach().unwrap();
                for value in 1..=500 {
                    mutator.with_scope(|s| {
                        let new = s.alloc(node(value)).unwrap();
                        let mut top = stack.next.get(s);
                        loop {
                            match top {
                                Some(top) => new.next.set(s, &top),
                                None => new.next.clear(s),
                            }
                            match stack.next.compare_exchange(s, top, Some(new)) {
                                Ok(()) => break,
                                Err(now) => top = now,
                            }
                        }
                    });
                }
            });
        }
    });
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let mut at = s.slot();
        at.set(&stack.get(s));
        let mut sum = 0;
        while at.follow(|node| &node.next) {
            sum += at.get().unwrap().value;
        }
        assert_eq!(sum, 500 * 501);
        assert!(at.get().is_none());
        // Another target is there: it is returned, and nothing changes.
        let top = stack.next.get(s).unwrap();
        let found = stack.next.compare_exchange(s, None, None);
        assert!(found.unwrap_err().unwrap().same(top));
        assert!(stack.next.get(s).unwrap().same(top));
    });
}

/// Inner scopes' handles end with them, except for the one that escapes; slots refuse what is not
/// theirs.
#[test]
fn slots_and_escaped_handles_keep_their_cells() {
    let heap = Heap::builder().exact(true).build().unwrap();
    let other = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    let elsewhere = other.attach().unwrap();
    mutator.with_scope(|s| {
        let mut slot = s.slot::<Node>();
        assert!(slot.get().is_none() && !slot.follow(|node| &node.next));
        let weak = s.with_scope(|inner| {
            let node = inner.alloc(node(7)).unwrap();
            slot.set(&node);
            s.alloc_weak(&node).unwrap()
        });
        let escaped = s.escape(|inner| {
            inner.alloc(node(1))?;
            inner.alloc(node(8))
        });
        mutator.collect();
        assert_eq!(slot.get().unwrap().value, 7);
        assert_eq!(escaped.unwrap().value, 8);
        slot.clear();
        mutator.collect();
        assert!(s.with_scope(|inner| weak.upgrade(inner).is_none()));
        let foreign = refusal(|| {
            elsewhere.with_scope(|t| slot.set(&t.alloc(node(1)).unwrap()));
        });
        assert!(
            foreign.contains("does not lie in the slot's heap"),
            "{foreign}"
        );
        assert!(slot.get().is_none());
        let blocked = refusal(|| mutator.blocking(|| slot.clear()));
        assert!(blocked.contains("blocking"), "{blocked}");
    });
}
