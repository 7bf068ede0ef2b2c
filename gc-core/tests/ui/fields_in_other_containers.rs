//! No container can hold fields if it could move them while a marker reads them.
use gc_core::{Field, Trace};
use std::sync::Mutex;

#[derive(Trace)]
struct Node {
    parent: Option<Field<Node>>,
    first: Mutex<Field<Node>>,
    pair: (Field<Node>, u32),
}

fn main() {}
