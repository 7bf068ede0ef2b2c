//! Dynamic values: enums of references and plain data, one word in a cell.
#![deny(warnings)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::hazard;
use gc_core::{Array, Bytes, Fixnum, Heap, Local, Mutator, Plain, Static, Trace, ValueField};

#[derive(Debug)]
struct Builtin(&'static str);
static CAR: Builtin = Builtin("car");

#[derive(Plain, Clone, Copy, Debug, PartialEq)]
struct Symbol(u32);

#[derive(Plain, Clone, Copy, Debug, PartialEq)]
enum Token {
    Plus,
    Minus,
    Times,
}

#[derive(Trace, Clone, Copy, Debug)]
enum Value<'s> {
    Pair(Local<'s, Pair>),
    Float(f64),
    Unbound,
    Nil,
    Bool(bool),
    Int(i32),
    Byte { byte: u8 },
    Char(char),
    Wide(Fixnum),
    Builtin(Static<Builtin>),
    Symbol(Symbol),
    Token(Token),
    Two((i16, u8)),
    Text(Local<'s, Bytes>),
    Table(Local<'s, Array<Pair>>),
}

type Slot = ValueField<Value<'static>>;

#[derive(Trace, Default, Debug)]
struct Pair {
    car: Slot,
    cdr: Slot,
}

fn heap() -> Heap {
    Heap::builder().reserve(1 << 30).build().unwrap()
}

/// Each kind of plain data is read back as it was stored, at its bounds.
#[test]
fn plain_data_is_read_back() {
    assert_eq!(size_of::<Pair>(), 16);
    let heap = heap();
    heap.attach().unwrap().with_scope(|s| {
        let pair = s.alloc(Pair::default()).unwrap();
        assert!(matches!(pair.car.get(s), Value::Unbound));
        macro_rules! same {
            ($($variant:ident: $($value:expr),+;)*) => {$($(
                pair.car.set(s, Value::$variant($value));
                match pair.car.get(s) {
                    Value::$variant(read) => assert_eq!(read, $value),
                    other => panic!("{other:?} instead of {:?}", $value),
                }
                match s.hold_value(Value::$variant($value)) {
                    Value::$variant(read) => assert_eq!(read, $value),
                    other => panic!("{other:?} instead of {:?}", $value),
                }
            )+)*};
        }
        same! {
            Bool: true, false;
            Int: 0, 1, -1, i32::MIN, i32::MAX;
            Char: '\0', 'x', char::MAX;
            Wide: Fixnum::MIN, Fixnum::MAX, Fixnum::wrapping(0), Fixnum::wrapping(-1);
            Symbol: Symbol(0), Symbol(u32::MAX);
            Token: Token::Plus, Token::Minus, Token::Times;
            Two: (-1, 255), (i16::MIN, 0), (i16::MAX, 7);
            Builtin: Static(&CAR);
            Float: 0.0, -0.0, 1.5, f64::MAX, f64::MIN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, f64::from_bits(1);
        }
        let Value::Builtin(builtin) = s.hold_value(Value::Builtin(Static(&CAR))) else {
            unreachable!()
        };
        assert_eq!(builtin.0.0, "car");
        pair.car.set(s, Value::Byte { byte: 200 });
        assert!(matches!(pair.car.get(s), Value::Byte { byte: 200 }));
        pair.car.set(s, Value::Float(-0.0));
        assert!(matches!(pair.car.get(s), Value::Float(zero) if zero.is_sign_negative()));
        // Every NaN is one NaN, and none is taken for another variant.
        for bits in [0x7ff8 << 48, 0xfff8 << 48, u64::MAX, 0x7ff0_0000_0000_0001, 0xfff2 << 48] {
            pair.car.set(s, Value::Float(f64::from_bits(bits)));
            assert!(matches!(pair.car.get(s), Value::Float(nan) if nan.is_nan()));
        }
        pair.car.set(s, Value::Nil);
        assert!(matches!(pair.car.get(s), Value::Nil));
        pair.car.clear(s);
        assert!(matches!(pair.car.get(s), Value::Unbound));
    });
}

/// A list of `n` pairs, whose cars are texts, numbers, and tables that lead back to their pair.
fn list<'s>(s: &gc_core::Scope<'s>, n: usize) -> Value<'s> {
    let mut list = Value::Nil;
    for i in 0..n {
        let pair = s.alloc(Pair::default()).unwrap();
        pair.car.set(
            s,
            match i % 4 {
                0 => Value::Text(s.alloc_bytes(i.to_string().as_bytes()).unwrap()),
                1 => Value::Float(i as f64),
                2 => {
                    let table = s.alloc_array::<Pair>(1 + i % 3).unwrap();
                    table.set(0, s, &pair);
                    Value::Table(table)
                }
                _ => Value::Int(i as i32),
            },
        );
        pair.cdr.set(s, list);
        list = Value::Pair(pair);
    }
    list
}

/// Panics unless `value` is what [`list`] made from `n`.
fn check<'s>(s: &gc_core::Scope<'s>, mut value: Value<'s>, n: usize) {
    for i in (0..n).rev() {
        let Value::Pair(pair) = value else {
            panic!("{value:?} instead of pair {i}")
        };
        match pair.car.get(s) {
            Value::Text(text) => assert_eq!(text.as_str().unwrap(), i.to_string()),
            Value::Float(number) => assert_eq!(number, i as f64),
            Value::Table(table) => assert!(table.get(0, s).unwrap().same(pair)),
            Value::Int(number) => assert_eq!(number, i as i32),
            other => panic!("{other:?}"),
        }
        value = pair.cdr.get(s);
    }
    assert!(matches!(value, Value::Nil));
}

fn keeps(heap: &Heap, mutator: &Mutator) {
    mutator.with_scope(|s| {
        let value = list(s, 1000);
        mutator.collect();
        check(s, value, 1000);
        let holder = s.alloc(Pair::default()).unwrap();
        holder.cdr.set(s, value);
        let root = heap.root(&holder);
        mutator.with_scope(|s| {
            mutator.collect();
            check(s, root.cdr.get(s), 1000);
            check(s, root.cdr.replace(s, Value::Nil), 1000);
            assert!(matches!(root.cdr.take(s), Value::Nil));
        });
    });
}

/// References in values keep their cells alive, in heaps of all kinds.
#[test]
fn references_keep_their_cells() {
    let heaps = [
        Heap::builder(),
        Heap::builder().exact(true),
        Heap::builder().verify(true),
        Heap::builder().verify(true).exact(true),
        Heap::builder().young_collections(gc_core::Young::Always),
    ];
    for builder in heaps {
        let heap = builder.reserve(1 << 30).build().unwrap();
        let mutator = heap.attach().unwrap();
        keeps(&heap, &mutator);
    }
}

#[derive(Trace, Clone, Copy)]
enum Shared<'s> {
    Nothing,
    Big(Local<'s, Big>),
}

/// A large cell, so that a freed one is soon used again.
#[derive(Trace)]
struct Big {
    next: ValueField<Shared<'static>>,
    number: usize,
    _room: [u64; 250],
}

fn big(number: usize) -> Big {
    Big {
        next: ValueField::null(),
        number,
        _room: [0; 250],
    }
}

/// In an exact heap, a cell that is loaded as a value lives until it has a handle, although another
/// thread changes the field. With `no-window` planted, it is freed.
#[test]
fn h72_a_cell_lives_between_a_value_and_its_handle() {
    hazard(
        "h72_a_cell_lives_between_a_value_and_its_handle",
        "no-window",
        || {
            let builder = Heap::builder().reserve(1 << 30).exact(true);
            let heap = &builder.build().unwrap();
            let done = &AtomicBool::new(false);
            let mutator = heap.attach().unwrap();
            let shared = &mutator.with_scope(|s| heap.root(&s.alloc(big(0)).unwrap()));
            drop(mutator);
            std::thread::scope(|threads| {
                threads.spawn(move || {
                    let mutator = heap.attach().unwrap();
                    for number in 0.. {
                        mutator.with_scope(|s| {
                            shared
                                .next
                                .set(s, Shared::Big(s.alloc(big(number)).unwrap()));
                        });
                        if done.load(Relaxed) {
                            break;
                        }
                    }
                });
                threads.spawn(move || {
                    let mutator = heap.attach().unwrap();
                    while !done.load(Relaxed) {
                        mutator.with_scope(|s| {
                            let found: Vec<_> = (0..60)
                                .filter_map(|_| match shared.next.get(s) {
                                    Shared::Big(big) => Some((big, big.number)),
                                    Shared::Nothing => None,
                                })
                                .collect();
                            for (big, number) in found {
                                assert_eq!(big.number, number, "its cell was given to another");
                            }
                        });
                    }
                });
                let until = Instant::now() + Duration::from_secs(5);
                for _ in 0..3000 {
                    if Instant::now() > until {
                        break;
                    }
                    heap.collect();
                    std::thread::sleep(Duration::from_micros(100));
                }
                done.store(true, Relaxed);
            });
        },
    );
}
