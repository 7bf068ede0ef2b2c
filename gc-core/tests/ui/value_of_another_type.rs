//! A field takes handles of its own type only.
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let node = s.alloc(Node::default()).unwrap();
        let number = s.alloc(7u64).unwrap();
        node.next.set(s, &number);
        node.next.set(s, &Node::default());
    });
}
