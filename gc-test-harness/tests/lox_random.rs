//! Random Lox programs give the same output in both tiers, with any collections beside them.
//!
//! These are the first programs of `gclab fuzz --lox`, which `lox::fuzz` describes.

use std::process::Command;

use gc_preempt::StrictAllocator;
use gc_test_harness::lox::fuzz::{Counts, Judge, check};

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

#[test]
fn all_tiers_agree_on_random_programs() {
    let judge = Judge {
        clox: None,
        apart: None,
    };
    let mut counts = Counts::default();
    for seed in 0..60 {
        counts.programs += 1;
        if let Some(found) = check(&judge, seed, &mut counts).expect("no process is needed") {
            panic!("{found}");
        }
    }
    // If all programs failed at their beginning, the test would prove nothing.
    assert!(counts.good * 2 > counts.programs, "{counts:?}");
}

/// A search with a planted fault: its exit code and its output.
fn search(fault: &str, seed: u64) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gclab"))
        .args(["fuzz", "--lox", "--seconds", "60", "--seed"])
        .arg(seed.to_string())
        .env("URGE_FAULT", fault)
        .output()
        .expect("gclab was built for this test");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// A program that shows the fault follows soon after this seed. From any other seed, the search
/// takes at most a minute to find one.
#[test]
fn h82_the_search_finds_the_captured_copy_and_shortens_it() {
    let (code, said) = search("captured-unused,dead-operands-nil", 10_000);
    assert_eq!(code, Some(1), "{said}");
    let lines = |begin: &str| {
        said.lines()
            .skip_while(|line| !line.contains(begin))
            .count()
    };
    assert!(said.contains("repeat it with `gclab fuzz --lox"), "{said}");
    let program = lines("shortened:") - lines("the interpreter:");
    assert!(program < 60, "the program has {program} lines: {said}");
}
