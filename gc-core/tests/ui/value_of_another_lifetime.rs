//! A variant's local has the lifetime of the enum: otherwise a load would make a handle that
//! outlives its scope.
use gc_core::{Local, Trace};

#[derive(Trace, Clone, Copy)]
enum Value<'s> {
    Nil,
    Node(Local<'s, u64>),
    Kept(Local<'static, u64>),
}

#[derive(Trace, Clone, Copy)]
enum Two<'s, 't> {
    Nil,
    Node(Local<'s, u64>),
    Other(Local<'t, u64>),
}

fn main() {}
