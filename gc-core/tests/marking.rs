//! Hazards of marking beside mutators. A cell that a mutator unlinks, loads from a weak word, takes
//! out of a queue or allocates while a cycle marks outlives that cycle; so does the log of a thread
//! that attaches, detaches or forks meanwhile. Each hazard runs with its cure and with the cure
//! switched off.
//!
//! Collections of these heaps stay in each phase for a while. A thread therefore sees that marking
//! is on, changes the graph, and keeps the cells that it took on its own stack, which stop 1 has
//! already scanned.

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

/// Runs `f` while a cycle marks. Then waits until marking is over, and allocates until cells that
/// the cycle freed are used again.
#[inline(never)]
fn while_marking<R>(m: &Mutator, k: Kinds, f: impl FnOnce() -> R) -> R {
    let heap = m.heap();
    let mut asked = 0;
    until(|| {
        // A cycle may end before this thread sees that it marks. Another one is then requested.
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

/// The number of a pair's second node, less the pair's index.
const TAIL: usize = 1 << 40;

/// An array of pairs of nodes. Only the array leads to the pairs.
struct Shelf {
    root: RawRoot,
    len: usize,
}

impl Shelf {
    #[inline(never)]
    fn new(m: &Mutator, k: Kinds, len: usize) -> Self {
        // SAFETY: an array of `len` words, which stays on the stack until it has a root. Each pair
        // is stored as soon as it is made.
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

    /// Takes a pair out of the array. Only the caller has it from then on.
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

/// Panics unless `pair` is a whole pair of the number `i`.
#[inline(never)]
fn check_pair(pair: usize, i: usize) {
    // SAFETY: live nodes; where they are not, the test has found a fault.
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

/// Runs threads that take pairs out of their shelves while a cycle marks, at several speeds, and
/// check the pairs after the cycle.
fn takers(threads: usize, rounds: usize) {
    const LEN: usize = 3000;
    let (heap, k) = stress_phases();
    std::thread::scope(|s| {
        for thread in 0..threads {
            let heap = &heap;
            s.spawn(move || {
                let m = heap.attach().unwrap();
                let shelf = Shelf::new(&m, k, LEN);
                // The pairs are on the stack, and not freed after a cycle, since another thread may
                // request the next one.
                let mut taken = [0; LEN];
                for round in 0..rounds {
                    // A few pairs and all of them, at once and so slowly that marking ends
                    // meanwhile.
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

/// The last stop of marking takes all logs. With `logs-left` planted, pairs are freed that were
/// unlinked late.
#[test]
fn h28_logs_that_fill_while_marking_ends_are_taken() {
    hazard(
        "h28_logs_that_fill_while_marking_ends_are_taken",
        "logs-left",
        || takers(3, 40),
    );
}

/// A mutator marks a logged word itself where the heap's log is full. With `log-lost` planted, such
/// words are dropped, and their pairs are freed.
#[test]
fn h28_what_finds_no_room_in_the_heap_s_log_is_marked_on_the_spot() {
    let name = "h28_what_finds_no_room_in_the_heap_s_log_is_marked_on_the_spot";
    // The loss is a race: with 40 rounds, some runs of an optimised build lose no pair.
    hazard_given(name, "small-log", "log-lost", &[], || takers(3, 160));
}

/// A mutator that assists may hold the last marked cells when the collector finds none. It shares
/// them when it is stopped. The stop does not trace them, since they may lead to half of the heap.
/// With `stop-traces-on` planted, the stop does.
#[test]
fn what_a_helper_puts_down_is_marked_beside_the_mutators() {
    let name = "what_a_helper_puts_down_is_marked_beside_the_mutators";
    hazard_given(name, "slow-assists", "stop-traces-on", &[], || {
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

/// Once marking seems to be over, no mutator begins an assist, and the collector waits for those
/// that are under way. A stop then finds no mutator that assists. With `assists-unheld` planted,
/// stops wait for assists.
#[test]
fn a_stop_does_not_wait_for_mutators_that_help() {
    let name = "a_stop_does_not_wait_for_mutators_that_help";
    hazard_given(name, "brisk-assists", "assists-unheld", &[], || {
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
        // The collector does not wait for an assist whose thread the system suspends for long.
        assert!(waited <= CYCLES / 4, "{waited} of {seen} cycles");
    });
}

/// Large arrays are read in parts. An edge that moves from a part that is not read yet into a part
/// that is read stays marked, because the barrier logs the overwritten words. Without logging, the
/// edge is missed.
#[test]
fn what_moves_between_large_arrays_is_not_missed_by_a_marker_that_reads_them_in_parts() {
    let name = "what_moves_between_large_arrays_is_not_missed_by_a_marker_that_reads_them_in_parts";
    hazard(name, "stores-unlogged", || {
        let (heap, k) = stress_phases();
        let m = heap.attach().unwrap();
        const LEN: usize = 60_000;
        let (mut from, mut to) = (Shelf::new(&m, k, LEN), Shelf::new(&m, k, LEN));
        for round in 0..12 {
            // Backwards and forwards, so that edges move from unread parts into parts that are read
            // already.
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

/// Cells that are allocated while a cycle marks are black, and outlive it. With `white-runs`
/// planted, runs that are taken meanwhile are not marked, and the lists are freed.
#[test]
fn what_is_allocated_while_a_cycle_marks_outlives_it() {
    let name = "what_is_allocated_while_a_cycle_marks_outlives_it";
    hazard(name, "white-runs", || {
        let (heap, k) = stress_phases();
        let m = heap.attach().unwrap();
        const WORDS: usize = 20_000;
        for round in 0..10 {
            // Cells of the tests' sizes, and large ones with new content. The stack keeps the large
            // cell: it would not outlive the next cycle otherwise.
            let (lists, large) = while_marking(&m, k, || {
                let lists: [usize; 50] =
                    std::array::from_fn(|i| common::list(&m, k, 100 * i + round));
                // SAFETY: an array of `WORDS` words, which stays on the stack.
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
            // If the large cell had been freed, this cell would take its memory.
            // SAFETY: the leaf is used here only, and has `WORDS` words; `large` is on the stack.
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

/// A thread attaches while a cycle marks, takes pairs out of a shelf, and ends. It leaves the pairs
/// to a thread that was attached before the cycle.
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

/// A mutator that detaches while a cycle marks gives its log to the heap. With `log-kept-at-detach`
/// planted, the log is lost, and the pairs are freed.
#[test]
fn a_thread_that_detaches_while_a_cycle_marks_leaves_its_log() {
    let name = "a_thread_that_detaches_while_a_cycle_marks_leaves_its_log";
    hazard(name, "log-kept-at-detach", || comes_and_goes(false));
}

/// The log of a thread that ends by the bare `exit` call while a cycle marks is taken by the next
/// stop. With `log-kept-at-detach` planted, it is lost.
#[test]
fn h41_a_thread_that_ends_by_the_bare_call_while_a_cycle_marks_leaves_its_log() {
    let name = "h41_a_thread_that_ends_by_the_bare_call_while_a_cycle_marks_leaves_its_log";
    hazard(name, "log-kept-at-detach", || comes_and_goes(true));
}

/// A mutator that attaches while a cycle marks logs its stores from the start. With
/// `attached-unmarked` planted, its marking flag is off, and the pairs are freed.
#[test]
fn a_thread_that_attaches_while_a_cycle_marks_logs_its_stores() {
    let name = "a_thread_that_attaches_while_a_cycle_marks_logs_its_stores";
    hazard(name, "attached-unmarked", || comes_and_goes(false));
}

/// The child of a fork abandons a cycle that marks, and its heap is whole. With
/// `cycle-goes-on-in-child` planted, the child's mutator goes on as if there were a marker.
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
                        // The child does not have this thread, which may be flushing its log at the
                        // fork.
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
                        // Later rounds fork when markers have done more of their work.
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

/// The child's work: it stores new cells into cells that were marked in the parent. The new cells
/// must live through the child's collections.
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

/// Fills a weak table with pairs to which only the table leads.
#[inline(never)]
fn fill_weak(m: &Mutator, k: Kinds, table: *mut usize, len: usize) {
    for i in 0..len {
        let tail = cons(m, k, 0, TAIL + i);
        // SAFETY: a word of a live weak cell.
        unsafe { m.write(table.add(i), cons(m, k, tail, i)) };
    }
}

/// A cell that a weak load gives while a cycle marks outlives the cycle, and its word stays.
/// Without logging, the cell is freed.
#[test]
fn h27_what_is_loaded_from_a_weak_word_while_a_cycle_marks_outlives_it() {
    hazard(
        "h27_what_is_loaded_from_a_weak_word_while_a_cycle_marks_outlives_it",
        "stores-unlogged",
        || {
            let (heap, k) = stress_phases();
            let m = heap.attach().unwrap();
            const LEN: usize = 800;
            // SAFETY: the cell stays on the stack until it has a root.
            let root = unsafe { m.root_raw(m.alloc_raw(k.weak, LEN * 8).unwrap()).unwrap() };
            let table = root.get().unwrap().cast::<usize>().as_ptr();
            let (mut kept, mut lost) = (0, 0);
            for round in 0..40 {
                fill_weak(&m, k, table, LEN);
                wipe_stack();
                let mut got = [0; LEN];
                while_marking(&m, k, || {
                    for (i, got) in got.iter_mut().enumerate().step_by(1 + round % 3) {
                        // The loads go on until the end of marking, and beyond it in later rounds.
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
                    // SAFETY: a word of a live weak cell.
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

/// Threads that share an intern table find whole strings only, and a string that one of them holds
/// stays in the table. Without logging, a string that was found is freed.
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
                                // If the string had been freed, its word would be cleared, and
                                // another string would take its cell.
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

/// Makes `n` pairs that have a finalizer and die at once.
#[inline(never)]
fn finalizable(m: &Mutator, k: Kinds, n: usize) {
    for i in 0..n {
        let tail = cons(m, k, 0, TAIL + i);
        // SAFETY: a live cell.
        assert!(unsafe { m.register_finalizer(cell(cons(m, k, tail, i)), i).is_ok() });
    }
}

/// A cell that a mutator takes out of the finalizers' queue while a cycle marks outlives the cycle,
/// because taking it logs it. With `taken-unlogged` planted, it is freed.
#[test]
fn what_finalizers_take_while_a_cycle_marks_lives_on() {
    let name = "what_finalizers_take_while_a_cycle_marks_lives_on";
    hazard(name, "taken-unlogged", || {
        let (heap, k) = stress_phases();
        let m = heap.attach().unwrap();
        const LEN: usize = 1500;
        let shelf = Shelf::new(&m, k, LEN);
        let (mut rounds, mut during, mut resurrected) = (0, 0, 0);
        // Every other cycle traces only after a delay, which a thread on a busy machine may miss.
        while during < 60 * LEN {
            rounds += 1;
            for i in 0..LEN {
                shelf.put(&m, i, 0);
            }
            finalizable(&m, k, LEN);
            wipe_stack();
            m.collect();
            // The mutator takes cells while the queue is being marked, and then stores them where
            // the root leads to them.
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

/// Values that were dropped.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// Values whose content had changed when they were dropped.
static BROKEN: AtomicU64 = AtomicU64::new(0);
/// Values during whose `Drop` a cycle ended.
static SPANNED: AtomicU64 = AtomicU64::new(0);
/// The address of the mutator's marking flag for which a `Drop` waits; 0 if no `Drop` waits.
static WAITS: AtomicUsize = AtomicUsize::new(0);

/// True while the second thread allocates cells of the dropped values' type.
static FILLS: AtomicBool = AtomicBool::new(false);
/// The number of a value of the second thread.
const FILLER: u64 = u64::MAX;

/// A value whose `Drop` waits until the cycle in which it began is over.
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
        // SAFETY: the address of the marking flag of an attached mutator, or 0 where no test waits.
        let flag = WAITS.load(Relaxed) as *const std::sync::atomic::AtomicU32;
        // SAFETY: as above.
        if let Some(flag) = unsafe { flag.as_ref() }
            && number.is_multiple_of(100)
            && flag.load(Acquire) != 0
        {
            until(|| flag.load(Acquire) == 0);
            SPANNED.fetch_add(1, Relaxed);
            // The other thread allocates cells of this type from here on.
            FILLS.store(true, Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(5));
            FILLS.store(false, Relaxed);
        }
        let now = std::hint::black_box(&*self);
        if now.number != number || now.text != format!("value {number}") {
            BROKEN.fetch_add(1, Relaxed);
            // The text belongs to another value, so it is not freed here.
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

/// The cell of a value whose `Drop` runs while a cycle marks is not used again before that `Drop`
/// has ended. With `taken-unlogged` planted, the other thread gets the cell.
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
            // Values that are taken after tracing are marked already, because their queue was
            // marked. Every other cycle traces only after a delay, which a thread on a busy machine
            // may miss.
            while SPANNED.load(Relaxed) < 60 && BROKEN.load(Relaxed) == 0 {
                // The values of the other thread would be dropped first otherwise.
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

/// Mutators of two heaps that mark at the same time do not wait for each other: a thread that waits
/// for a collection waits inside `blocking`. With `wait-running` planted, the test hangs.
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
