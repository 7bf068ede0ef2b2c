//! Packed structs and unions are refused: an edge is aligned, and always present.
use gc_core::{Leaf, Trace};

#[derive(Trace)]
#[repr(C, packed)]
struct Packed {
    tag: u8,
    number: u64,
}

#[derive(Leaf, Clone, Copy)]
union Either {
    one: u64,
    two: f64,
}

fn main() {}
