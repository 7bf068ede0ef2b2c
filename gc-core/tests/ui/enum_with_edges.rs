//! An enum cannot hold edges: an edge lies at a fixed offset.
use gc_core::{Field, Trace};

#[derive(Trace)]
enum Tree {
    Empty,
    Branch(Field<Tree>),
}

fn main() {}
