//! Threads share cells, so members must be Send and Sync; an Rc or a Cell is not.
use gc_core::{Field, Trace};
use std::cell::Cell;

#[derive(Trace)]
struct Node {
    next: Field<Node>,
    count: Cell<u32>,
}

fn main() {}
