//! Loops over lists and streams run in constant space, in every tier and at every compilation
//! threshold.
//!
//! Each program (a *shape*) walks along a list while it makes the list, so only the last nodes are
//! alive. One more place, which is dead by then, holds the first node. A collection at every
//! 5,000th allocation counts the live cells: a few, or the whole list.

use std::process::Command;

use gc_preempt::StrictAllocator;
use gc_test_harness::lox::clear;
use gc_test_harness::lox::jit::JitConfig;
use gc_test_harness::lox::run::{RunConfig, run_source};

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

/// The beginning of every shape.
const NODE: &str = "class N { init(v, next) { this.v = v; this.next = next; } }\n";

/// The shapes: name and program. `LOOP` stands for the loop that walks from the node in `s`.
const SHAPES: [(&str, &str); 18] = [
    (
        "an argument",
        "fun walk(s, n) { LOOP return s.v; }
        for (var i = 0; i < 300; i = i + 1) walk(N(0, nil), 2);
        print walk(N(0, nil), 30000);",
    ),
    (
        "an argument of a function called once",
        "fun walk(s, n) { LOOP return s.v; } print walk(N(0, nil), 30000);",
    ),
    (
        "a local variable",
        "fun walk(n) { var s = N(0, nil); LOOP return s.v; }
        for (var i = 0; i < 300; i = i + 1) walk(2);
        print walk(30000);",
    ),
    (
        "the script's own variables",
        "{ var s = N(0, nil); var n = 30000; LOOP print s.v; }",
    ),
    (
        "a method's argument",
        "class M { walk(s, n) { LOOP return s.v; } }
        var m = M();
        for (var i = 0; i < 300; i = i + 1) m.walk(N(0, nil), 2);
        print m.walk(N(0, nil), 30000);",
    ),
    (
        "a bound method's argument",
        "class M { walk(s, n) { LOOP return s.v; } }
        var walk = M().walk; fun apply(f) { return f(N(0, nil), 30000); }
        print walk(N(0, nil), 30000); print apply(walk);",
    ),
    (
        "many arguments",
        "fun walk(a, b, c, d, e, f, s, n) { LOOP return s.v + a; }
        fun call(n) { return walk(1, 2, 3, 4, 5, 6, N(0, nil), n); }
        for (var i = 0; i < 300; i = i + 1) call(2);
        print call(30000);",
    ),
    (
        "many arguments of a method",
        "class M { walk(a, b, c, d, s, n) { LOOP return s.v + a; } }
        fun call(m, n) { return m.walk(1, 2, 3, 4, N(0, nil), n); }
        for (var i = 0; i < 300; i = i + 1) call(M(), 2);
        print call(M(), 30000);",
    ),
    (
        "an argument of a call that is over",
        "fun pick(a, b, c, d, e, s) { return s; } fun one() { return 1; }
        fun walk(n) {
            var s = N(0, nil); pick(1, 2, 3, 4, 5, s);
            while (n > 0) { var t = N(s.v + 1, nil); s.next = t; s = t; n = n - one(); }
            return s.v;
        }
        for (var i = 0; i < 300; i = i + 1) walk(2);
        print walk(30000);",
    ),
    (
        "a caller's frame",
        "class Box { init(v) { this.v = v; } take() { var s = this.v; this.v = nil; return s; } }
        fun walk(s, n) { LOOP return s.v; }
        fun call(n) { return 1 + walk(N(0, nil), n); }
        fun through(box, n) { return walk(box.take(), n) + 1; }
        fun boxed(n) { var s = N(0, nil); var box = Box(s); s = nil; return through(box, n) + 1; }
        for (var i = 0; i < 300; i = i + 1) { call(2); boxed(2); }
        print call(30000); print boxed(30000);",
    ),
    (
        "a captured variable of a block that is over",
        "fun walk(n) {
            var s = N(0, nil);
            { var pad = 1; var head = s; fun get() { return head; } get().v = pad; }
            LOOP
            return s.v;
        }
        for (var i = 0; i < 300; i = i + 1) walk(2);
        print walk(30000);",
    ),
    (
        "a captured slot far above the loop's",
        "fun walk(n) {
            var s = N(0, nil);
            { var a; var b; var c; var d; var e; var f; var g; var head = s; fun get() { return head; } get().v = 1; }
            LOOP
            return s.v;
        }
        for (var i = 0; i < 300; i = i + 1) walk(2);
        print walk(30000);",
    ),
    (
        "a captured argument",
        "fun walk(s, n) { fun step() { var t = N(s.v + 1, nil); s.next = t; s = t; } while (n > 0) { step(); n = n - 1; } return s.v; }
        for (var i = 0; i < 300; i = i + 1) walk(N(0, nil), 2);
        print walk(N(0, nil), 30000);",
    ),
    (
        "a stream",
        "class Stream {
            init(v) { this.v = v; this.rest = nil; }
            tail() { if (this.rest == nil) this.rest = Stream(this.v + 1); return this.rest; }
        }
        fun drop(s, n) { for (var i = 0; i < n; i = i + 1) s = s.tail(); return s.v; }
        for (var i = 0; i < 300; i = i + 1) drop(Stream(0), 2);
        print drop(Stream(0), 30000);",
    ),
    (
        // The closure is the first cell of its span, and the span of the first nodes is before that
        // span.
        "a closure that walks a stream",
        "class Stream {
            init(v) { this.v = v; this.rest = nil; }
            tail() { if (this.rest == nil) this.rest = Stream(this.v + 1); return this.rest; }
        }
        fun walk(s, n) {
            fun next() { s = s.tail(); return s.v; }
            for (var i = 0; i < n; i = i + 1) next();
            return s.v;
        }
        print walk(Stream(0), 30000);",
    ),
    (
        "a closure that is a global and walks a list",
        "fun make(s) { fun next() { var t = N(s.v + 1, nil); s.next = t; s = t; return t.v; } return next; }
        var next = make(N(0, nil));
        var v; for (var i = 0; i < 30000; i = i + 1) v = next();
        print v;",
    ),
    (
        "an initialiser, and methods of a superclass",
        "class A { init(s, n) { LOOP this.v = s.v; } walk(s, n) { LOOP return s.v; } }
        class B < A { init(n) { super.init(N(0, nil), n); } run(n) { return super.walk(N(0, nil), n); } }
        for (var i = 0; i < 300; i = i + 1) B(2).run(2);
        print B(30000).v; print B(1).run(30000);",
    ),
    (
        "two lists in turn, in nested loops",
        "fun walk(a, b, n) {
            while (n > 0) {
                for (var i = 0; i < 10; i = i + 1) { var t = N(a.v, nil); a.next = t; a = t; n = n - 1; }
                var t = a; a = b; b = t;
            }
            return a.v;
        }
        for (var i = 0; i < 300; i = i + 1) walk(N(1, nil), N(2, nil), 20);
        print walk(N(1, nil), N(2, nil), 30000);",
    ),
];

const LOOP: &str = "while (n > 0) { var t = N(s.v + 1, nil); s.next = t; s = t; n = n - 1; }";

/// The bytes of a node, and of most other cells.
const NODE_BYTES: u64 = 32;

/// More cells than any shape needs for classes, closures, strings and live nodes. A list has 30,000
/// nodes.
const LIVE_MAX: u64 = 1_000;

fn tiers() -> Vec<(String, RunConfig)> {
    let config = |jit, hot| RunConfig {
        jit,
        hot,
        gc_every: Some(5_000),
        ..RunConfig::default()
    };
    let mut tiers = vec![
        (
            "the interpreter".to_owned(),
            config(false, JitConfig::default()),
        ),
        (
            "the default thresholds".to_owned(),
            config(true, JitConfig::default()),
        ),
    ];
    for after in [0, 1, 7, 150, 5_000] {
        let name = format!("--jit-after {after}");
        tiers.push((name, config(true, JitConfig::after(after))));
    }
    tiers
}

#[test]
fn every_shape_runs_in_constant_space_in_every_tier() {
    let mut wrong = String::new();
    for (name, program) in SHAPES {
        let source = format!("{NODE}{}\n", program.replace("LOOP", LOOP));
        let mut expected = None;
        for (tier, config) in tiers() {
            let outcome = run_source(source.as_bytes(), &config);
            let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
            assert_eq!(
                (stderr.as_str(), outcome.exit_code),
                ("", 0),
                "{name}, {tier}"
            );
            assert_eq!(outcome.contradictions, 0, "{name}, {tier}");
            let expected = expected.get_or_insert_with(|| outcome.stdout.clone());
            assert_eq!(*expected, outcome.stdout, "{name}, {tier}");
            let stats = outcome.stats.expect("there was a heap");
            assert!(
                stats.collections >= 5,
                "{name}, {tier}: {} collections",
                stats.collections
            );
            if stats.last.cells_live > LIVE_MAX {
                wrong += &format!("{name}, {tier}: {} cells live\n", stats.last.cells_live);
            }
        }
    }
    assert_eq!(wrong, "", "lists are kept");
}

/// Requested collections stop the program where it allocates. The collections of this test run
/// beside the loops and stop it at any instruction.
///
/// If a frame's word names a dead node at the stop, it keeps a list for one cycle, as in any
/// conservative collector. So the last cycle of one run proves nothing, but the last cycles of
/// several runs do.
#[test]
fn every_shape_runs_in_constant_space_beside_collections_in_every_tier() {
    const RUNS: usize = 4;
    let mut wrong = String::new();
    for (name, program) in SHAPES {
        let program = program.replace("LOOP", LOOP).replace("30000", "300000");
        let source = format!("{NODE}{program}\n");
        for (tier, config) in tiers() {
            let config = RunConfig {
                gc_every: None,
                continuous: true,
                ..config
            };
            // The bytes that the last cycle found alive, without the cells that were allocated
            // black.
            let found = || {
                let outcome = run_source(source.as_bytes(), &config);
                assert_eq!(outcome.exit_code, 0, "{name}, {tier}");
                let stats = outcome.stats.expect("there was a heap");
                assert!(stats.collections > 0, "{name}, {tier}");
                stats.last.bytes_live - stats.last.bytes_allocated_black
            };
            let most = LIVE_MAX * NODE_BYTES;
            if (0..RUNS).all(|_| found() > most) {
                wrong += &format!("{name}, {tier}: no run leaves few cells live\n");
            }
        }
    }
    assert_eq!(wrong, "", "lists are kept");
}

/// Runs the first test with a planted fault, and demands that this shape fails.
fn shows(fault: &str, shape: &str) {
    shows_in(
        "every_shape_runs_in_constant_space_in_every_tier",
        fault,
        shape,
    );
}

fn shows_in(test: &str, fault: &str, shape: &str) {
    let child = Command::new(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", test, "--nocapture"])
        .env("URGE_FAULT", fault)
        .output()
        .expect("the test can run again");
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success(), "{fault} is not noticed");
    assert!(
        said.contains(shape) && said.contains("lists are kept"),
        "{fault}: {said}"
    );
}

/// H83
#[test]
fn h83_slots_that_keep_what_compiled_code_has_taken_over_are_noticed() {
    shows(
        "stale-loop-slots",
        "an argument of a function called once, the default thresholds",
    );
    shows(
        "stale-arguments",
        "an argument of a function called once, --jit-after 0",
    );
    shows(
        "stale-captured-slots",
        "a captured slot far above the loop's, --jit-after 1",
    );
    shows(
        "stale-interpreted",
        "an argument of a call that is over, the interpreter",
    );
    shows(
        "stale-interpreted",
        "an argument of a function called once, the default thresholds",
    );
}

/// H91
#[test]
fn h91_a_cell_that_ends_where_another_begins_is_not_kept_by_it() {
    shows(
        "ends-are-beginnings",
        "a closure that walks a stream, the interpreter",
    );
    shows(
        "ends-are-beginnings",
        "a closure that is a global and walks a list, the interpreter",
    );
}

/// H83, H91
#[test]
fn what_keeps_lists_is_noticed_beside_collections_too() {
    let test = "every_shape_runs_in_constant_space_beside_collections_in_every_tier";
    shows_in(
        test,
        "stale-loop-slots,ends-are-beginnings",
        ": no run leaves few cells live",
    );
}

/// `clear::dead_stack` clears a vector register.
#[test]
fn vector_registers_are_cleared_with_the_dead_stack() {
    clear::find_vectors();
    let mut left = [u64::MAX; 2];
    // SAFETY: the function has no arguments. The clobber list names all registers that a call may
    // change, and the inputs are in none of these.
    unsafe {
        std::arch::asm!(
            "movq xmm15, r12",
            "punpcklqdq xmm15, xmm15",
            "call {clear}",
            "movups [r13], xmm15",
            in("r12") 0x1234_5678_9abc_u64,
            in("r13") left.as_mut_ptr(),
            clear = sym clear::dead_stack,
            clobber_abi("C"),
        );
    }
    assert_eq!(left, [0; 2], "lists are kept by a vector register");
}

/// H93
#[test]
fn h93_words_that_vector_registers_keep_are_noticed() {
    shows_in(
        "vector_registers_are_cleared_with_the_dead_stack",
        "stale-vectors",
        "vector register",
    );
}

/// H84
#[test]
fn h84_arguments_on_the_machine_s_stack_are_noticed() {
    shows("stack-arguments", "many arguments, ");
    shows("stack-arguments", "many arguments of a method, ");
}

/// H85
#[test]
fn h85_what_calls_have_left_on_the_native_stack_is_noticed() {
    shows("stale-native-stack", ": ");
}
