//! Shortens a program that shows a fault, as long as it shows the same sort of fault.
//!
//! A step removes statements from a list, replaces a statement by its inner statements, or replaces
//! an expression by an inner expression or a literal. If a step breaks the program (it names a
//! variable that was removed), the program fails in the same way in all tiers. So it shows no
//! fault, and the step is undone.

use std::time::Instant;

use super::tree::{Expr, Function, Program, Stmt};

/// Shortens until no step is left, or until the time is over.
pub fn shrink(
    program: &Program,
    until: Instant,
    mut shows: impl FnMut(&Program) -> bool,
) -> Program {
    let mut best = program.clone();
    loop {
        let mut shorter = false;
        for round in [parts, lists, expressions] {
            let mut place = 0;
            while let Some(candidates) = round(&best, place) {
                let before = best.source(1).len();
                for candidate in candidates {
                    if Instant::now() >= until {
                        return best;
                    }
                    if candidate.source(1).len() < before && shows(&candidate) {
                        best = candidate;
                        shorter = true;
                        break;
                    }
                }
                // If a step was taken, this place now has a new statement. The next round tries it.
                place += 1;
            }
        }
        if !shorter {
            return best;
        }
    }
}

/// The program without some statements of its list number `place`, or with their inner statements
/// instead. `None`: there is no such list.
fn lists(program: &Program, place: usize) -> Option<Vec<Program>> {
    let mut length = None;
    edit_list(&mut program.clone(), place, &mut |list| {
        length = Some(list.len())
    });
    let length = length?;
    let mut candidates = Vec::new();
    let mut piece = length;
    while piece > 0 {
        for from in (0..length).step_by(piece) {
            let mut candidate = program.clone();
            edit_list(&mut candidate, place, &mut |list| {
                list.drain(from..(from + piece).min(length));
            });
            candidates.push(candidate);
        }
        piece /= 2;
    }
    for at in 0..length {
        let mut others = Vec::new();
        edit_list(&mut program.clone(), place, &mut |list| {
            others = variants(&list[at])
        });
        for other in others {
            let mut candidate = program.clone();
            edit_list(&mut candidate, place, &mut |list| {
                list.splice(at..=at, other.clone());
            });
            candidates.push(candidate);
        }
    }
    Some(candidates)
}

/// The replacements to try for a statement.
fn variants(stmt: &Stmt) -> Vec<Vec<Stmt>> {
    match stmt {
        Stmt::Block(body) => vec![body.clone()],
        Stmt::For(name, turns, body) => {
            let fewer = Stmt::For(name.clone(), turns / 2, body.clone());
            vec![body.clone(), vec![fewer]]
        }
        Stmt::While(name, turns, condition, body) => {
            let fewer = Stmt::While(name.clone(), turns / 2, condition.clone(), body.clone());
            let plain = Stmt::While(name.clone(), *turns, None, body.clone());
            vec![body.clone(), vec![fewer], vec![plain]]
        }
        Stmt::If(condition, then, other) => vec![
            [then.clone(), other.clone()].concat(),
            vec![Stmt::If(condition.clone(), then.clone(), Vec::new())],
        ],
        Stmt::Print(value) | Stmt::Var(_, Some(value)) | Stmt::Return(Some(value)) => {
            vec![vec![Stmt::Expr(value.clone())]]
        }
        Stmt::Class(name, superclass, methods) => {
            let class = |superclass, methods| vec![Stmt::Class(name.clone(), superclass, methods)];
            let mut less = vec![class(None, methods.clone())];
            for index in 0..methods.len() {
                let mut methods = methods.clone();
                methods.remove(index);
                less.push(class(superclass.clone(), methods));
            }
            less
        }
        Stmt::Expr(_) | Stmt::Fun(_) | Stmt::Var(_, None) | Stmt::Return(None) => Vec::new(),
    }
}

/// The program without its part number `place`.
fn parts(program: &Program, place: usize) -> Option<Vec<Program>> {
    if place >= program.parts.len() {
        return None;
    }
    let mut candidate = program.clone();
    candidate.parts.remove(place);
    Some(vec![candidate])
}

/// The program with a shorter expression for its expression number `place`. `None`: there is no
/// such expression.
fn expressions(program: &Program, place: usize) -> Option<Vec<Program>> {
    let mut found = None;
    edit_expr(&mut program.clone(), place, &mut |expr| {
        found = Some(expr.clone())
    });
    let mut shorter = match found? {
        Expr::Word(_) => Vec::new(),
        Expr::Assign(_, value) | Expr::Unary(_, value) | Expr::Group(value) => vec![*value],
        Expr::Get(object, _) => vec![*object],
        Expr::Set(object, _, value) => vec![*value, *object],
        Expr::Super(_) => Vec::new(),
        Expr::Call(callee, arguments) => [vec![*callee], arguments].concat(),
        Expr::Binary(_, left, right) => vec![*left, *right],
    };
    shorter.extend(["1", "nil", "\"a\""].map(|word| Expr::Word(word.into())));
    Some(
        shorter
            .into_iter()
            .map(|new| {
                let mut candidate = program.clone();
                edit_expr(&mut candidate, place, &mut |expr| *expr = new.clone());
                candidate
            })
            .collect(),
    )
}

type Edit<'e, T> = &'e mut dyn FnMut(&mut T);

/// Counts places down to the given one, and edits it.
struct Editor<'e> {
    left: usize,
    list: Option<Edit<'e, Vec<Stmt>>>,
    expr: Option<Edit<'e, Expr>>,
}

fn edit_list(program: &mut Program, place: usize, edit: &mut dyn FnMut(&mut Vec<Stmt>)) {
    let mut editor = Editor {
        left: place,
        list: Some(edit),
        expr: None,
    };
    editor.program(program);
}

fn edit_expr(program: &mut Program, place: usize, edit: &mut dyn FnMut(&mut Expr)) {
    let mut editor = Editor {
        left: place,
        list: None,
        expr: Some(edit),
    };
    editor.program(program);
}

impl Editor<'_> {
    fn program(&mut self, program: &mut Program) {
        self.stmts(&mut program.prelude);
        for part in &mut program.parts {
            self.function(part);
        }
    }

    fn function(&mut self, function: &mut Function) {
        self.stmts(&mut function.body);
    }

    fn stmts(&mut self, stmts: &mut Vec<Stmt>) {
        if self.left == 0
            && let Some(edit) = self.list.take()
        {
            return edit(stmts);
        }
        if self.list.is_some() {
            self.left -= 1;
        }
        for stmt in stmts {
            match stmt {
                Stmt::Expr(value) | Stmt::Print(value) => self.expr(value),
                Stmt::Var(_, value) | Stmt::Return(value) => {
                    if let Some(value) = value {
                        self.expr(value);
                    }
                }
                Stmt::Block(body) | Stmt::For(_, _, body) => self.stmts(body),
                Stmt::If(condition, then, other) => {
                    self.expr(condition);
                    self.stmts(then);
                    self.stmts(other);
                }
                Stmt::While(_, _, condition, body) => {
                    if let Some(condition) = condition {
                        self.expr(condition);
                    }
                    self.stmts(body);
                }
                Stmt::Fun(function) => self.function(function),
                Stmt::Class(_, _, methods) => {
                    for method in methods {
                        self.function(method);
                    }
                }
            }
        }
    }

    fn expr(&mut self, expr: &mut Expr) {
        if self.expr.is_none() {
            return;
        }
        if self.left == 0
            && let Some(edit) = self.expr.take()
        {
            return edit(expr);
        }
        self.left -= 1;
        match expr {
            Expr::Word(_) | Expr::Super(_) => {}
            Expr::Assign(_, value)
            | Expr::Unary(_, value)
            | Expr::Group(value)
            | Expr::Get(value, _) => self.expr(value),
            Expr::Set(left, _, right) | Expr::Binary(_, left, right) => {
                self.expr(left);
                self.expr(right);
            }
            Expr::Call(callee, arguments) => {
                self.expr(callee);
                for argument in arguments {
                    self.expr(argument);
                }
            }
        }
    }
}
