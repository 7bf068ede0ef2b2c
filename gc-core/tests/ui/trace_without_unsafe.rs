//! An implementation of `Trace` by hand is unsafe: it says where the edges are.
use gc_core::Trace;

struct Node(u64);

impl Trace for Node {
    fn edges(_: &mut impl FnMut(usize)) {}
}

fn main() {}
