//! A `Vec` cannot hold fields: the collector does not trace it, and it moves them as it grows.
use gc_core::{Field, Trace};

#[derive(Trace)]
struct Node {
    children: Vec<Field<Node>>,
}

fn main() {}
