//! The fuzzer finds each fault that is planted in the scanner or the heap, and reports no fault
//! otherwise.
//!
//! The file also replays the fuzzing engine's corpora. The engine needs a nightly compiler, the
//! replay does not.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::hazard;
use gc_test_harness::lab::fuzz::{fuzz_one, operations};

fn fuzz(fault: &str, inject: &str, seconds: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gclab"))
        .args(["fuzz", "--seed", "1", "--seconds", seconds, "--json"])
        .env("URGE_FAULT", fault)
        .env("URGE_INJECT", inject)
        .output()
        .expect("gclab starts")
}

/// Fuzzes with a planted fault until the fault is found, which takes much less than the limit. It
/// is found as a wrong answer, or by an assertion of the collector, which ends the process. In both
/// cases the output must name the seed that repeats it.
fn finds(fault: &str) {
    let output = fuzz(fault, "0", "60");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{fault}: {said}");
    let seed = match output.status.code() {
        Some(1) => {
            assert!(said.contains("wrong answer in the case of seed"), "{said}");
            said.trim_end().rsplit_once("--seed ")
        }
        code => {
            assert_eq!(code, None, "{fault}: {said}");
            said.trim_end().rsplit_once("crashed in the case of seed ")
        }
    };
    let Some((_, seed)) = seed else {
        panic!("no seed that repeats it: {said}");
    };
    seed.trim_end_matches('`').parse::<u64>().expect("a number");
}

#[test]
fn nothing_is_wrong_where_no_fault_is_planted() {
    for inject in ["0", "1"] {
        let output = fuzz("", inject, "2");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
        for count in ["collections", "kept", "freed", "words"] {
            assert!(json[count].as_u64().expect("a number") > 0, "{json}");
        }
        assert_eq!(json["wrong"], 0);
    }
}

#[test]
fn h36_old_cells_that_lead_to_young_ones_are_found() {
    finds("old-unfollowed");
}

#[test]
fn a_missed_register_is_found() {
    finds("no-registers");
}

#[test]
fn a_missed_vector_register_is_found() {
    finds("no-vectors");
}

#[test]
fn a_missed_red_zone_is_found() {
    finds("no-red-zone");
}

#[test]
fn a_missed_argument_is_found() {
    finds("no-arguments");
}

#[test]
fn a_missed_saved_register_is_found() {
    finds("no-saved-registers");
}

#[test]
fn h21_interior_pointers_off_by_one_cell_are_found() {
    finds("interior-off-by-one");
}

#[test]
fn h21_ends_of_cells_that_are_the_next_ones_beginnings_are_found() {
    finds("no-spare-byte");
}

#[test]
fn h21_tags_and_boxes_that_are_not_decoded_are_found() {
    finds("no-decoding");
}

#[test]
fn h22_words_that_name_free_cells_are_found_to_mark_them() {
    finds("no-allocated-bit");
}

#[test]
fn h23_unmarked_tails_of_runs_are_found() {
    finds("white-tails");
}

#[test]
fn h34_a_stale_limit_of_a_root_range_is_found() {
    finds("cached-limit");
}

#[test]
fn nothing_is_wrong_where_heaps_collect_all_the_time_or_never_beside_their_threads() {
    for name in ["URGE_CONTINUOUS", "URGE_STW"] {
        let output = Command::new(env!("CARGO_BIN_EXE_gclab"))
            .args(["fuzz", "--seed", "1", "--seconds", "3"])
            .env(name, "1")
            .output()
            .expect("gclab starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
    }
}

#[test]
fn h25_stores_that_nobody_logs_are_found() {
    finds("stores-unlogged");
}

#[test]
fn h28_logs_that_nobody_takes_are_found() {
    finds("logs-left");
    finds("log-kept-at-detach");
    finds("taken-unlogged");
}

#[test]
fn h26_runs_that_are_handed_out_unmarked_while_a_cycle_marks_are_found() {
    finds("white-runs");
}

#[test]
fn a_thread_that_attaches_while_a_cycle_marks_and_logs_nothing_is_found() {
    finds("attached-unmarked");
}

#[test]
fn weak_words_to_the_dead_are_found() {
    finds("keep-weak");
}

#[test]
fn values_of_keys_that_are_found_alive_late_are_found_to_be_lost() {
    finds("no-wake");
}

/// Runs each file of a target's corpus. Returns the number of files.
fn replay_by(target: &str, run: fn(&[u8])) -> usize {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let files = std::fs::read_dir(corpus.join(target)).expect("the corpus is committed");
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    for file in &files {
        eprintln!("{}", file.display());
        run(&std::fs::read(file).expect("a file of the corpus"));
    }
    files.len()
}

fn replay() -> usize {
    replay_by("words", fuzz_one)
}

#[test]
fn every_corpus_is_replayed() {
    for (target, run) in [
        ("llvm", gc_preempt::fuzz::llvm as fn(&[u8])),
        ("cranelift", gc_preempt::fuzz::cranelift),
        ("eh_frame", gc_preempt::fuzz::eh_frame),
        ("frames", gc_preempt::fuzz::frames),
        ("operations", operations),
    ] {
        assert!(replay_by(target, run) >= 8, "{target}");
    }
}

#[test]
fn the_corpus_of_operations_finds_weak_words_to_the_dead() {
    let name = "the_corpus_of_operations_finds_weak_words_to_the_dead";
    hazard(name, "keep-weak", || {
        let _world = world();
        replay_by("operations", operations);
    });
}

#[test]
fn the_corpus_of_maps_finds_tables_beyond_their_input() {
    let name = "the_corpus_of_maps_finds_tables_beyond_their_input";
    hazard(name, "unbounded-locations", || {
        let _world = world();
        replay_by("llvm", gc_preempt::fuzz::llvm);
    });
}

/// Makes a world, which reads the planted faults.
fn world() -> gc_preempt::World {
    gc_preempt::World::new(gc_preempt::Config::default()).expect("threads can be stopped")
}

#[test]
fn the_corpus_finds_cells_off_by_one() {
    let name = "the_corpus_finds_cells_off_by_one";
    hazard(name, "interior-off-by-one", || {
        let _world = world();
        assert!(replay() >= 16);
    });
}

#[test]
fn the_corpus_finds_undecoded_words() {
    hazard("the_corpus_finds_undecoded_words", "no-decoding", || {
        let _world = world();
        replay();
    });
}

#[test]
fn the_corpus_finds_cells_without_a_spare_byte() {
    let name = "the_corpus_finds_cells_without_a_spare_byte";
    hazard(name, "no-spare-byte", || {
        let _world = world();
        replay();
    });
}

#[test]
fn the_corpus_finds_marked_free_cells() {
    let name = "the_corpus_finds_marked_free_cells";
    hazard(name, "no-allocated-bit", || {
        let _world = world();
        replay();
    });
}
