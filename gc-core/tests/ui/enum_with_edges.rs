//! An enum cannot hold edges in place: an edge lies at a fixed offset. It is a dynamic value, or a
//! leaf.
use gc_core::{Field, Trace};

#[derive(Trace)]
enum Tree {
    Empty,
    Branch(Field<Tree>),
}

fn main() {}
