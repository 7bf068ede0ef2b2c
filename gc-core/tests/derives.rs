//! Types that the derives accept: `Self` in members, generics, tuples, packed and empty types, and
//! macros and aliases in place of types.
#![deny(warnings)]
#![allow(dead_code)]
use gc_core::{Array, Field, Heap, Leaf, Trace, WeakMap};
use std::collections::HashMap;

use gc_preempt::StrictAllocator;

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

#[derive(Leaf)]
struct Chain {
    next: Option<Box<Self>>,
    all: Vec<Self>,
}
#[derive(Leaf)]
enum Tree {
    Leaf,
    Pair(Box<Self>, Box<Tree>),
    Named {
        name: String,
        children: HashMap<u32, Self>,
    },
}
#[derive(Leaf)]
struct Generic<T, const N: usize>(Option<Box<Self>>, [T; N])
where
    T: Clone;
#[derive(Leaf)]
enum Either<A, B> {
    Left(A),
    Right { right: B, more: Option<Box<Self>> },
}
#[derive(Leaf)]
enum Never {}
#[derive(Leaf, Clone, Copy)]
#[repr(C, packed)]
struct Packed(u8, u64);
#[derive(Leaf)]
struct Unit;
#[derive(Leaf)]
struct Unsized {
    length: usize,
    text: [u8],
}
macro_rules! number {
    () => {
        u64
    };
}
#[derive(Leaf)]
struct ByMacro(number!(), r#Raw);
type r#Raw = (u8, bool);

#[derive(Trace, Default)]
struct Node {
    next: Field<Self>,
    many: [Field<Self>; 3],
    table: Field<Array<Self>>,
    map: WeakMap<Self, Self>,
    r#type: number!(),
}
#[derive(Trace)]
struct Wrapped<T: Clone>(Field<Wrapped<T>>, T, Inner<T>);
#[derive(Trace)]
struct Inner<T>(Field<Self>, T);

/// Values of the derived types can be allocated, and their fields lead to cells.
#[test]
fn the_derives_take_what_they_should() {
    let heap = Heap::builder().reserve(1 << 30).build().unwrap();
    heap.attach().unwrap().with_scope(|s| {
        let node = s.alloc(Node::default()).unwrap();
        node.many[1].set(s, &node);
        let inner = Inner(Field::null(), 5u64);
        let wrapped = s.alloc(Wrapped(Field::null(), 7u64, inner)).unwrap();
        wrapped.0.set(s, &wrapped);
        s.alloc(Generic(None, ["a".to_string()])).unwrap();
        s.alloc(Either::<u8, u8>::Left(1)).unwrap();
        s.alloc(Packed(1, 2)).unwrap();
    });
}
