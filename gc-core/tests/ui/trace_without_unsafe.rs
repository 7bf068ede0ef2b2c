//! Who says by hand where the edges are, says so unsafely.
use gc_core::Trace;

struct Node(u64);

impl Trace for Node {
    fn edges(_: &mut impl FnMut(usize)) {}
}

fn main() {}
