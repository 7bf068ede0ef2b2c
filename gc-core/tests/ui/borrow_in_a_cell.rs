//! A value in the heap cannot borrow from outside of it.
use gc_core::Heap;

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    let text = String::from("short-lived");
    mutator.with_scope(|s| s.alloc(text.as_str()).is_ok());
}
