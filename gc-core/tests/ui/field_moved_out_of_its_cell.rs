//! A member of a cell can be neither moved out nor assigned.
#![allow(unused)]
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let mut node = s.alloc(Node::default()).unwrap();
        let moved = node.next;
        let taken = std::mem::take(&mut node.next);
        node.value = 1;
    });
}
