//! Weak words and finalizers. A word whose target died is cleared, a dead cell with a finalizer is
//! queued, each once, and no other word or cell changes.

mod common;

use common::{Kinds, cell, check_list, cons, garbage, hazard, heap, heap_with, list, wipe_stack};
use gc_core::raw::{Encoding, Kind};
use gc_core::{Heap, Mutator, Stress};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A weak cell of `n` words, each of which leads to a list of three nodes, and an array that keeps
/// each fourth list. Returns both.
#[inline(never)]
fn table(m: &Mutator, k: Kinds, n: usize) -> (usize, usize) {
    // SAFETY: both cells stay on the stack, and have `n` words.
    unsafe {
        let weak = m.alloc_raw(k.weak, n * 8).unwrap().as_ptr().cast::<usize>();
        let strong = m
            .alloc_raw(k.array, n * 8)
            .unwrap()
            .as_ptr()
            .cast::<usize>();
        for i in 0..n {
            let head = list(m, k, 3);
            m.write(weak.add(i), head);
            if i % 4 == 0 {
                m.write(strong.add(i), head);
            }
        }
        (weak as usize, strong as usize)
    }
}

fn words(at: usize, n: usize) -> Vec<usize> {
    // SAFETY: the caller's cell is alive and has `n` words.
    (0..n)
        .map(|i| unsafe { (at as *const usize).add(i).read() })
        .collect()
}

/// After a collection the words to dead lists are 0, and the words to kept lists are unchanged.
/// With `keep-weak` planted, dead targets keep their words.
#[test]
fn weak_words_are_cleared_when_their_target_dies() {
    hazard(
        "weak_words_are_cleared_when_their_target_dies",
        "keep-weak",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            let n = 1000;
            let (weak, strong) = table(&m, k, n);
            wipe_stack();
            m.collect();
            let cleared = words(weak, n).iter().filter(|w| **w == 0).count();
            assert_eq!(cleared as u64, heap.stats().last.weak_cleared);
            // Stale words on the stack may keep a few lists.
            assert!((n * 3 / 4 - 5..=n * 3 / 4).contains(&cleared), "{cleared}");
            for i in (0..n).step_by(4) {
                // SAFETY: a word of a live weak cell.
                let target = unsafe { m.load_weak((weak as *const usize).add(i)) };
                assert_eq!(target, words(strong, n)[i]);
                check_list(target, 3);
            }
        },
    );
}

/// Clearing a weak word changes only words that name a dead cell in the kind's encoding: header
/// words, hashes and addresses outside the heap stay.
#[test]
fn weak_words_keep_tags_hashes_and_strangers() {
    let (heap, k) = heap();
    let boxed = Encoding::nan_box(0xffff << 48, 0xfffc << 48, (1 << 48) - 1);
    const CLEARED: usize = 0x7ff8_0000_0000_0001;
    // Pairs of a hash and a boxed reference, after a header of two words.
    let kind = heap
        .kind(Kind::weak("interned", 2, boxed, CLEARED))
        .unwrap();
    let m = heap.attach().unwrap();
    let kept = list(&m, k, 3);
    let outside = Box::new(0u64);
    let foreign = 0xfffc << 48 | &raw const *outside as usize;
    // SAFETY: the cell stays on the stack and has eight words.
    let weak = unsafe { m.alloc_raw(kind, 64).unwrap().as_ptr().cast::<usize>() };
    let dying = |m: &Mutator| list(m, k, 3);
    let content = [
        dying(&m),
        3,
        77,
        0xfffc << 48 | kept,
        78,
        0xfffc << 48 | dying(&m),
        79,
        foreign,
    ];
    for (i, word) in content.into_iter().enumerate() {
        // SAFETY: a word of the cell.
        unsafe { m.write(weak.add(i), word) };
    }
    let header = content[0];
    std::hint::black_box(content);
    wipe_stack();
    for _ in 0..3 {
        m.collect();
        garbage(&m, k, 10);
    }
    let now = words(weak as usize, 8);
    assert_eq!(
        (now[0], now[1], now[2], now[4], now[6]),
        (header, 3, 77, 78, 79)
    );
    assert_eq!(now[3], 0xfffc << 48 | kept);
    assert_eq!(now[7], foreign);
    check_list(kept, 3);
}

/// A weak table that is copied into a larger one at each doubling, with collections in between,
/// keeps words to live cells only.
#[test]
fn a_weak_table_is_replaced_as_it_grows() {
    let (heap, k) = heap();
    let m = heap.attach().unwrap();
    // SAFETY: the tables stay on this stack, and all accesses are within their length.
    unsafe {
        let mut n = 8;
        let mut weak = m.alloc_raw(k.weak, n * 8).unwrap().as_ptr().cast::<usize>();
        let mut filled = 0;
        let mut keep = 0;
        for round in 0..3000 {
            if filled == n {
                let next = m
                    .alloc_raw(k.weak, n * 16)
                    .unwrap()
                    .as_ptr()
                    .cast::<usize>();
                m.copy_weak(next, weak, n);
                (weak, n) = (next, n * 2);
            }
            let new = cons(&m, k, 0, round);
            if round % 10 == 0 {
                keep = cons(&m, k, keep, new); // `new` is in the number's place, which is no edge
            }
            m.write(weak.add(filled), new);
            filled += 1;
            if round % 500 == 499 {
                m.collect();
            }
        }
        let alive = words(weak as usize, filled)
            .iter()
            .filter(|w| **w != 0)
            .count();
        assert!(alive <= 510, "{alive}");
    }
    assert_eq!(heap.stats().finalizers_waiting, 0);
}

/// An intern table relies on this. A string that was found must stay the only one with its content,
/// so none of the words to it may be cleared. Once one word to it has been cleared, the string is
/// made again, so no word may give the old one. Without the second check in the stop, of words that
/// were chosen for clearing beside the mutators, a word is cleared whose target lives.
#[test]
fn words_to_one_target_stay_or_go_together_whenever_they_are_loaded() {
    hazard(
        "words_to_one_target_stay_or_go_together_whenever_they_are_loaded",
        "no-recheck",
        one_target,
    );
}

/// A weak load gives a dead target through no word once one of its words has been cleared. With
/// `judged-open` planted, loads during the clearing give dead cells.
#[test]
fn h77_words_to_one_target_go_together_for_those_who_load_them_while_they_are_cleared() {
    hazard(
        "h77_words_to_one_target_go_together_for_those_who_load_them_while_they_are_cleared",
        "judged-open",
        one_target,
    );
}

fn one_target() {
    let (heap, k) = common::continuous();
    let m = heap.attach().unwrap();
    const N: usize = 256;
    // SAFETY: the cells stay on this stack and have `N` words.
    let [one, two, held] = [k.weak, k.weak, k.array]
        .map(|kind| unsafe { m.alloc_raw(kind, N * 8).unwrap().as_ptr().cast::<usize>() });
    #[inline(never)]
    fn fill(m: &Mutator, k: Kinds, one: *mut usize, two: *mut usize, held: *mut usize) {
        for at in 0..N {
            let cell = cons(m, k, 0, at);
            // SAFETY: words of live cells.
            unsafe {
                m.write(one.add(at), cell);
                m.write(two.add(N - 1 - at), cell);
                m.write(held.add(at), 0);
            }
        }
    }
    let (mut found, mut gone) = (0, 0);
    while heap.stats().collections < 200 || found == 0 || gone == 0 {
        fill(&m, k, one, two, held);
        wipe_stack();
        for at in 0..N {
            if at % 16 == 0 {
                // The loads go on through the cycle in which the targets die.
                m.blocking(|| std::thread::sleep(std::time::Duration::from_micros(50)));
            }
            // SAFETY: words of live cells.
            unsafe {
                let first = m.load_weak(one.add(at));
                let second = m.load_weak(two.add(N - 1 - at));
                if first == 0 {
                    gone += 1;
                    assert_eq!(second, 0, "one word was cleared and the other one was not");
                } else {
                    // The first word may have been cleared while the second was still there, but
                    // not the other way round.
                    assert_eq!(second, first, "a word was cleared whose target lives");
                    m.write(held.add(at), first);
                    found += 1;
                }
            }
        }
        let now = heap.stats().collections;
        while heap.stats().collections < now + 2 {
            garbage(&m, k, 5);
        }
        for at in 0..N {
            // SAFETY: a word of a live cell, and a cell that `held` keeps.
            unsafe {
                let cell = held.add(at).read();
                if cell != 0 {
                    assert_eq!(one.add(at).read(), cell, "cleared, but it lives");
                    assert_eq!(two.add(N - 1 - at).read(), cell);
                    assert_eq!((cell as *const usize).add(1).read(), at);
                }
            }
        }
    }
}

/// Makes `n` nodes with a finalizer. Each odd one leads to the node before it.
#[inline(never)]
fn finalizable(m: &Mutator, k: Kinds, n: usize) {
    let mut before = 0;
    for i in 0..n {
        let cell_ = cons(m, k, if i % 2 == 1 { before } else { 0 }, i);
        before = cell_;
        // SAFETY: a live cell.
        assert!(unsafe { m.register_finalizer(cell(cell_), i).is_ok() });
    }
}

/// A dead cell is handed out once, in the order of registration, with all cells that it leads to.
/// Without resurrection its successors are freed.
#[test]
fn finalizers_get_their_cell_whole_once_and_in_order() {
    hazard(
        "finalizers_get_their_cell_whole_once_and_in_order",
        "no-resurrection",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            let n = 1000;
            finalizable(&m, k, n);
            wipe_stack();
            m.collect();
            let dead = heap.finalizers_waiting();
            assert!(dead >= n as u64 - 4, "{dead}");
            // The dead cells wait in the queue until a mutator drains it.
            for _ in 0..3 {
                garbage(&m, k, 2000);
                m.collect();
            }
            let mut seen = Vec::new();
            m.drain_finalizers(|cell, token| {
                // SAFETY: a live node.
                let (next, number) = unsafe { cell.cast::<(usize, usize)>().read() };
                assert_eq!(number, token);
                if token % 2 == 1 {
                    // SAFETY: the successor of a cell that was handed out is alive.
                    assert_eq!(unsafe { (next as *const usize).add(1).read() }, token - 1);
                }
                seen.push(token);
            });
            assert!(seen.is_sorted(), "the order of registration");
            seen.dedup();
            assert_eq!(seen.len() as u64, dead);
            wipe_stack();
            m.collect();
            m.collect();
            assert!(heap.stats().last.cells_live <= 8, "{:?}", heap.stats().last);
            assert!(heap.finalizers_waiting() <= 4);
        },
    );
}

/// The cells behind a dead cell with a finalizer are marked beside the mutators where they are
/// many: 300,000 here. The cycle then has at least three stops. There is no other cycle: one that
/// allocation made due could find the cell dead before.
#[test]
fn what_a_dead_cell_leads_to_is_marked_beside_the_mutators_if_it_is_much() {
    let (heap, k) = heap_with(|builder| builder.gc_percent(u32::MAX));
    let m = heap.attach().unwrap();
    const N: usize = 300_000;
    // Enough live cells that the cycle is not a single stop.
    let ballast = list(&m, k, 20_000);
    m.collect();
    #[inline(never)]
    fn register(m: &Mutator, k: Kinds) {
        // SAFETY: a live cell.
        assert!(unsafe { m.register_finalizer(cell(list(m, k, N)), 7).is_ok() });
    }
    register(&m, k);
    wipe_stack();
    m.collect();
    let last = heap.stats().last;
    assert_eq!(heap.finalizers_waiting(), 1);
    // The first stop scans roots. The second finds the cell dead, and mutators run again. The third
    // ends the cycle.
    if std::env::var_os("URGE_STW").is_none() {
        assert!(last.stops >= 3, "{last:?}");
    }
    let (dead, token) = m.next_finalizer().unwrap();
    assert_eq!(token, 7);
    check_list(dead.as_ptr() as usize, N);
    check_list(ballast, 20_000);
}

/// A finalizer that is handed out may be followed by allocation, collections and a new registration
/// of the same cell. If the queue's lock is held meanwhile, the test hangs.
#[test]
fn a_finalizer_may_collect_allocate_and_register_again() {
    hazard(
        "a_finalizer_may_collect_allocate_and_register_again",
        "drain-locked",
        || {
            let (heap, k) = heap();
            let m = heap.attach().unwrap();
            finalizable(&m, k, 50);
            wipe_stack();
            m.collect();
            let mut again = 0;
            let n = m.drain_finalizers(|dead, token| {
                garbage(&m, k, 100);
                m.collect();
                if token < 1000 {
                    again += 1;
                    // SAFETY: the cell is alive: the queue has just handed it out.
                    assert!(unsafe { m.register_finalizer(dead, token + 1000).is_ok() });
                }
            });
            assert!(n > again && again >= 46, "{n} {again}");
        },
    );
}

/// Two threads register and two drain, with collections that the drainers ask for.
#[test]
fn threads_share_the_queue() {
    let (heap, k) = heap();
    share_the_queue(&heap, k);
}

/// Two threads register and two drain while one cycle follows another.
#[test]
fn threads_share_the_queue_while_cycles_follow_each_other() {
    let (heap, k) = common::continuous();
    share_the_queue(&heap, k);
}

/// Two threads register finalizers, and two drain the queue. Each registered cell is handed out
/// once, with its own token.
fn share_the_queue(heap: &Heap, k: Kinds) {
    let done = AtomicBool::new(false);
    let (made, got) = std::thread::scope(|s| {
        let makers: Vec<_> = (0..2)
            .map(|_| {
                s.spawn(|| {
                    let m = heap.attach().unwrap();
                    (0..50).for_each(|_| {
                        finalizable(&m, k, 40);
                        garbage(&m, k, 200);
                    });
                    2000
                })
            })
            .collect();
        let takers: Vec<_> = (0..2)
            .map(|_| {
                s.spawn(|| {
                    let m = heap.attach().unwrap();
                    let mut n = 0;
                    while !done.load(Relaxed) {
                        n += m.drain_finalizers(|cell, token| {
                            // SAFETY: a live node.
                            assert_eq!(unsafe { cell.cast::<(usize, usize)>().read().1 }, token);
                        });
                        m.collect();
                    }
                    n
                })
            })
            .collect();
        let made: u64 = makers.into_iter().map(|t| t.join().unwrap()).sum();
        done.store(true, Relaxed);
        (
            made,
            takers.into_iter().map(|t| t.join().unwrap()).sum::<u64>(),
        )
    });
    heap.collect();
    let m = heap.attach().unwrap();
    assert_eq!(got + m.drain_finalizers(|_, _| ()), made);
    drop(m);
    heap.collect();
    heap.collect();
    assert_eq!(heap.stats().last.cells_live, 0);
}

/// Makes `n` objects, every other one with a finalizer. Only weak words lead to them: the object
/// `i` has the short word `i` and the long word `i`.
#[inline(never)]
fn watched(m: &Mutator, k: Kinds, n: usize, short: *mut usize, long: *mut usize) {
    for i in 0..n {
        let object = cons(m, k, cons(m, k, 0, i), i);
        // SAFETY: words of live weak cells, and a live cell.
        unsafe {
            m.write(short.add(i), object);
            m.write(long.add(i), object);
            assert!(i % 2 == 1 || m.register_finalizer(cell(object), i).is_ok());
        }
    }
}

/// Checks that short words are cleared when their cell is queued for its finalizer, and long ones
/// when the cell is freed.
fn short_and_long(heap: &Heap, n: usize) {
    let k = common::kinds(heap);
    let tracker = Kind::weak("tracker", 0, Encoding::RAW, 0).long();
    let long = heap.kind(tracker).unwrap();
    let m = heap.attach().unwrap();
    // SAFETY: the cells stay on this stack and have `n` words.
    let [short, long] = [k.weak, long]
        .map(|kind| unsafe { m.alloc_raw(kind, n * 8).unwrap().as_ptr().cast::<usize>() });
    for round in 0..6 {
        watched(&m, k, n, short, long);
        wipe_stack();
        let mut looks = 0;
        while heap.finalizers_waiting() < (n / 2 - 4) as u64 {
            // This runs beside a cycle that clears. A long word may still give an object that the
            // short word no longer gives, and that object is whole.
            for at in (looks % 7..n).step_by(97) {
                // SAFETY: words of live weak cells, and an object that a weak load gave.
                unsafe {
                    let (first, second) = (m.load_weak(short.add(at)), m.load_weak(long.add(at)));
                    let object = if second == 0 { first } else { second };
                    assert!(second == first || first == 0 || second == 0);
                    if object != 0 {
                        let (next, number) = (object as *const (usize, usize)).read();
                        let next = (next as *const (usize, usize)).read();
                        assert_eq!((next, number), ((0, at), at), "a dead object");
                    }
                }
            }
            looks += 1;
            wipe_stack();
            if round % 2 == 0 || looks % 10 == 0 {
                m.collect();
            }
        }
        let mut tracked = 0;
        let drained = m.drain_finalizers(|object, i| {
            // SAFETY: words of live weak cells, and an object that is alive: the queue has just
            // handed it out.
            unsafe {
                assert_eq!(object.cast::<usize>().add(1).read(), i);
                let object = object.as_ptr() as usize;
                // A stale word may have kept an object from an earlier round. Its weak words then
                // name a newer object.
                assert_ne!(
                    m.load_weak(short.add(i)),
                    object,
                    "a short word outlived its object"
                );
                tracked += u64::from(m.load_weak(long.add(i)) == object);
            }
        });
        assert!(tracked + 4 >= drained, "{tracked} of {drained} are tracked");
        assert!(drained > 0);
        wipe_stack();
        m.collect();
        m.collect();
        wipe_stack();
        let left = words(long as usize, n);
        let left = left.iter().filter(|word| **word != 0).count();
        assert!(left <= 4, "{left} long words outlived their objects");
        m.drain_finalizers(|_, _| ());
    }
}

/// A short weak word does not give an object whose finalizer was handed out; a long one does. With
/// `finalizers-first` planted, finalizable cells are queued before weak words are cleared, and
/// short words still give them.
#[test]
fn h80_a_weak_word_gives_no_object_whose_finalizer_has_been_handed_out_and_a_long_one_does() {
    hazard(
        "h80_a_weak_word_gives_no_object_whose_finalizer_has_been_handed_out_and_a_long_one_does",
        "finalizers-first",
        || {
            let heap = Heap::builder().reserve(1 << 30).build().unwrap();
            short_and_long(&heap, 200);
            // With 20,000 objects, weak words are cleared beside the mutators.
            short_and_long(&heap, 20_000);
            let heap = Heap::builder()
                .reserve(1 << 30)
                .stress(Stress::CONTINUOUS)
                .build()
                .unwrap();
            short_and_long(&heap, 200);
        },
    );
}
