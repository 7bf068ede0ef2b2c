//! Hazards of marking beside mutators: what is unlinked, loaded weakly, taken out of a queue,
//! allocated, attached, detached or forked while a cycle marks must outlive it. Each test is run as
//! it is, and again with the cure taken out.
//!
//! Collections of these heaps linger, so that a thread sees that marking is on, does its worst, and
//! keeps what it has taken where no scan looks any more: on its own stack, which stop 1 has behind
//! it.

mod common;

use common::step::{Record, is_marking};
use common::{
    Kinds, bare_exit, cell, cons, garbage, hazard, hazard_given, hazard_with, in_child,
    stress_phases, until, until_its_bare_exit, wipe_stack,
};
use gc_core::raw::RawRoot;
use gc_core::{Bytes, Field, Heap, Mutator, Stress, Trace};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

/// Runs `f` while a cycle marks, then waits until marking is over and has dead cells handed out
/// again.
#[inline(never)]
fn while_marking<R>(m: &Mutator, k: Kinds, f: impl FnOnce() -> R) -> R {
    let heap = m.heap();
    let mut asked = 0;
    until(|| {
        // One that ended before it was looked for is asked for again.
        if heap.stats().collections >= asked {
            asked = heap.request_collection();
        }
        is_marking(m)
    });
    let result = f();
    until(|| !is_marking(m));
    garbage(m, k, 4000);
    result
}

const TAIL: usize = 1 << 40;

/// An array of pairs of nodes, which nothing else leads to.
struct Shelf {
    root: RawRoot,
    len: usize,
}

impl Shelf {
    #[inline(never)]
    fn new(m: &Mutator, k: Kinds, len: usize) -> Self {
        // SAFETY: on the stack; an array of so many words, and pairs on the stack.
        let root = unsafe {
            let array = m.alloc_raw(k.array, len * 8).unwrap();
            for i in 0..len {
                let tail = cons(m, k, 0, TAIL + i);
                m.write(array.cast::<usize>().as_ptr().add(i), cons(m, k, tail, i));
            }
            m.root_raw(array).unwrap()
        };
        wipe_stack();
        Self { root, len }
    }

    fn slot(&self, i: usize) -> *mut usize {
        assert!(i < self.len);
        // SAFETY: a word of the array, which the root keeps.
        unsafe { self.root.get().unwrap().cast::<usize>().as_ptr().add(i) }
    }

    /// Takes a pair out: from now on the caller alone has it.
    fn take(&self, m: &Mutator, i: usize) -> usize {
        // SAFETY: a word of a live cell.
        unsafe {
            let pair = self.slot(i).read_volatile();
            m.write(self.slot(i), 0);
            pair
        }
    }

    fn put(&self, m: &Mutator, i: usize, pair: usize) {
        // SAFETY: a word of a live cell.
        unsafe { m.write(self.slot(i), pair) };
    }

    fn check(&self) {
        for i in 0..self.len {
            // SAFETY: a word of a live cell.
            check_pair(unsafe { self.slot(i).read_volatile() }, i);
        }
    }
}

/// Panics unless `pair` is the one of that number.
#[inline(never)]
fn check_pair(pair: usize, i: usize) {
    // SAFETY: live nodes, or the test fails.
    unsafe {
        let (tail, number) = (pair as *const (usize, usize)).read_volatile();
        assert_eq!(number, i, "the first of a pair was lost");
        let (end, number) = (tail as *const (usize, usize)).read_volatile();
        assert_eq!(
            (end, number),
            (0, TAIL + i),
            "the second of a pair was lost"
        );
    }
}

// ---- the barrier, and the end of marking --------------------------------------------------------

/// Threads that take pairs out of their shelves while a cycle marks, faster or slower, and look at
/// them after it.
fn takers(threads: usize, rounds: usize) {
    const LEN: usize = 3000;
    let (heap, k) = stress_phases();
    std::thread::scope(|s| {
        for thread in 0..threads {
            let heap = &heap;
            s.spawn(move || {
                let m = heap.attach().unwrap();
                let shelf = Shelf::new(&m, k, LEN);
                // On the stack, as another thread may ask for the next cycle.
                let mut taken = [0; LEN];
                for round in 0..rounds {
                    // Few and all, at once and so slowly that marking ends meanwhile.
                    let most = [LEN, 7, 100, LEN / 2, 700][(round + thread) % 5];
                    let pause = [0, 20, 2000, 200][(round / 2 + thread) % 4];
                    let first = round * 31 % LEN;
                    let taken = &mut taken[..most];
                    while_marking(&m, k, || {
                        for (i, pair) in taken.iter_mut().enumerate() {
                            *pair = shelf.take(&m, (first + i) % LEN);
                            (0..pause).for_each(|_| std::hint::spin_loop());
                            if pause > 0 && !is_marking(&m) {
                                break;
                            }
                        }
                    });
                    for (i, pair) in taken.iter_mut().enumerate() {
                        let i = (first + i) % LEN;
                        if *pair != 0 {
                            check_pair(*pair, i);
                            shelf.put(&m, i, std::mem::take(pair));
                        }
                    }
                }
                shelf.check();
            });
        }
    });
}

#[test]
fn h28_logs_that_fill_while_marking_ends_are_taken() {
    hazard(
        "h28_logs_that_fill_while_marking_ends_are_taken",
        "logs-left",
        || takers(3, 40),
    );
}

#[test]
fn h28_what_finds_no_room_in_the_heap_s_log_is_marked_on_the_spot() {
    let name = "h28_what_finds_no_room_in_the_heap_s_log_is_marked_on_the_spot";
    // In 40 rounds of an optimised build, 2 runs of 60 lost nothing that anybody missed.
    hazard_given(name, "small-log", "log-lost", &[], || takers(3, 160));
}

/// A mutator that helps has the last of the work in hand when the collector finds none, and puts it
/// down to be stopped. It is not for the stop to trace that: half of the heap it may be.
#[test]
fn what_a_helper_puts_down_is_marked_beside_the_mutators() {
    let name = "what_a_helper_puts_down_is_marked_beside_the_mutators";
    hazard_given(name, "slow-helpers", "stop-traces-on", &[], || {
        let (heap, k) = common::continuous();
        let m = heap.attach().unwrap();
        let shelf = Shelf::new(&m, k, 20_000);
        let (mut helped, mut seen) = (0, 0);
        while helped < 4 {
            garbage(&m, k, 100);
            let last = heap.stats().last;
            if last.number > seen {
                seen = last.number;
                helped += u32::from(last.assist_cells > 0);
                assert_eq!(last.cells_in_stops, 0, "traced in a stop: {last:?}");
            }
        }
        shelf.check();
    });
}

/// Once marking seems to be over, whoever helps is waited for, and then nobody begins: the stop
/// meets no help.
#[test]
fn a_stop_does_not_wait_for_mutators_that_help() {
    let name = "a_stop_does_not_wait_for_mutators_that_help";
    hazard_given(name, "brisk-helpers", "assists-unheld", &[], || {
        const CYCLES: u32 = 20;
        let (heap, k) = common::continuous();
        let m = heap.attach().unwrap();
        let shelf = Shelf::new(&m, k, 20_000);
        let (mut helped, mut waited, mut seen) = (0, 0, 0);
        while helped < CYCLES {
            garbage(&m, k, 100);
            let last = heap.stats().last;
            if last.number > seen {
                seen = last.number;
                helped += u32::from(last.assist_cells > 0);
                waited += u32::from(last.stops_on_assists > 0);
            }
        }
        shelf.check();
        // One that the system did not let run for long is not waited for.
        assert!(waited <= CYCLES / 4, "{waited} of {seen} cycles");
    });
}

#[test]
fn what_moves_between_large_arrays_is_not_missed_by_a_marker_that_reads_them_in_parts() {
    let name = "what_moves_between_large_arrays_is_not_missed_by_a_marker_that_reads_them_in_parts";
    hazard(name, "stores-unlogged", || {
        let (heap, k) = stress_phases();
        let m = heap.attach().unwrap();
        const LEN: usize = 60_000;
        let (mut from, mut to) = (Shelf::new(&m, k, LEN), Shelf::new(&m, k, LEN));
        for round in 0..12 {
            // Backwards and forwards: from parts that nobody has read to such as are done with.
            while_marking(&m, k, || {
                for i in 0..LEN {
                    let i = if round % 2 == 0 { LEN - 1 - i } else { i };
                    let (mine, theirs) = (from.take(&m, i), to.take(&m, LEN - 1 - i));
                    to.put(&m, LEN - 1 - i, mine);
                    from.put(&m, i, theirs);
                }
            });
            std::mem::swap(&mut from, &mut to);
            for i in 0..LEN {
                // SAFETY: a word of a live cell.
                let pair = unsafe { from.slot(i).read_volatile() };
                check_pair(pair, if round % 2 == 0 { LEN - 1 - i } else { i });
            }
        }
    });
}

// ---- what is new --------------------------------------------------------------------------------

#[test]
fn what_is_allocated_while_a_cycle_marks_outlives_it() {
    let name = "what_is_allocated_while_a_cycle_marks_outlives_it";
    hazard(name, "white-runs", || {
        let (heap, k) = stress_phases();
        let m = heap.attach().unwrap();
        const WORDS: usize = 20_000;
        for round in 0..10 {
            // Cells of all sizes, and large ones whose content is new too. The large one is on the
            // stack, or would be lost in the next cycle.
            let (lists, large) = while_marking(&m, k, || {
                let lists: [usize; 50] =
                    std::array::from_fn(|i| common::list(&m, k, 100 * i + round));
                // SAFETY: an array of so many words, on the stack.
                let large = unsafe {
                    let large = m.alloc_raw(k.array, WORDS * 8).unwrap().cast::<usize>();
                    for i in 0..WORDS {
                        let tail = cons(&m, k, 0, TAIL + i);
                        m.write(large.as_ptr().add(i), cons(&m, k, tail, i));
                    }
                    large
                };
                (lists, large)
            });
            for (i, list) in lists.into_iter().enumerate() {
                common::check_list(list, 100 * i + round);
            }
            // Its memory would be another's by now.
            // SAFETY: dies at once.
            unsafe {
                let next = m.alloc_raw(k.leaf, WORDS * 8).unwrap();
                next.as_ptr().write_bytes(0x55, WORDS * 8);
                for i in 0..WORDS {
                    check_pair(large.as_ptr().add(i).read_volatile(), i);
                }
            }
        }
    });
}

// ---- attach, detach, fork -----------------------------------------------------------------------

/// A thread that comes and goes while a cycle marks, and hands what it has taken to one that was
/// there before.
fn comes_and_goes(ends_by_bare_call: bool) {
    let (heap, k) = stress_phases();
    let m = heap.attach().unwrap();
    const LEN: usize = 500;
    let shelf = Shelf::new(&m, k, LEN);
    for round in 0..30 {
        let mut taken = [0; LEN];
        while_marking(&m, k, || {
            let (taken, shelf, heap) = (&mut taken[..LEN - round], &shelf, &heap);
            let guest = move || {
                let guest = heap.attach().unwrap();
                for (i, pair) in taken.iter_mut().enumerate() {
                    *pair = shelf.take(&guest, i);
                }
                if ends_by_bare_call {
                    guest.blocking(bare_exit);
                }
            };
            m.blocking(|| {
                if ends_by_bare_call {
                    until_its_bare_exit(guest);
                } else {
                    std::thread::scope(|s| drop(s.spawn(guest)));
                }
            });
        });
        for (i, pair) in taken.iter_mut().enumerate() {
            if *pair != 0 {
                check_pair(*pair, i);
                shelf.put(&m, i, std::mem::take(pair));
            }
        }
    }
    shelf.check();
}

#[test]
fn a_thread_that_detaches_while_a_cycle_marks_leaves_its_log() {
    let name = "a_thread_that_detaches_while_a_cycle_marks_leaves_its_log";
    hazard(name, "log-kept-at-detach", || comes_and_goes(false));
}

#[test]
fn h41_a_thread_that_ends_by_the_bare_call_while_a_cycle_marks_leaves_its_log() {
    let name = "h41_a_thread_that_ends_by_the_bare_call_while_a_cycle_marks_leaves_its_log";
    hazard(name, "log-kept-at-detach", || comes_and_goes(true));
}

#[test]
fn a_thread_that_attaches_while_a_cycle_marks_logs_its_stores() {
    let name = "a_thread_that_attaches_while_a_cycle_marks_logs_its_stores";
    hazard(name, "attached-unmarked", || comes_and_goes(false));
}

#[test]
fn h8_a_child_forked_while_a_cycle_marks_has_a_heap_that_is_whole() {
    hazard(
        "h8_a_child_forked_while_a_cycle_marks_has_a_heap_that_is_whole",
        "cycle-goes-on-in-child",
        || {
            let (heap, k) = stress_phases();
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                for _ in 0..2 {
                    s.spawn(|| {
                        // What is gone in the child, in the middle of a flush perhaps.
                        let m = heap.attach().unwrap();
                        let shelf = Shelf::new(&m, k, 2000);
                        while !done.load(Relaxed) {
                            for i in 0..1000 {
                                let (a, b) = (shelf.take(&m, i), shelf.take(&m, 1999 - i));
                                shelf.put(&m, i, b);
                                shelf.put(&m, 1999 - i, a);
                            }
                        }
                    });
                }
                let m = heap.attach().unwrap();
                let shelf = Shelf::new(&m, k, 400);
                for round in 0..30 {
                    let mut taken = [0; 100];
                    while_marking(&m, k, || {
                        for (i, pair) in taken.iter_mut().enumerate() {
                            *pair = shelf.take(&m, i);
                        }
                        // Also when the markers are well under way.
                        (0..round * 500).for_each(|_| std::hint::spin_loop());
                        in_child(|| child(&m, k, &shelf, &taken));
                    });
                    for (i, pair) in taken.into_iter().enumerate() {
                        check_pair(pair, i);
                        shelf.put(&m, i, pair);
                    }
                }
                shelf.check();
                done.store(true, Relaxed);
            });
        },
    );
}

/// What a child does with its heap: old cells get new ones, which must not be lost though the old
/// ones had been marked in the parent.
fn child(m: &Mutator, k: Kinds, shelf: &Shelf, taken: &[usize]) {
    assert!(!is_marking(m), "there is no marker any more");
    for i in 0..shelf.len {
        renew(m, k, shelf, i);
    }
    wipe_stack();
    for _ in 0..2 {
        m.collect();
        garbage(m, k, 4000);
        shelf.check();
        for (i, pair) in taken.iter().enumerate() {
            check_pair(*pair, i);
        }
    }
    drop(shelf.root.try_clone());
}

#[inline(never)]
fn renew(m: &Mutator, k: Kinds, shelf: &Shelf, i: usize) {
    let tail = cons(m, k, 0, TAIL + i);
    shelf.put(m, i, cons(m, k, tail, i));
}

// ---- weak words ---------------------------------------------------------------------------------

/// Fills a weak table with pairs that nothing else leads to.
#[inline(never)]
fn fill_weak(m: &Mutator, k: Kinds, table: *mut usize, len: usize) {
    for i in 0..len {
        let tail = cons(m, k, 0, TAIL + i);
        // SAFETY: a word of a live weak cell.
        unsafe { m.write(table.add(i), cons(m, k, tail, i)) };
    }
}

#[test]
fn h27_what_is_loaded_from_a_weak_word_while_a_cycle_marks_outlives_it() {
    hazard(
        "h27_what_is_loaded_from_a_weak_word_while_a_cycle_marks_outlives_it",
        "stores-unlogged",
        || {
            let (heap, k) = stress_phases();
            let m = heap.attach().unwrap();
            const LEN: usize = 800;
            // SAFETY: on the stack until it has a root.
            let root = unsafe { m.root_raw(m.alloc_raw(k.weak, LEN * 8).unwrap()).unwrap() };
            let table = root.get().unwrap().cast::<usize>().as_ptr();
            let (mut kept, mut lost) = (0, 0);
            for round in 0..40 {
                fill_weak(&m, k, table, LEN);
                wipe_stack();
                let mut got = [0; LEN];
                while_marking(&m, k, || {
                    for (i, got) in got.iter_mut().enumerate().step_by(1 + round % 3) {
                        // Up to the very end of marking, and beyond it.
                        (0..round * 20).for_each(|_| std::hint::spin_loop());
                        // SAFETY: a word of a live weak cell.
                        *got = unsafe { m.load_weak(table.add(i)) };
                    }
                });
                for (i, got) in got.into_iter().enumerate() {
                    if got != 0 {
                        check_pair(got, i);
                        kept += 1;
                    }
                    // SAFETY: as above.
                    let now = unsafe { m.load_weak(table.add(i)) };
                    assert!(
                        got == 0 || now == got,
                        "the target lives, and its weak word is cleared"
                    );
                    lost += usize::from(now == 0);
                }
            }
            assert!(kept > 1000 && lost > 1000, "{kept} {lost}");
        },
    );
}

#[test]
fn h27_an_intern_table_shared_by_threads_gives_out_whole_cells_only() {
    hazard(
        "h27_an_intern_table_shared_by_threads_gives_out_whole_cells_only",
        "stores-unlogged",
        || {
            let heap = Heap::builder()
                .reserve(1 << 30)
                .stress(Stress::CONTINUOUS)
                .build()
                .unwrap();
            const NAMES: usize = 300;
            let table = {
                let m = heap.attach().unwrap();
                m.scope(|s| Ok(heap.root(&s.alloc_weak_array::<Bytes>(NAMES)?)))
                    .unwrap()
            };
            std::thread::scope(|threads| {
                for thread in 0..3usize {
                    let (heap, table) = (&heap, &table);
                    threads.spawn(move || {
                        let m = heap.attach().unwrap();
                        let mut found = 0;
                        for round in 0..60_000usize {
                            let i = (round * (7 + thread)) % NAMES;
                            let name = format!("the name of number {i}");
                            m.scope(|s| {
                                let table = table.get(s);
                                let known = table.upgrade(i, s);
                                found += usize::from(known.is_some());
                                let known = match known {
                                    Some(known) => known,
                                    None => {
                                        let new = s.alloc_bytes(name.as_bytes())?;
                                        table.set(i, s, &new);
                                        new
                                    }
                                };
                                (0..round % 64 * 8).for_each(|_| std::hint::spin_loop());
                                // Freed, it would be cleared, and another's soon.
                                assert!(table.upgrade(i, s).is_some(), "{name} was freed");
                                s.alloc_bytes(&[0x55; 22])?;
                                assert_eq!(known.as_str(), Some(&*name));
                                Ok(())
                            })
                            .unwrap();
                        }
                        assert!(found > 1000, "{found} names were found again");
                    });
                }
            });
            assert!(heap.stats().collections > 20);
        },
    );
}

// ---- finalizers and values to be dropped --------------------------------------------------------

/// Registers `n` pairs that die at once.
#[inline(never)]
fn finalizable(m: &Mutator, k: Kinds, n: usize) {
    for i in 0..n {
        let tail = cons(m, k, 0, TAIL + i);
        // SAFETY: a live cell.
        assert!(unsafe { m.register_finalizer(cell(cons(m, k, tail, i)), i).is_ok() });
    }
}

#[test]
fn what_finalizers_take_while_a_cycle_marks_lives_on() {
    let name = "what_finalizers_take_while_a_cycle_marks_lives_on";
    hazard(name, "taken-unlogged", || {
        let (heap, k) = stress_phases();
        let m = heap.attach().unwrap();
        const LEN: usize = 1500;
        let shelf = Shelf::new(&m, k, LEN);
        let (mut rounds, mut during, mut resurrected) = (0, 0, 0);
        // Every other cycle traces only after a breath, which one on a busy machine may miss.
        while during < 60 * LEN {
            rounds += 1;
            for i in 0..LEN {
                shelf.put(&m, i, 0);
            }
            finalizable(&m, k, LEN);
            wipe_stack();
            m.collect();
            // Some are taken while the queue is being marked; they are put where they can be
            // reached again.
            let mut taken = [(0, 0); LEN];
            let n = while_marking(&m, k, || {
                for (n, taken) in taken.iter_mut().enumerate() {
                    let Some((cell, token)) = m.next_finalizer() else {
                        return n;
                    };
                    *taken = (cell.as_ptr() as usize, token);
                    during += usize::from(is_marking(&m));
                }
                LEN
            });
            for (pair, i) in &taken[..n] {
                check_pair(*pair, *i);
                shelf.put(&m, *i, *pair);
            }
            taken = [(0, 0); LEN];
            std::hint::black_box(&mut taken);
            m.collect();
            garbage(&m, k, 2000);
            for i in 0..LEN {
                // SAFETY: a word of a live cell.
                let pair = unsafe { shelf.slot(i).read_volatile() };
                if pair != 0 {
                    check_pair(pair, i);
                    resurrected += 1;
                }
            }
        }
        assert!(resurrected > rounds * LEN / 2, "{resurrected} in {rounds}");
    });
}

/// Counts values that were dropped, and such as were not whole then.
static DROPPED: AtomicU64 = AtomicU64::new(0);
static BROKEN: AtomicU64 = AtomicU64::new(0);
/// Values in whose drop a cycle ended.
static SPANNED: AtomicU64 = AtomicU64::new(0);
/// Set while a cycle marks.
static WAITS: AtomicUsize = AtomicUsize::new(0);

/// Room is to be taken.
static FILLS: AtomicBool = AtomicBool::new(false);
/// The number of a value that only takes room.
const FILLER: u64 = u64::MAX;

/// A value whose `Drop` takes longer than the cycle in which it runs.
#[derive(Trace)]
struct Slow {
    number: u64,
    next: Field<Slow>,
    text: String,
}

impl Drop for Slow {
    fn drop(&mut self) {
        let number = self.number;
        if number == FILLER {
            return;
        }
        // SAFETY: the record's flag, while its mutator is attached; 0 where no test waits.
        let flag = WAITS.load(Relaxed) as *const std::sync::atomic::AtomicU32;
        // SAFETY: as above.
        if let Some(flag) = unsafe { flag.as_ref() }
            && number.is_multiple_of(100)
            && flag.load(Acquire) != 0
        {
            until(|| flag.load(Acquire) == 0);
            SPANNED.fetch_add(1, Relaxed);
            // Another thread allocates cells like this one now.
            FILLS.store(true, Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(5));
            FILLS.store(false, Relaxed);
        }
        let now = std::hint::black_box(&*self);
        if now.number != number || now.text != format!("value {number}") {
            BROKEN.fetch_add(1, Relaxed);
            // The text is not this value's to be freed.
            std::mem::forget(std::mem::take(&mut self.text));
        }
        DROPPED.fetch_add(1, Relaxed);
    }
}

#[inline(never)]
fn droppable(m: &Mutator, n: u64) {
    for number in 0..n {
        m.scope(|s| {
            let text = format!("value {number}");
            let next = Field::null();
            s.alloc(Slow { number, next, text }).map(|_| ())
        })
        .unwrap();
    }
}

#[test]
fn a_value_that_is_dropped_while_a_cycle_marks_is_whole_until_its_drop_has_ended() {
    let name = "a_value_that_is_dropped_while_a_cycle_marks_is_whole_until_its_drop_has_ended";
    hazard(name, "taken-unlogged", || {
        let (heap, k) = stress_phases();
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let m = heap.attach().unwrap();
                while !done.load(Relaxed) {
                    until(|| FILLS.load(Relaxed) || done.load(Relaxed));
                    m.scope(|s| {
                        let (text, next) = (String::new(), Field::null());
                        let number = FILLER;
                        s.alloc(Slow { number, next, text }).map(|_| ())
                    })
                    .unwrap();
                }
            });
            let m = heap.attach().unwrap();
            // What is taken when all is traced already was marked as its queue was: every other
            // cycle traces only after a breath, and one on a busy machine may miss it.
            while SPANNED.load(Relaxed) < 60 && BROKEN.load(Relaxed) == 0 {
                // Those that only took room would be dropped first.
                m.collect();
                m.drop_dead_values();
                droppable(&m, 2000);
                wipe_stack();
                m.collect();
                while_marking(&m, k, || {
                    WAITS.store(
                        std::ptr::from_ref(Record::of(&m).marking()) as usize,
                        Release,
                    );
                    m.drop_dead_values();
                    WAITS.store(0, Relaxed);
                });
            }
            done.store(true, Relaxed);
        });
        assert_eq!(BROKEN.load(Relaxed), 0, "values were not whole");
        assert!(DROPPED.load(Relaxed) > 10_000);
    });
}

// ---- more than one ------------------------------------------------------------------------------

#[test]
fn h29_heaps_with_common_threads_do_not_wait_for_each_other_while_both_mark() {
    hazard_with(
        "h29_heaps_with_common_threads_do_not_wait_for_each_other_while_both_mark",
        "wait-running",
        &[("URGE_ASYNC", "0"), ("URGE_CONTINUOUS", "1")],
        || {
            let (a, ka) = stress_phases();
            let (b, kb) = stress_phases();
            std::thread::scope(|s| {
                for i in 0..4 {
                    let (a, b) = (&a, &b);
                    s.spawn(move || {
                        let (ma, mb) = (a.attach().unwrap(), b.attach().unwrap());
                        let (sa, sb) = (Shelf::new(&ma, ka, 300), Shelf::new(&mb, kb, 300));
                        for round in 0..30 {
                            for j in 0..150 {
                                let (x, y) = (sa.take(&ma, j), sa.take(&ma, 299 - j));
                                check_pair(x, j);
                                sa.put(&ma, j, x);
                                sa.put(&ma, 299 - j, y);
                                let z = sb.take(&mb, j);
                                garbage(&mb, kb, 3);
                                check_pair(z, j);
                                sb.put(&mb, j, z);
                            }
                            if (i + round) % 2 == 0 {
                                ma.collect()
                            } else {
                                mb.collect()
                            };
                        }
                        sa.check();
                        sb.check();
                    });
                }
            });
        },
    );
}
