//! A member must say whether it holds edges.
use gc_core::{Field, Trace};

struct Unknown {
    number: u64,
}

#[derive(Trace)]
struct Node {
    next: Field<Node>,
    unknown: Unknown,
}

fn main() {}
