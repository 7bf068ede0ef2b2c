//! A stack that was suspended in the middle of a compiled loop: the loop's frame is scanned word by
//! word, and the frame behind it by its stack map.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use common::hazard;
use gc_test_harness::kernels::left::{Maps, Nodes, collected_in_the_loop};

const NODES: Nodes = Nodes {
    stale: 20_000,
    mapped: 300,
    innermost: 7_000,
};

fn the_stale_list_alone_is_freed() {
    let last = collected_in_the_loop(NODES, Maps::Cranelifts).expect("figures");
    assert_eq!(last.cells_live, NODES.mapped + NODES.innermost, "{last:?}");
    assert_eq!(last.frames_precise, 1, "{last:?}");
}

#[test]
fn h123_a_stale_slot_behind_an_interrupted_loop_keeps_nothing() {
    hazard(
        "h123_a_stale_slot_behind_an_interrupted_loop_keeps_nothing",
        "words-behind-injection",
        the_stale_list_alone_is_freed,
    );
}

#[test]
fn h123_a_mapped_slot_behind_an_interrupted_loop_keeps_its_list() {
    hazard(
        "h123_a_mapped_slot_behind_an_interrupted_loop_keeps_its_list",
        "ends-behind-injection",
        the_stale_list_alone_is_freed,
    );
}

/// Without stack maps, the same program keeps the list: the map is what frees it.
#[test]
fn without_a_map_the_stale_slot_keeps_its_list() {
    let last = collected_in_the_loop(NODES, Maps::Missing).expect("figures");
    let all = NODES.stale + NODES.mapped + NODES.innermost;
    assert_eq!(last.cells_live, all, "{last:?}");
    assert_eq!(last.frames_precise, 0, "{last:?}");
}
