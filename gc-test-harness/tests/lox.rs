//! Lox programs behave as in clox: the same output, the same errors, and no collection or stop
//! changes them.
//!
//! The expected texts beside the programs are the output of clox.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use gc_preempt::StrictAllocator;
use gc_test_harness::lox::jit::JitConfig;
use gc_test_harness::lox::run::{Outcome, RunConfig, run_file, run_source};

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

fn programs(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder is part of the repository")
        .map(|entry| entry.expect("a folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "lox"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no programs in {}", folder.display());
    files
}

fn beside(program: &Path, extension: &str) -> String {
    let path = program.with_extension(extension);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The default thresholds, all code compiled, and all code interpreted.
fn all_tiers() -> [RunConfig; 3] {
    let compiled = RunConfig {
        hot: JitConfig::after(0),
        ..RunConfig::default()
    };
    let interpreted = RunConfig {
        jit: false,
        ..RunConfig::default()
    };
    [RunConfig::default(), compiled, interpreted]
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a source and returns (stdout, stderr, exit code).
fn run(source: &str) -> (String, String, u8) {
    let Outcome {
        stdout,
        stderr,
        exit_code,
        ..
    } = run_source(source.as_bytes(), &RunConfig::default());
    (text(&stdout), text(&stderr), exit_code)
}

#[test]
fn programs_print_what_clox_prints() {
    for folder in [".", "bench"] {
        for program in programs(folder) {
            // The benches are not interpreted throughout: this takes long in a debug build.
            for config in all_tiers()
                .into_iter()
                .take(if folder == "bench" { 2 } else { 3 })
            {
                let outcome = run_file(&program, &config);
                assert_eq!(text(&outcome.stderr), "", "{}", program.display());
                assert_eq!(
                    text(&outcome.stdout),
                    beside(&program, "out"),
                    "{} {config:?}",
                    program.display()
                );
                assert_eq!(outcome.exit_code, 0);
            }
        }
    }
}

#[test]
fn runtime_errors_have_clox_s_message_trace_and_exit_code() {
    for program in programs("errors/runtime") {
        for config in all_tiers() {
            let outcome = run_file(&program, &config);
            assert_eq!(
                text(&outcome.stderr),
                beside(&program, "err"),
                "{} {config:?}",
                program.display()
            );
            assert_eq!(
                text(&outcome.stdout),
                beside(&program, "out"),
                "{} {config:?}",
                program.display()
            );
            assert_eq!(outcome.exit_code, 70, "{}", program.display());
        }
    }
}

#[test]
fn compile_errors_have_clox_s_messages_and_exit_code() {
    for program in programs("errors/compile") {
        let outcome = run_file(&program, &RunConfig::default());
        assert_eq!(
            text(&outcome.stderr),
            beside(&program, "err"),
            "{}",
            program.display()
        );
        assert_eq!(
            (text(&outcome.stdout).as_str(), outcome.exit_code),
            ("", 65),
            "{}",
            program.display()
        );
    }
}

#[test]
fn limits_are_the_book_s_at_their_very_edge() {
    let list = |count: usize, item: &dyn Fn(usize) -> String, between: &str| {
        (0..count).map(item).collect::<Vec<_>>().join(between)
    };
    let fails = |source: String, message: &str| {
        let (_, stderr, exit_code) = run(&source);
        assert_eq!((stderr.as_str(), exit_code), (message, 65));
    };
    let passes = |source: String| {
        let (stdout, stderr, exit_code) = run(&source);
        assert_eq!(
            (stdout.as_str(), stderr.as_str(), exit_code),
            ("good\n", "", 0)
        );
    };

    // A function has at most 256 constants: numbers, strings, names, and inner functions.
    let constants = |count| {
        format!(
            "fun f() {{ {} }} f(); print \"good\";",
            list(count, &|n| format!("{n};"), " ")
        )
    };
    passes(constants(256));
    fails(
        constants(257),
        "[line 1] Error at '256': Too many constants in one chunk.\n",
    );

    // A function has at most 256 slots: the callee and 255 variables.
    let locals = |count| {
        format!(
            "fun f() {{ {} }} f(); print \"good\";",
            list(count, &|n| format!("var v{n};"), " ")
        )
    };
    passes(locals(255));
    fails(
        locals(256),
        "[line 1] Error at 'v255': Too many local variables in function.\n",
    );

    let parameters = |count| {
        format!(
            "fun f({}) {{}} print \"good\";",
            list(count, &|n| format!("p{n}"), ", ")
        )
    };
    passes(parameters(255));
    fails(
        parameters(256),
        "[line 1] Error at 'p255': Can't have more than 255 parameters.\n",
    );

    let arguments = |count: usize| {
        let parameters = list(255, &|n| format!("p{n}"), ", ");
        format!(
            "fun f({parameters}) {{ print p254; }} f({}true);",
            "nil, ".repeat(count - 1)
        )
    };
    assert_eq!(run(&arguments(255)).0, "true\n");
    fails(
        arguments(256),
        "[line 1] Error at 'true': Can't have more than 255 arguments.\n",
    );

    // A function captures at most 256 variables. They are of two functions, since one function has
    // fewer.
    let upvalues = |count: usize| {
        let outer = list(128, &|n| format!("var a{n} = {n};"), " ");
        let middle = list(count - 128, &|n| format!("var b{n};"), " ");
        let used =
            list(128, &|n| format!("a{n};"), " ") + &list(count - 128, &|n| format!("b{n};"), " ");
        // Each `var a = n` takes a constant. 128 of them and the functions are within the limit.
        format!(
            "fun f() {{ {outer} fun g() {{ {middle} fun h() {{ {used} print \"good\"; }} h(); }} g(); }} f();"
        )
    };
    passes(upvalues(256));
    fails(
        upvalues(257),
        "[line 1] Error at 'b128': Too many closure variables in function.\n",
    );

    // `nil;` is two bytes in clox. A `while` adds 4 bytes for the exit and 3 for the jump back.
    let loops = |body: usize, more: &str| {
        format!(
            "while (false) {{ {more}{} }}\nprint \"good\";",
            "nil;".repeat(body)
        )
    };
    passes(loops(32_763, ""));
    fails(
        loops(32_764, ""),
        "[line 1] Error at '}': Loop body too large.\n",
    );
    // An `if` adds 1 byte for the pop and 3 for the jump over the `else`, with or without one.
    let branches = |body: usize, more: &str| {
        format!(
            "if (false) {{ {more}{} }}\nprint \"good\";",
            "nil;".repeat(body)
        )
    };
    passes(branches(32_765, ""));
    fails(
        branches(32_765, "!nil;"),
        "[line 1] Error at '}': Too much code to jump over.\n",
    );
}

#[test]
fn nesting_too_deep_for_the_compiler_is_an_error_and_no_crash() {
    for (open, close) in [
        ("(", ")"),
        ("-", ""),
        ("!", ""),
        ("{", "}"),
        ("fun f() {", "}"),
        ("if (true) ", ""),
        ("class A { m() {", "}}"),
    ] {
        let source = format!("{} 1 {};", open.repeat(100_000), close.repeat(100_000));
        let (stdout, stderr, exit_code) = run(&source);
        assert_eq!((stdout.as_str(), exit_code), ("", 65), "{open}");
        assert_eq!(stderr.lines().count(), 1, "{open}: {stderr}");
        assert!(
            stderr.ends_with(": Too much nesting.\n"),
            "{open}: {stderr}"
        );
    }
    let deep = 4_000;
    let (stdout, ..) = run(&format!("print {}1{};", "(".repeat(deep), ")".repeat(deep)));
    assert_eq!(stdout, "1\n");
    // Pending operands take slots of the value stack, many more than the limit of locals.
    let (stdout, stderr, _) = run(&format!(
        "print {}nil{};",
        "nil == (".repeat(deep),
        ")".repeat(deep)
    ));
    assert_eq!((stdout.as_str(), stderr.as_str()), ("false\n", ""));
}

#[test]
fn any_bytes_are_a_program_or_an_error() {
    let outcome = run_source(&(0..=255).rev().collect::<Vec<u8>>(), &RunConfig::default());
    assert_eq!(outcome.exit_code, 65);
    assert!(!outcome.stderr.is_empty());
    // A NUL ends the source, as it ends a string in C.
    assert_eq!(
        run("print 1;\0 this is not Lox"),
        ("1\n".into(), String::new(), 0)
    );
    assert_eq!(run(""), (String::new(), String::new(), 0));
    let outcome = run_source(b"print \"\xFF\xFE\";", &RunConfig::default());
    assert_eq!(outcome.stdout, b"\xFF\xFE\n");
}

#[test]
fn a_full_heap_is_a_runtime_error() {
    let source = "class Node { init(next) { this.next = next; } }\nvar list = nil;\nfun grow() {\n  while (true) list = Node(list);\n}\nprint \"begins\";\ngrow();\n";
    for jit in [true, false] {
        let config = RunConfig {
            jit,
            heap_limit: Some(8 << 20),
            ..RunConfig::default()
        };
        let outcome = run_source(source.as_bytes(), &config);
        assert_eq!(
            text(&outcome.stderr),
            "Out of memory.\n[line 4] in grow()\n[line 7] in script\n"
        );
        assert_eq!(
            (text(&outcome.stdout).as_str(), outcome.exit_code),
            ("begins\n", 70)
        );
    }
}

#[test]
fn garbage_of_any_kind_fits_a_small_heap() {
    // Each loop makes and drops about 4 MiB of one kind of cell. The heap has room for 16 MiB.
    let source = "
        class A { init() { this.a = 1; } m() {} }
        fun f() { var x; fun g() { return x; } return g; }
        for (var i = 0; i < 400000; i = i + 1) { A(); f(); A().m; }
        for (var i = 0; i < 4000; i = i + 1) { class C { init() {} } C().x = C; }
        var double = \"0123456789\";
        for (var i = 0; i < 14; i = i + 1) double = double + double;
        for (var i = 0; i < 300; i = i + 1) { double + \"tail\"; double = double + \"\"; }
        var text = \"\";
        for (var i = 0; i < 5000; i = i + 1) text = text + \"xyz\";
        fun wide(i) { var a = A(); a.b = i; a.c = i; a.d = i; a.e = i; a.f = i; a.g = i; a.h = i; a.i = i; return a; }
        for (var i = 0; i < 100000; i = i + 1) wide(i);
        print \"fits\";";
    let outcome = run_source(
        source.as_bytes(),
        &RunConfig {
            heap_limit: Some(16 << 20),
            ..RunConfig::default()
        },
    );
    assert_eq!(
        (
            text(&outcome.stdout).as_str(),
            text(&outcome.stderr).as_str()
        ),
        ("fits\n", "")
    );
    assert!(outcome.stats.is_some_and(|stats| stats.collections > 5));
}

#[test]
fn isolates_run_side_by_side_and_speak_in_order() {
    let source = "class P { init(n) { this.n = n; } } var sum = 0; for (var i = 0; i < 20000; i = i + 1) sum = sum + P(i).n; print sum; print nil + 1;";
    let outcome = run_source(
        source.as_bytes(),
        &RunConfig {
            threads: 5,
            ..RunConfig::default()
        },
    );
    assert_eq!(text(&outcome.stdout), "1.9999e+08\n".repeat(5));
    assert_eq!(
        text(&outcome.stderr),
        "Operands must be two numbers or two strings.\n[line 1] in script\n".repeat(5)
    );
    assert_eq!(outcome.exit_code, 70);
}

#[test]
fn stress_programs_allocate_little_enough_to_collect_at_every_cell() {
    for program in programs(".") {
        let outcome = run_file(
            &program,
            &RunConfig {
                gc_every: Some(1),
                ..RunConfig::default()
            },
        );
        assert_eq!(
            text(&outcome.stdout),
            beside(&program, "out"),
            "{}",
            program.display()
        );
        let collections = outcome.stats.expect("there was a heap").collections;
        assert!(
            (1..=2_000).contains(&collections),
            "{}: {collections}",
            program.display()
        );
    }
}

/// A folder for one test's programs.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("urge-lox-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the program");
    folder
}

fn gclab(arguments: &[&str], program: &Path, inject: bool) -> (String, String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_gclab"))
        .arg("run")
        .args(arguments)
        .arg(program)
        .env("URGE_INJECT", if inject { "1" } else { "0" })
        .output()
        .expect("gclab was built for this test");
    (
        text(&output.stdout),
        text(&output.stderr),
        output.status.code(),
    )
}

/// Runs every program in every tier, with and without injected calls, on one thread and on four,
/// under each of the stresses. Returns a description of each failure, the number of collections,
/// and the number of stops by the storm.
fn under_stress(stresses: &[&[&str]]) -> (String, u64, u64) {
    let mut wrong = String::new();
    let (mut collections, mut stops) = (0, 0);
    for program in programs(".") {
        let expected = beside(&program, "out");
        for threads in [1, 4] {
            for inject in [false, true] {
                for tier in [&["--jit-after", "0"][..], &["--no-jit"]] {
                    for stress in stresses {
                        let threads_text = threads.to_string();
                        let arguments =
                            [tier, stress, &["--json", "--threads", &threads_text]].concat();
                        let (stdout, stderr, code) = gclab(&arguments, &program, inject);
                        // stderr must be one line, the figures. A message before it makes it
                        // invalid JSON.
                        let figures: serde_json::Value =
                            serde_json::from_str(&stderr).unwrap_or_default();
                        collections += figures["collections"].as_u64().unwrap_or(0);
                        stops += figures["storm_stops"].as_u64().unwrap_or(0);
                        if stdout != expected.repeat(threads)
                            || !figures.is_object()
                            || code != Some(0)
                        {
                            let _ = writeln!(
                                wrong,
                                "{} {arguments:?} inject {inject}: {code:?} {stderr}",
                                program.display()
                            );
                        }
                    }
                }
            }
        }
    }
    (wrong, collections, stops)
}

#[test]
fn no_collection_and_no_stop_changes_what_a_program_prints() {
    let (wrong, _, stops) = under_stress(&[&["--gc-every", "1"], &["--storm", "50"]]);
    assert_eq!(wrong, "");
    // Most programs end within a millisecond or two, so only the sum of stops is checked.
    assert!(
        stops > 500,
        "the storm stopped the world only {stops} times"
    );
}

#[test]
fn no_marking_beside_it_changes_what_a_program_prints() {
    let (wrong, collections, _) = under_stress(&[
        &["--continuous"],
        &["--continuous", "--gc-every", "3"],
        &["--continuous", "--storm", "50"],
    ]);
    assert_eq!(wrong, "");
    // A program of a millisecond runs beside only one or two cycles without stress.
    assert!(collections > 2000, "only {collections} collections");
}

#[test]
fn no_collection_changes_what_a_program_prints_where_the_world_is_stopped_for_it() {
    let (wrong, collections, _) = under_stress(&[&["--stw", "--gc-every", "2"]]);
    assert_eq!(wrong, "");
    assert!(collections > 2000, "only {collections} collections");
}

/// A list that is reversed all the time: the only path to each node moves from the heap to a
/// variable and back, behind the marker. Without the barrier, nodes are lost.
#[test]
fn the_barrier_keeps_what_a_program_unlinks_while_it_is_marked() {
    let source = "class Node { init(number, next) { this.number = number; this.next = next; } }
        fun build(n) { var list = nil; for (var i = 0; i < n; i = i + 1) list = Node(i, list); return list; }
        fun reverse(list) {
          var back = nil;
          while (list != nil) { var next = list.next; list.next = back; back = list; list = next; }
          return back;
        }
        fun sum(list) { var sum = 0; while (list != nil) { sum = sum + list.number; list = list.next; } return sum; }
        var holder = Node(0, nil);
        var right = 0;
        var end = clock() + 0.8;
        holder.next = build(300);
        while (clock() < end) {
          holder.next = reverse(holder.next);
          build(20);
          if (sum(holder.next) == 44850) right = right + 1; else print \"lost\";
        }
        print right > 100;\n";
    let program = folder("barrier").join("reverse.lox");
    std::fs::write(&program, source).expect("a place for the program");
    for tier in [&["--jit-after", "0"][..], &["--no-jit"]] {
        let run = |fault: &str| {
            Command::new(env!("CARGO_BIN_EXE_gclab"))
                .args(["run", "--continuous"])
                .args(tier)
                .arg(&program)
                .env("URGE_FAULT", fault)
                .output()
                .expect("gclab was built for this test")
        };
        let right = run("");
        assert_eq!(
            (text(&right.stdout).as_str(), right.status.code()),
            ("true\n", Some(0)),
            "{tier:?}: {}",
            text(&right.stderr)
        );
        let wrong = run("stores-unlogged");
        assert!(
            text(&wrong.stdout) != "true\n" || !wrong.status.success(),
            "{tier:?}: the barrier is not needed?"
        );
    }
    std::fs::remove_dir_all(folder("barrier")).expect("the folder is ours");
}

#[test]
fn errors_keep_their_traces_under_stress() {
    for program in programs("errors/runtime") {
        for tier in [&["--jit-after", "0"][..], &["--no-jit"]] {
            let arguments = [tier, &["--gc-every", "3"]].concat();
            let (stdout, stderr, code) = gclab(&arguments, &program, false);
            assert_eq!(
                (stdout, stderr, code),
                (beside(&program, "out"), beside(&program, "err"), Some(70)),
                "{} {arguments:?}",
                program.display()
            );
        }
    }
}

#[test]
fn wrong_use_is_told() {
    let missing = Path::new("no/such/file.lox");
    assert_eq!(
        gclab(&[], missing, false),
        (
            String::new(),
            "Could not open file \"no/such/file.lox\".\n".into(),
            Some(74)
        )
    );
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (_, stderr, code) = gclab(&[], folder, false);
    assert!(stderr.starts_with("Could not read file "), "{stderr}");
    assert_eq!(code, Some(74));
    let program = &programs(".")[0];
    for (arguments, says) in [
        (&["--thread", "2"][..], "--threads"),
        (&["--threads", "0"], "0"),
        (&["--gc-every", "0"], "0"),
        (&["--gc-every", "x"], "x"),
        (&["--heap-limit", "1000"], "1000"),
    ] {
        let (stdout, stderr, code) = gclab(arguments, program, false);
        assert_eq!(
            (stdout.as_str(), code),
            ("", Some(64)),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
}

/// H34: the interpreter's top of stack is in a register. The collector must scan all slots of the
/// activation, not the slots up to a copy of the top in memory. With the planted fault, it scans
/// the slots that were in use at the activation's entry. The loop is long enough for freed cells to
/// be allocated again.
#[test]
fn operands_above_a_stale_stack_top_would_be_lost() {
    let source = "class Cell { init(value) { this.value = value; } }
        fun work(n) {
          var a = Cell(n); var b = Cell(n + 1); var c = Cell(n + 2);
          for (var i = 0; i < 60000; i = i + 1) Cell(-1);
          return a.value + b.value + c.value + Cell(Cell(n + 3).value + Cell(n + 4).value).value;
        }
        var sum = 0;
        for (var i = 0; i < 2; i = i + 1) sum = sum + work(i);
        print sum;\n";
    let folder = folder("stale");
    let program = folder.join("stale.lox");
    std::fs::write(&program, source).expect("a place for the program");
    let run = |fault: &str| {
        Command::new(env!("CARGO_BIN_EXE_gclab"))
            .args(["run", "--no-jit", "--gc-every", "100"])
            .arg(&program)
            .env("URGE_FAULT", fault)
            .output()
            .expect("gclab was built for this test")
    };
    let (right, wrong) = (run(""), run("cached-stack-top"));
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    assert_eq!(
        (text(&right.stdout).as_str(), right.status.code()),
        ("25\n", Some(0))
    );
    assert!(
        text(&wrong.stdout) != "25\n" || !wrong.status.success(),
        "the cure is not needed?"
    );
}
