//! Random Lox programs do the same in both tiers, whatever the collector does meanwhile.
//!
//! Each program is made from a seed, which a failure prints; `LOX_SEED=n` runs that one alone and prints its source.
//! `LOX_PROGRAMS=n` runs more of them, `LOX_FROM=n` others, and `LOX_PEER=path` compares with another implementation (the book's clox) too.

use std::fmt::Write as _;
use std::process::Command;

use gc_preempt::faults::StrictAllocator;
use gc_test_harness::lox::jit::JitConfig;
use gc_test_harness::lox::run::{Outcome, RunConfig, run_source};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

/// What an expression is meant to be. Now and then it is something else, so that errors are met as well.
#[derive(Clone, Copy, PartialEq)]
enum Type {
    Number,
    Text,
    Bool,
    Object,
    Function,
}

const CLASSES: u32 = 4;
const METHODS: u32 = 4;
const FIELDS: u32 = 5;
const FUNCTIONS: u32 = 4;
const GLOBALS: u32 = 6;

/// How the names of loops' variables begin: nothing else assigns to them, so that loops end.
const LOOP: &str = "i";

struct Maker {
    random: StdRng,
    out: String,
    /// names of the variables in reach, innermost last, and what they hold
    variables: Vec<(String, Type)>,
    names: u32,
    depth: u32,
    /// Only methods and functions with smaller numbers are called, so that no recursion is without end.
    methods: u32,
    functions: u32,
    in_method: bool,
    has_super: bool,
    in_function: bool,
    in_initialiser: bool,
}

impl Maker {
    fn below(&mut self, limit: u32) -> u32 {
        self.random.random_range(0..limit)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    fn some_type(&mut self) -> Type {
        [
            Type::Number,
            Type::Number,
            Type::Number,
            Type::Text,
            Type::Bool,
            Type::Object,
            Type::Object,
        ][self.below(7) as usize]
    }

    fn program(seed: u64) -> String {
        let mut maker = Maker {
            random: StdRng::seed_from_u64(seed),
            out: String::from("var fuel = 300;\nvar quiet = 0;\n"),
            variables: Vec::new(),
            names: 0,
            depth: 0,
            methods: 0,
            functions: 0,
            in_method: false,
            has_super: false,
            in_function: false,
            in_initialiser: false,
        };
        for class in 0..CLASSES {
            maker.class(class);
        }
        for function in 0..FUNCTIONS {
            maker.methods = METHODS;
            maker.functions = function;
            maker.function(&format!("f{function}"), 2);
        }
        maker.functions = FUNCTIONS;
        for global in 0..GLOBALS {
            let wanted = [Type::Number, Type::Text, Type::Object][global as usize % 3];
            let value = maker.expression(wanted, 2);
            let _ = writeln!(maker.out, "var g{global} = {value};");
            maker.variables.push((format!("g{global}"), wanted));
        }
        // In functions, and each called several times: the top level has 256 constants and is never warm.
        for part in 0..5 {
            let _ = writeln!(maker.out, "fun part{part}() {{ fuel = fuel + 100;");
            maker.in_function = true;
            for _ in 0..2 {
                maker.statement(2);
            }
            maker.in_function = false;
            let _ = writeln!(maker.out, "}}\npart{part}(); part{part}();");
        }
        maker.statement(1);
        maker
            .out
            .push_str("for (var i = 0; i < 5; i = i + 1) { part0(); part1(); }\n");
        maker.out.push_str("print \"end\";\n");
        maker.out
    }

    fn class(&mut self, class: u32) {
        self.has_super = class > 0 && self.chance(60);
        let above = self.below(class.max(1));
        let _ = if self.has_super {
            writeln!(self.out, "class C{class} < C{above} {{")
        } else {
            writeln!(self.out, "class C{class} {{")
        };
        self.in_method = true;
        let _ = writeln!(self.out, "init(a, b) {{ fuel = fuel - 1;");
        if self.has_super {
            let _ = writeln!(self.out, "super.init(b, a);");
        }
        self.in_initialiser = true;
        self.in_function = true;
        self.methods = 0;
        self.functions = 0;
        let outer = std::mem::replace(
            &mut self.variables,
            vec![("a".into(), Type::Number), ("b".into(), Type::Number)],
        );
        // Instances of a class get their fields in an order of their own; now and then one is missing.
        let turn = self.below(FIELDS);
        for field in (0..FIELDS).map(|field| (field + turn) % FIELDS) {
            if self.below(300) > 0 {
                let value = self.expression(Type::Number, 1);
                let _ = writeln!(self.out, "this.p{field} = {value};");
            }
        }
        self.out.push_str("}\n");
        self.in_initialiser = false;
        for method in 0..METHODS {
            if !self.has_super || self.chance(60) {
                self.methods = method;
                self.variables = vec![("a".into(), Type::Number), ("b".into(), Type::Number)];
                let _ = writeln!(
                    self.out,
                    "m{method}(a, b) {{ fuel = fuel - 1; if (fuel < 0) return 1;"
                );
                self.body(3);
            }
        }
        self.variables = outer;
        self.in_method = false;
        self.in_function = false;
        self.has_super = false;
        self.out.push_str("}\n");
    }

    fn body(&mut self, statements: u32) {
        self.in_function = true;
        for _ in 0..statements {
            self.statement(2);
        }
        let value = self.expression(Type::Number, 2);
        let _ = writeln!(self.out, "return {value};\n}}");
    }

    fn function(&mut self, name: &str, statements: u32) {
        let length = self.variables.len();
        let (function, initialiser) = (self.in_function, self.in_initialiser);
        self.in_initialiser = false;
        self.variables.push(("a".into(), Type::Number));
        self.variables.push(("b".into(), Type::Number));
        let _ = writeln!(
            self.out,
            "fun {name}(a, b) {{ fuel = fuel - 1; if (fuel < 0) return 2;"
        );
        self.body(statements);
        self.variables.truncate(length);
        self.in_function = function;
        self.in_initialiser = initialiser;
    }

    fn statement(&mut self, depth: u32) {
        self.depth += 1;
        let choice = if depth == 0 || self.depth > 4 {
            self.below(5)
        } else {
            self.below(13)
        };
        match choice {
            0 => {
                let wanted = self.some_type();
                let value = self.expression(wanted, 2);
                let _ = writeln!(
                    self.out,
                    "if (quiet < 200) {{ quiet = quiet + 1; print {value}; }}"
                );
            }
            1 | 2 => self.assignment(),
            3 => {
                let value = self.expression(Type::Object, 1);
                let number = self.expression(Type::Number, 2);
                let field = self.below(FIELDS);
                let _ = writeln!(self.out, "({value}).p{field} = {number};");
            }
            4 => {
                let value = self.expression(Type::Number, 3);
                let _ = writeln!(self.out, "{value};");
            }
            5 | 6 => self.block(depth, "{"),
            7 => {
                let condition = self.expression(Type::Bool, 2);
                self.block(depth, &format!("if ({condition}) {{"));
                if self.chance(50) {
                    self.block(depth, "else {");
                }
            }
            8 | 9 => {
                let name = self.fresh().replace('v', LOOP);
                let turns = self.below(7);
                self.variables.push((name.clone(), Type::Number));
                self.block(depth, &format!("for (var {name} = 0; {name} < {turns}; {name} = {name} + 1) {{ fuel = fuel - 1; if (fuel < 0) {name} = 99;"));
                self.variables.pop();
            }
            10 => {
                let name = self.fresh().replace('v', LOOP);
                let turns = self.below(40);
                let _ = writeln!(self.out, "{{ var {name} = 0;");
                self.variables.push((name.clone(), Type::Number));
                let value = self.expression(Type::Number, 2);
                let _ = writeln!(
                    self.out,
                    "while ({name} < {turns}) {{ {name} = {name} + 1; if (fuel > 0) g({value}); }} }}"
                );
                self.variables.pop();
            }
            11 if self.in_function && !self.in_initialiser => {
                let condition = self.expression(Type::Bool, 1);
                let value = self.expression(Type::Number, 2);
                let _ = writeln!(self.out, "if ({condition}) return {value};");
            }
            _ => {
                let name = self.fresh();
                self.out.push_str("{\n");
                let length = self.variables.len();
                let captured = self.fresh();
                let value = self.expression(Type::Number, 1);
                let _ = writeln!(self.out, "var {captured} = {value};");
                self.variables.push((captured, Type::Number));
                self.function(&name, 1);
                self.variables.push((name, Type::Function));
                for _ in 0..2 {
                    self.statement(depth - 1);
                }
                self.variables.truncate(length);
                self.out.push_str("}\n");
            }
        }
        self.depth -= 1;
    }

    fn block(&mut self, depth: u32, head: &str) {
        let length = self.variables.len();
        let _ = writeln!(self.out, "{head}");
        if self.chance(60) {
            let wanted = self.some_type();
            let value = self.expression(wanted, 2);
            let name = self.fresh();
            let _ = writeln!(self.out, "var {name} = {value};");
            self.variables.push((name, wanted));
        }
        for _ in 0..1 + self.below(3) {
            self.statement(depth - 1);
        }
        self.variables.truncate(length);
        self.out.push_str("}\n");
    }

    fn fresh(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    fn assignment(&mut self) {
        let candidates: Vec<(String, Type)> = self
            .variables
            .iter()
            .filter(|(name, what)| *what != Type::Function && !name.starts_with(LOOP))
            .cloned()
            .collect();
        if candidates.is_empty() {
            return self.out.push_str("nil;\n");
        }
        let (name, what) = candidates[self.below(candidates.len() as u32) as usize].clone();
        let value = self.expression(what, 2);
        let _ = writeln!(self.out, "{name} = {value};");
    }

    fn variable(&mut self, wanted: Type) -> Option<String> {
        let candidates: Vec<&str> = self
            .variables
            .iter()
            .filter(|(_, what)| *what == wanted)
            .map(|(name, _)| name.as_str())
            .collect();
        if candidates.is_empty() {
            return None;
        }
        let index = self.random.random_range(0..candidates.len());
        Some(candidates[index].to_owned())
    }

    fn expression(&mut self, wanted: Type, depth: u32) -> String {
        let wanted = if self.below(400) == 0 {
            self.some_type()
        } else {
            wanted
        };
        if (depth == 0 || self.chance(25))
            && let Some(name) = self.variable(wanted)
        {
            return name;
        }
        match wanted {
            Type::Number => self.number(depth),
            Type::Text => self.text(depth),
            Type::Bool => self.boolean(depth),
            Type::Object => self.object(depth),
            Type::Function => self
                .variable(Type::Function)
                .unwrap_or_else(|| format!("f{}", self.below(self.functions.max(1)))),
        }
    }

    fn number(&mut self, depth: u32) -> String {
        if depth == 0 {
            return ["0", "1", "2", "3.5", "-1", "100", "(0/0)", "(1/0)"][self.below(8) as usize]
                .into();
        }
        let inner = depth - 1;
        let choice = match self.below(12) {
            5 | 6 | 9 | 10 if self.methods == 0 => 0,
            7 if self.functions == 0 && self.variable(Type::Function).is_none() => 0,
            choice => choice,
        };
        let method = self.below(self.methods.max(1));
        match choice {
            0..=3 => {
                let operator = ["+", "-", "*", "/"][self.below(4) as usize];
                let (left, right) = self.numbers(inner);
                format!("({left} {operator} {right})")
            }
            4 => format!("-{}", self.expression(Type::Number, inner)),
            5 | 6 => {
                let (a, b) = self.numbers(inner);
                format!(
                    "{}.m{method}({a}, {b})",
                    self.expression(Type::Object, inner)
                )
            }
            7 => {
                let callee = self.expression(Type::Function, inner);
                let (a, b) = self.numbers(inner);
                let more = if self.below(300) == 0 { ", 1" } else { "" };
                format!("{callee}({a}, {b}{more})")
            }
            8 => format!(
                "g({}.p{})",
                self.expression(Type::Object, inner),
                self.below(FIELDS)
            ),
            9 if self.in_method => {
                let receiver = if self.has_super { "super" } else { "this" };
                format!(
                    "{receiver}.m{method}({}, 1)",
                    self.expression(Type::Number, inner)
                )
            }
            9 | 10 => {
                let (a, b) = self.numbers(inner);
                format!(
                    "({}.m{method})({a}, {b})",
                    self.expression(Type::Object, inner)
                )
            }
            _ => {
                let (left, right) = self.numbers(inner);
                format!(
                    "({} and {left} or {right})",
                    self.expression(Type::Bool, inner)
                )
            }
        }
    }

    fn numbers(&mut self, depth: u32) -> (String, String) {
        (
            self.expression(Type::Number, depth),
            self.expression(Type::Number, depth),
        )
    }

    fn text(&mut self, depth: u32) -> String {
        let piece = ["\"\"", "\"a\"", "\"bc\"", "\"longer text\""][self.below(4) as usize];
        if depth == 0 {
            return piece.into();
        }
        // Not two variables: a text that is doubled in a loop fills any heap.
        format!("({} + {piece})", self.expression(Type::Text, depth - 1))
    }

    fn boolean(&mut self, depth: u32) -> String {
        if depth == 0 {
            return ["true", "false", "nil"][self.below(3) as usize].into();
        }
        let inner = depth - 1;
        let wanted = self.some_type();
        match self.below(6) {
            0 | 1 => {
                let operator = ["<", "<=", ">", ">="][self.below(4) as usize];
                format!(
                    "({} {operator} {})",
                    self.expression(Type::Number, inner),
                    self.expression(Type::Number, inner)
                )
            }
            2 => format!(
                "({} == {})",
                self.expression(wanted, inner),
                self.expression(wanted, inner)
            ),
            3 => format!(
                "({} != {})",
                self.expression(wanted, inner),
                self.expression(Type::Bool, inner)
            ),
            4 => format!("!{}", self.expression(wanted, inner)),
            _ => format!(
                "({} or {})",
                self.expression(Type::Bool, inner),
                self.expression(Type::Bool, inner)
            ),
        }
    }

    fn object(&mut self, depth: u32) -> String {
        if self.in_initialiser || self.in_method && self.chance(40) {
            return "this".into();
        }
        let inner = depth.saturating_sub(1);
        format!(
            "C{}({}, {})",
            self.below(CLASSES),
            self.expression(Type::Number, inner),
            self.expression(Type::Number, 0)
        )
    }
}

/// A program that calls `g` to make any value a number.
fn source(seed: u64) -> String {
    format!(
        "fun g(x) {{ if (x == nil or x == true or x == false) return 7; return x; }}\n{}",
        Maker::program(seed)
    )
}

fn outcome(source: &str, config: &RunConfig) -> (String, String, u8) {
    let Outcome {
        stdout,
        stderr,
        exit_code,
        ..
    } = run_source(source.as_bytes(), config);
    (
        String::from_utf8_lossy(&stdout).into_owned(),
        String::from_utf8_lossy(&stderr).into_owned(),
        exit_code,
    )
}

fn peer(path: &str, source: &str) -> (String, String, u8) {
    let file = std::env::temp_dir().join(format!("urge-random-{}.lox", std::process::id()));
    std::fs::write(&file, source).expect("a place for the program");
    let output = Command::new(path)
        .arg(&file)
        .output()
        .expect("the peer runs");
    let code = output.status.code().map_or(255, |code| code as u8);
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
        code,
    )
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn both_tiers_agree_on_random_programs() {
    let hot = JitConfig {
        calls: 0,
        loops: 0,
        ..JitConfig::default()
    };
    let warm = JitConfig {
        calls: 3,
        loops: 5,
        ..JitConfig::default()
    };
    let (first, count) = match number("LOX_SEED") {
        Some(seed) => (seed, 1),
        None => (
            number("LOX_FROM").unwrap_or(0),
            number("LOX_PROGRAMS").unwrap_or(60),
        ),
    };
    let (mut good, mut failed) = (0, 0);
    for seed in first..first + count {
        let source = source(seed);
        if count == 1 {
            println!("{source}");
        }
        let interpreted = outcome(
            &source,
            &RunConfig {
                jit: false,
                ..RunConfig::default()
            },
        );
        if let Ok(path) = std::env::var("LOX_PEER") {
            assert_eq!(
                peer(&path, &source),
                interpreted,
                "LOX_SEED={seed}: the peer"
            );
        }
        match interpreted.2 {
            0 => good += 1,
            70 => failed += 1,
            65 if interpreted.1.contains("Too many constants") => {}
            code => panic!("LOX_SEED={seed}: exit code {code}: {}", interpreted.1),
        }
        for (name, config) in [
            (
                "compiled at once",
                RunConfig {
                    hot: hot.clone(),
                    ..RunConfig::default()
                },
            ),
            (
                "compiled when warm",
                RunConfig {
                    hot: warm.clone(),
                    ..RunConfig::default()
                },
            ),
            (
                "collected often",
                RunConfig {
                    hot: warm.clone(),
                    gc_every: Some(3),
                    ..RunConfig::default()
                },
            ),
        ] {
            assert_eq!(
                outcome(&source, &config),
                interpreted,
                "LOX_SEED={seed}: {name}"
            );
        }
    }
    // Programs that all failed at once would show nothing.
    assert!(
        count == 1 || good * 4 > failed,
        "{good} ended well, {failed} by an error"
    );
}
