//! The second marking. It is silent over a sound heap with cells of every kind. With a fault
//! planted, it names the lost cell and a path to it, and aborts.

mod common;

use common::{check_list, cons, is_child, list, run_child};
use gc_core::raw::{Encoding, Kind, KindId};
use gc_core::{Heap, Mutator, Stress, WeakMap};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

/// The number of lists whose heads are in an array.
const LISTS: usize = 256;

/// The length at which a list is given up. It is more than the turns of a cycle: otherwise a lost
/// cell would be given up together with the cell that leads to it.
const LONG: usize = 400;

/// Puts cells in front of lists whose heads are in an array, with a pause after each turn. With a
/// pause, a cycle's stores fit into the thread's own log.
fn push(heap: &Heap, pause: Duration) {
    let k = common::kinds(heap);
    let m = heap.attach().unwrap();
    let heads = new(&m, k.array, LISTS);
    push_to(
        heap,
        &m,
        k,
        pause,
        // SAFETY: words of a live cell.
        |list| unsafe { heads.add(list).read() },
        // SAFETY: as above.
        |list, head| unsafe { m.write(heads.add(list), head) },
    );
}

/// Puts cells in front of lists whose heads are values of pairs. The keys live.
fn push_to_pairs(heap: &Heap) {
    let k = common::kinds(heap);
    let pairs = heap
        .kind(Kind::ephemeron("pairs", 0, Encoding::RAW, 0))
        .unwrap();
    let m = heap.attach().unwrap();
    let (keys, heads) = (new(&m, k.array, LISTS), new(&m, pairs, 2 * LISTS));
    for list in 0..LISTS {
        // SAFETY: words of live cells.
        unsafe { m.write(keys.add(list), cons(&m, k, 0, list)) };
    }
    push_to(
        heap,
        &m,
        k,
        Duration::ZERO,
        // SAFETY: words of live cells; the array holds the keys.
        |list| unsafe { heads.add(2 * list + 1).read() },
        // SAFETY: as above.
        |list, head| unsafe { m.write_pair(heads.add(2 * list), keys.add(list).read(), head) },
    );
    std::hint::black_box(keys);
}

fn new(m: &Mutator, kind: KindId, words: usize) -> *mut usize {
    // SAFETY: callers keep the cell on their stack.
    unsafe { m.alloc_raw(kind, words * 8).unwrap().as_ptr().cast() }
}

/// Puts a cell in front of each list in turn. Each store hides the list's old head behind a cell
/// that is allocated black, and no register has held that head since the last turn.
fn push_to(
    heap: &Heap,
    m: &Mutator,
    k: common::Kinds,
    pause: Duration,
    get: impl Fn(usize) -> usize,
    set: impl Fn(usize, usize),
) {
    let mut length = 0;
    while heap.stats().collections <= 100 {
        for list in 0..LISTS {
            let head = get(list);
            if length == LONG {
                check_list(head, LONG);
            }
            let next = if length == LONG { 0 } else { head };
            set(list, cons(m, k, next, length % LONG));
        }
        length = length % LONG + 1;
        if !pause.is_zero() {
            m.blocking(|| std::thread::sleep(pause));
        }
    }
}

fn verified() -> Heap {
    Heap::builder()
        .reserve(1 << 30)
        .stress(Stress::CONTINUOUS)
        .verify(true)
        .build()
        .unwrap()
}

/// Runs the test `name` in a child without a fault, which must pass, and with `fault` planted,
/// which must abort. Returns the message.
fn aborts(name: &str, fault: &str) -> String {
    let sound = run_child(name, "", &[]).expect("a sound child hangs");
    assert!(
        sound.status.success(),
        "verify finds fault with a sound heap: {}",
        String::from_utf8_lossy(&sound.stderr)
    );
    let faulty = run_child(name, fault, &[]).expect("the child hangs instead of aborting");
    let said = String::from_utf8_lossy(&faulty.stderr).into_owned();
    assert_eq!(faulty.status.signal(), Some(libc::SIGABRT), "{said}");
    said
}

/// Panics unless the message has a path from a root over cells of the test's kinds to a cell that
/// is not marked.
fn check_path(said: &str) {
    let from = said.find("urge: verify: collection").expect(said);
    let mut lines = said[from..].lines().skip(1);
    assert!(lines.next().unwrap().starts_with("  root: "), "{said}");
    let way = lines.take_while(|l| l.starts_with("  "));
    let cells: Vec<&str> = way.filter(|l| !l.contains(" more ")).collect();
    assert!(!cells.is_empty(), "{said}");
    let (lost, way) = cells.split_last().unwrap();
    assert!(
        lost.ends_with("<- not marked") && lost.contains("\"node\""),
        "{said}"
    );
    for cell in way {
        assert!(
            !cell.contains("not marked") && cell.contains(", word "),
            "{said}"
        );
    }
}

/// With `stores-unlogged` planted, the second marking finds a cell that the barrier did not log,
/// and prints the path to it.
#[test]
fn a_barrier_that_does_not_log_is_found_with_the_path_to_what_it_lost() {
    let name = "a_barrier_that_does_not_log_is_found_with_the_path_to_what_it_lost";
    if is_child() {
        return push(&verified(), Duration::ZERO);
    }
    check_path(&aborts(name, "stores-unlogged"));
}

/// With `logs-left` planted, the second marking finds a cell whose log entry was not taken before
/// the swap of bitmaps, and prints the path to it.
#[test]
fn a_flip_without_draining_logs_is_found_with_the_path_to_what_it_lost() {
    let name = "a_flip_without_draining_logs_is_found_with_the_path_to_what_it_lost";
    if is_child() {
        return push(&verified(), Duration::from_micros(200));
    }
    check_path(&aborts(name, "logs-left"));
}

/// With `pairs-unlogged` planted, the second marking finds a pair's old value that was not logged.
#[test]
fn a_pairs_old_value_that_is_not_logged_is_found() {
    let name = "a_pairs_old_value_that_is_not_logged_is_found";
    if is_child() {
        return push_to_pairs(&verified());
    }
    let said = aborts(name, "pairs-unlogged");
    check_path(&said);
    // A word on the stack may name a cell that was free and has been allocated since, whose edge
    // leads to the lost cell. Otherwise the path leads through the pairs.
    let from_stack = "  root: the stack or a register of mutator 0\n";
    let black = said
        .split_once(from_stack)
        .is_some_and(|(_, way)| way.lines().next().unwrap().contains("\"node\""));
    assert!(black || said.contains("\"pairs\""), "{said}");
}

/// With `keep-weak` planted, the second marking finds a weak word that still names a dead cell.
#[test]
fn a_weak_word_that_was_left_is_found() {
    let name = "a_weak_word_that_was_left_is_found";
    if is_child() {
        let heap = verified();
        let k = common::kinds(&heap);
        let m = heap.attach().unwrap();
        // SAFETY: the cell stays on the stack and has four words.
        let weak = unsafe { m.alloc_raw(k.weak, 32).unwrap().as_ptr().cast::<usize>() };
        for number in 0..100 {
            // SAFETY: a word of the live cell; the new cell is on the stack until it is stored.
            unsafe { m.write(weak.add(number % 4), cons(&m, k, 0, number)) };
            common::wipe_stack();
            m.collect();
        }
        return;
    }
    let said = aborts(name, "keep-weak");
    assert!(said.contains("\"weak\", 32 bytes, word "), "{said}");
}

/// The second marking is silent over a sound heap with cells of every kind, concurrent or not.
#[test]
fn a_sound_heap_of_every_kind_of_cell_passes() {
    for concurrent in [true, false] {
        let (heap, k) = common::heap_with(|builder| {
            builder
                .stop_the_world(!concurrent)
                .stress(Stress {
                    continuous: concurrent,
                    ..Stress::default()
                })
                .verify(true)
        });
        let loose = heap.kind(Kind::conservative("loose")).unwrap();
        let pairs = heap
            .kind(Kind::ephemeron("pairs", 0, Encoding::RAW, 0))
            .unwrap();
        let m = heap.attach().unwrap();
        let root = m.with_scope(|s| heap.root(&s.alloc(WeakMap::<u64, u64>::new()).unwrap()));
        for round in 0..100 {
            // SAFETY: the cells stay on this stack, and accesses are within their length.
            unsafe {
                let cells: Vec<*mut usize> = [loose, k.weak, k.array, pairs]
                    .map(|kind| m.alloc_raw(kind, 4096).unwrap().as_ptr().cast())
                    .into();
                // The vector is not scanned.
                let [a, b, c, d] = [cells[0], cells[1], cells[2], cells[3]];
                for word in 0..256 {
                    let head = list(&m, k, 3);
                    m.write(a.add(word), head + 8);
                    m.write(b.add(word), head);
                    m.write(c.add(word), head);
                    m.write_pair(d.add(2 * word), head, list(&m, k, 2));
                    m.write(a.add(word / 2), word);
                    m.write(c.add(word / 2), 0);
                }
                std::hint::black_box((a, b, c, d));
            }
            m.with_scope(|s| {
                let (key, value) = (s.alloc(round).unwrap(), s.alloc(round).unwrap());
                root.get(s).insert(s, &key, &value).unwrap();
            });
            if round % 10 == 0 {
                m.collect();
            }
        }
    }
}

/// A trace function that reports the first word and leaves the others out.
unsafe fn forgetful(cell: *const u8, _: usize, tracer: &mut gc_core::raw::Tracer<'_>) {
    let cell = cell as usize;
    // SAFETY: a word of the cell.
    unsafe { tracer.edges(cell..cell + 8, Encoding::RAW) };
}

/// Makes two cells of a kind with that trace function. The first leads to the second, and with
/// `second` set, a word of the second that is not reported leads to a leaf to which nothing else
/// leads. The second also has numbers that look like addresses: inside a live leaf, of a live cell,
/// and of a free place.
fn leave_out(heap: &Heap, second: bool) {
    // SAFETY: the function leaves edges out on purpose.
    let mut kind = unsafe { Kind::traced("forgetful", forgetful) };
    if gc_preempt::faults::planted("words-are-spare") {
        kind = kind.spare_words();
    }
    let (k, kind) = (common::kinds(heap), heap.kind(kind).unwrap());
    let root = std::thread::scope(|s| {
        let make = || {
            let m = heap.attach().unwrap();
            let first: *mut usize = new(&m, kind, 8);
            // SAFETY: new cells of eight words, each held by this stack.
            unsafe {
                let next: *mut usize = new(&m, kind, 8);
                first.write(next as usize);
                let leaf: *mut usize = new(&m, k.leaf, 8);
                if second {
                    next.add(3).write(leaf as usize);
                }
                next.add(4).write(leaf as usize + 8);
                next.add(5).write(first as usize);
                next.add(6).write(heap.reserved().end - 4096);
                m.root_raw(common::cell(first as usize)).unwrap()
            }
        };
        let root = s.spawn(make).join().unwrap();
        std::sync::Mutex::new(root)
    });
    for _ in 0..3 {
        heap.collect();
    }
    drop(root);
}

/// An edge that a trace function leaves out is found, with its word: the second marking looks into
/// cells of traced kinds for words that name a cell which is about to be freed.
#[test]
fn h62_an_edge_that_a_trace_function_leaves_out_is_found_with_its_word() {
    const NAME: &str = "h62_an_edge_that_a_trace_function_leaves_out_is_found_with_its_word";
    if is_child() {
        let heap = Heap::builder()
            .reserve(1 << 30)
            .verify(true)
            .build()
            .unwrap();
        let is_sound = gc_preempt::faults::planted("tracer-is-sound");
        return leave_out(&heap, !is_sound);
    }
    let output = run_child(NAME, "", &[]).expect("the child hung");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
    assert!(
        said.contains("\"forgetful\" does not report word 3"),
        "{said}"
    );
    assert!(said.contains("root: a handle"), "{said}");
    // No error is reported where the numbers are no edges, where the second marking asks the trace
    // function alone (`tracers-believed`), and where the kind declares its other words spare.
    for fault in ["tracer-is-sound", "tracers-believed", "words-are-spare"] {
        let output = run_child(NAME, fault, &[]).expect("the child hung");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{fault}: {said}");
    }
}
