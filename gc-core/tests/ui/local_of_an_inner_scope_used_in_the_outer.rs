//! A local of an inner scope cannot be used in the outer one: `hold` makes one that can.
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|outer| {
        let mut last = outer.alloc(Node::default()).unwrap();
        mutator.with_scope(|inner| last = inner.alloc(Node::default()).unwrap());
        println!("{}", last.value);
    });
}
