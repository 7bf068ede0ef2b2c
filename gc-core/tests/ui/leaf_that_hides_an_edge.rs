//! A leaf has no edges, in no variant.
use gc_core::{Field, Leaf};

#[derive(Leaf)]
enum Hidden {
    Empty,
    Branch(Field<Hidden>),
}

fn main() {}
