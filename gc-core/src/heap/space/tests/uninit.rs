//! Leaves that are not cleared. They are allocated with old content, and their memory is cleared
//! before it is used for another kind.

use super::*;

/// Fills `count` cells and frees those that `lives` does not select. Allocates as many new cells,
/// and returns how many of them have old bytes.
fn stale(
    toy: &mut Toy,
    kind: KindId,
    bytes: usize,
    count: usize,
    lives: fn(usize) -> bool,
) -> usize {
    let content = |cell: usize| {
        // SAFETY: a cell of this test, of `bytes` bytes.
        unsafe { std::slice::from_raw_parts_mut(cell as *mut u8, bytes) }
    };
    let cells: Vec<usize> = (0..count).map(|_| toy.alloc(kind, bytes)).collect();
    for &cell in &cells {
        content(cell).fill(0xa5);
    }
    let kept = |(i, cell): (usize, &usize)| lives(i).then_some(*cell);
    let live: Vec<usize> = cells.iter().enumerate().filter_map(kept).collect();
    toy.runs.retire(&toy.space);
    toy.collect(&live);
    let again = (0..count).map(|_| toy.alloc(kind, bytes));
    again.filter(|cell| content(*cell).contains(&0xa5)).count()
}

/// Cells of a `leaf_uninit` kind keep old bytes; cells of other kinds in the same memory are zero.
#[test]
fn uninit_leaves_are_not_cleared_and_their_memory_is_for_others() {
    for (bytes, count) in [(16, 9000), (320, 2000), (4096, 200), (100_000, 20)] {
        for lives in [|i: usize| i % 3 == 1, |_: usize| false] {
            let mut toy = Toy::small();
            let uninit = toy.space.add_kind(Kind::leaf_uninit("uninit")).unwrap();
            let clear = leaf(&toy);
            assert_eq!(stale(&mut toy, clear, bytes, count, lives), 0);
            // Two in three cells are holes. Page runs that are zero are taken first.
            let n = stale(&mut toy, uninit, bytes, count, lives);
            assert!(
                n >= count / 2 || !lives(1),
                "all but {n} cells of {bytes} bytes were cleared"
            );
            toy.runs.retire(&toy.space);
            toy.collect(&[]);
            assert_eq!(stale(&mut toy, clear, bytes, 3 * count, lives), 0);
        }
    }
}
