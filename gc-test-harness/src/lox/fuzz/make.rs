//! Makes the functions, classes and statements of random programs.
//!
//! An expression has the type (`Ty`) that its context needs, so that most programs run far.
//! Sometimes it has another type, so that errors occur as well. Most functions are short, and
//! variables are read seldom, because a compiler's likely mistakes are about values that no
//! instruction reads any more, or that only a closure reads. Programs that read every variable
//! again and again have no such values.

use super::maker::{FIELDS, GLOBALS, Inside, Maker, Signature, Ty, Variable, call, get, word};
use super::tree::{Expr, Function, Program, Stmt};

/// The program for a seed.
pub fn program(seed: u64) -> Program {
    Maker::new(seed).program()
}

impl Maker {
    fn program(&mut self) -> Program {
        let fixed = |name: &str, ty| Variable {
            name: name.into(),
            ty,
            fixed: true,
        };
        let lambda = |name: &str, params: &[&str], value: &str| {
            Stmt::Fun(Function {
                name: name.into(),
                params: params.iter().map(|&p| p.into()).collect(),
                fuel: None,
                body: vec![Stmt::Return(Some(word(value)))],
            })
        };
        let mut prelude = vec![lambda("h0", &[], "4"), lambda("h1", &["x"], "x")];
        self.scope = vec![fixed("h0", Ty::Thunk), fixed("h1", Ty::Map)];
        self.methods = vec![
            Signature {
                name: "m0".into(),
                params: vec![],
                result: Ty::Number,
            },
            Signature {
                name: "m1".into(),
                params: vec![Ty::Number],
                result: Ty::Number,
            },
        ];
        for number in 2..2 + self.below(3) {
            let (params, result) = (self.types(6), self.some_type());
            self.methods.push(Signature {
                name: format!("m{number}"),
                params,
                result,
            });
        }
        for class in 0..1 + self.below(3) as u32 {
            let stmt = self.class(&format!("C{class}"));
            prelude.push(stmt);
            self.classes = class + 1;
        }
        for (number, ty) in GLOBALS.into_iter().enumerate() {
            let name = format!("g{number}");
            let value = self.value(ty);
            prelude.push(Stmt::Var(name.clone(), Some(value)));
            self.scope.push(Variable {
                name,
                ty,
                fixed: false,
            });
        }
        self.usable_methods = self.methods.len();
        for number in 0..self.below(5) {
            let (params, result) = (self.types(7), self.some_type());
            let signature = Signature {
                name: format!("f{number}"),
                params,
                result,
            };
            let function = self.function(&signature, None);
            self.callable.push(signature);
            prelude.push(Stmt::Fun(function));
        }
        let parts = (0..2 + self.below(3))
            .map(|number| self.part(number))
            .collect();
        Program {
            prelude,
            parts,
            fuel: 5 + self.below(30) as u32,
        }
    }

    /// A part: it executes some statements and prints results of functions and methods.
    fn part(&mut self, number: usize) -> Function {
        let mut part = self.function(
            &Signature {
                name: format!("part{number}"),
                params: vec![Ty::Number],
                result: Ty::Number,
            },
            None,
        );
        let outer = self.scope.len();
        self.scope.push(Variable {
            name: part.params[0].clone(),
            ty: Ty::Number,
            fixed: true,
        });
        self.function = Some(Inside {
            result: Ty::Number,
            this: false,
            has_super: false,
            initialiser: false,
        });
        for Signature { name, params, .. } in self.callable.clone() {
            if self.chance(60) {
                let arguments = params.iter().map(|&ty| self.expr(ty, 1)).collect();
                part.body
                    .insert(0, Stmt::Print(call(word(name), arguments)));
            }
        }
        for Signature { name, params, .. } in self.methods.clone() {
            if self.chance(40) {
                let arguments = params.iter().map(|&ty| self.expr(ty, 1)).collect();
                let callee = get(self.object(1), &name);
                part.body.insert(0, Stmt::Print(call(callee, arguments)));
            }
        }
        part.fuel = None;
        self.function = None;
        self.scope.truncate(outer);
        part
    }

    /// A simple value of a type: the result of a function that has no fuel left.
    fn default(ty: Ty) -> Expr {
        word(match ty {
            Ty::Number => "2",
            Ty::Text => "\"z\"",
            Ty::Bool => "true",
            Ty::Object => "g3",
            Ty::Thunk => "h0",
            Ty::Map => "h1",
        })
    }

    fn class(&mut self, name: &str) -> Stmt {
        let superclass = (self.classes > 0 && self.chance(60))
            .then(|| format!("C{}", self.below(self.classes as usize)));
        let has_super = superclass.is_some();
        let mut methods = vec![self.initialiser(has_super)];
        for number in 0..self.methods.len() {
            if !has_super || self.chance(60) {
                self.usable_methods = number;
                let signature = self.methods[number].clone();
                let inside = Inside {
                    result: signature.result,
                    this: true,
                    has_super,
                    initialiser: false,
                };
                methods.push(self.function(&signature, Some(inside)));
            }
        }
        Stmt::Class(name.into(), superclass, methods)
    }

    /// `init(a, b)`: sets an instance's fields, in an order that differs from class to class.
    /// Sometimes a field is missing.
    fn initialiser(&mut self, has_super: bool) -> Function {
        let outer = self.scope.len();
        for name in ["a", "b"] {
            self.scope.push(Variable {
                name: name.into(),
                ty: Ty::Number,
                fixed: false,
            });
        }
        let before = self.function.replace(Inside {
            result: Ty::Object,
            this: true,
            has_super,
            initialiser: true,
        });
        let mut body = Vec::new();
        if has_super {
            let arguments = vec![word("b"), word("a")];
            body.push(Stmt::Expr(call(Expr::Super("init".into()), arguments)));
        }
        let turn = self.below(FIELDS.len());
        for index in 0..FIELDS.len() {
            let (name, ty) = FIELDS[(index + turn) % FIELDS.len()];
            if self.below(1000) == 0 || has_super && self.chance(50) {
                continue;
            }
            let value = if matches!(ty, Ty::Thunk | Ty::Map) && self.chance(70) {
                let closure = self.closure(ty);
                let name = closure.name.clone();
                body.push(Stmt::Fun(closure));
                word(name)
            } else {
                self.expr(ty, 1)
            };
            body.push(Stmt::Expr(Expr::Set(
                word("this").into(),
                name.into(),
                value.into(),
            )));
        }
        self.function = before;
        self.scope.truncate(outer);
        Function {
            name: "init".into(),
            params: vec!["a".into(), "b".into()],
            fuel: None,
            body,
        }
    }

    fn function(&mut self, signature: &Signature, inside: Option<Inside>) -> Function {
        let (outer, callable) = (self.scope.len(), self.callable.len());
        let inside = inside.unwrap_or(Inside {
            result: signature.result,
            initialiser: false,
            // A function inside a method has the method's `this`.
            this: self.function.is_some_and(|f| f.this),
            has_super: self.function.is_some_and(|f| f.has_super),
        });
        let before = self.function.replace(inside);
        let called = std::mem::replace(&mut self.calls, false);
        let params: Vec<String> = (0..signature.params.len())
            .map(|_| self.fresh("a"))
            .collect();
        for (name, &ty) in params.iter().zip(&signature.params) {
            self.scope.push(Variable {
                name: name.clone(),
                ty,
                fixed: false,
            });
        }
        let mut body = Vec::new();
        // Most functions are short.
        let count = [0, 0, 1, 1, 2, 2, 3, 5][self.below(8)];
        for _ in 0..count {
            self.statement(&mut body, 2);
        }
        let result = self.expr(signature.result, 2);
        body.push(Stmt::Return(Some(result)));
        let fuel =
            std::mem::replace(&mut self.calls, called).then(|| Self::default(signature.result));
        self.scope.truncate(outer);
        self.callable.truncate(callable);
        self.function = before;
        Function {
            name: signature.name.clone(),
            params,
            fuel,
            body,
        }
    }

    /// A function that a variable of this type can hold.
    fn closure(&mut self, ty: Ty) -> Function {
        let params = if ty == Ty::Map {
            vec![Ty::Number]
        } else {
            vec![]
        };
        let name = self.fresh("k");
        self.function(
            &Signature {
                name,
                params,
                result: Ty::Number,
            },
            None,
        )
    }

    fn block(&mut self, depth: u32) -> Vec<Stmt> {
        let (outer, callable) = (self.scope.len(), self.callable.len());
        let mut body = Vec::new();
        for _ in 0..1 + self.below(2) {
            self.statement(&mut body, depth - 1);
        }
        self.scope.truncate(outer);
        self.callable.truncate(callable);
        body
    }

    fn statement(&mut self, out: &mut Vec<Stmt>, depth: u32) {
        self.nesting += 1;
        let choices = if depth == 0 || self.nesting > 5 {
            9
        } else {
            19
        };
        let initialiser = self.function.is_some_and(|f| f.initialiser);
        match self.below(choices) {
            0 => {
                let ty = self.some_type();
                let value = self.expr(ty, 2);
                out.push(Stmt::Print(value));
            }
            1 | 2 => {
                let value = self.assignment();
                out.push(Stmt::Expr(value));
            }
            3 => {
                let (name, ty) = self.one(&FIELDS);
                let object = self.expr(Ty::Object, 1);
                let value = self.expr(ty, 2);
                out.push(Stmt::Expr(Expr::Set(
                    object.into(),
                    name.into(),
                    value.into(),
                )));
            }
            4..=7 => self.declaration(out),
            8 => {
                let ty = self.some_type();
                let value = self.expr(ty, 3);
                out.push(Stmt::Expr(value));
            }
            9 | 10 => self.capture(out),
            11 | 12 => {
                let block = self.block(depth);
                out.push(Stmt::Block(block));
            }
            13 => {
                let condition = self.expr(Ty::Bool, 2);
                let then = self.block(depth);
                let other = if self.chance(40) {
                    self.block(depth)
                } else {
                    Vec::new()
                };
                out.push(Stmt::If(condition, then, other));
            }
            14 | 15 => {
                let name = self.counter();
                let turns = self.turns();
                let body = self.block(depth);
                self.scope.pop();
                out.push(Stmt::For(name, turns, body));
            }
            16 => {
                let name = self.counter();
                let turns = self.turns();
                let condition = self.chance(50).then(|| self.expr(Ty::Bool, 1));
                let body = self.block(depth);
                self.scope.pop();
                out.push(Stmt::While(name, turns, condition, body));
            }
            17 if !initialiser => {
                let condition = self.expr(Ty::Bool, 1);
                let result = self.function.map_or(Ty::Number, |f| f.result);
                let value = self.expr(result, 2);
                out.push(Stmt::If(
                    condition,
                    vec![Stmt::Return(Some(value))],
                    Vec::new(),
                ));
            }
            18 | 19 => {
                let ty = self.one(&[Ty::Thunk, Ty::Map]);
                let closure = self.closure(ty);
                self.scope.push(Variable {
                    name: closure.name.clone(),
                    ty,
                    fixed: true,
                });
                out.push(Stmt::Fun(closure));
            }
            _ => {
                let (params, result) = (self.types(4), self.some_type());
                let signature = Signature {
                    name: self.fresh("q"),
                    params,
                    result,
                };
                let function = self.function(&signature, None);
                self.callable.push(signature);
                out.push(Stmt::Fun(function));
            }
        }
        self.nesting -= 1;
    }

    /// A variable, often a copy of another, and often captured at once.
    fn declaration(&mut self, out: &mut Vec<Stmt>) {
        let ty = self.some_type();
        let copied = self.chance(40).then(|| self.variable(ty)).flatten();
        let value = match copied {
            Some(name) => word(name),
            None => self.expr(ty, 2),
        };
        let name = self.fresh("v");
        out.push(Stmt::Var(name.clone(), Some(value)));
        self.scope.push(Variable {
            name,
            ty,
            fixed: false,
        });
    }

    /// A variable, a closure over it (and over other variables in scope), and a call of the
    /// closure, with nothing between them.
    fn capture(&mut self, out: &mut Vec<Stmt>) {
        if self.nesting > 4 || self.function.is_none_or(|f| f.initialiser) {
            return self.declaration(out);
        }
        self.declaration(out);
        let ty = self.one(&[Ty::Thunk, Ty::Thunk, Ty::Map]);
        let closure = self.closure(ty);
        let name = closure.name.clone();
        out.push(Stmt::Fun(closure));
        let arguments = if ty == Ty::Map {
            vec![self.expr(Ty::Number, 1)]
        } else {
            Vec::new()
        };
        self.scope.push(Variable {
            name: name.clone(),
            ty,
            fixed: true,
        });
        self.calls = true;
        let called = call(word(name), arguments);
        let number = self.function.is_some_and(|f| f.result == Ty::Number);
        out.push(if number && self.chance(40) {
            Stmt::Return(Some(called))
        } else {
            Stmt::Print(called)
        });
    }

    fn counter(&mut self) -> String {
        let name = self.fresh("i");
        self.scope.push(Variable {
            name: name.clone(),
            ty: Ty::Number,
            fixed: true,
        });
        name
    }

    fn turns(&mut self) -> u32 {
        // Few iterations, so that nested loops and loops with calls do not take long. The parts are
        // called often enough.
        [0, 1, 2, 3, 4, 6, 9][self.below(7)]
    }
}
