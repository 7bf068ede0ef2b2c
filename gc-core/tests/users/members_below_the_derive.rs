//! An attribute macro below a derive adds members that the derive does not see. Their edges would
//! be lost.
use below::becomes;
use gc_core::{Field, Leaf, Trace};

#[derive(Trace)]
#[becomes(struct Named { value: u64, added_to_trace: Field<Named> })]
struct Named {
    value: u64,
}

#[derive(Trace)]
#[becomes(struct Tuple(u64, Field<Named>);)]
struct Tuple(u64);

#[derive(Trace)]
#[becomes(struct Generic<T> { value: T, added_to_generic: Field<Generic<T>> })]
struct Generic<T> {
    value: T,
}

#[derive(Leaf)]
#[becomes(struct Leaves { value: u64, added_to_leaf: Field<Named> })]
struct Leaves {
    value: u64,
}

#[derive(Leaf)]
#[becomes(enum Variant { One { value: u64, added_to_variant: Field<Named> } })]
enum Variant {
    One { value: u64 },
}

#[derive(Leaf)]
#[becomes(enum Added { Old(u64), New(Field<Named>) })]
enum Added {
    Old(u64),
}

fn main() {}
