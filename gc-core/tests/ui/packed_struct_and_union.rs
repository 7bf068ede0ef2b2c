//! Edges are aligned words, and known to be there.
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
