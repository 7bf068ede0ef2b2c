//! Slices: elements with edges and plain data side by side in a cell.
#![deny(warnings)]

mod common;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use gc_core::{
    Bytes, Field, Heap, HeapBuilder, Leaf, Local, Slice, Trace, ValueField, Values, Young,
};

#[derive(Trace, Clone, Copy)]
enum Value<'s> {
    Nil,
    Number(f64),
    Text(Local<'s, Bytes>),
    Vector(Local<'s, Values<Value<'static>>>),
}

/// Plain data, edges, and a value.
#[derive(Trace, Default)]
struct Slot {
    hash: AtomicU64,
    key: Field<Bytes>,
    other: AtomicU64,
    value: ValueField<Value<'static>>,
    more: AtomicU64,
}

/// An element of more than 64 words, with edges at both ends.
#[derive(Trace)]
struct Wide {
    first: Field<Bytes>,
    room: [u64; 70],
    last: Field<Bytes>,
}

fn heaps() -> [HeapBuilder; 4] {
    [
        Heap::builder(),
        Heap::builder().exact(true).verify(true),
        Heap::builder().verify(true),
        Heap::builder().young_collections(Young::Always),
    ]
    .map(|builder| builder.reserve(1 << 30))
}

/// All edges of slices of many lengths keep what they lead to, also where the collector follows a
/// large slice in parts.
#[test]
fn edges_of_elements_keep_their_cells() {
    for builder in heaps() {
        let heap = builder.build().unwrap();
        let mutator = heap.attach().unwrap();
        for len in [0, 1, 3, 7, 100, 5000] {
            let root = mutator.with_scope(|s| {
                let slots = s.alloc_slice::<Slot>(len).unwrap();
                let wide = |_| Wide {
                    first: Field::null(),
                    room: [u64::MAX; 70],
                    last: Field::null(),
                };
                let wides = s.alloc_slice_with(len / 7, wide).unwrap();
                for (i, slot) in slots.iter().enumerate() {
                    mutator.with_scope(|s| {
                        let text = |n: usize| s.alloc_bytes(n.to_string().as_bytes()).unwrap();
                        slot.key.set(s, &text(i));
                        slot.value.set(
                            s,
                            match i % 3 {
                                0 => Value::Text(text(i + 1)),
                                1 => Value::Number(i as f64),
                                _ => Value::Nil,
                            },
                        );
                        slot.hash.store(i as u64, Relaxed);
                        if let Some(wide) = wides.get(i) {
                            wide.first.set(s, &text(i + 2));
                            wide.last.set(s, &text(i + 3));
                        }
                    });
                }
                (heap.root(&slots), heap.root(&wides))
            });
            mutator.collect();
            mutator.collect();
            let (slots, wides) = root;
            assert_eq!((slots.len(), wides.len()), (len, len / 7));
            mutator.with_scope(|s| {
                for (i, slot) in slots.iter().enumerate() {
                    let key = slot.key.get(s).unwrap();
                    assert_eq!(key.as_str().unwrap(), i.to_string());
                    match slot.value.get(s) {
                        Value::Text(text) => {
                            assert_eq!(text.as_str().unwrap(), (i + 1).to_string())
                        }
                        Value::Number(number) => assert_eq!(number, i as f64),
                        Value::Nil => assert_eq!(i % 3, 2),
                        Value::Vector(_) => unreachable!(),
                    }
                    assert_eq!(slot.hash.load(Relaxed), i as u64);
                }
                for (i, wide) in wides.iter().enumerate() {
                    let text =
                        |field: &Field<Bytes>| field.get(s).unwrap().as_str().unwrap().to_owned();
                    assert_eq!(text(&wide.first), (i + 2).to_string());
                    assert_eq!(text(&wide.last), (i + 3).to_string());
                    assert_eq!(wide.room, [u64::MAX; 70]);
                }
            });
        }
    }
}

/// A number of an element that is a cell's address does not keep the cell.
#[test]
fn plain_data_of_elements_is_no_edge() {
    let heap = Heap::builder()
        .reserve(1 << 30)
        .exact(true)
        .build()
        .unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let slots = s.alloc_slice::<Slot>(50).unwrap();
        let weak = mutator.with_scope(|inner| {
            let text = inner.alloc_bytes(b"dies").unwrap();
            let address = (&raw const *text) as u64;
            for slot in slots.iter() {
                for word in [&slot.hash, &slot.other, &slot.more] {
                    word.store(address, Relaxed);
                }
            }
            s.hold(&inner.alloc_weak(&text).unwrap())
        });
        mutator.collect();
        assert!(weak.upgrade(s).is_none());
        assert_ne!(slots[49].more.load(Relaxed), 0);
    });
}

/// Values lie side by side; a vector grows, and is filled.
#[test]
fn vectors_of_values() {
    let heap = Heap::builder()
        .reserve(1 << 30)
        .verify(true)
        .build()
        .unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let vector = s.alloc_slice::<ValueField<Value>>(100).unwrap();
        assert!(
            vector
                .iter()
                .all(|value| matches!(value.get(s), Value::Nil))
        );
        let text = s.alloc_bytes(b"text").unwrap();
        vector.fill(10..20, s, Value::Text(text));
        vector.fill(20.., s, Value::Vector(vector));
        let longer = vector.grown(1000, s).unwrap();
        let shorter = vector.grown(15, s).unwrap();
        mutator.collect();
        assert_eq!((longer.len(), shorter.len()), (1000, 15));
        for (i, value) in longer.iter().enumerate() {
            match value.get(s) {
                Value::Text(same) => assert!((10..20).contains(&i) && same.same(text)),
                Value::Vector(same) => assert!((20..100).contains(&i) && same.same(vector)),
                Value::Nil => assert!(!(10..100).contains(&i)),
                Value::Number(_) => unreachable!(),
            }
        }
        assert!(matches!(shorter[14].get(s), Value::Text(same) if same.same(text)));
        // Plain data may be there from the beginning.
        let numbers = s
            .alloc_slice_with(1000, |i| ValueField::of(Value::Number(i as f64)))
            .unwrap();
        mutator.collect();
        assert!(matches!(numbers[999].get(s), Value::Number(999.0)));
    });
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

#[derive(Leaf)]
struct Counted(String);

impl Drop for Counted {
    fn drop(&mut self) {
        DROPPED.fetch_add(self.0.len(), Relaxed);
    }
}

#[derive(Trace)]
struct Named {
    name: Counted,
    target: Field<Bytes>,
    value: ValueField<Value<'static>>,
}

/// Elements that need `Drop` are dropped once their slice has died, each once.
#[test]
fn elements_are_dropped_with_their_slice() {
    let heap = Heap::builder()
        .reserve(1 << 30)
        .exact(true)
        .build()
        .unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let named = |i: usize| Named {
            name: Counted("x".repeat(i)),
            target: Field::null(),
            value: ValueField::of(Value::Number(1.0)),
        };
        let slice = s.alloc_slice_with(10, named).unwrap();
        s.alloc_slice_with(0, named).unwrap();
        let text = s.alloc_bytes(b"target").unwrap();
        slice[5].target.set(s, &text);
        slice[6].value.set(s, Value::Text(text));
        mutator.collect();
        assert_eq!((mutator.drop_dead_values(), DROPPED.load(Relaxed)), (0, 0));
        assert_eq!(slice[9].name.0.len(), 9);
    });
    mutator.collect();
    assert_eq!((mutator.drop_dead_values(), DROPPED.load(Relaxed)), (1, 45));
    mutator.collect();
    assert_eq!((mutator.drop_dead_values(), DROPPED.load(Relaxed)), (0, 45));
}

/// Elements that are aligned to 16 bytes lie at such addresses, and elements may have no size.
#[test]
fn elements_of_any_alignment() {
    #[derive(Trace, Default)]
    #[repr(align(16))]
    struct Aligned(u8, Field<Bytes>);
    let heap = Heap::builder()
        .reserve(1 << 30)
        .verify(true)
        .build()
        .unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let slice = s.alloc_slice::<Aligned>(9).unwrap();
        assert!((&raw const slice[1]).addr().is_multiple_of(16));
        slice[8].1.set(s, &s.alloc_bytes(b"last").unwrap());
        let none: Local<'_, Slice<()>> = s.alloc_slice(1000).unwrap();
        let bytes = s.alloc_slice_with(3, |i| i as u8).unwrap();
        mutator.collect();
        assert_eq!(&slice[8].1.get(s).unwrap()[..], b"last");
        assert_eq!((none.len(), &bytes[..]), (1000, &[0, 1, 2][..]));
        assert!(s.alloc_slice::<u64>(usize::MAX / 4).is_err());
    });
}

/// Strings and bytes are built in place; a buffer changes under several threads.
#[test]
fn strings_and_buffers() {
    let heap = Heap::builder()
        .reserve(1 << 30)
        .verify(true)
        .build()
        .unwrap();
    let mutator = heap.attach().unwrap();
    mutator.with_scope(|s| {
        let (empty, text) = (s.alloc_str("").unwrap(), s.alloc_str("äöü").unwrap());
        let both = s.alloc_concat(&[&text, "-", &empty, &text]).unwrap();
        // The closure may allocate and collect.
        let bytes = s
            .alloc_bytes_with(1000, |bytes| {
                bytes.fill(1);
                mutator.collect();
                s.alloc_bytes(&[9; 1000]).unwrap();
                bytes[500..].fill(2);
            })
            .unwrap();
        mutator.collect();
        assert_eq!((&**empty, &**both), ("", "äöü-äöü"));
        assert_eq!(format!("{text} {text:?}"), "äöü \"äöü\"");
        assert!(bytes[..500] == [1; 500] && bytes[500..] == [2; 500]);
        let buffer = heap.root(&s.alloc_buffer(6).unwrap());
        std::thread::scope(|threads| {
            for (at, part) in [(0, b"abc"), (3, b"def")] {
                let buffer = &buffer;
                threads.spawn(move || buffer.write_at(at, part));
            }
        });
        let mut all = [0; 6];
        buffer.read_at(0, &mut all);
        assert_eq!(&all, b"abcdef");
        let beyond = || buffer.write_at(4, b"ghi");
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(beyond)).is_err());
    });
}
