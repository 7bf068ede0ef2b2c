//! A value that was loaded in a scope does not leave it.
use gc_core::{Heap, Local, Trace, ValueField};

#[derive(Trace, Clone, Copy)]
enum Value<'s> {
    Nil,
    Pair(Local<'s, Pair>),
}

#[derive(Trace, Default)]
struct Pair(ValueField<Value<'static>>);

fn main() {
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    let value = mutator.with_scope(|s| {
        let pair = s.alloc(Pair::default()).unwrap();
        pair.0.get(s)
    });
}
