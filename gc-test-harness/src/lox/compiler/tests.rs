//! Tests of `compiler.rs`.

use super::*;
use std::path::Path;

/// Checks the properties that the interpreter and the JIT rely on: the stack's height at an
/// instruction is the same on each path, and operands exist.
fn verify(function: &Function, program: &Program) {
    let code = &function.code;
    assert_eq!(code.len(), function.lines.len());
    let mut heights = vec![None; code.len()];
    let mut waiting = vec![(0, function.arity as i32 + 1)];
    let mut highest = function.arity as i32 + 1;
    let mut caches = Vec::new();
    while let Some((at, height)) = waiting.pop() {
        match heights[at] {
            None => heights[at] = Some(height),
            Some(known) => {
                assert_eq!(known, height, "instruction {at} of {function:?}");
                continue;
            }
        }
        let instruction = code[at];
        let after = height + instruction.effect();
        assert!(after >= 0);
        highest = highest.max(after);
        if let Some(target) = instruction.target() {
            assert_eq!(
                target <= at,
                instruction.op == Op::Loop,
                "only a loop goes back"
            );
            waiting.push((target, after));
        }
        if !instruction.ends_block() {
            waiting.push((at + 1, after));
        }
        let c = instruction.c as usize;
        match instruction.op {
            Op::Constant => assert!(c < function.constants.len()),
            Op::GetLocal | Op::SetLocal => assert!((c as i32) < height && c < SLOTS),
            Op::GetGlobal | Op::SetGlobal | Op::DefineGlobal => {
                assert!(c < program.globals.len())
            }
            Op::GetUpvalue | Op::SetUpvalue => assert!(c < function.captures.len()),
            Op::GetProperty | Op::SetProperty | Op::GetSuper | Op::Invoke | Op::SuperInvoke => {
                assert!(c < program.symbols.len());
                caches.push(u32::from(instruction.b));
            }
            Op::Method => assert!(c < program.symbols.len()),
            Op::Class => assert!(matches!(
                function.constants[usize::from(instruction.b)],
                Constant::String(_)
            )),
            Op::Closure => {
                for &capture in &function.functions[c].captures {
                    match capture {
                        Capture::Local(slot) => {
                            assert!(function.is_captured(slot.into()) && i32::from(slot) <= height)
                        }
                        Capture::Upvalue(index) => {
                            assert!(usize::from(index) < function.captures.len())
                        }
                    }
                }
            }
            Op::CloseUpvalue => assert!(function.is_captured(height as usize - 1)),
            _ => {}
        }
    }
    caches.sort_unstable();
    caches.dedup();
    assert!(
        caches.iter().all(|&cache| cache < function.caches),
        "a cache for each site"
    );
    assert!(highest <= function.max_stack as i32);
    for inner in &function.functions {
        verify(inner, program);
    }
}

fn compiled(source: &str) -> Program {
    compile(source.as_bytes(), &["clock"])
        .unwrap_or_else(|errors| panic!("{}", String::from_utf8_lossy(&errors)))
}

#[test]
fn code_of_every_program_keeps_what_the_tiers_rely_on() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    for folder in ["", "bench", "errors/runtime"] {
        for entry in std::fs::read_dir(programs.join(folder)).expect("part of the repository") {
            let path = entry.expect("listed").path();
            if path.extension().is_some_and(|extension| extension == "lox") {
                let program = compiled(&std::fs::read_to_string(&path).expect("readable"));
                verify(&program.script, &program);
            }
        }
    }
}

#[test]
fn the_increment_of_a_for_comes_after_its_body_with_jumps_moved_along() {
    let program =
        compiled("for (var i = 0; i < 9; i = i and 1 or 2) { if (i) print i; else print 2; }");
    verify(&program.script, &program);
    let loops: Vec<_> = program
        .script
        .code
        .iter()
        .filter(|instruction| instruction.op == Op::Loop)
        .collect();
    assert_eq!(loops.len(), 1);
    let plain = program
        .script
        .code
        .iter()
        .filter(|instruction| instruction.op == Op::Jump)
        .count();
    assert_eq!(plain, 1, "only the jump over the else");
}

#[test]
fn captured_slots_are_named_and_others_are_not() {
    let program =
        compiled("fun f(a, b) { var c; fun g() { return b; } { var d; fun h() { d = c; } } }");
    let f = &program.script.functions[0];
    let captured: Vec<usize> = (0..256).filter(|&slot| f.is_captured(slot)).collect();
    assert_eq!(captured, [2, 3, 5]);
    assert!(f.captures_any() && !program.script.captures_any());
}

#[test]
fn a_class_knows_how_many_fields_its_methods_set() {
    let program = compiled(
        "class A { init() { this.a = 1; this.b = 2; } m(o) { this.a = 3; o.c = this.d = 4; } }",
    );
    let class = program
        .script
        .code
        .iter()
        .find(|instruction| instruction.op == Op::Class)
        .expect("declared");
    assert_eq!(class.c, 3);
}

#[test]
fn each_instruction_has_the_line_where_the_book_says_it_is() {
    let program = compiled("var a =\n1\n+\n2;\nprint\na\n;");
    assert_eq!(program.script.lines[..5], [2, 4, 4, 4, 6]);
}
