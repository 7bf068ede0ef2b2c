//! What can be changed by `&self` is not what it is for a supertype: one would store what the other may not load.
use gc_core::{Array, Ephemeron, Field, Local, Scope, Weak, WeakArray, WeakMap};
use std::sync::Arc;

/// Takes any string. A subtype of the other one.
type Any = Arc<for<'a> fn(&'a str)>;
/// Takes strings that live for ever.
type Stat = Arc<fn(&'static str)>;

fn field(it: &Field<Any>) -> &Field<Stat> {
    it
}
fn array(it: &Array<Any>) -> &Array<Stat> {
    it
}
fn weak(it: &Weak<Any>) -> &Weak<Stat> {
    it
}
fn weak_array(it: &WeakArray<Any>) -> &WeakArray<Stat> {
    it
}
fn ephemeron_key(it: &Ephemeron<Any, u64>) -> &Ephemeron<Stat, u64> {
    it
}
fn ephemeron_value(it: &Ephemeron<u64, Any>) -> &Ephemeron<u64, Stat> {
    it
}
fn map_key(it: &WeakMap<Any, u64>) -> &WeakMap<Stat, u64> {
    it
}
fn map_value(it: &WeakMap<u64, Any>) -> &WeakMap<u64, Stat> {
    it
}
/// Nor by way of a handle.
fn handle<'s>(it: Local<'s, Field<Any>>) -> Local<'s, Field<Stat>> {
    it
}
/// A scope is no other scope, neither a longer nor a shorter one.
fn shorter<'a: 'b, 'b>(it: &'b Scope<'a>) -> &'b Scope<'b> {
    it
}
fn longer<'a: 'b, 'b>(it: &'b Scope<'b>) -> &'b Scope<'a> {
    it
}

fn main() {}
