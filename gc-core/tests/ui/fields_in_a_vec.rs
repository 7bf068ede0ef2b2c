//! The collector does not look into a Vec: its memory moves when it grows.
use gc_core::{Field, Trace};

#[derive(Trace)]
struct Node {
    children: Vec<Field<Node>>,
}

fn main() {}
