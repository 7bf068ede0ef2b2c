//! A local cannot leave its scope by way of a variable outside.
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    let mut kept = Vec::new();
    mutator.with_scope(|s| kept.push(s.alloc(Node::default()).unwrap()));
    println!("{}", kept[0].value);
}
