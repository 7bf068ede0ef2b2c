//! Tests of weak words and ephemerons: which words are cleared, with lists that have room and lists
//! that are full, against a model, by several markers, and in linear time.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::encoding::Encoding;
use crate::heap::SpaceConfig;
use crate::heap::tests::Toy;
use crate::kind::{Kind, KindId};
use crate::mark::Marker;

const CLEARED: usize = 1;

struct Kinds {
    leaf: KindId,
    array: KindId,
    words: KindId,
    weak: KindId,
    ephemeron: KindId,
}

fn toy(reserve: u64) -> (Toy, Kinds) {
    let toy = Toy::new(SpaceConfig {
        reserve,
        ..SpaceConfig::default()
    });
    let add = |kind| toy.space.add_kind(kind).unwrap();
    let kinds = Kinds {
        leaf: add(Kind::leaf("leaf")),
        array: add(Kind::array("array", 0, Encoding::RAW)),
        // Markers follow words kinds in another way than arrays.
        words: add(Kind::words_at(
            "words",
            &core::array::from_fn::<u32, 40, _>(|word| word as u32),
            Encoding::RAW,
        )),
        weak: add(Kind::weak("weak", 0, Encoding::RAW, CLEARED)),
        // An odd first word, so that pairs lie across the borders of a large table's parts.
        ephemeron: add(Kind::ephemeron("ephemeron", 1, Encoding::RAW, CLEARED)),
    };
    (toy, kinds)
}

fn set(cell: usize, word: usize, value: usize) {
    // SAFETY: the tests' cells have the words that are used.
    unsafe { (cell as *mut usize).add(word).write(value) };
}

fn get(cell: usize, word: usize) -> usize {
    // SAFETY: as above.
    unsafe { (cell as *const usize).add(word).read() }
}

fn set_pair(table: usize, pair: usize, key: usize, value: usize) {
    set(table, 1 + 2 * pair, key);
    set(table, 2 + 2 * pair, value);
}

fn pair(table: usize, pair: usize) -> (usize, usize) {
    (get(table, 1 + 2 * pair), get(table, 2 + 2 * pair))
}

/// A weak cell of `n` words, each to a leaf of its own, and an array that keeps every other leaf.
fn half_dead(toy: &mut Toy, kinds: &Kinds, n: usize) -> (usize, usize) {
    let (weak, strong) = (toy.alloc(kinds.weak, n * 8), toy.alloc(kinds.array, n * 8));
    for word in 0..n {
        let leaf = toy.alloc(kinds.leaf, 16);
        set(weak, word, leaf);
        if word % 2 == 0 {
            set(strong, word, leaf);
        }
    }
    (weak, strong)
}

fn check_half(weak: usize, strong: usize, n: usize) {
    for word in 0..n {
        let expected = if word % 2 == 0 {
            get(strong, word)
        } else {
            CLEARED
        };
        assert_eq!(get(weak, word), expected, "word {word}");
    }
}

/// Exactly the words of marked weak cells whose targets are dead are cleared, once.
#[test]
fn only_words_of_marked_cells_with_dead_targets_are_cleared() {
    for select in [false, true] {
        let (mut toy, kinds) = toy(64 << 20);
        let (weak, strong) = half_dead(&mut toy, &kinds, 100);
        let twice = toy.alloc(kinds.weak, 32);
        let unmarked = toy.alloc(kinds.weak, 32);
        set(twice, 0, get(weak, 1));
        set(twice, 1, &raw const kinds as usize);
        set(twice, 2, get(strong, 0));
        set(unmarked, 0, get(weak, 3));
        toy.mark(&[weak, strong, twice]);
        if select {
            toy.weak.select_dying(&toy.space);
        }
        assert_eq!(toy.weak.clear_dying(&toy.space), 51);
        assert_eq!(toy.weak.clear_dying(&toy.space), 0);
        check_half(weak, strong, 100);
        assert_eq!(get(twice, 0), CLEARED);
        assert_eq!(
            (get(twice, 1), get(twice, 2)),
            (&raw const kinds as usize, get(strong, 0))
        );
        assert_ne!(get(unmarked, 0), CLEARED);
        toy.finish();
    }
}

/// A word that was chosen for clearing stays if its target is marked later, and a cell that a
/// marker finds later is cleared too.
#[test]
fn what_was_dying_and_is_found_alive_stays_and_what_is_met_later_is_cleared() {
    let (mut toy, kinds) = toy(64 << 20);
    let (weak, strong) = half_dead(&mut toy, &kinds, 100);
    let (late, late_strong) = half_dead(&mut toy, &kinds, 50);
    toy.mark(&[weak]);
    toy.weak.select_dying(&toy.space);
    let mut marker = Marker::new(&toy.space, &toy.queue, &toy.weak);
    for root in [strong, late, late_strong] {
        marker.edge(root, Encoding::RAW);
    }
    marker.drain();
    drop(marker);
    assert_eq!(toy.weak.clear_dying(&toy.space), 50 + 25);
    check_half(weak, strong, 100);
    check_half(late, late_strong, 50);
    toy.finish();
}

/// Where a list is full, the clearing walks all weak cells, or all words of those that markers
/// found, with the same result.
#[test]
fn lists_that_are_full_change_nothing() {
    for (met, pairs, dying) in [(2, 1024, 1024), (1024, 1024, 3), (1, 1024, 1)] {
        let (mut toy, kinds) = toy(64 << 20);
        toy.weak = WeakWork::with_room(met, pairs, dying, 64 << 20).unwrap();
        for _ in 0..3 {
            let tables: Vec<_> = (0..10).map(|_| half_dead(&mut toy, &kinds, 100)).collect();
            let roots: Vec<usize> = tables.iter().flat_map(|(a, b)| [*a, *b]).collect();
            toy.mark(&roots);
            toy.weak.select_dying(&toy.space);
            assert_eq!(toy.weak.clear_dying(&toy.space), 500);
            tables.iter().for_each(|(a, b)| check_half(*a, *b, 100));
            toy.finish();
        }
    }
}

/// Pairs that find no room to wait count as strong in this cycle, and no live cell is freed.
#[test]
fn pairs_without_room_are_strong_and_come_to_no_harm() {
    let (mut toy, kinds) = toy(64 << 20);
    toy.weak = WeakWork::with_room(16, 1024, 1 << 16, 64 << 20).unwrap();
    let room = 1024;
    let n = 3 * room;
    let table = toy.alloc(kinds.ephemeron, (1 + 2 * n) * 8);
    for at in 0..n {
        let (key, value) = (toy.alloc(kinds.leaf, 16), toy.alloc(kinds.leaf, 32));
        set_pair(table, at, key, value);
    }
    // The pairs that find room die in the first cycle, as many of the rest in the next, and so on.
    for left in [n, n - room, n - 2 * room, 0] {
        let alive = (0..n)
            .filter(|at| pair(table, *at) != (CLEARED, 0))
            .inspect(|at| {
                let (key, value) = pair(table, *at);
                assert!(toy.space.is_allocated(key) && toy.space.is_allocated(value));
            })
            .count();
        assert_eq!(alive, left);
        toy.mark(&[table]);
        toy.weak.select_dying(&toy.space);
        toy.weak.clear_dying(&toy.space);
        toy.finish();
    }
}

/// The cells that are alive, by number: from `roots` over `edges`, and over the pairs (table, key,
/// value) whose table and key are alive.
fn fixpoint(
    roots: &BTreeSet<usize>,
    edges: &[(usize, usize)],
    pairs: &[(usize, usize, usize)],
) -> BTreeSet<usize> {
    let mut alive = roots.clone();
    loop {
        let before = alive.len();
        for &(from, to) in edges {
            if alive.contains(&from) {
                alive.insert(to);
            }
        }
        for &(table, key, value) in pairs {
            if alive.contains(&table) && alive.contains(&key) {
                alive.insert(value);
            }
        }
        if alive.len() == before {
            return alive;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// For random graphs with tables of pairs, exactly the least fixpoint is alive, with one marker
    /// and with two.
    #[test]
    fn exactly_the_least_fixpoint_is_alive(
        cells in 2usize..60,
        edges in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..60),
        pairs in prop::collection::vec((any::<[prop::sample::Index; 3]>(), 0usize..40), 0..120),
        roots in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        markers in 1usize..3,
    ) {
        let (mut toy, kinds) = toy(64 << 20);
        // The first half of the cells are tables of pairs. Their cells may be keys and values too.
        let tables = cells / 2;
        let of: Vec<usize> = (0..cells)
            .map(|n| match n {
                n if n < tables => toy.alloc(kinds.ephemeron, 81 * 8),
                n if n % 3 == 0 => toy.alloc(kinds.array, 40 * 8),
                _ => toy.alloc(kinds.words, 40 * 8),
            })
            .collect();
        let mut slots = std::collections::BTreeMap::new();
        for ([table, key, value], slot) in &pairs {
            if tables > 0 {
                slots.insert((table.index(tables), *slot), (key.index(cells), value.index(cells)));
            }
        }
        let mut words = std::collections::BTreeMap::new();
        for (n, (from, to)) in edges.iter().enumerate() {
            words.insert((tables + from.index(cells - tables), n % 40), to.index(cells));
        }
        for (&(table, slot), &(key, value)) in &slots {
            set_pair(of[table], slot, of[key], of[value]);
        }
        for (&(from, word), &to) in &words {
            set(of[from], word, of[to]);
        }
        let roots: BTreeSet<usize> = roots.iter().map(|r| r.index(cells)).collect();
        let alive = fixpoint(
            &roots,
            &words.iter().map(|((from, _), to)| (*from, *to)).collect::<Vec<_>>(),
            &slots.iter().map(|((table, _), (key, value))| (*table, *key, *value)).collect::<Vec<_>>(),
        );
        toy.mark(&[]);
        std::thread::scope(|s| {
            for marker in 0..markers {
                let (toy, roots, of) = (&toy, &roots, &of);
                s.spawn(move || {
                    let mut m = Marker::new(&toy.space, &toy.queue, &toy.weak);
                    for root in roots.iter().skip(marker).step_by(markers) {
                        m.edge(of[*root], Encoding::RAW);
                    }
                    m.drain();
                });
            }
        });
        toy.weak.select_dying(&toy.space);
        toy.weak.clear_dying(&toy.space);
        for (n, &cell) in of.iter().enumerate() {
            prop_assert_eq!(toy.space.is_marked(cell), alive.contains(&n), "cell {}", n);
        }
        for (&(table, slot), &(key, value)) in &slots {
            if alive.contains(&table) {
                let expected = if alive.contains(&key) { (of[key], of[value]) } else { (CLEARED, 0) };
                prop_assert_eq!(pair(of[table], slot), expected);
            }
        }
        toy.finish();
    }
}

/// Checks one table of pairs (key, next key), in the order in which going over all pairs would find
/// one more pair each time. The first key is a root. Returns the steps.
fn chain_in_a_table(n: usize) -> u64 {
    let (mut toy, kinds) = toy(256 << 20);
    let table = toy.alloc(kinds.ephemeron, (1 + 2 * n) * 8);
    let first = toy.alloc(kinds.leaf, 16);
    let mut key = first;
    for at in (0..n).rev() {
        let next = toy.alloc(kinds.leaf, 16);
        set_pair(table, at, key, next);
        key = next;
    }
    // Pairs that die.
    let dead = toy.alloc(kinds.ephemeron, 33 * 8);
    for at in 0..16 {
        let (key, value) = (toy.alloc(kinds.leaf, 16), toy.alloc(kinds.leaf, 16));
        set_pair(dead, at, key, value);
    }
    assert_eq!(toy.mark(&[table, dead, first]).cells, n as u64 + 3);
    toy.weak.select_dying(&toy.space);
    assert_eq!(toy.weak.clear_dying(&toy.space), 16);
    assert_eq!(pair(dead, 7), (CLEARED, 0));
    assert_eq!(toy.weak.clear_dying(&toy.space), 0);
    toy.weak.waiting.steps()
}

/// Checks a chain of cells of one pair each, whose values hold the next cell and its key. Returns
/// the steps.
fn chain_of_cells(n: usize) -> u64 {
    let (mut toy, kinds) = toy(512 << 20);
    let mut next = (0, 0);
    for _ in 0..n {
        let (ephemeron, key, value) = (
            toy.alloc(kinds.ephemeron, 24),
            toy.alloc(kinds.leaf, 16),
            toy.alloc(kinds.array, 16),
        );
        set(value, 0, next.0);
        set(value, 1, next.1);
        set_pair(ephemeron, 0, key, value);
        next = (ephemeron, key);
    }
    // A marker finds the first key late, through an array.
    let late = toy.alloc(kinds.array, 16);
    set(late, 0, next.1);
    assert_eq!(toy.mark(&[next.0, late]).cells, 3 * n as u64 + 1);
    toy.weak.waiting.steps()
}

/// The steps for a chain of ephemerons grow linearly with its length.
#[test]
fn a_chain_of_ephemerons_takes_time_in_proportion_to_its_length() {
    for chain in [chain_in_a_table, chain_of_cells] {
        for n in [100_000, 1_000_000] {
            let steps = chain(n);
            // Each pair is gone over once and woken once, and at times another key is in the same
            // bucket.
            assert!(steps <= 4 * n as u64, "{steps} steps for a chain of {n}");
        }
    }
}

/// A leaf that is a key is checked for waiting pairs also where the queue has no room for it.
#[test]
fn a_leaf_that_is_a_key_is_found_alive_with_the_queue_full() {
    let (mut toy, kinds) = toy(256 << 20);
    toy.queue = crate::mark::MarkQueue::new(&toy.space, 1).unwrap();
    let n = 20_000;
    let table = toy.alloc(kinds.ephemeron, (1 + 2 * n) * 8);
    // Each key leads to three leaves, one of which is the key of the next pair.
    let first = toy.alloc(kinds.array, 32);
    let mut key = first;
    let mut cells = 2;
    for at in (0..n).rev() {
        let value = toy.alloc(kinds.array, 32);
        let next = toy.alloc(kinds.leaf, 16);
        for word in 0..3 {
            let leaf = if word == at % 3 {
                next
            } else {
                toy.alloc(kinds.leaf, 16)
            };
            set(value, word, leaf);
        }
        set_pair(table, at, key, value);
        cells += 4;
        key = next;
    }
    assert_eq!(toy.mark(&[table, first]).cells, cells);
    toy.finish();
}

/// Two markers, one with the pairs and one with the keys, miss no pair.
#[test]
fn markers_that_share_a_chain_miss_no_pair() {
    // Short chains from many tables, so that links and marks happen at the same time.
    let (mut toy, kinds) = toy(256 << 20);
    for round in 0..200 {
        let n = 64 + round;
        let table = toy.alloc(kinds.ephemeron, (1 + 2 * n) * 8);
        let keys = toy.alloc(kinds.array, n * 8);
        let mut values = Vec::new();
        for at in 0..n {
            let (key, value) = (toy.alloc(kinds.leaf, 16), toy.alloc(kinds.leaf, 32));
            set_pair(table, at, key, value);
            set(keys, at, key);
            values.push(value);
        }
        toy.mark(&[]);
        std::thread::scope(|s| {
            for root in [table, keys] {
                let toy = &toy;
                s.spawn(move || {
                    let mut m = Marker::new(&toy.space, &toy.queue, &toy.weak);
                    m.edge(root, Encoding::RAW);
                    m.drain();
                });
            }
        });
        for value in values {
            assert!(
                toy.space.is_marked(value),
                "a value was missed in round {round}"
            );
        }
        toy.weak.select_dying(&toy.space);
        assert_eq!(toy.weak.clear_dying(&toy.space), 0);
        toy.finish();
    }
}

/// A word that was copied is cleared together with the word that it was copied from.
#[test]
fn a_copied_word_is_cleared_with_the_one_it_was_copied_from() {
    for (met, select) in [(1024, true), (1024, false), (1, true)] {
        let (mut toy, kinds) = toy(64 << 20);
        toy.weak = WeakWork::with_room(met, 1024, 1024, 64 << 20).unwrap();
        let (weak, strong) = half_dead(&mut toy, &kinds, 10);
        let table = toy.alloc(kinds.ephemeron, 11 * 8);
        for at in 0..5 {
            let value = toy.alloc(kinds.leaf, 32);
            set_pair(table, at, get(weak, at), value);
        }
        toy.mark(&[weak, strong, table]);
        toy.weak.select_dying(&toy.space);
        // These cells are allocated black, so no marker finds them.
        let (copy, late) = (
            toy.alloc(kinds.weak, 80),
            toy.alloc(kinds.ephemeron, 11 * 8),
        );
        for word in 0..10 {
            set(copy, word, get(weak, word));
            toy.weak.copied(&toy.space, copy + word * 8, 1);
            set(late, 1 + word, get(table, 1 + word));
        }
        toy.weak.copied(&toy.space, late + 8, 10);
        if select {
            toy.weak.select_dying(&toy.space);
        }
        assert_eq!(toy.weak.clear_dying(&toy.space), 5 + 5 + 2 + 2);
        check_half(weak, strong, 10);
        check_half(copy, strong, 10);
        for at in 0..5 {
            assert_eq!(pair(table, at), pair(late, at));
            assert_eq!(pair(late, at) == (CLEARED, 0), at % 2 == 1);
        }
        toy.finish();
    }
}
