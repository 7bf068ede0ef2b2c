//! A dead list that only a stale slot of an outer frame names is freed, where stack maps say which
//! slots are live.

use gc_test_harness::kernels::stale::retained;

const NODES: u64 = 100_000;

#[test]
fn a_stale_slot_of_an_outer_frame_keeps_nothing() {
    let by_maps = retained(NODES, true).expect("a count");
    assert_eq!(by_maps.alive, NODES, "{by_maps:?}");
    assert_eq!(by_maps.dead, 0, "{by_maps:?}");
    assert_eq!(by_maps.precise_frames, 1, "{by_maps:?}");
}

/// The same program without maps: what the first test demands is the maps' doing.
#[test]
fn the_same_slot_keeps_all_when_the_stack_is_read_word_by_word() {
    let by_words = retained(NODES, false).expect("a count");
    assert_eq!(by_words.alive, NODES, "{by_words:?}");
    assert_eq!(by_words.dead, NODES, "{by_words:?}");
    assert_eq!(by_words.precise_frames, 0, "{by_words:?}");
}
