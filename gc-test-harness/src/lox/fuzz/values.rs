//! Makes random expressions from the names in scope.

use super::maker::{
    FIELDS, Maker, NUMBERS, Signature, Ty, Variable, WORDS, binary, call, get, word,
};
use super::tree::Expr;

impl Maker {
    /// A variable of this type. Those declared last are likelier.
    pub(super) fn variable(&mut self, ty: Ty) -> Option<String> {
        let found: Vec<usize> = (0..self.scope.len())
            .filter(|&index| self.scope[index].ty == ty)
            .collect();
        let near = found.len().saturating_sub(4);
        let found = if self.chance(70) {
            &found[near..]
        } else {
            &found[..]
        };
        if found.is_empty() {
            return None;
        }
        let index = self.one(found);
        Some(self.scope[index].name.clone())
    }

    pub(super) fn assignment(&mut self) -> Expr {
        let found: Vec<usize> = (0..self.scope.len())
            .filter(|&index| !self.scope[index].fixed)
            .collect();
        if found.is_empty() {
            return word("nil");
        }
        let near = found.len().saturating_sub(5);
        let found = if self.chance(70) {
            &found[near..]
        } else {
            &found[..]
        };
        let index = self.one(found);
        let Variable { name, ty, .. } = self.scope[index].clone();
        let value = self.expr(ty, 2);
        Expr::Assign(name, value.into())
    }

    pub(super) fn expr(&mut self, ty: Ty, depth: u32) -> Expr {
        let ty = if self.below(4000) == 0 {
            self.some_type()
        } else {
            ty
        };
        if (depth == 0 || self.chance(30))
            && let Some(name) = self.variable(ty)
        {
            return word(name);
        }
        if depth == 0 {
            return self.value(ty);
        }
        let inner = depth - 1;
        if self.chance(15)
            && let Some(called) = self.call(ty, inner)
        {
            return called;
        }
        // In an initialiser, `this` has few fields yet.
        if self.chance(8) && self.function.is_none_or(|f| !f.initialiser) {
            let found: Vec<&str> = FIELDS
                .iter()
                .filter(|field| field.1 == ty)
                .map(|field| field.0)
                .collect();
            if !found.is_empty() {
                let name = self.one(&found);
                return get(self.expr(Ty::Object, inner), name);
            }
        }
        if self.chance(5) {
            return self.assignment_of(ty, inner);
        }
        if self.chance(6) {
            let operator = self.one(&["and", "or"]);
            let (left, right) = (self.expr(ty, inner), self.expr(ty, inner));
            return binary(operator, left, right);
        }
        match ty {
            Ty::Number => self.number(inner),
            Ty::Text => {
                // Not two variables: a text that doubles in each iteration fills any heap.
                let piece = word(self.one(&WORDS));
                let text = self.expr(Ty::Text, inner);
                if self.chance(50) {
                    binary("+", text, piece)
                } else {
                    binary("+", piece, text)
                }
            }
            Ty::Bool => self.boolean(inner),
            Ty::Object => self.object(inner),
            Ty::Thunk | Ty::Map => {
                let name = if ty == Ty::Thunk { "m0" } else { "m1" };
                let has_super = self.function.is_some_and(|f| f.has_super && !f.initialiser);
                let usable = self.usable_methods > usize::from(ty == Ty::Map);
                if has_super && usable && self.chance(40) {
                    Expr::Super(name.into())
                } else if usable {
                    get(self.expr(Ty::Object, inner), name)
                } else {
                    self.value(ty)
                }
            }
        }
    }

    /// `variable = value` as an expression.
    pub(super) fn assignment_of(&mut self, ty: Ty, depth: u32) -> Expr {
        let found: Vec<usize> = (0..self.scope.len())
            .filter(|&index| self.scope[index].ty == ty && !self.scope[index].fixed)
            .collect();
        let value = self.expr(ty, depth);
        if found.is_empty() {
            return value;
        }
        let index = self.one(&found);
        let name = self.scope[index].name.clone();
        Expr::Assign(name, value.into())
    }

    /// An expression without variables.
    pub(super) fn value(&mut self, ty: Ty) -> Expr {
        match ty {
            Ty::Number => word(self.one(&NUMBERS)),
            Ty::Text => word(self.one(&WORDS)),
            Ty::Bool => word(self.one(&["true", "false", "nil"])),
            Ty::Object => self.object(0),
            Ty::Thunk => word("h0"),
            Ty::Map => word("h1"),
        }
    }

    /// A call with a result of this type.
    pub(super) fn call(&mut self, ty: Ty, depth: u32) -> Option<Expr> {
        if self.function.is_none_or(|f| f.initialiser) {
            return None;
        }
        let wrong = self.below(1500) == 0;
        let arguments = |maker: &mut Maker, params: &[Ty]| {
            let mut all: Vec<Expr> = params.iter().map(|&ty| maker.expr(ty, depth)).collect();
            if wrong {
                all.push(word("1"));
            }
            all
        };
        match self.below(4) {
            0 if ty == Ty::Number => {
                let map = self.chance(50);
                let held = if map { Ty::Map } else { Ty::Thunk };
                let callee = self.expr(held, depth.min(1));
                // `(object.method)(..)` makes a bound method; without parentheses it makes none.
                let callee = match callee {
                    Expr::Get(..) if self.chance(60) => Expr::Group(callee.into()),
                    Expr::Get(..) | Expr::Word(_) | Expr::Super(_) => callee,
                    other => Expr::Group(other.into()),
                };
                self.calls = true;
                let params: &[Ty] = if map { &[Ty::Number] } else { &[] };
                let arguments = arguments(self, params);
                Some(call(callee, arguments))
            }
            1 | 2 => {
                let found: Vec<usize> = (0..self.callable.len())
                    .filter(|&index| self.callable[index].result == ty)
                    .collect();
                if found.is_empty() {
                    return None;
                }
                let index = self.one(&found);
                let Signature { name, params, .. } = self.callable[index].clone();
                self.calls = true;
                let arguments = arguments(self, &params);
                Some(call(word(name), arguments))
            }
            _ => {
                let found: Vec<usize> = (0..self.usable_methods)
                    .filter(|&index| self.methods[index].result == ty)
                    .collect();
                if found.is_empty() {
                    return None;
                }
                let index = self.one(&found);
                let Signature { name, params, .. } = self.methods[index].clone();
                let has_super = self.function.is_some_and(|f| f.has_super);
                self.calls = true;
                let callee = if has_super && self.chance(40) {
                    Expr::Super(name)
                } else {
                    get(self.expr(Ty::Object, depth.min(1)), &name)
                };
                let arguments = arguments(self, &params);
                Some(call(callee, arguments))
            }
        }
    }

    pub(super) fn number(&mut self, depth: u32) -> Expr {
        if self.chance(15) {
            return Expr::Unary("-", self.expr(Ty::Number, depth).into());
        }
        let operator = self.one(&["+", "+", "-", "*", "/"]);
        let (left, right) = (self.expr(Ty::Number, depth), self.expr(Ty::Number, depth));
        binary(operator, left, right)
    }

    pub(super) fn boolean(&mut self, depth: u32) -> Expr {
        let ty = self.some_type();
        match self.below(7) {
            0..=2 => {
                let operator = self.one(&["<", "<=", ">", ">="]);
                let (left, right) = (self.expr(Ty::Number, depth), self.expr(Ty::Number, depth));
                binary(operator, left, right)
            }
            3 => binary("==", self.expr(ty, depth), self.expr(ty, depth)),
            4 => binary("!=", self.expr(ty, depth), self.expr(Ty::Bool, depth)),
            5 => Expr::Unary("!", self.expr(ty, depth).into()),
            _ => {
                let operator = self.one(&["and", "or"]);
                let (left, right) = (self.expr(Ty::Bool, depth), self.expr(Ty::Bool, depth));
                binary(operator, left, right)
            }
        }
    }

    pub(super) fn object(&mut self, depth: u32) -> Expr {
        let inside = self.function;
        if inside.is_some_and(|f| f.initialiser)
            || inside.is_some_and(|f| f.this) && self.chance(40)
            || self.classes == 0
        {
            return word(if inside.is_some_and(|f| f.this) {
                "this"
            } else {
                "g3"
            });
        }
        let class = format!("C{}", self.below(self.classes as usize));
        let (a, b) = (self.expr(Ty::Number, depth), self.expr(Ty::Number, 0));
        call(word(class), vec![a, b])
    }
}
