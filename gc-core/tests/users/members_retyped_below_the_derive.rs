//! An attribute macro below a derive gives members types that the derive does not see.
use below::becomes;
use gc_core::{Field, Leaf, Trace};

#[derive(Trace)]
#[becomes(struct Retyped { value: Field<Retyped> })]
struct Retyped {
    value: usize,
}

#[derive(Trace)]
#[becomes(struct Boxed(Vec<Field<Boxed>>);)]
struct Boxed(Vec<u64>);

#[derive(Leaf)]
#[becomes(enum Variant { One(Field<Retyped>) })]
enum Variant {
    One(u64),
}

fn main() {}
