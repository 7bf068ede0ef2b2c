//! A leaf has no edges in any variant.
use gc_core::{Field, Leaf};

#[derive(Leaf)]
enum Hidden {
    Empty,
    Branch(Field<Hidden>),
}

fn main() {}
