//! Green threads of Lox programs (`gclab run --green`): their answers in all tiers and under
//! stress, preemption of loops without calls, and errors.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use gc_preempt::StrictAllocator;
use gc_test_harness::lox::jit::JitConfig;
use gc_test_harness::lox::run::{Outcome, RunConfig, run_file, run_source};

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

fn green() -> RunConfig {
    RunConfig {
        green: true,
        // Many preemptions in a short test.
        slice: Duration::from_millis(1),
        ..RunConfig::default()
    }
}

fn compiled() -> RunConfig {
    RunConfig {
        hot: JitConfig::after(0),
        ..green()
    }
}

fn interpreted() -> RunConfig {
    RunConfig {
        jit: false,
        ..green()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a source and returns (stdout, stderr, exit code).
fn run(source: &str, config: &RunConfig) -> (String, String, u8) {
    let outcome = run_source(source.as_bytes(), config);
    let (out, err) = (text(&outcome.stdout), text(&outcome.stderr));
    (out, err, outcome.exit_code)
}

/// Runs the programs in `programs/green` and compares what they print.
fn programs(config: &RunConfig) -> Vec<Outcome> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/green");
    let run = |name: &str| {
        let outcome = run_file(&folder.join(format!("{name}.lox")), config);
        let expected = std::fs::read_to_string(folder.join(format!("{name}.out"))).unwrap();
        assert_eq!(text(&outcome.stderr), "", "{name} {config:?}");
        let expected = expected.repeat(config.threads);
        assert_eq!(text(&outcome.stdout), expected, "{name} {config:?}");
        outcome
    };
    ["server", "ring", "flags", "shapes", "counts"]
        .map(run)
        .into()
}

#[test]
fn programs_print_the_same_in_all_tiers() {
    for config in [green(), compiled(), interpreted()] {
        let outcomes = programs(&config);
        // The first and the third program end only if loops without calls are preempted.
        assert!(outcomes[0].preemptions > 0 && outcomes[2].preemptions > 0);
    }
}

#[test]
fn programs_print_the_same_whatever_stops_and_collections_do() {
    for tier in [compiled(), interpreted()] {
        programs(&RunConfig {
            storm: Some(Duration::from_micros(50)),
            ..tier.clone()
        });
        programs(&RunConfig {
            gc_every: Some(5),
            ..tier.clone()
        });
        programs(&RunConfig {
            continuous: true,
            threads: 2,
            ..tier
        });
    }
}

/// Compiled code is suspended at points only. With `suspended-anywhere` planted it is suspended
/// wherever a signal finds it, and what other green threads have counted meanwhile is lost.
#[test]
fn h126_no_green_thread_is_suspended_in_the_middle_of_an_access() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/green/counts.lox");
    let program = std::fs::read_to_string(program).unwrap();
    let tier = ["--jit-after", "1"];
    assert_eq!(run_gclab(&program, &tier, ""), "true\n");
    // A preemption loses counts by chance, so the threads count again until one has.
    let (head, _) = program.split_once("for (var k").unwrap();
    let again = format!(
        "{head}
        var good = true;
        for (var round = 0; round < 1000 and good; round = round + 1) {{
            counter.n = 0;
            for (var k = 0; k < 4; k = k + 1) spawn(counts);
            for (var k = 0; k < 4; k = k + 1) receive(done);
            good = counter.n == 8000000;
        }}
        print good;"
    );
    assert_eq!(
        run_gclab(&again, &tier, "suspended-anywhere"),
        "false\n",
        "the cure is not needed?"
    );
}

/// Runs a program by `gclab run --green`, with slices of 1 ms, and returns its stdout.
fn run_gclab(source: &str, options: &[&str], fault: &str) -> String {
    let mut gclab = Command::new(env!("CARGO_BIN_EXE_gclab"))
        .args(["run", "--green", "--slice", "1", "/dev/stdin"])
        .args(options)
        .env("URGE_FAULT", fault)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gclab was built for this test");
    let mut stdin = gclab.stdin.take().unwrap();
    stdin.write_all(source.as_bytes()).unwrap();
    drop(stdin);
    text(&gclab.wait_with_output().unwrap().stdout)
}

/// The script waits for a loop that ends after some seconds only. It is served before, unless
/// the monitor never asks for preemption.
#[test]
fn h129_an_endless_loop_is_preempted_in_all_tiers() {
    let source = |seconds: &str| {
        format!(
            "fun loops() {{
                var end = clock() + {seconds};
                while (clock() < end) for (var i = 0; i < 10000; i = i + 1) {{}}
                print \"not served\";
            }}
            spawn(loops); yield(); print \"served\";"
        )
    };
    for tier in [&["--no-jit"][..], &["--jit-after", "1"]] {
        let stress = [&[][..], &["--gc-every", "1"], &["--storm", "50"]];
        for stress in stress.map(|stress| [tier, stress].concat()) {
            let found = run_gclab(&source("600"), &stress, "");
            assert_eq!(found, "served\n", "{stress:?}");
        }
        let found = run_gclab(&source("0.3"), tier, "slices-without-end");
        assert_eq!(found, "not served\nserved\n", "the cure is not needed?");
    }
}

/// A collection after each allocation; freed cells are filled with a pattern, and each collection
/// marks twice.
#[test]
fn values_that_wait_in_channels_and_on_suspended_stacks_live() {
    let source = r#"
        class Box { init(value) { this.value = value; } }
        fun sends(c, from) {
            var kept = Box(from);
            for (var i = 0; i < 3; i = i + 1) send(c, Box("v" + " "));
            send(c, kept);
        }
        var c = channel(2);
        var d = channel();
        spawn(sends, c, 1);
        spawn(sends, d, 2);
        yield(); yield();
        for (var i = 0; i < 3; i = i + 1) print receive(c).value + receive(d).value;
        print receive(c).value + receive(d).value;
    "#;
    for tier in [compiled(), interpreted()] {
        for every in [1, 3] {
            let config = RunConfig {
                gc_every: Some(every),
                verify: true,
                ..tier.clone()
            };
            let expected = "v v \nv v \nv v \n3\n".into();
            assert_eq!(run(source, &config), (expected, String::new(), 0));
        }
    }
}

#[test]
fn thousands_of_green_threads_sleep_and_end() {
    let source = "
        fun adds(n) { sleep(0.001); sum = sum + n; left = left - 1; if (left == 0) send(done, 0); }
        var done = channel();
        var sum = 0;
        var left = 0;
        for (var round = 0; round < 3; round = round + 1) {
            left = 2000;
            for (var n = 1; n <= 2000; n = n + 1) spawn(adds, n);
            receive(done);
            print sum;
        }";
    let expected = "2.001e+06\n4.002e+06\n6.003e+06\n";
    for config in [green(), interpreted()] {
        assert_eq!(run(source, &config), (expected.into(), String::new(), 0));
    }
}

#[test]
fn channels_keep_the_order_and_hold_what_they_have_room_for() {
    let source = r#"
        var c = channel(2);
        fun sends() {
            for (var i = 0; i < 5; i = i + 1) { send(c, i); print "sent " + name(i); }
        }
        fun name(i) { if (i == 0) return "0"; if (i == 1) return "1"; if (i == 2) return "2"; if (i == 3) return "3"; return "4"; }
        spawn(sends);
        yield();
        for (var i = 0; i < 5; i = i + 1) print receive(c);
    "#;
    let expected = "sent 0\nsent 1\n0\n1\n2\nsent 2\nsent 3\nsent 4\n3\n4\n";
    // The order does not depend on slices: the script's loop is short.
    let config = RunConfig {
        slice: Duration::from_secs(60),
        ..green()
    };
    assert_eq!(run(source, &config), (expected.into(), String::new(), 0));
}

/// A variable that was captured before its green thread was suspended is closed when the function
/// returns. Otherwise the closure reads a slot that another green thread has taken over.
#[test]
fn captured_variables_outlive_their_green_thread() {
    let source = r#"
        fun makes(c) {
            var n = 10;
            fun counts() { n = n + 1; return n; }
            yield();
            send(c, counts);
        }
        fun fills(x) { var y = x; var z = x; yield(); print y == z; }
        var c = channel();
        spawn(makes, c);
        spawn(makes, c);
        var a = receive(c);
        var b = receive(c);
        yield();
        spawn(fills, "other");
        spawn(fills, "other");
        yield();
        print a(); print a(); print b();
        yield();
    "#;
    for tier in [green(), compiled(), interpreted()] {
        // The order of the lines does not depend on slices.
        let config = RunConfig {
            slice: Duration::from_secs(60),
            ..tier
        };
        let expected = "11\n12\n11\ntrue\ntrue\n".into();
        assert_eq!(run(source, &config), (expected, String::new(), 0));
    }
}

#[test]
fn the_program_ends_with_the_script() {
    let source = "fun f() { while (true) yield(); } spawn(f); yield(); print 1;";
    assert_eq!(run(source, &green()), ("1\n".into(), String::new(), 0));
}

#[test]
fn mistakes_are_runtime_errors_with_the_trace_of_their_green_thread() {
    let errors = [
        (
            "fun g(x) {\n return x.y; }\nfun f() { g(1); }\nspawn(f);\nwhile (true) {}",
            "Only instances have properties.\n[line 2] in g()\n[line 3] in f()\n",
        ),
        (
            "receive(channel());",
            "All green threads are waiting: deadlock.\n",
        ),
        (
            "fun f(c) { send(c, 1); }\nspawn(f, channel()); receive(channel());",
            "All green threads are waiting: deadlock.\n",
        ),
        (
            "fun f(a) {}\nspawn(f);",
            "Expected 1 arguments but got 0.\n[line 2] in script\n",
        ),
        (
            "spawn();",
            "Expected a function to spawn.\n[line 1] in script\n",
        ),
        (
            "spawn(1);",
            "Can only spawn functions and classes.\n[line 1] in script\n",
        ),
        (
            "yield(1);",
            "Expected 0 arguments but got 1.\n[line 1] in script\n",
        ),
        (
            "sleep(-1);",
            "Seconds must be a number from 0.\n[line 1] in script\n",
        ),
        (
            "sleep(nil);",
            "Seconds must be a number from 0.\n[line 1] in script\n",
        ),
        (
            "channel(0.5);",
            "A capacity must be an integer from 0 to 1048576.\n[line 1] in script\n",
        ),
        (
            "send(1, 2);",
            "Can only send to channels.\n[line 1] in script\n",
        ),
        (
            "receive(spawn);",
            "Can only receive from channels.\n[line 1] in script\n",
        ),
        (
            "channel()();",
            "Can only call functions and classes.\n[line 1] in script\n",
        ),
        (
            "channel().x;",
            "Only instances have properties.\n[line 1] in script\n",
        ),
    ];
    for (source, expected) in errors {
        for config in [green(), compiled()] {
            let found = run(source, &config);
            assert_eq!(found, (String::new(), expected.into(), 70), "{source}");
        }
    }
}

#[test]
fn without_green_threads_the_names_are_free() {
    let source = "var spawn = 1; var yield = 2; print spawn + yield;";
    let found = run(source, &RunConfig::default());
    assert_eq!(found, ("3\n".into(), String::new(), 0));
    let undefined = run("channel();", &RunConfig::default());
    let message = "Undefined variable 'channel'.\n[line 1] in script\n";
    assert_eq!(undefined, (String::new(), message.into(), 70));
}
