//! Types that `&self` can change are invariant: a value stored as one type is loaded as another.
use gc_core::{Array, Ephemeron, Field, Local, Scope, Weak, WeakArray, WeakMap};
use std::sync::Arc;

/// Takes any string. A subtype of `Stat`.
type Any = Arc<for<'a> fn(&'a str)>;
/// Takes `'static` strings only.
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
/// The same through a handle.
fn handle<'s>(it: Local<'s, Field<Any>>) -> Local<'s, Field<Stat>> {
    it
}
/// A scope's lifetime can be neither shortened nor lengthened.
fn shorter<'a: 'b, 'b>(it: &'b Scope<'a>) -> &'b Scope<'b> {
    it
}
fn longer<'a: 'b, 'b>(it: &'b Scope<'b>) -> &'b Scope<'a> {
    it
}

fn main() {}
