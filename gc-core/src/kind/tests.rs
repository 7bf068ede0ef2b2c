//! Unit tests of kinds and their descriptors.

use super::*;

#[test]
fn a_zeroed_descriptor_is_a_leaf() {
    let kinds = Kinds::new(MAX_KINDS).unwrap();
    assert_eq!(kinds.get(KindId(77)).tag, Tag::Leaf);
    assert!(!kinds.contains(KindId(0)));
}

#[test]
fn slots_are_read_back_by_word() {
    let kinds = Kinds::new(MAX_KINDS).unwrap();
    let id = kinds
        .add(Kind::words_at("pair", &[1, 70], Encoding::RAW))
        .unwrap();
    let d = kinds.get(id);
    // SAFETY: the slots belong to `kinds`, which is alive.
    let words = unsafe { std::slice::from_raw_parts(d.slots, d.slot_words as usize) };
    assert_eq!(words, &[1 << 1, 1 << 6]);
    assert_eq!(kinds.least_bytes(id), 71 * 8);
    assert_eq!(kinds.name(id).as_deref(), Some("pair"));
}

#[test]
fn bits_outside_of_a_slot_vector_are_no_slots() {
    let kinds = Kinds::new(MAX_KINDS).unwrap();
    let mut slots: BitVec<u64, Lsb0> = BitVec::repeat(true, 40);
    slots.truncate(3);
    let id = kinds
        .add(Kind::words("three", slots, Encoding::RAW))
        .unwrap();
    assert_eq!(kinds.get(id).first_slots, 0b111);
    let cut = BitVec::<u64, Lsb0>::repeat(true, 40)[7..9].to_bitvec();
    let id = kinds.add(Kind::words("two", cut, Encoding::RAW)).unwrap();
    assert_eq!(kinds.get(id).first_slots, 0b11);
    assert_eq!(kinds.least_bytes(id), 16);
}

#[test]
fn an_encoding_that_matches_nothing_is_refused() {
    let kinds = Kinds::new(MAX_KINDS).unwrap();
    let bad = Encoding {
        mask: 1,
        value: 2,
        keep: !3,
    };
    let array = Kind::array("a", 0, bad);
    // SAFETY: no cell is made.
    let traced = unsafe { Kind::traced_with("t", |_, _, _| (), &[Encoding::RAW, bad]) };
    for kind in [array, traced] {
        assert_eq!(kinds.add(kind), Err(KindError::Encoding(bad)));
    }
}
