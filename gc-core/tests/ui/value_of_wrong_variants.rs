//! What a variant of a dynamic value cannot hold.
use gc_core::{Field, Leaf, Local, Plain, Trace};

#[derive(Leaf, Clone, Copy)]
struct Point(i32, i32);

#[derive(Trace, Clone, Copy)]
enum Wide<'s> {
    Nil,
    Integer(i64),
    Point(Point),
    Node(Local<'s, u64>),
}

#[derive(Trace)]
enum Owning<'s> {
    Nil,
    Text(String),
    Node(Local<'s, u64>),
    Edge(Field<u64>),
}

#[derive(Trace, Clone, Copy)]
enum Two<'s> {
    Nil,
    Both(Local<'s, u64>, u32),
}

#[derive(Plain, Clone, Copy)]
enum Shape {
    Dot,
    Circle(u8),
}

#[derive(Plain, Clone, Copy)]
struct Size(u16, u16);

fn main() {}
