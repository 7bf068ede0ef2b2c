//! Large objects: reserved, published, cancelled, and in memory that was used before.

use super::*;

/// A large object resolves to nothing before it is published and after it died.
#[test]
fn a_large_object_is_invisible_until_it_is_published() {
    let mut toy = Toy::small();
    let kind = leaf(&toy);
    let LargeStep::Reserved(mut large) = toy.runs.reserve_large(&toy.space, kind, 1 << 20).unwrap()
    else {
        panic!()
    };
    let range = toy.space.reserved();
    let nothing = |toy: &Toy| {
        assert!(
            range
                .clone()
                .step_by(512)
                .take(1 << 14)
                .all(|a| toy.space.resolve(a).is_none())
        );
        assert_eq!(toy.cells().len(), 0);
    };
    nothing(&toy);
    while !toy.space.clear_large(&mut large) {
        nothing(&toy);
    }
    nothing(&toy);
    let base = toy.space.publish_large(large).as_ptr() as usize;
    assert_eq!(
        toy.space.resolve(base + (1 << 20) - 1),
        Some(Cell {
            base,
            size: 1 << 20,
            kind
        })
    );
    assert_eq!(toy.space.resolve(base + (1 << 20)), None);
    // The dead object resolves to nothing again.
    toy.collect(&[]);
    nothing(&toy);
    assert_eq!(toy.space.used_bytes(), 0);
}

/// A large object that is cancelled before it is published leaves no pages in use.
#[test]
fn a_cancelled_reservation_leaves_nothing() {
    let toy = Toy::small();
    let kind = leaf(&toy);
    let LargeStep::Reserved(mut large) = toy.runs.reserve_large(&toy.space, kind, 1 << 20).unwrap()
    else {
        panic!()
    };
    toy.space.clear_large(&mut large);
    toy.space.cancel_large(large);
    assert_eq!(toy.space.used_bytes(), 0);
    assert!(
        toy.space
            .reserved()
            .step_by(4096)
            .all(|a| toy.space.resolve(a).is_none())
    );
}

/// A large object in dirty memory is zero.
#[test]
fn a_large_object_that_reuses_dirty_memory_is_zero() {
    let mut toy = Toy::small();
    let kind = leaf(&toy);
    for _ in 0..3 {
        let base = toy.alloc(kind, 1 << 20);
        // SAFETY: a cell of this test.
        let contents = unsafe { std::slice::from_raw_parts_mut(base as *mut u8, 1 << 20) };
        assert!(contents.iter().all(|b| *b == 0));
        contents.fill(0xa5);
        toy.collect(&[]);
    }
}
