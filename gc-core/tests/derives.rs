//! Types that the derives accept: `Self` in members, generics, tuples, packed and empty types, and
//! macros and aliases in place of types.
#![deny(warnings)]
#![allow(dead_code)]
use gc_core::{Array, Field, Fixnum, Heap, Leaf, Local, Plain, Trace, ValueField, WeakMap};
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
    ($type:ty) => {
        $type
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

/// A word of a reference or a wide number, whatever the reference leads to.
#[derive(Trace, Clone, Copy)]
enum Word<'s, T: Clone>
where
    T: Copy,
{
    Number(Fixnum),
    Cell(Local<'s, T>),
}
#[derive(Trace, Clone, Copy, Default)]
enum Marked<'s> {
    First,
    #[default]
    Second,
    Third {},
    Fourth(),
    Fifth {
        r#type: Local<'s, u64>,
    },
}
#[derive(Trace, Clone, Copy)]
enum Counting<'s> {
    Nothing,
    #[trace(null)]
    Count(number!(u32)),
    Cell(Local<'s, u64>),
}
#[derive(Plain, Clone, Copy, Debug, PartialEq)]
enum One {
    Only,
}
#[derive(Plain, Clone, Copy, Debug, PartialEq)]
struct Pair {
    both: (One, u16),
}

/// Enums with type parameters, marked variants and variants of all forms are dynamic values.
#[test]
fn enums_are_dynamic_values() {
    #[derive(Trace, Default)]
    struct Fields(
        ValueField<Word<'static, u64>>,
        ValueField<Marked<'static>>,
        ValueField<Counting<'static>>,
    );
    let heap = Heap::builder().reserve(1 << 30).build().unwrap();
    heap.attach().unwrap().with_scope(|s| {
        let fields = s.alloc(Fields::default()).unwrap();
        let number = s.alloc(7u64).unwrap();
        assert!(matches!(fields.0.get(s), Word::Number(zero) if zero.get() == 0));
        assert!(matches!(fields.1.get(s), Marked::Second));
        assert!(matches!(fields.2.get(s), Counting::Count(0)));
        fields.0.set(s, Word::Cell(number));
        assert!(matches!(fields.0.get(s), Word::Cell(same) if same.same(number)));
        fields.0.set(s, Word::Number(Fixnum::MIN));
        assert!(matches!(fields.0.get(s), Word::Number(Fixnum::MIN)));
        for value in [Marked::First, Marked::Third {}, Marked::Fourth()] {
            fields.1.set(s, value);
            let name = |value| core::mem::discriminant::<Marked<'_>>(&value);
            assert_eq!(name(fields.1.get(s)), name(value));
        }
        fields.1.set(s, Marked::Fifth { r#type: number });
        assert!(matches!(fields.1.get(s), Marked::Fifth { r#type } if *r#type == 7));
        fields.2.set(s, Counting::Nothing);
        assert!(matches!(fields.2.get(s), Counting::Nothing));
    });
    let pair = Pair {
        both: (One::Only, 77),
    };
    assert_eq!(Pair::from_bits(pair.into_bits()), pair);
    assert_eq!((One::BITS, Pair::BITS), (0, 16));
}

/// What the standard library gives to a program may lie in a cell.
#[test]
fn files_channels_and_functions_are_leaves() {
    use std::sync::{Condvar, LazyLock, Mutex, mpsc};

    #[derive(Leaf)]
    struct Held {
        send: mpsc::Sender<u64>,
        receive: Mutex<mpsc::Receiver<u64>>,
        call: Box<dyn Fn(u64) -> u64 + Send + Sync>,
        add: fn(u64, u64, u64) -> u64,
        lazy: LazyLock<Vec<u64>>,
        changed: Condvar,
        socket: std::os::unix::net::UnixStream,
        file: Option<std::os::fd::OwnedFd>,
        children: Vec<std::process::Child>,
        pipe: std::io::PipeReader,
        thread: Option<std::thread::JoinHandle<u64>>,
        error: Option<Box<dyn std::error::Error + Send + Sync>>,
    }

    let (send, receive) = mpsc::channel();
    let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let held = Held {
        send,
        receive: Mutex::new(receive),
        call: Box::new(|n| n + 1),
        add: |a, b, c| a + b + c,
        lazy: LazyLock::new(|| vec![3]),
        changed: Condvar::new(),
        socket,
        file: Some(peer.into()),
        children: Vec::new(),
        pipe: std::io::pipe().unwrap().0,
        thread: None,
        error: None,
    };
    let heap = Heap::builder().build().unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let held = s.alloc(held).unwrap();
        held.send
            .send((held.call)((held.add)(1, 2, held.lazy[0])))
            .unwrap();
        assert_eq!(held.receive.lock().unwrap().recv(), Ok(7));
        held.changed.notify_all();
        assert!(held.socket.peer_addr().is_ok() && held.file.is_some());
        assert!(held.children.is_empty() && held.thread.is_none() && held.error.is_none());
        let _: &std::io::PipeReader = &held.pipe;
    });
}
