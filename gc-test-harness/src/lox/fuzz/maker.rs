//! The state of a program under construction: the names in scope, and random choices.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::tree::Expr;

/// The intended type of an expression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ty {
    Number,
    Text,
    Bool,
    /// an instance of any of the classes
    Object,
    /// a function without parameters, or a bound method; returns a number
    Thunk,
    /// the same with one parameter, a number
    Map,
}

/// A variable in scope.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) ty: Ty,
    /// whether nothing assigns to it: a loop's counter, or a declared function
    pub(super) fixed: bool,
}

/// A declared function or method.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) name: String,
    pub(super) params: Vec<Ty>,
    pub(super) result: Ty,
}

pub(super) const FIELDS: [(&str, Ty); 6] = [
    ("p0", Ty::Number),
    ("p1", Ty::Number),
    ("p2", Ty::Text),
    ("p3", Ty::Object),
    ("p4", Ty::Thunk),
    ("p5", Ty::Map),
];
pub(super) const GLOBALS: [Ty; 6] = [
    Ty::Number,
    Ty::Number,
    Ty::Text,
    Ty::Object,
    Ty::Thunk,
    Ty::Map,
];
pub(super) const WORDS: [&str; 4] = ["\"\"", "\"a\"", "\"bc\"", "\"longer text\""];
pub(super) const NUMBERS: [&str; 8] = ["0", "1", "2", "3.5", "10", "100", "(0/0)", "(1/0)"];

/// The function under construction.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Inside {
    pub(super) result: Ty,
    /// inside a method, where `this` exists
    pub(super) this: bool,
    /// inside a method of a class with a superclass
    pub(super) has_super: bool,
    pub(super) initialiser: bool,
}

pub(super) struct Maker {
    pub(super) random: StdRng,
    /// the variables in scope, innermost last
    pub(super) scope: Vec<Variable>,
    pub(super) callable: Vec<Signature>,
    pub(super) methods: Vec<Signature>,
    /// number of methods that may be called now: those with smaller numbers
    pub(super) usable_methods: usize,
    pub(super) classes: u32,
    pub(super) names: u32,
    pub(super) nesting: u32,
    /// whether the function under construction calls another
    pub(super) calls: bool,
    pub(super) function: Option<Inside>,
}

pub(super) fn word(text: impl Into<String>) -> Expr {
    Expr::Word(text.into())
}

pub(super) fn binary(operator: &'static str, left: Expr, right: Expr) -> Expr {
    Expr::Binary(operator, left.into(), right.into())
}

pub(super) fn call(callee: Expr, arguments: Vec<Expr>) -> Expr {
    Expr::Call(callee.into(), arguments)
}

pub(super) fn get(object: Expr, name: &str) -> Expr {
    Expr::Get(object.into(), name.into())
}

impl Maker {
    /// A maker before the first construct.
    pub(super) fn new(seed: u64) -> Maker {
        Maker {
            random: StdRng::seed_from_u64(seed),
            scope: Vec::new(),
            callable: Vec::new(),
            methods: Vec::new(),
            usable_methods: 0,
            classes: 0,
            names: 0,
            nesting: 0,
            calls: false,
            function: None,
        }
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit)
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(super) fn fresh(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    pub(super) fn some_type(&mut self) -> Ty {
        self.one(&[
            Ty::Number,
            Ty::Number,
            Ty::Number,
            Ty::Text,
            Ty::Bool,
            Ty::Object,
            Ty::Object,
            Ty::Thunk,
            Ty::Map,
        ])
    }

    pub(super) fn types(&mut self, most: usize) -> Vec<Ty> {
        (0..self.below(most + 1))
            .map(|_| self.some_type())
            .collect()
    }
}
