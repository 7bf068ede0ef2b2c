//! An edge leads to what can lie in a cell.
use gc_core::{Field, Trace};

struct Unknown;

#[derive(Trace)]
struct Node {
    next: Field<Unknown>,
}

fn main() {}
