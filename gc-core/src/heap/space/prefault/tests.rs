//! Tests of `prefault.rs`.

use super::*;
use crate::heap::SpaceConfig;

const CHUNK: usize = CHUNK_PAGES * PAGE;

fn space(hard_limit: Option<u64>) -> Space {
    Space::new(SpaceConfig {
        reserve: 256 << 20,
        hard_limit,
        ..SpaceConfig::default()
    })
    .unwrap()
}

/// True if the system backs the page at byte `offset` of the range.
fn is_backed(space: &Space, offset: usize) -> bool {
    let mut page = 0u8;
    // SAFETY: a page of the range, which is mapped, with one byte for it.
    let result = unsafe { libc::mincore((space.base() + offset) as *mut _, 1, &raw mut page) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    page & 1 != 0
}

/// Takes `bytes` bytes of pages, and backs all chunks that are wanted then. Returns their
/// number.
fn take(space: &Space, bytes: usize, room: u64) -> usize {
    space.take_pages(bytes / PAGE).unwrap();
    std::iter::from_fn(|| space.back_piece(room).then_some(())).count()
}

/// A heap above 32 MiB that grows has the next chunks backed before a mutator touches them.
#[test]
fn a_heap_that_grows_finds_its_memory_backed() {
    let space = space(None);
    assert_eq!(take(&space, 31 << 20, u64::MAX), 0, "a small heap waits");
    assert!(!space.must_tell());
    assert_eq!(
        take(&space, 33 << 20, u64::MAX),
        1,
        "a 16th of 64 MiB, of whole chunks"
    );
    assert!(
        space.must_tell() && !space.must_tell(),
        "the collector is woken once"
    );
    let top = space.page_runs.lock().top() * PAGE;
    assert!(!is_backed(&space, top));
    assert!(is_backed(&space, top.next_multiple_of(CHUNK)));
    assert!(!is_backed(&space, top.next_multiple_of(CHUNK) + CHUNK));
    // The backed pages are taken, and the next ones are backed before they are needed.
    assert!(take(&space, CHUNK, u64::MAX) > 0);
    assert!(is_backed(&space, space.page_runs.lock().top() * PAGE));
}

/// Memory that is touched beforehand is backed with its tables, up to the hard limit, and stays
/// so.
#[test]
fn what_is_touched_beforehand_is_backed_and_stays_so() {
    let config = SpaceConfig {
        reserve: 256 << 20,
        pre_touch: (5 << 20) + 1,
        ..SpaceConfig::default()
    };
    let touched = Space::new(config.clone()).unwrap();
    assert!(is_backed(&touched, 0) && is_backed(&touched, (6 << 20) - PAGE));
    assert!(!is_backed(&touched, 6 << 20));
    let small = Space::new(config.clone()).unwrap();
    small.give_up_prefaulted();
    while small.scavenge_piece(small.pre_touched, 0, u64::MAX) > 0 {}
    assert!(is_backed(&small, 0) && is_backed(&small, (6 << 20) - PAGE));
    let limited = Space::new(SpaceConfig {
        hard_limit: Some(2 << 20),
        ..config
    });
    assert!(
        !is_backed(&limited.unwrap(), 2 << 20),
        "beyond the hard limit"
    );
}

/// Taken pages are cold until they were backed, and again after they went back.
#[test]
fn what_is_taken_is_cold_until_it_was_backed_and_again_when_it_went_back() {
    let space = space(None);
    let pages = 2 * CHUNK_PAGES - 1;
    let (first, _) = space.take_pages(pages).unwrap();
    let is_cold = |first, pages| space.cold(first, pages).is_some();
    assert!(is_cold(first, 1) && is_cold(first, pages));
    space.back_taken(ColdPages { first, pages: 1 });
    assert!(is_backed(&space, CHUNK - PAGE) && !is_backed(&space, CHUNK));
    assert!(!is_cold(first, 1));
    assert!(is_cold(CHUNK_PAGES - 1, 2), "one of two chunks");
    space.back_taken(space.cold(CHUNK_PAGES - 1, 2).unwrap());
    assert!(!is_cold(first, pages));
    let word = core::ptr::from_ref(space.page_table().word(3 * CHUNK_PAGES));
    let tables = word as usize - space.base();
    assert!(
        is_backed(&space, tables & !4095),
        "the table's memory for the next pages"
    );
    space.give_pages(first, pages);
    while space.scavenge_piece(0, 0, u64::MAX) > 0 {}
    assert!(is_cold(CHUNK_PAGES, 1) && !is_backed(&space, CHUNK));
}

/// No chunk is backed that a hard limit or the given room excludes.
#[test]
fn nothing_is_backed_that_the_heap_may_not_have() {
    let tight = space(Some(65 << 20));
    assert_eq!(take(&tight, 64 << 20, u64::MAX), 0);
    let roomy = space(None);
    assert_eq!(take(&roomy, 64 << 20, 65 << 20), 0);
}

/// A heap that became small gives its prefaulted chunks up.
#[test]
fn a_heap_that_became_small_keeps_nothing_ahead() {
    let space = space(None);
    let (first, _) = space.take_pages((100 << 20) / PAGE).unwrap();
    assert!(space.back_piece(u64::MAX));
    let ahead = (space.page_runs.lock().top() * PAGE).next_multiple_of(CHUNK);
    space.give_up_prefaulted();
    assert!(
        space.back_piece(u64::MAX),
        "the heap has not become smaller"
    );
    space.give_pages(first, (100 << 20) / PAGE);
    space.give_up_prefaulted();
    while space.scavenge_piece(0, 0, u64::MAX) > 0 {}
    assert!(!is_backed(&space, ahead));
    assert!(!space.back_piece(u64::MAX));
}
