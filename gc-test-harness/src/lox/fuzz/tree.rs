//! Lox programs as trees, which can be made and shortened. `Display` writes the source.
//!
//! Every tree is a program that ends, and stays one when it is shortened. A loop's counter is part
//! of the loop's node, and no statement assigns to it. A function that calls others begins with a
//! test of the global variable `fuel`.

use std::fmt::{self, Display, Formatter};

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// a literal, a variable, or `this`
    Word(String),
    /// `name = value`
    Assign(String, Box<Expr>),
    /// `object.name`
    Get(Box<Expr>, String),
    /// `object.name = value`
    Set(Box<Expr>, String, Box<Expr>),
    /// `super.name`
    Super(String),
    /// `callee(arguments)`; a method's callee is [`Get`](Expr::Get) or [`Super`](Expr::Super)
    Call(Box<Expr>, Vec<Expr>),
    /// a prefix operator
    Unary(&'static str, Box<Expr>),
    /// an infix operator, `and` and `or` among them
    Binary(&'static str, Box<Expr>, Box<Expr>),
    /// in parentheses, so that a method is bound before it is called
    Group(Box<Expr>),
}

/// A function or method.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// its name
    pub name: String,
    /// its parameters
    pub params: Vec<String>,
    /// its result when no fuel is left; `None`: the function does not test the fuel
    pub fuel: Option<Expr>,
    /// its statements
    pub body: Vec<Stmt>,
}

/// A statement or declaration.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// `value;`
    Expr(Expr),
    /// `print value;`
    Print(Expr),
    /// `var name = value;`
    Var(String, Option<Expr>),
    /// `{ .. }`
    Block(Vec<Stmt>),
    /// `if (condition) { .. } else { .. }`
    If(Expr, Vec<Stmt>, Vec<Stmt>),
    /// `for (var name = 0; name < turns; name = name + 1) { .. }`
    For(String, u32, Vec<Stmt>),
    /// the same with `while`, and a further condition
    While(String, u32, Option<Expr>, Vec<Stmt>),
    /// `return value;`
    Return(Option<Expr>),
    /// a function declaration
    Fun(Function),
    /// a class: its name, its superclass, its methods
    Class(String, Option<String>, Vec<Function>),
}

/// A program. Its source calls each part `turns` times.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// the declarations before the parts: globals, classes, functions
    pub prelude: Vec<Stmt>,
    /// functions with one parameter, a number
    pub parts: Vec<Function>,
    /// the fuel for each call of a part
    pub fuel: u32,
}

impl Program {
    /// The source of the program whose parts are called `turns` times.
    pub fn source(&self, turns: u32) -> String {
        let mut out = String::from("var fuel = 50;\n");
        for stmt in &self.prelude {
            out += &format!("{stmt}");
        }
        for part in &self.parts {
            out += &format!("fun {part}");
        }
        for part in &self.parts {
            let (name, fuel) = (&part.name, self.fuel);
            out += &format!(
                "for (var i = 0; i < {turns}; i = i + 1) {{ fuel = {fuel}; print {name}(i); }}\n"
            );
        }
        out
    }
}

fn list<T: Display>(f: &mut Formatter<'_>, items: &[T]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        write!(f, "{comma}{item}")?;
    }
    Ok(())
}

fn block(f: &mut Formatter<'_>, stmts: &[Stmt]) -> fmt::Result {
    f.write_str("{\n")?;
    for stmt in stmts {
        write!(f, "{stmt}")?;
    }
    f.write_str("}\n")
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Word(word) => f.write_str(word),
            Expr::Assign(name, value) => write!(f, "({name} = {value})"),
            Expr::Get(object, name) => write!(f, "{object}.{name}"),
            Expr::Set(object, name, value) => write!(f, "({object}.{name} = {value})"),
            Expr::Super(name) => write!(f, "super.{name}"),
            Expr::Call(callee, arguments) => {
                write!(f, "{callee}(")?;
                list(f, arguments)?;
                f.write_str(")")
            }
            Expr::Unary(operator, value) => write!(f, "({operator}{value})"),
            Expr::Binary(operator, left, right) => write!(f, "({left} {operator} {right})"),
            Expr::Group(inner) => write!(f, "({inner})"),
        }
    }
}

impl Display for Function {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name)?;
        list(f, &self.params)?;
        f.write_str(") ")?;
        match &self.fuel {
            None => block(f, &self.body),
            Some(empty) => {
                writeln!(f, "{{ if (fuel < 1) return {empty}; fuel = fuel - 1;")?;
                for stmt in &self.body {
                    write!(f, "{stmt}")?;
                }
                f.write_str("}\n")
            }
        }
    }
}

impl Display for Stmt {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Stmt::Expr(value) => writeln!(f, "{value};"),
            Stmt::Print(value) => writeln!(f, "print {value};"),
            Stmt::Var(name, None) => writeln!(f, "var {name};"),
            Stmt::Var(name, Some(value)) => writeln!(f, "var {name} = {value};"),
            Stmt::Block(stmts) => block(f, stmts),
            Stmt::If(condition, then, other) => {
                write!(f, "if ({condition}) ")?;
                block(f, then)?;
                if !other.is_empty() {
                    f.write_str("else ")?;
                    block(f, other)?;
                }
                Ok(())
            }
            Stmt::For(name, turns, body) => {
                write!(
                    f,
                    "for (var {name} = 0; {name} < {turns}; {name} = {name} + 1) "
                )?;
                block(f, body)
            }
            Stmt::While(name, turns, condition, body) => {
                write!(f, "{{ var {name} = 0; while ({name} < {turns}")?;
                if let Some(condition) = condition {
                    write!(f, " and {condition}")?;
                }
                writeln!(f, ") {{ {name} = {name} + 1;")?;
                for stmt in body {
                    write!(f, "{stmt}")?;
                }
                f.write_str("} }\n")
            }
            Stmt::Return(None) => f.write_str("return;\n"),
            Stmt::Return(Some(value)) => writeln!(f, "return {value};"),
            Stmt::Fun(function) => write!(f, "fun {function}"),
            Stmt::Class(name, superclass, methods) => {
                write!(f, "class {name} ")?;
                if let Some(superclass) = superclass {
                    write!(f, "< {superclass} ")?;
                }
                f.write_str("{\n")?;
                for method in methods {
                    write!(f, "{method}")?;
                }
                f.write_str("}\n")
            }
        }
    }
}
