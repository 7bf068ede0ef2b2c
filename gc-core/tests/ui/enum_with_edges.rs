//! Edges lie at fixed offsets.
use gc_core::{Field, Trace};

#[derive(Trace)]
enum Tree {
    Empty,
    Branch(Field<Tree>),
}

fn main() {}
