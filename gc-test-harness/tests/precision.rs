//! A dead list that only a stale slot of an outer frame names is freed if stack maps describe the
//! frame.

use gc_test_harness::kernels::stale::retained;

const NODES: u64 = 100_000;

#[test]
fn a_stale_slot_of_an_outer_frame_keeps_nothing() {
    let by_maps = retained(NODES, true).expect("a count");
    assert_eq!(by_maps.alive, NODES, "{by_maps:?}");
    assert_eq!(by_maps.dead, 0, "{by_maps:?}");
    assert_eq!(by_maps.precise_frames, 1, "{by_maps:?}");
}

/// Without stack maps, the same program keeps the list: the maps are what frees it.
#[test]
fn the_same_slot_keeps_all_when_the_stack_is_read_word_by_word() {
    let by_words = retained(NODES, false).expect("a count");
    assert_eq!(by_words.alive, NODES, "{by_words:?}");
    assert_eq!(by_words.dead, NODES, "{by_words:?}");
    assert_eq!(by_words.precise_frames, 0, "{by_words:?}");
}
