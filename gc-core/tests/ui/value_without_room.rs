//! Enums whose variants have no room in a word.
use gc_core::{Fixnum, Local, Plain, Trace};

#[derive(Trace, Clone, Copy)]
enum TwoDoubles<'s> {
    Nil,
    Float(f64),
    Time(f64),
    Node(Local<'s, u64>),
}

#[derive(Trace, Clone, Copy)]
enum NoNull<'s> {
    Float(f64),
    Node(Local<'s, u64>),
}

#[derive(Trace, Clone, Copy)]
enum NullReference<'s> {
    Nil,
    #[trace(null)]
    Node(Local<'s, u64>),
}

#[derive(Trace, Clone, Copy)]
enum Seventeen<'s> {
    Nil,
    A(Local<'s, u8>),
    B(Local<'s, u8>),
    C(Local<'s, u8>),
    D(Local<'s, u8>),
    E(Local<'s, u8>),
    F(Local<'s, u8>),
    G(Local<'s, u8>),
    H(Local<'s, u8>),
    I(Local<'s, u8>),
    J(Local<'s, u8>),
    K(Local<'s, u8>),
    L(Local<'s, u8>),
    M(Local<'s, u8>),
    N(Local<'s, u8>),
    O(Local<'s, u8>),
    P(Local<'s, u8>),
    Q(Local<'s, u8>),
}

#[derive(Plain, Clone, Copy)]
struct TooWide((Fixnum, bool));

#[derive(Trace, Clone, Copy)]
enum Wide<'s> {
    Nil,
    Wide(TooWide),
    Node(Local<'s, u64>),
}

fn main() {}
