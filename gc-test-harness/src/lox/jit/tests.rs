//! Interpreted and compiled code give the same output, and the walker finds each reference that is
//! live in the bytecode.

use std::sync::Arc;
use std::time::Duration;

use crate::lox::fault::Fault;

use super::oracle::{Oracle, Verdict};
use super::{JitConfig, attach};
use crate::lox::compiler::compile;
use crate::lox::isolate::{NATIVES, Output, Vm};
use crate::lox::run::{Outcome, RunConfig, make_heap, run_source};

fn eager() -> JitConfig {
    JitConfig::after(0)
}

fn compiled(hot: JitConfig) -> RunConfig {
    RunConfig {
        hot,
        ..RunConfig::default()
    }
}

fn text(outcome: &Outcome) -> (String, String, u8) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        text(&outcome.stdout),
        text(&outcome.stderr),
        outcome.exit_code,
    )
}

/// Runs a program in every configuration and demands the same result of all.
fn agree(source: &str) -> (String, String, u8) {
    let interpreted = RunConfig {
        jit: false,
        ..RunConfig::default()
    };
    let expected = text(&run_source(source.as_bytes(), &interpreted));
    for hot in [eager(), JitConfig::after(4), JitConfig::default()] {
        let outcome = run_source(source.as_bytes(), &compiled(hot.clone()));
        assert_eq!(text(&outcome), expected, "{hot:?}");
        assert_eq!(
            outcome.contradictions, 0,
            "functions contradict their analyses"
        );
    }
    let stress = RunConfig {
        gc_every: Some(1),
        ..compiled(eager())
    };
    assert_eq!(
        text(&run_source(source.as_bytes(), &stress)),
        expected,
        "with a collection at every allocation"
    );
    expected
}

/// The output of a program that does not fail.
fn output(source: &str) -> String {
    let (stdout, stderr, code) = agree(source);
    assert_eq!((stderr.as_str(), code), ("", 0));
    stdout
}

#[test]
fn numbers_stay_numbers() {
    let source = "
        fun mix(a, b) { return (a + b) * 2 - a / b; }
        var s = 0;
        for (var i = 1; i < 40; i = i + 1) { s = s + mix(i, -i); }
        print s;
        print 0/0; print -(0/0); print 0/0 == 0/0; print 0 == -0; print -0;
        fun nan(x) { return x - x; }
        for (var i = 0; i < 9; i = i + 1) nan(1/0);
        print nan(1/0) < 1; print !(nan(1/0) >= 1);
        fun sum(a, b) { return a + b; }
        for (var i = 0; i < 9; i = i + 1) sum(i, i);
        print sum(\"a\", \"b\") + sum(\"c\", \"\"); print sum(1/0, -1/0);";
    assert_eq!(
        output(source),
        "39\n-nan\nnan\nfalse\ntrue\n-0\nfalse\nfalse\nabc\n-nan\n"
    );
}

#[test]
fn conditions_and_equality() {
    let source = "
        fun t(x) { if (x) return \"t\"; else return \"f\"; }
        fun e(a, b) { return a == b; }
        fun n(a) { return !a; }
        for (var i = 0; i < 9; i = i + 1) {
            t(nil); e(1, nil); n(i); e(0/0, 0/0); e(\"a\", \"a\"); e(t, t);
        }
        print t(nil) + t(false) + t(true) + t(0) + t(\"\") + t(t);
        print e(1, 1); print e(0, -0); print e(0/0, 0/0); print e(nil, false); print e(\"ab\", \"a\" + \"b\"); print e(t, e);
        print n(nil); print n(0); print (nil or 3) and 4; print false and 1; print 1 or 2;
        var i = 0; while (i < 20 and (i != 13 or false)) i = i + 1; print i;";
    assert_eq!(
        output(source),
        "ffttt t\ntrue\ntrue\nfalse\nfalse\ntrue\nfalse\ntrue\nfalse\n4\nfalse\n1\n13\n"
            .replace(' ', "")
    );
}

#[test]
fn captured_variables_are_one_in_both_tiers() {
    let source = "
        fun counter() { var c = 0; fun up() { c = c + 1; return c; } return up; }
        var a = counter(); var b = counter();
        for (var i = 0; i < 9; i = i + 1) { a(); b(); }
        print a(); print b();
        var kept;
        for (var i = 0; i < 9; i = i + 1) { var j = i; fun f() { j = j + 10; return j; } if (i == 4) kept = f; }
        print kept(); print kept();
        fun outer(x) { var y = x; fun inner() { y = y + x; fun most() { return x + y; } return most; } return inner()() + y; }
        for (var i = 0; i < 9; i = i + 1) outer(i);
        print outer(3);
        { var big = \"s\"; fun get() { return big; } fun set(v) { big = v; }
          for (var i = 0; i < 5; i = i + 1) { set(big + \"x\"); set(i); set(\"s\" + get2()); }
          fun get2() { return \"q\"; } print get(); }";
    let source = source.replace(
        "get2()); }\n          fun get2() { return \"q\"; }",
        "\"q\"); }",
    );
    assert_eq!(output(&source), "10\n10\n14\n24\n15\nsq\n");
}

/// Copies into captured slots. Only the closure reads each copy.
const CAPTURED_COPIES: &str = "
    fun parameter(n) { var g = n; fun h() { return g; } return h(); }
    fun assigned(n) { var g = 0; fun h() { return g; } g = n; return h(); }
    fun twice(n) { var g = n; var k = g; fun h() { return k; } fun i() { return g; } return h() + i(); }
    fun compared(n) { var g = n == 3; fun h() { return g; } return h(); }
    fun not(n) { var g = !n; fun h() { return g; } return h(); }
    fun chosen(n) { var g = n and n; fun h() { return g; } return h(); }
    fun local(n) { var m = n + 1; var k = m; var g = k; fun h() { return g; } return h(); }
    fun looped(n) { var f; for (var i = 0; i < 4; i = i + 1) { var g = n; fun h() { return g; } f = h; n = n + 1; } return f(); }
    fun entered(n) { var last = nil; var f; for (var i = 0; i < 9; i = i + 1) { last = n; { var g = last; fun h() { return g; } f = h; } } return f(); }
    fun returned(n) { var g = n; fun h() { fun i() { return g; } return i; } return h()(); }
    fun changed(n) { var g = n; fun h() { g = g + 1; } h(); return g; }
    class C {
        init(n) { var self = this; var m = n; fun set() { self.n = m; } set(); }
        this_() { var self = this; fun h() { return self.n; } return h(); }
        argument(n) { var g = n; fun h() { return g; } return h(); }
    }
    fun constructed(n) { return C(n).n; }
    fun method(n) { return C(n).this_(); }
    fun argument(n) { return C(0).argument(n); }
    var all = 0;
    for (var i = 0; i < 300; i = i + 1) {
        all = all + parameter(i) + assigned(i) + twice(i) + local(i) + looped(i) + entered(i);
        all = all + returned(i) + changed(i) + constructed(i) + method(i) + argument(i) + chosen(i);
        if (compared(i)) all = all + 1; if (not(i)) all = all + 1;
    }
    print all; print compared(3); print not(nil); print chosen(5);";

#[test]
fn h82_a_copy_that_only_a_closure_reads_is_kept() {
    assert_eq!(output(CAPTURED_COPIES), "584551\ntrue\ntrue\n5\n");
}

#[test]
fn h82_an_analysis_without_captured_uses_gives_wrong_answers() {
    let test = "h82_a_copy_that_only_a_closure_reads_is_kept";
    fails_with("captured-unused,dead-operands-nil", test, "assertion");
}

/// A translation that needs a value that is dead by its analysis is discarded, and the function is
/// interpreted.
#[test]
fn h82_a_translation_that_contradicts_its_analysis_is_not_entered() {
    let test = "h82_a_copy_that_only_a_closure_reads_is_kept";
    fails_with("captured-unused", test, "contradict");
    let (passed, said) = with_faults("captured-unused", "h82_contradictions_are_counted");
    assert!(passed, "{said}");
}

#[test]
fn h82_contradictions_are_counted() {
    let outcome = run_source(CAPTURED_COPIES.as_bytes(), &compiled(eager()));
    assert_eq!(text(&outcome).0, "584551\ntrue\ntrue\n5\n");
    assert_eq!(outcome.contradictions > 0, Fault::CapturedUnused.planted());
}

#[test]
fn classes_in_all_shapes() {
    let source = "
        class P { init(x, y) { this.x = x; this.y = y; } sum() { return this.x + this.y; } set(x) { this.x = x; return this; } }
        class Q < P { init(x, y) { super.init(x, y); this.z = 1; } sum() { return super.sum() + this.z; } get() { var s = super.sum; return s(); } }
        class E {}
        fun use(p) { p.x = p.x + 1; return p.sum(); }
        var s = 0;
        for (var i = 0; i < 30; i = i + 1) { s = s + use(P(i, 1)) + use(Q(i, 2)) + Q(1, 2).get(); P(1, 2).set(\"a\").x = nil; }
        print s;
        var many = E();
        fun fill(e) { e.a = 1; e.b = 2; e.c = 3; e.d = 4; e.e = 5; e.f = 6; e.g = 7; e.h = 8; e.i = 9; e.j = 10; e.k = 11; return e.a + e.k; }
        for (var i = 0; i < 9; i = i + 1) fill(E());
        print fill(many); many.k = \"k\"; print many.k; many.f = use; print many.f(P(1, 1));
        class M { m() { return this.v; } }
        var m = M(); m.v = \"v\"; var bound = m.m; for (var i = 0; i < 9; i = i + 1) bound(); print bound();
        fun make() { class L { hi() { return \"hi\"; } } return L().hi(); }
        for (var i = 0; i < 9; i = i + 1) make(); print make();
        print E; print P(1, 2).init(3, 4).sum();";
    assert_eq!(output(source), "1140\n12\nk\n3\nv\nhi\nE\n7\n");
}

#[test]
fn a_field_is_called_on_an_instance_of_a_class_without_methods() {
    let source = "
        class E {} fun f(x) { return x; }
        fun use(e) { return e.a(1) + e.b(2); }
        for (var i = 0; i < 20; i = i + 1) { var e = E(); e.z = 0; e.a = f; e.b = f; use(e); }
        var e = E(); e.z = 0; e.a = f; e.b = f; print use(e); e.b = E; print use(e);";
    let (stdout, stderr, _) = agree(source);
    assert_eq!(stdout, "3\n");
    assert!(
        stderr.starts_with("Expected 0 arguments but got 1.\n"),
        "{stderr}"
    );
}

#[test]
fn predictions_that_stop_holding_are_given_up() {
    let source = "
        fun f(x) { return x; } fun g(x) { return x + 100; }
        class A { init(v) { this.v = v; } get() { return this.v; } }
        class B { init(v) { this.w = 0; this.v = -v; } get() { return this.v * 2; } }
        var h = f; var C = A;
        fun call(x) { return h(x); } fun make(x) { return C(x).get(); }
        for (var i = 0; i < 20; i = i + 1) { call(i); make(i); }
        print call(1); print make(1);
        h = g; C = B; print call(1); print make(1);
        h = A; print call(7).v; h = clock; C = f;
        fun name(o) { return o.v; }
        for (var i = 0; i < 20; i = i + 1) name(A(i));
        print name(B(3));
        fun get(o) { return o.get(); }
        for (var i = 0; i < 20; i = i + 1) get(A(i));
        print get(B(3)); var a = A(1); a.get = g;
        class Late {} var l = Late(); l.get = clock; print get(l) > 0;";
    assert_eq!(output(source), "1\n1\n101\n-2\n7\n-3\n-6\ntrue\n");
}

#[test]
fn errors_have_the_same_words_and_lines() {
    let cases = [
        "fun f(a) {\n return a - 1;\n}\nfor (var i = 0; i < 9; i = i + 1)\n f(i);\nf(\"s\");",
        "fun f(a) {\n return a + 1;\n}\nfor (var i = 0; i < 9; i = i + 1) f(i);\nf(\"s\");",
        "fun f(a, b) {\n return a + b;\n}\nfor (var i = 0; i < 9; i = i + 1) f(i, i);\nf(\"s\", 1);",
        "fun f(a) {\n return -a;\n}\nfor (var i = 0; i < 9; i = i + 1) f(i);\nf(nil);",
        "fun f(a) {\n return a < 1;\n}\nfor (var i = 0; i < 9; i = i + 1) f(i);\nf(true);",
        "fun f() {\n return unknown;\n}\nfor (var i = 0; i < 9; i = i + 1) {}\nf();",
        "fun f() {\n unknown = 1;\n}\nf();",
        "fun f(a) {\n a();\n}\nfun g() {}\nfor (var i = 0; i < 9; i = i + 1) f(g);\nf(1);",
        "fun f(a) {\n a(1);\n}\nfun g(x) {}\nfun h() {}\nfor (var i = 0; i < 9; i = i + 1) f(g);\nf(h);",
        "fun f(a) {\n return a.x;\n}\nclass A { init() { this.x = 1; } }\nclass B {}\nfor (var i = 0; i < 9; i = i + 1) f(A());\nf(B());",
        "fun f(a) {\n return a.x;\n}\nf(1);",
        "fun f(a) {\n a.x = 1;\n}\nf(1);",
        "fun f(a) {\n return a.m(1);\n}\nclass A { m(x) {} }\nclass B { m() {} }\nfor (var i = 0; i < 9; i = i + 1) f(A());\nf(B());",
        "class A { init(x) {} }\nfun f() {\n A();\n}\nf();",
        "fun deep(n) {\n return deep(n + 1);\n}\ndeep(0);",
        "class A { m(n) {\n return this.m(n + 1); }\n}\nA().m(0);",
        "class A { init() {\n A();\n }\n}\nA();",
        "fun even(n) {\n return odd(n);\n}\nfun odd(n) {\n return even(n);\n}\neven(1);",
        "for (var i = 0; i < 20; i = i + 1) {\n if (i == 15) i = nil;\n}",
        "fun f(n) { var c = n; fun g() { return c; }\n if (n == 0) return -\"x\";\n return f(n - 1) + g(); }\nf(20);",
    ];
    for source in cases {
        let (_, stderr, code) = agree(source);
        assert_eq!(code, 70, "{source}");
        assert!(stderr.contains("[line "), "{stderr}");
    }
}

#[test]
fn sixty_four_frames_fit_in_both_tiers() {
    let source = "fun down(n) { if (n == 0) return 0; return down(n - 1) + 1; } print down(62);";
    assert_eq!(output(source), "62\n");
    let (_, stderr, code) =
        agree("fun down(n) { if (n == 0) return 0; return down(n - 1) + 1; } print down(63);");
    assert!(stderr.starts_with("Stack overflow.\n"), "{stderr}");
    assert_eq!(code, 70);
}

#[test]
fn a_loop_is_entered_in_the_middle() {
    let source = "
        fun work(n) {
            var sum = 0; var text = \"\"; var flag = false; var last = nil;
            for (var i = 0; i < n; i = i + 1) {
                sum = sum + i; flag = !flag; last = i;
                for (var j = 0; j < 3; j = j + 1) { if (flag) text = text + \"a\"; }
                if (i == 7) sum = sum - 0.5;
            }
            print text; print sum; print flag; return last;
        }
        print work(10); print work(3);
        { var x = 1; fun get() { return x; } while (x < 50) { x = x * 2; } print get(); }";
    assert_eq!(
        output(source),
        "aaaaaaaaaaaaaaa\n44.5\nfalse\n9\naaaaaa\n3\ntrue\n2\n64\n"
    );
}

#[test]
fn a_loop_entered_again_with_other_types_gets_other_code() {
    let source = "
        fun spin(x) { var y = x; for (var i = 0; i < 12; i = i + 1) { y = x; } return y; }
        print spin(1); print spin(\"s\"); print spin(nil); print spin(true); print spin(2);";
    assert_eq!(output(source), "1\ns\nnil\ntrue\n2\n");
}

#[test]
fn many_arguments_travel_on_the_stack() {
    let source = "
        fun many(a, b, c, d, e, f, g, h, i, j) { var s = a + b + c + d + e + f + g + h + i + j; return s + j; }
        class C { m(a, b, c, d, e, f, g, h) { return h + a; } }
        for (var i = 0; i < 9; i = i + 1) { many(1, 2, 3, 4, 5, 6, 7, 8, 9, i); C().m(1, 2, 3, 4, 5, 6, 7, 8); }
        print many(\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\", \"i\", \"j\");
        print C().m(\"x\", 2, 3, 4, 5, 6, 7, \"y\");";
    assert_eq!(output(source), "abcdefghijj\nyx\n");
}

/// Allocates, calls through several levels, and keeps references of many types across calls. `many`
/// keeps more than there are callee-saved registers.
const BUSY: &str = "
    class Node { init(left, right) { this.left = left; this.right = right; }
        count() { if (this.left == nil) return 1; var l = this.left; var r = this.right; return l.count() + r.count() + 1; } }
    fun tree(depth) { if (depth == 0) return Node(nil, nil); var left = tree(depth - 1); var right = tree(depth - 1); return Node(left, right); }
    fun join(a, b) { var both = a + b; var f; { var kept = both; fun g() { return kept; } f = g; } return f(); }
    fun many(n) { var a = tree(n); var b = tree(n); var c = tree(n); var d = tree(n); var e = tree(n); var f = tree(n); var g = tree(n); var h = tree(n);
        tree(5); a.left = b; b.left = c; c.left = d; d.left = e; e.left = f; f.left = g; g.left = h; return a; }
    var total = 0; var text = \"\";
    for (var i = 0; i < 60; i = i + 1) { var t = tree(6); text = join(\"x\", \"y\"); total = total + t.count(); t.left = tree(2); many(1); total = total + t.count(); }
    print total; print text;";

/// Runs a test of this file in a child process with planted faults. Returns whether it passed, and
/// its output.
fn with_faults(faults: &str, test: &str) -> (bool, String) {
    let program = std::env::current_exe().expect("a test has a path");
    let child = std::process::Command::new(program)
        .args([
            "--exact",
            &format!("lox::jit::tests::{test}"),
            "--nocapture",
        ])
        .env("URGE_FAULT", faults)
        .output()
        .expect("the test can run again");
    let said = String::from_utf8_lossy(&child.stderr).into_owned();
    (child.status.success(), said)
}

/// Demands that a test fails with these words in its output when the faults are planted.
fn fails_with(faults: &str, test: &str, words: &str) {
    let (passed, said) = with_faults(faults, test);
    assert!(!passed && said.contains(words), "{faults}: {said}");
}

fn watched(hot: JitConfig) -> Verdict {
    let oracle = Arc::new(Oracle::default());
    let config = RunConfig {
        storm: Some(Duration::from_micros(30)),
        ..compiled(JitConfig {
            oracle: Some(Arc::clone(&oracle)),
            ..hot
        })
    };
    let outcome = run_source(BUSY.as_bytes(), &config);
    assert_eq!(text(&outcome).0, "11880\nxy\n");
    oracle.verdict()
}

#[test]
fn stack_maps_hold_what_the_bytecode_takes_for_live_and_nothing_else() {
    let verdict = watched(eager());
    assert_eq!(verdict.missing, 0, "references are missing: {verdict:?}");
    assert!(verdict.checks >= 10 && verdict.exact >= 50, "{verdict:?}");
    assert!(verdict.beyond * 20 <= verdict.exact, "{verdict:?}");
}

#[test]
fn results_that_are_not_declared_are_missed() {
    let test = "stack_maps_hold_what_the_bytecode_takes_for_live_and_nothing_else";
    fails_with("undeclared-results", test, "references are missing");
}

/// Two lists that do not fit into the heap together. The first is dropped inside the loop that
/// makes the second.
const LISTS: &str = "
    class Node { init(next) { this.next = next; this.more = nil; } }
    fun list(n) { var all = nil; for (var i = 0; i < n; i = i + 1) all = Node(all); return all; }
    fun both() {
        var first = list(100000); var second = nil;
        for (var i = 0; i < 2500; i = i + 1) {
            if (i == 2000) { first = nil; second = list(100000); }
        }
        return second.next != nil;
    }
    print both();";

#[test]
fn a_compiled_loop_lets_go_of_what_it_was_entered_with() {
    let config = RunConfig {
        heap_limit: Some(6 << 20),
        ..compiled(JitConfig::default())
    };
    let outcome = run_source(LISTS.as_bytes(), &config);
    assert_eq!(text(&outcome), ("true\n".into(), String::new(), 0));
}

#[test]
fn a_slot_that_keeps_what_a_loop_was_entered_with_is_noticed() {
    let test = "a_compiled_loop_lets_go_of_what_it_was_entered_with";
    fails_with("stale-loop-slots", test, "Out of memory.");
}

#[test]
fn a_function_too_large_to_compile_is_interpreted() {
    let mut source = "fun big(n) {\n".to_owned();
    for i in 0..200 {
        source += &format!("var v{i} = n + {i};\n");
    }
    for i in 0..300 {
        let (a, b, c) = (i % 200, i * 7 % 200, i * 11 % 200);
        source += &format!("if (n == v{a}) v{b} = v{b} + v{c};\n");
    }
    source +=
        "return v0 + v7 + v199; }\nfor (var i = 0; i < 300; i = i + 1) big(i);\nprint big(3);";
    let interpreted = RunConfig {
        jit: false,
        ..RunConfig::default()
    };
    let expected = text(&run_source(source.as_bytes(), &interpreted));
    let seen = text(&run_source(source.as_bytes(), &compiled(eager())));
    assert_eq!(seen, expected);
    assert_eq!(expected.2, 0);
}

#[test]
fn inline_allocations_are_restart_ranges() {
    let source = "
        class Pair { init(a, b) { this.a = a; this.b = b; } } class Bare {}
        fun pair(a) { return Pair(a, Bare()); }
        for (var i = 0; i < 20; i = i + 1) pair(i);";
    let program = compile(source.as_bytes(), &NATIVES).expect("is a program");
    let lox = make_heap(&RunConfig::default()).expect("a heap");
    let mut vm = Vm::new(&lox, Arc::new(program), Output::Kept(Vec::new())).expect("an isolate");
    let attached = attach(&mut vm, JitConfig::after(2)).expect("a compiler");
    assert!(vm.run());
    assert_eq!(attached.restart_windows(), 2);
    assert!(attached.compiled() >= 2);
}

#[test]
fn code_that_is_refused_leaves_its_function_interpreted() {
    let source = "
        class A { refused(x) { return x + 1; } }
        fun use(a, x) { return a.refused(x); }
        var a = A();
        for (var i = 0; i < 20; i = i + 1) use(a, i);
        print use(a, 1);";
    assert_eq!(output(source), "2\n");
}

#[test]
fn a_function_whose_code_was_refused_is_not_called_as_if_it_had_any() {
    let test = "code_that_is_refused_leaves_its_function_interpreted";
    let (passed, said) = with_faults("refuse-code", test);
    assert!(passed, "{said}");
    let (passed, _) = with_faults("refuse-code,keep-refused", test);
    assert!(!passed);
}
