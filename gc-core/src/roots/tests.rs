//! Tests of the tables of roots and of the scan.

use gc_preempt::RootSink;

use super::{Roots, Scanner};
use crate::encoding::{Encoding, Encodings};
use crate::heap::tests::Toy;
use crate::heap::{PAGE, Space, SpaceConfig};
use crate::kind::Kind;
use crate::mark::Marker;

/// Places of dropped roots are used again, the lowest first.
#[test]
fn freed_handles_are_used_again() {
    let roots = Roots::new(1 << 12).unwrap();
    let a = roots.add(0x1000).unwrap();
    let b = roots.add(0x2000).unwrap();
    let c = roots.copy(b).unwrap();
    assert_eq!(
        (roots.get(a), roots.get(b), roots.get(c)),
        (0x1000, 0x2000, 0x2000)
    );
    let free = |slot| roots.change(slot, None, |_| panic!("nothing is to be scanned"));
    free(a);
    free(c);
    assert_eq!(roots.add(0x3000), Some(a));
    assert_eq!(roots.add(0x4000), Some(c));
    assert_eq!(roots.add(0x5000), Some(3));
    roots.change(b, Some(0x6000), |_| panic!("nothing is to be scanned"));
    assert_eq!(roots.get(b), 0x6000);
}

/// A table that is full returns nothing, until a root is dropped.
#[test]
fn the_last_handle_is_followed_by_none() {
    let roots = Roots::new(1 << 12).unwrap();
    for i in 0..1 << 12 {
        assert_eq!(roots.add(i * 16), Some(i));
    }
    assert_eq!(roots.add(16), None);
    roots.change(7, None, |_| ());
    assert_eq!(roots.add(16), Some(7));
}

/// A root that is dropped or changed before its scan is logged, and so is one that was made after
/// the snapshot, while the scan has not come to its place. A root that was scanned is not.
#[test]
fn a_root_that_goes_before_it_was_scanned_is_logged_and_no_other() {
    let mut toy = Toy::small();
    let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
    let cells: Vec<usize> = (0..3000).map(|_| toy.alloc(leaf, 16)).collect();
    let (space, roots) = (&toy.space, Roots::new(1 << 12).unwrap());
    for cell in &cells {
        roots.add(*cell).unwrap();
    }
    space.begin_marking();
    assert_eq!(roots.snapshot(false), 3000);
    let late = roots.add(cells[0]).unwrap();
    let mut marker = Marker::new(space, &toy.queue, &toy.weak);
    let encodings = Encodings::new().unwrap();
    let mut scanner = Scanner::new(space, &encodings, &mut marker, None);
    assert!(roots.scan_piece(|word| scanner.word(word, Encoding::RAW)));
    let change = |slot, to| {
        let mut logged = 0;
        roots.change(slot, to, |word| logged = word);
        logged
    };
    assert_eq!(
        (change(0, None), change(1, Some(cells[2]))),
        (0, 0),
        "these have been scanned"
    );
    assert_eq!(
        (change(2500, None), change(2501, Some(0))),
        (cells[2500], cells[2501])
    );
    assert_eq!(
        change(late, None),
        cells[0],
        "it may have a place in the snapshot"
    );
    while roots.scan_piece(|word| scanner.word(word, Encoding::RAW)) {}
    assert_eq!(change(2700, None), 0);
    assert_eq!(scanner.finish().exact_marked, 2998);
    let unmarked: Vec<usize> = (0..3000).filter(|i| !space.is_marked(cells[*i])).collect();
    assert_eq!(unmarked, [2500, 2501]);
}

/// True if the system page of the page table that describes `page` is resident.
fn is_known(space: &Space, page: usize) -> bool {
    let word = core::ptr::from_ref(space.page_table().word(page)) as usize;
    let mut resident = 0u8;
    // SAFETY: a page of the table, which is mapped, with one byte for it.
    let result = unsafe { libc::mincore((word & !4095) as *mut _, 1, &raw mut resident) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    resident & 1 != 0
}

/// A word beyond all pages in use is not looked up, so it makes no page of the page table resident.
#[test]
fn a_word_that_leads_beyond_all_pages_in_use_is_not_looked_up() {
    let mut toy = Toy::new(SpaceConfig {
        reserve: 64 << 30,
        ..SpaceConfig::default()
    });
    let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
    let cells: Vec<usize> = (0..200).map(|_| toy.alloc(leaf, 512)).collect();
    let space = &toy.space;
    let beyond = space.base() + (48 << 30);
    let last = space.base() + space.top() * PAGE;
    let words = [beyond, cells[3] + 8, last, cells[199], beyond + 8];
    space.begin_marking();
    let mut marker = Marker::new(space, &toy.queue, &toy.weak);
    let encodings = Encodings::new().unwrap();
    let mut scanner = Scanner::new(space, &encodings, &mut marker, None);
    let range = words.as_ptr_range();
    scanner.conservative(range.start as usize..range.end as usize);
    scanner.word(beyond + 16, Encoding::RAW);
    let scanned = scanner.finish();
    assert_eq!(scanned.conservative_marked, 2);
    assert!(space.is_marked(cells[3]) && space.is_marked(cells[199]));
    assert!(is_known(space, 0) && !is_known(space, (48 << 30) / PAGE));
}

/// A slot of code that another heap registered is read in all encodings of this heap.
#[test]
fn a_slot_of_another_heaps_code_is_read_in_this_heaps_encodings() {
    let mut toy = Toy::small();
    let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
    let cells: Vec<usize> = (0..3).map(|_| toy.alloc(leaf, 16)).collect();
    let boxed = Encoding::nan_box(0xffff << 48, 0xfffc << 48, (1 << 48) - 1);
    let (own, other) = (Encodings::new().unwrap(), Encodings::new().unwrap());
    let number = own.number(boxed).unwrap();
    // The other heap has another encoding at the number that follows RAW's.
    let foreign = other.number(Encoding::low_bits(3)).unwrap();
    let space = &toy.space;
    space.begin_marking();
    let mut marker = Marker::new(space, &toy.queue, &toy.weak);
    let mut scanner = Scanner::new(space, &own, &mut marker, None);
    let slots = [
        cells[0] | 0xfffc << 48,
        cells[1] | 0xfffc << 48,
        cells[2],
        cells[2] | 0xfffd << 48,
    ];
    let at = |n: usize| (&raw const slots[n]) as usize;
    scanner.exact(at(0), number);
    scanner.exact(at(1), foreign);
    scanner.exact(at(3), foreign);
    scanner.finish();
    let marked = cells.iter().map(|cell| space.is_marked(*cell));
    assert_eq!(marked.collect::<Vec<_>>(), [true, true, false]);
    let mut scanner = Scanner::new(space, &own, &mut marker, None);
    scanner.exact(at(2), foreign);
    scanner.finish();
    assert!(
        space.is_marked(cells[2]),
        "RAW is an encoding of every heap"
    );
}
