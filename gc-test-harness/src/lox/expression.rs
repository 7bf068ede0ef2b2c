//! The compiler: expressions, by precedence climbing (Pratt 1973).

use super::bytecode::{Constant, Op};
use super::compiler::{Compiler, FunctionKind};
use super::scanner::Kind;

/// The precedence of an operator, lowest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precedence {
    None,
    Assignment,
    Or,
    And,
    Equality,
    Comparison,
    Term,
    Factor,
    Unary,
    Call,
}

impl Precedence {
    /// The precedence of the token as an infix or postfix operator.
    fn of(kind: Kind) -> Precedence {
        match kind {
            Kind::Or => Precedence::Or,
            Kind::And => Precedence::And,
            Kind::BangEqual | Kind::EqualEqual => Precedence::Equality,
            Kind::Greater | Kind::GreaterEqual | Kind::Less | Kind::LessEqual => {
                Precedence::Comparison
            }
            Kind::Minus | Kind::Plus => Precedence::Term,
            Kind::Slash | Kind::Star => Precedence::Factor,
            Kind::LeftParen | Kind::Dot => Precedence::Call,
            _ => Precedence::None,
        }
    }
}

impl Compiler<'_> {
    /// Compiles any expression.
    pub(super) fn expression(&mut self) {
        self.parse(Precedence::Assignment);
    }

    /// Compiles an expression whose operators have at least this precedence.
    fn parse(&mut self, precedence: Precedence) {
        self.advance();
        let can_assign = precedence <= Precedence::Assignment;
        self.nested(|compiler| {
            if !compiler.prefix(can_assign) {
                compiler.error("Expect expression.");
                return;
            }
            while Precedence::of(compiler.current.kind) >= precedence {
                compiler.advance();
                compiler.infix(can_assign);
            }
            if can_assign && compiler.matches(Kind::Equal) {
                compiler.error("Invalid assignment target.");
            }
        });
    }

    /// Compiles the prefix expression that `previous` begins. `false` if no expression begins with
    /// this token.
    fn prefix(&mut self, can_assign: bool) -> bool {
        let text = self.previous.text;
        match self.previous.kind {
            Kind::LeftParen => {
                self.expression();
                self.consume(Kind::RightParen, "Expect ')' after expression.");
            }
            Kind::Minus => {
                self.parse(Precedence::Unary);
                self.emit(Op::Negate);
            }
            Kind::Bang => {
                self.parse(Precedence::Unary);
                self.emit(Op::Not);
            }
            Kind::Identifier => self.named_variable(text, can_assign),
            Kind::String => {
                let index = self.constant(Constant::String(text[1..text.len() - 1].into()));
                self.emit_with(Op::Constant, index);
            }
            Kind::Number => {
                // The scanner took digits, perhaps with a point and digits: this always parses. A
                // number that is too large is infinite, as for `strtod`.
                let number = std::str::from_utf8(text)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(0.0);
                let index = self.constant(Constant::Number(number));
                self.emit_with(Op::Constant, index);
            }
            Kind::False => self.emit(Op::False),
            Kind::True => self.emit(Op::True),
            Kind::Nil => self.emit(Op::Nil),
            Kind::Super => self.super_access(),
            Kind::This => {
                if self.classes.is_empty() {
                    self.error("Can't use 'this' outside of a class.");
                } else {
                    self.named_variable(b"this", false);
                }
            }
            _ => return false,
        }
        true
    }

    /// Compiles the operator `previous`, whose left operand is compiled already.
    fn infix(&mut self, can_assign: bool) {
        let kind = self.previous.kind;
        match kind {
            Kind::LeftParen => {
                let arguments = self.arguments();
                self.emit_full(Op::Call, arguments, 0, 0, 2);
            }
            Kind::Dot => self.property(can_assign),
            Kind::And => {
                let end = self.emit_jump(Op::JumpIfFalse);
                self.emit(Op::Pop);
                self.parse(Precedence::And);
                self.patch(end);
            }
            Kind::Or => {
                let end = self.emit_jump(Op::JumpIfTrue);
                // clox emits two jumps.
                let end = self.after_book(end, 3);
                self.emit(Op::Pop);
                self.parse(Precedence::Or);
                self.patch(end);
            }
            _ => self.binary(kind),
        }
    }

    fn binary(&mut self, operator: Kind) {
        // Left-associative: the right operand has a higher precedence than the operator.
        self.parse(match Precedence::of(operator) {
            Precedence::Equality => Precedence::Comparison,
            Precedence::Comparison => Precedence::Term,
            Precedence::Term => Precedence::Factor,
            _ => Precedence::Unary,
        });
        let (op, negated) = match operator {
            Kind::BangEqual => (Op::Equal, true),
            Kind::EqualEqual => (Op::Equal, false),
            Kind::Greater => (Op::Greater, false),
            Kind::GreaterEqual => (Op::Less, true),
            Kind::Less => (Op::Less, false),
            Kind::LessEqual => (Op::Greater, true),
            Kind::Plus => (Op::Add, false),
            Kind::Minus => (Op::Subtract, false),
            Kind::Star => (Op::Multiply, false),
            _ => (Op::Divide, false),
        };
        self.emit(op);
        if negated {
            self.emit(Op::Not);
        }
    }

    fn arguments(&mut self) -> u8 {
        let mut count: u8 = 0;
        if !self.check(Kind::RightParen) {
            loop {
                self.expression();
                if count == 255 {
                    self.error("Can't have more than 255 arguments.");
                }
                count = count.wrapping_add(1);
                if !self.matches(Kind::Comma) {
                    break;
                }
            }
        }
        self.consume(Kind::RightParen, "Expect ')' after arguments.");
        count
    }

    fn property(&mut self, can_assign: bool) {
        self.consume(Kind::Identifier, "Expect property name after '.'.");
        let symbol = self.symbol(self.previous.text);
        if can_assign && self.check(Kind::Equal) {
            self.note_field(symbol);
            self.advance();
            self.expression();
            let cache = self.cache();
            self.emit_full(Op::SetProperty, 0, cache, symbol, 2);
        } else if self.matches(Kind::LeftParen) {
            let arguments = self.arguments();
            let cache = self.cache();
            self.emit_full(Op::Invoke, arguments, cache, symbol, 3);
        } else {
            let cache = self.cache();
            self.emit_full(Op::GetProperty, 0, cache, symbol, 2);
        }
    }

    /// Notes that a method of the class sets this field on `this`. The number of such fields
    /// predicts the number of inline slots.
    fn note_field(&mut self, symbol: u32) {
        let scope = self.scope();
        let on_this = matches!(scope.kind, FunctionKind::Method | FunctionKind::Initializer)
            && scope
                .code
                .last()
                .is_some_and(|last| last.op == Op::GetLocal && last.c == 0);
        if let Some(class) = self.classes.last_mut().filter(|_| on_this)
            && !class.fields.contains(&symbol)
        {
            class.fields.push(symbol);
        }
    }

    fn super_access(&mut self) {
        match self.classes.last() {
            None => self.error("Can't use 'super' outside of a class."),
            Some(class) if !class.has_superclass => {
                self.error("Can't use 'super' in a class with no superclass.")
            }
            Some(_) => {}
        }
        self.consume(Kind::Dot, "Expect '.' after 'super'.");
        self.consume(Kind::Identifier, "Expect superclass method name.");
        let symbol = self.symbol(self.previous.text);
        self.named_variable(b"this", false);
        if self.matches(Kind::LeftParen) {
            let arguments = self.arguments();
            self.named_variable(b"super", false);
            let cache = self.cache();
            self.emit_full(Op::SuperInvoke, arguments, cache, symbol, 3);
        } else {
            self.named_variable(b"super", false);
            let cache = self.cache();
            self.emit_full(Op::GetSuper, 0, cache, symbol, 2);
        }
    }
}
