//! Foreign code that holds a reference, during a call and beyond it.
//!
//! - During a call, `keep_alive` after the call is enough. The frame of the foreign function is
//!   scanned like every other frame, but the caller's own copy could be gone while the callee uses
//!   a pointer that it computed.
//! - Beyond the call, where the foreign side keeps the pointer in memory of its own (a callback's
//!   data, a thread's argument), it gets a `Root`.
//!
//! `cargo run -p gc-core --example foreign_call`

use gc_core::{Field, Gc, Heap, Mutator, Root, Trace, keep_alive};
use std::cell::Cell;
use std::error::Error;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const NUMBERS: usize = 500;

/// Numbers in a cell, which C's `qsort` sorts in place. They are atomic, since the content of a
/// cell changes by interior mutability only.
#[derive(Trace)]
struct Numbers {
    all: [AtomicU64; NUMBERS],
}

#[derive(Trace, Default)]
struct Node {
    next: Field<Node>,
    value: u64,
}

thread_local! {
    static MUTATOR: Cell<*const Mutator> = const { Cell::new(std::ptr::null()) };
    static COMPARED: Cell<u64> = const { Cell::new(0) };
}

/// The comparison that C calls while it sorts. It allocates, and collects at times.
extern "C" fn compare(a: *const c_void, b: *const c_void) -> c_int {
    // SAFETY: `qsort` passes pointers to two elements.
    let (a, b) = unsafe { (*a.cast::<u64>(), *b.cast::<u64>()) };
    // SAFETY: `sort` has set the pointer to a mutator of this thread that outlives the call.
    let mutator = unsafe { &*MUTATOR.get() };
    let made = mutator.scope(|s| s.alloc(Node::default()).map(drop));
    let compared = COMPARED.get() + 1;
    COMPARED.set(compared);
    if compared.is_multiple_of(400) {
        mutator.collect();
    }
    assert!(made.is_ok(), "the heap is full of garbage");
    a.cmp(&b) as c_int
}

fn sort(mutator: &Mutator, numbers: Gc<Numbers>) {
    MUTATOR.set(mutator);
    // SAFETY: the elements are words of the cell, which `keep_alive` keeps, and no other thread
    // uses them during the call. The cell has no edges, so C may move its words: edges change by
    // the barrier only, and libc's copies must never touch them.
    unsafe {
        libc::qsort(
            numbers.all.as_ptr().cast_mut().cast(),
            NUMBERS,
            size_of::<u64>(),
            Some(compare),
        );
    }
    // Without this, the compiler may drop `numbers` once it has computed the pointer to the first
    // element, and C's frame may hold nothing but a pointer past the end.
    keep_alive(numbers);
}

/// The foreign side's `void *`: a root in malloc's memory.
struct Message {
    list: Root<Node>,
}

/// The function of a thread that the foreign side starts. The thread reads through the root without
/// a mutator, and attaches to do more.
extern "C" fn thread(data: *mut c_void) -> *mut c_void {
    // SAFETY: the pointer comes from `Box::into_raw` in `main`, and only this thread gets it.
    let message = unsafe { Box::from_raw(data.cast::<Message>()) };
    let mut sum = message.list.value;
    let Ok(mutator) = message.list.heap().attach() else {
        return null_mut();
    };
    mutator.collect();
    mutator.with_scope(|s| {
        let mut at = message.list.next.get(s);
        while let Some(node) = at {
            sum += node.value;
            at = node.next.get(s);
        }
    });
    sum as *mut c_void
}

/// Sorts in C, and passes a list to a thread that C starts.
pub fn main() -> Result<(), Box<dyn Error>> {
    let heap = Heap::builder().build()?;
    let mutator = heap.attach()?;

    let mut seed = 1u64;
    let all = std::array::from_fn(|_| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        AtomicU64::new(seed >> 40)
    });
    // SAFETY: the pointer stays on this stack, and in the argument of `sort`.
    let numbers = unsafe { mutator.alloc_gc(Numbers { all })? };
    sort(&mutator, numbers);
    let sorted = numbers
        .all
        .windows(2)
        .all(|w| w[0].load(Relaxed) <= w[1].load(Relaxed));
    println!(
        "qsort compared {} times and {} collections came in between; sorted: {sorted}",
        COMPARED.get(),
        heap.stats().collections
    );
    assert!(sorted && heap.stats().collections > 0);

    let list = mutator.scope(|s| {
        let first = s.alloc(Node::default())?;
        for value in 1..=100 {
            let node = s.alloc(Node {
                value,
                ..Node::default()
            })?;
            if let Some(rest) = first.next.get(s) {
                node.next.set(s, &rest);
            }
            first.next.set(s, &node);
        }
        Ok(heap.root(&first))
    })?;
    let data = Box::into_raw(Box::new(Message { list }));
    mutator.collect(); // the list's only root is in memory that C holds
    let mut id = 0;
    let mut sum = null_mut();
    // SAFETY: the thread's function takes the pointer that it gets, and the thread is joined here.
    // A mutator waits inside `blocking`: otherwise the thread's collection would wait for this
    // mutator.
    let error = mutator.blocking(|| unsafe {
        match libc::pthread_create(&mut id, std::ptr::null(), thread, data.cast()) {
            0 => libc::pthread_join(id, &mut sum),
            error => error,
        }
    });
    if error != 0 {
        return Err(std::io::Error::from_raw_os_error(error).into());
    }
    println!("a thread of C's added the list up to {}", sum as u64);
    assert_eq!(sum as u64, 5050);
    Ok(())
}
