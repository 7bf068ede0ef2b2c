//! A field holds the values of one enum: another enum has other types under the same numbers.
use gc_core::{Bytes, Local, Scope, Trace, ValueField};

#[derive(Trace, Clone, Copy)]
enum Value<'s> {
    Nil,
    Pair(Local<'s, Pair>),
}

#[derive(Trace, Clone, Copy)]
enum Other<'s> {
    Nil,
    Text(Local<'s, Bytes>),
}

#[derive(Trace, Default)]
struct Pair(ValueField<Value<'static>>);

fn store<'s>(s: &Scope<'s>, pair: &Pair) {
    pair.0.set(s, Other::Nil);
}

fn reinterpret(pair: &Pair) -> &ValueField<Other<'static>> {
    &pair.0
}

fn main() {}
