//! Nor into anything else that could move a field while a marker reads it.
use gc_core::{Field, Trace};
use std::sync::Mutex;

#[derive(Trace)]
struct Node {
    parent: Option<Field<Node>>,
    first: Mutex<Field<Node>>,
    pair: (Field<Node>, u32),
}

fn main() {}
