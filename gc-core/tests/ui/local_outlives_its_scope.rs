//! A local cannot leave its scope as the closure's result.
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    let node = mutator.scope(|s| s.alloc(Node::default())).unwrap();
    println!("{}", node.value);
}
