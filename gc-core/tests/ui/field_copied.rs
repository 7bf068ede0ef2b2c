//! A field cannot be copied: an edge has one place.
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let node = s.alloc(Node::default()).unwrap();
        let copied = Field::clone(&node.next);
    });
}
