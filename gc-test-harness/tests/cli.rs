//! `gclab` on the command line: what it prints where, and its exit codes.

use gc_preempt::faults::StrictAllocator;
use std::process::{Command, Output};

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

fn gclab(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gclab"));
    command.args(arguments).envs(environment.iter().copied());
    command.output().expect("gclab starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON object")
}

/// Keys that carry five quantiles, in microseconds and in order.
fn has_quantiles(object: &serde_json::Value, keys: &[&str]) {
    for key in keys {
        let all = ["min", "p50", "p90", "p99", "max"].map(|q| object[key][q].as_f64());
        assert!(all.iter().all(Option::is_some), "{key}: {object}");
        assert!(all.is_sorted(), "{key}: {object}");
        assert!(all[1] > Some(0.0), "{key}: {object}");
    }
}

#[test]
fn the_demo_collects_frees_and_finds_no_wrong_answer() {
    for environment in [&[][..], &[("URGE_INJECT", "1")], &[("URGE_ASYNC", "0")]] {
        let object = json(&gclab(&["--json"], environment));
        has_quantiles(
            &object,
            &["stop_us", "pause_us", "floor_us", "floor_pause_us"],
        );
        for key in [
            "collections",
            "cells_freed",
            "frames_precise",
            "frames_conservative",
            "answers_checked",
        ] {
            assert!(object[key].as_u64() > Some(0), "{key}: {object}");
        }
    }
}

#[test]
fn pauses_are_measured_beside_the_floor() {
    let arguments = ["pause", "--threads", "2", "--rounds", "4", "--json"];
    let object = json(&gclab(&arguments, &[]));
    let keys = [
        "stop_us",
        "pause_us",
        "stall_us",
        "floor_us",
        "floor_pause_us",
        "floor_stall_us",
    ];
    has_quantiles(&object, &keys);
    assert_eq!(object["threads"], 2);
    assert!(object["peak_rss_bytes"].as_u64() > Some(0));
}

#[test]
fn wrong_usage_is_exit_64_and_says_what_would_be_right() {
    for (arguments, said) in [
        (&["--bogus"][..], "--bogus"),
        (&["nonsense"], "nonsense"),
        (&["pause", "--threads", "0"], "1..=4096"),
        (&["pause", "--rounds", "many"], "many"),
        (&["run"], "FILE"),
        (&["run", "x.lox", "--gc-every", "0"], "--gc-every"),
    ] {
        let output = gclab(arguments, &[]);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(output.stdout.is_empty());
        let stderr = text(&output.stderr);
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}

#[test]
fn an_unreadable_file_is_exit_74() {
    let output = gclab(&["run", "/nowhere/at/all.lox"], &[]);
    assert_eq!(output.status.code(), Some(74));
    assert!(text(&output.stderr).contains("/nowhere/at/all.lox"));
}

#[test]
fn a_switch_that_means_nothing_is_named() {
    let output = gclab(
        &["pause", "--threads", "1", "--rounds", "1"],
        &[("URGE_ASYNC", "perhaps")],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("URGE_ASYNC"),
        "{}",
        text(&output.stderr)
    );
}
