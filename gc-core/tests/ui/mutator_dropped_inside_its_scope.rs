//! A mutator cannot be dropped while one of its scopes is open.
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let node = s.alloc(Node::default()).unwrap();
        drop(mutator);
        println!("{}", node.value);
    });
}
