//! A `Gc` would dangle in a `Vec`, so safe code can neither make one nor put one into a cell.
use gc_core::{Gc, Heap, Trace};

fn may_lie_in_a_cell<T: Trace>() {}

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    let all: Vec<Gc<u64>> = vec![mutator.alloc_gc(7u64).unwrap()];
    may_lie_in_a_cell::<Vec<Gc<u64>>>();
}
