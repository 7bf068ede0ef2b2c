//! A local cannot be sent to another thread.
use gc_core::{Field, Heap, Trace};

include!("shared/node.rs");

fn elsewhere(_: impl FnOnce() + Send) {}

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let node = s.alloc(Node::default()).unwrap();
        elsewhere(move || println!("{}", node.value));
    });
}
