//! The type of each member must implement `Trace`.
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
