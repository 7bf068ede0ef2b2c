//! An edge leads only to a type that implements `Trace`.
use gc_core::{Field, Trace};

struct Unknown;

#[derive(Trace)]
struct Node {
    next: Field<Unknown>,
}

fn main() {}
