//! A reference into a cell cannot leave the scope of the local that it came from.
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    let value: &u64 = mutator.with_scope(|s| {
        let node = s.alloc(Node::default()).unwrap();
        &node.as_ref().value
    });
    println!("{value}");
}
