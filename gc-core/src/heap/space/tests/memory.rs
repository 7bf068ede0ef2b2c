//! The memory that a heap takes from the system and gives back, as the system counts it.

use super::*;

/// The pages of the heap's range that the system backs.
fn resident(space: &Space) -> usize {
    resident_pages(space.reserved())
}

fn resident_pages(range: std::ops::Range<usize>) -> usize {
    let mut pages = vec![0u8; (range.end - range.start).div_ceil(4096)];
    // SAFETY: the range is mapped, and the vector has one byte for each page.
    let result = unsafe {
        libc::mincore(
            range.start as *mut libc::c_void,
            range.end - range.start,
            pages.as_mut_ptr(),
        )
    };
    assert_eq!(result, 0);
    pages.iter().filter(|p| *p & 1 != 0).count()
}

/// Bitmaps and tables take at most 3 % of the bytes of the cells, and `metadata_bytes` counts them.
#[test]
fn what_lies_beside_the_cells_is_at_most_three_in_a_hundred_of_them() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 128 << 20,
        ..SpaceConfig::default()
    });
    let kind = leaf(&toy);
    let cell = |toy: &mut Toy| {
        let cell = toy.alloc(kind, 16);
        // SAFETY: a cell of this test. Writing it has the system back its memory.
        unsafe { (cell as *mut u64).write(1) };
        cell
    };
    let cells: Vec<usize> = (0..(48 << 20) / 16).map(|_| cell(&mut toy)).collect();
    // Both bitmaps are in use after the second collection.
    for _ in 0..2 {
        toy.runs.retire(&toy.space);
        toy.collect(&cells);
    }
    let (heap, beside) = toy.space.metadata_bytes();
    assert!(
        heap >= 48 << 20 && beside * 100 <= heap * 3,
        "{beside} of {heap}"
    );
    let backed = resident(&toy.space) as u64 * 4096;
    let tables: usize = toy.space.tables().map(resident_pages).iter().sum();
    let tables = tables as u64 * 4096;
    assert!(tables * 100 <= backed * 3, "{tables} bytes beside {backed}");
    // The figure equals the memory that the system backs, except for the ends of system pages.
    assert!(
        tables.abs_diff(beside) <= 16 * 4096,
        "{tables} bytes, said to be {beside}"
    );
}

/// Free memory goes back to the system, down to the given bytes, and is zero when it is used again.
#[test]
fn free_memory_goes_back_to_the_system_and_comes_back_as_zero() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 128 << 20,
        ..SpaceConfig::default()
    });
    let kind = leaf(&toy);
    let fill = |toy: &mut Toy| {
        let cells: Vec<usize> = (0..(40 << 20) / 1024)
            .map(|_| toy.alloc(kind, 1024))
            .collect();
        for &cell in &cells {
            // SAFETY: a cell of this test.
            let contents = unsafe { std::slice::from_raw_parts_mut(cell as *mut u8, 1024) };
            assert!(contents.iter().all(|b| *b == 0));
            contents.fill(0x5a);
        }
        cells
    };
    let cells = fill(&mut toy);
    assert!(resident(&toy.space) >= (40 << 20) / 4096);
    toy.runs.retire(&toy.space);
    toy.collect(&cells[..1]);
    // 20 MiB, half of the cells' memory, may stay.
    let mut released = 0;
    while let bytes @ 1.. = toy.space.scavenge_piece(20 << 20, 2 << 20, u64::MAX) {
        released += bytes;
    }
    assert!((18 << 20..=20 << 20).contains(&released), "{released}");
    while toy.space.scavenge_piece(0, 0, u64::MAX) > 0 {}
    assert!(
        resident(&toy.space) <= 2 * CHUNK_PAGES,
        "{} pages stay",
        resident(&toy.space)
    );
    assert!(toy.space.resolve(cells[0]).is_some());
    let again = fill(&mut toy);
    toy.collect(&again);
}

/// A large object in memory that is known to be zero is not cleared, so the system backs none of
/// it.
#[test]
fn known_zero_memory_is_not_touched_by_a_large_allocation() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 128 << 20,
        ..SpaceConfig::default()
    });
    let kind = leaf(&toy);
    toy.alloc(kind, 64 << 20);
    assert_eq!(resident(&toy.space), 0);
    // The memory becomes dirty, goes back to the system, and is taken again.
    toy.collect(&[]);
    while toy.space.scavenge_piece(0, 0, u64::MAX) > 0 {}
    toy.alloc(kind, 64 << 20);
    // Only whole chunks go back. The chunks in which the object begins and ends were cleared.
    assert!(resident(&toy.space) <= 2 * CHUNK_PAGES);
}

/// A huge page of which a part goes back is split, and is asked for again once its chunk is full.
#[test]
fn huge_pages_are_given_up_for_parts_and_wanted_again_when_the_heap_is_full() {
    const CHUNKS: usize = 6;
    let mut toy = Toy::new(SpaceConfig {
        reserve: 64 << 20,
        ..SpaceConfig::default()
    });
    let kind = leaf(&toy);
    let fill = |toy: &mut Toy| -> Vec<usize> {
        (0..CHUNKS * (2 << 20) / 1024)
            .map(|_| toy.alloc(kind, 1024))
            .collect()
    };
    let small = |toy: &Toy| {
        (0..CHUNKS)
            .filter(|chunk| toy.space.range.has_small_pages(*chunk))
            .count()
    };
    let cells = fill(&mut toy);
    toy.runs.retire(&toy.space);
    let mut left: Vec<usize> = cells.into_iter().step_by(2048).collect();
    toy.collect(&left);
    while toy.space.scavenge_piece(0, 0, u64::MAX) > 0 {}
    let before = small(&toy);
    assert!(before >= left.len() && before >= CHUNKS / 2, "{before}");
    toy.space.use_huge_pages_again();
    assert_eq!(small(&toy), before, "the heap is not full");
    left.extend(fill(&mut toy));
    toy.collect(&left);
    toy.space.use_huge_pages_again();
    assert_eq!(small(&toy), 0);
}
