//! Ephemerons and weak maps: a value lives exactly as long as its key, for chains of any length and
//! with any number of threads.

mod common;

use common::{garbage, hazard, hazard_given, heap, wipe_stack};
use gc_core::raw::{Encoding, Kind};
use gc_core::{Bytes, Field, Heap, Local, Mutator, Root, Scope, Trace, WeakMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Trace, Default)]
struct Node {
    other: Field<Node>,
    number: u64,
}

type Map = WeakMap<Node, Node>;

fn node<'s>(s: &Scope<'s>, number: u64) -> Local<'s, Node> {
    s.alloc(Node {
        number,
        ..Node::default()
    })
    .unwrap()
}

/// A map of `n` keys, each with a value that leads back to its key, and an array of every third
/// key.
#[inline(never)]
fn filled(m: &Mutator, n: u64) -> (Root<Map>, Root<gc_core::Array<Node>>) {
    m.with_scope(|s| {
        let map = s.alloc(Map::new()).unwrap();
        let kept = s.alloc_array(n as usize).unwrap();
        for number in 0..n {
            m.with_scope(|s| {
                let (key, value) = (node(s, number), node(s, number + 1_000_000));
                value.other.set(s, &key);
                assert!(map.insert(s, &key, &value).unwrap());
                assert!(!map.insert(s, &key, &value).unwrap());
                if number % 3 == 0 {
                    kept.set(number as usize, s, &key);
                }
            });
        }
        assert_eq!(map.len(s) as u64, n);
        (m.heap().root(&map), m.heap().root(&kept))
    })
}

/// A value that leads to its own key does not keep the key. With `strong-pairs` planted, it does.
#[test]
fn a_value_that_leads_to_its_key_does_not_keep_it() {
    hazard(
        "a_value_that_leads_to_its_key_does_not_keep_it",
        "strong-pairs",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            let n = 3000;
            let (map, kept) = filled(&m, n);
            wipe_stack();
            m.collect();
            garbage(&m, k, 1000);
            m.with_scope(|s| {
                let alive = map.len(s) as u64;
                assert!((n / 3..n / 3 + 6).contains(&alive), "{alive}");
                for number in (0..n).step_by(3) {
                    let key = kept[number as usize].get(s).unwrap();
                    let value = map.get(s).get(s, &key).unwrap();
                    assert_eq!(value.number, number + 1_000_000);
                    assert!(value.other.get(s).unwrap().same(key));
                    assert!(map.remove(s, &key) && !map.contains(s, &key));
                }
            });
            wipe_stack();
            m.collect();
            m.with_scope(|s| assert!(map.len(s) < 6));
            drop((map, kept));
            wipe_stack();
            m.collect();
            assert!(heap.stats().last.cells_live < 20);
        },
    );
}

/// `n` maps, in each of which the value is the key of the next map. Returns roots of the first key
/// and of an array of all maps.
#[inline(never)]
fn chain(m: &Mutator, n: u64) -> (Root<Node>, Root<gc_core::Array<Map>>) {
    m.with_scope(|s| {
        let maps = s.alloc_array(n as usize).unwrap();
        let mut first = node(s, n);
        for number in (0..n).rev() {
            first = m.with_scope(|inner| {
                let map = inner.alloc(Map::new()).unwrap();
                // This order is the worst for going over all maps: each round would find one more
                // key.
                maps.set((n - 1 - number) as usize, inner, &map);
                let key = node(inner, number);
                map.insert(inner, &key, &first).unwrap();
                s.hold(&key)
            });
        }
        (m.heap().root(&first), m.heap().root(&maps))
    })
}

/// A chain of maps lives as long as its first key. With `no-wake` planted, a marker that reaches a
/// key does not follow its pairs, and values are lost.
#[test]
fn a_chain_of_maps_lives_as_long_as_its_first_key() {
    hazard(
        "a_chain_of_maps_lives_as_long_as_its_first_key",
        "no-wake",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            let n = 500;
            let (first, maps) = chain(&m, n);
            for _ in 0..3 {
                wipe_stack();
                m.collect();
                garbage(&m, k, 2000);
            }
            m.with_scope(|s| {
                let mut key = first.get(s);
                for number in 0..n {
                    assert_eq!(key.number, number, "a value was lost");
                    let map = maps[(n - 1 - number) as usize].get(s).unwrap();
                    key = map.get(s, &key).expect("a pair was lost");
                }
                assert_eq!(key.number, n);
            });
            drop(first);
            wipe_stack();
            m.collect();
            m.with_scope(|s| {
                let alive: usize = maps.fields().iter().map(|f| f.get(s).unwrap().len(s)).sum();
                // A stale word on the stack may keep a key, and the rest of the chain behind it: no
                // more than the cells that were on the stack last.
                assert!(alive <= 8, "{alive} pairs of a dead chain");
            });
        },
    );
}

/// Key and value of an ephemeron are cleared together, and a value that is set after the key died
/// is not kept.
#[test]
fn an_ephemeron_loses_both_words_at_once() {
    let (heap, _) = heap();
    let m = heap.attach().unwrap();
    let make = |m: &Mutator| {
        m.with_scope(|s| {
            let (key, other) = (node(s, 1), node(s, 2));
            let e = s.alloc_ephemeron(&key, &other).unwrap();
            e.set_value(s, &node(s, 3));
            assert_eq!(e.value(s).unwrap().number, 3);
            e.value(s).unwrap().other.set(s, &key);
            heap.root(&e)
        })
    };
    let many: Vec<_> = (0..100).map(|_| make(&m)).collect();
    wipe_stack();
    m.collect();
    m.with_scope(|s| {
        let alive = many.iter().filter(|e| e.key(s).is_some()).count();
        assert!(alive <= 2, "{alive}");
        for e in &many {
            assert_eq!(e.key(s).is_some(), e.value(s).is_some());
            e.set_value(s, &node(s, 4));
            assert_eq!(e.key(s).is_some(), e.value(s).is_some());
            e.clear(s);
            assert!(e.key(s).is_none() && e.value(s).is_none());
        }
    });
}

/// Pairs of boxed words get the kind's `cleared` value. A key that is not a reference counts as
/// alive.
#[test]
fn boxed_pairs_become_what_their_kind_says() {
    let (heap, k) = heap();
    let boxed = Encoding::nan_box(0xffff << 48, 0xfffc << 48, (1 << 48) - 1);
    const CLEARED: usize = 0x7ff8_0000_0000_0001;
    let kind = heap
        .kind(Kind::ephemeron("boxed", 2, boxed, CLEARED))
        .unwrap();
    let m = heap.attach().unwrap();
    let outside = Box::new(0u64);
    let foreign = 0xfffc << 48 | &raw const *outside as usize;
    #[inline(never)]
    fn fill(m: &Mutator, k: common::Kinds, at: *mut usize, kept: usize, foreign: usize) {
        let cell = || 0xfffc << 48 | common::list(m, k, 3);
        // SAFETY: pairs of a cell of 16 words, which is on the caller's stack.
        unsafe {
            at.write(7);
            m.write_pair(at.add(2), 0xfffc << 48 | kept, cell());
            m.write_pair(at.add(4), cell(), cell());
            m.write_pair(at.add(6), foreign, cell());
            m.write_pair(at.add(8), 1.5f64.to_bits() as usize, cell());
            m.write_pair(at.add(10), cell(), 2.5f64.to_bits() as usize);
            m.write_pair(at.add(12), cell(), cell());
        }
    }
    let kept = common::list(&m, k, 3);
    // SAFETY: the cell stays on the stack.
    let at = unsafe { m.alloc_raw(kind, 128).unwrap().as_ptr().cast::<usize>() };
    fill(&m, k, at, kept, foreign);
    wipe_stack();
    for _ in 0..3 {
        m.collect();
        garbage(&m, k, 100);
    }
    // SAFETY: a live cell of 16 words.
    let words: Vec<usize> = (0..16).map(|i| unsafe { at.add(i).read() }).collect();
    let value = |word: usize| common::check_list(word & ((1 << 48) - 1), 3);
    assert_eq!((words[0], words[2]), (7, 0xfffc << 48 | kept));
    value(words[3]);
    assert_eq!(words[6], foreign);
    value(words[7]);
    assert_eq!(words[8], 1.5f64.to_bits() as usize);
    value(words[9]);
    let gone = [4, 10, 12]
        .iter()
        .filter(|&&i| (words[i], words[i + 1]) == (CLEARED, 0))
        .count();
    assert!(gone >= 2, "{words:x?}");
    common::check_list(kept, 3);
}

/// Makes random changes to a map and its keys. Checks each key's value.
fn work(heap: &Heap, seed: u64, rounds: u64) {
    let m = heap.attach().unwrap();
    let map = m.with_scope(|s| heap.root(&s.alloc(Map::new()).unwrap()));
    let keys = m.with_scope(|s| heap.root(&s.alloc_array::<Node>(256).unwrap()));
    let mut random = seed | 1;
    for _ in 0..rounds {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = (random >> 8) as usize % 256;
        m.with_scope(|s| {
            if let Some(key) = keys[at].get(s) {
                let value = map
                    .get(s)
                    .get(s, &key)
                    .expect("a pair with a living key is gone");
                assert_eq!(value.number, key.number ^ 7, "another key's value");
                assert!(value.other.get(s).unwrap().same(key));
            }
            match random % 4 {
                0 => keys[at].clear(s),
                _ => {
                    let key = node(s, random);
                    let value = node(s, random ^ 7);
                    value.other.set(s, &key);
                    map.insert(s, &key, &value).unwrap();
                    keys.set(at, s, &key);
                }
            }
        });
    }
}

/// Maps of three threads keep the pairs of live keys while a fourth thread collects.
#[test]
fn maps_of_many_threads_keep_what_has_keys() {
    let heap = Heap::builder().reserve(1 << 30).build().unwrap();
    let left = AtomicU64::new(3);
    std::thread::scope(|s| {
        for seed in 1..=3 {
            let (heap, left) = (&heap, &left);
            s.spawn(move || {
                work(heap, seed * 0x9e37_79b9, 10_000);
                left.fetch_sub(1, Relaxed);
            });
        }
        while left.load(Relaxed) != 0 {
            heap.collect();
        }
    });
}

/// Copies a weak table and a table of pairs repeatedly while cycles follow each other. Then checks
/// the words that are left: a target that died without the copy being cleared is now another cell.
/// With `copies-unnoted` planted, copies are not cleared.
#[test]
fn a_copied_table_loses_its_words_with_the_old_one() {
    hazard(
        "a_copied_table_loses_its_words_with_the_old_one",
        "copies-unnoted",
        || {
            let (heap, k) = common::continuous();
            let pairs = heap
                .kind(Kind::ephemeron("pairs", 0, Encoding::RAW, 0))
                .unwrap();
            let m = heap.attach().unwrap();
            const N: usize = 512;
            // A number that no other list has.
            const MAGIC: usize = 0xabcd << 48;
            #[inline(never)]
            fn fill(m: &Mutator, k: common::Kinds, weak: *mut usize, pairs: *mut usize) {
                for at in 0..N {
                    let (a, b) = (common::cons(m, k, 0, MAGIC), common::cons(m, k, 0, MAGIC));
                    // SAFETY: words of live cells.
                    unsafe {
                        m.write(weak.add(at), a);
                        m.write_pair(pairs.add(2 * at), b, a);
                    }
                }
            }
            // Enough cells that marking takes a while and goes on beside this thread.
            let ballast = common::list(&m, k, 100_000);
            for _ in 0..100 {
                // SAFETY: the tables stay on this stack, and accesses are within their length.
                unsafe {
                    let new = |kind, words: usize| m.alloc_raw(kind, words * 8).unwrap().as_ptr();
                    let mut weak = new(k.weak, N).cast::<usize>();
                    let mut table = new(pairs, 2 * N).cast::<usize>();
                    fill(&m, k, weak, table);
                    wipe_stack();
                    // Cells that were made while marking is on die in the next cycle.
                    let begun = heap.stats().collections;
                    while heap.stats().collections < begun + 3 {
                        let next = new(k.weak, N).cast::<usize>();
                        m.copy_weak(next, weak, N);
                        weak = next;
                        let next = new(pairs, 2 * N).cast::<usize>();
                        m.copy_weak(next, table, 2 * N);
                        table = next;
                        garbage(&m, k, 20);
                    }
                    // The loads come last, because a weak load keeps its target.
                    for at in 0..N {
                        for word in [weak.add(at), table.add(2 * at), table.add(2 * at + 1)] {
                            let cell = m.load_weak(word);
                            if cell != 0 {
                                let (next, number) = (cell as *const (usize, usize)).read();
                                assert_eq!((next, number), (0, MAGIC), "a dead target");
                            }
                        }
                    }
                }
            }
            common::check_list(ballast, 100_000);
        },
    );
}

/// A map grows with its live pairs only: pairs of dead keys make room.
#[test]
fn a_map_is_as_large_as_what_lives() {
    let (heap, _) = heap();
    let m = heap.attach().unwrap();
    m.with_scope(|s| {
        let map = s.alloc(WeakMap::<Bytes, Bytes>::new()).unwrap();
        for round in 0..50 {
            m.with_scope(|s| {
                for n in 0..400 {
                    let key = s.alloc_bytes(&[n as u8; 24]).unwrap();
                    map.insert(s, &key, &key).unwrap();
                }
            });
            if round % 5 == 4 {
                m.collect();
            }
        }
        wipe_stack();
        m.collect();
        let mut seen = 0;
        map.for_each(s, |key, value| {
            assert!(key.same(value));
            seen += 1;
        });
        assert!(seen < 10 && map.len(s) == seen, "{seen}");
        map.clear(s);
        assert!(map.is_empty(s));
    });
    assert!(heap.stats().used_bytes < 16 << 20);
}

/// A value that is set while its ephemeron is cleared is removed, or not stored. With
/// `pair-unlocked` planted, a value without a key is kept. `held-value` holds the thread that sets
/// it: before the step, or between the halves of what is not one step.
#[test]
fn h78_a_value_set_while_its_ephemeron_is_cleared_is_removed_or_never_there() {
    hazard_given(
        "h78_a_value_set_while_its_ephemeron_is_cleared_is_removed_or_never_there",
        "held-value",
        "pair-unlocked",
        &[],
        || {
            let (heap, _) = heap();
            let m = heap.attach().unwrap();
            let (note, key, value) = m.with_scope(|s| {
                let (key, value) = (node(s, 1), node(s, 2));
                let note = s.alloc_ephemeron(&key, &value).unwrap();
                (heap.root(&note), heap.root(&key), heap.root(&value))
            });
            std::thread::scope(|threads| {
                let set = || {
                    let m = heap.attach().unwrap();
                    m.with_scope(|s| note.get(s).set_value(s, &value.get(s)));
                };
                let begin = || _ = threads.spawn(set);
                let clear = || m.with_scope(|s| note.get(s).clear(s));
                gc_preempt::faults::while_held(begin, clear);
            });
            m.with_scope(|s| {
                assert!(note.key(s).is_none());
                assert!(note.value(s).is_none(), "a value without a key is kept");
                assert_eq!(key.get(s).number, 1);
            });
        },
    );
}
