//! A local in a cell would outlive its scope.
use gc_core::{Local, Trace};

#[derive(Trace)]
struct Node<'s> {
    next: Local<'s, u64>,
}

fn main() {}
