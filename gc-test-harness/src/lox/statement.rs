//! The compiler: declarations and statements.

use super::bytecode::{Constant, Op};
use super::compiler::{ClassScope, Compiler, FunctionKind, Patch};
use super::scanner::Kind;
use std::sync::Arc;

/// Declarations.
impl<'s> Compiler<'s> {
    pub(super) fn declaration(&mut self) {
        if self.matches(Kind::Class) {
            self.class_declaration();
        } else if self.matches(Kind::Fun) {
            self.function_declaration();
        } else if self.matches(Kind::Var) {
            self.variable_declaration();
        } else {
            self.statement();
        }
        if self.panicking {
            self.synchronize();
        }
    }

    /// After an error, skips tokens up to the probable beginning of a statement.
    fn synchronize(&mut self) {
        self.panicking = false;
        while !self.check(Kind::End) {
            let begins = matches!(
                self.current.kind,
                Kind::Class
                    | Kind::Fun
                    | Kind::Var
                    | Kind::For
                    | Kind::If
                    | Kind::While
                    | Kind::Print
                    | Kind::Return
            );
            if self.previous.kind == Kind::Semicolon || begins {
                return;
            }
            self.advance();
        }
    }

    fn class_declaration(&mut self) {
        self.consume(Kind::Identifier, "Expect class name.");
        let name = self.previous.text;
        let constant = self.constant(Constant::String(name.into()));
        self.declare_variable();
        let class = self.scope().code.len();
        self.emit_full(Op::Class, 0, constant as u16, 0, 2);
        let global = (self.scope().depth == 0).then(|| self.globals.number(name));
        self.define_variable(global);
        self.classes.push(ClassScope {
            has_superclass: false,
            fields: Vec::new(),
        });

        if self.matches(Kind::Less) {
            self.consume(Kind::Identifier, "Expect superclass name.");
            self.named_variable(self.previous.text, false);
            if self.previous.text == name {
                self.error("A class can't inherit from itself.");
            }
            self.begin_scope();
            self.add_local(b"super");
            self.define_variable(None);
            self.named_variable(name, false);
            self.emit(Op::Inherit);
            self.class().has_superclass = true;
        }
        self.named_variable(name, false);
        self.consume(Kind::LeftBrace, "Expect '{' before class body.");
        while !self.check(Kind::RightBrace) && !self.check(Kind::End) {
            self.method();
        }
        self.consume(Kind::RightBrace, "Expect '}' after class body.");
        self.emit(Op::Pop);
        if self.class().has_superclass {
            self.end_scope();
        }
        let fields = self.class().fields.len() as u32;
        self.scope().code[class].c = fields;
        self.classes.pop();
    }

    fn class(&mut self) -> &mut ClassScope {
        self.classes
            .last_mut()
            .expect("class_declaration pushed it")
    }

    fn method(&mut self) {
        self.consume(Kind::Identifier, "Expect method name.");
        let name = self.previous.text;
        let symbol = self.symbol(name);
        self.function(if name == b"init" {
            FunctionKind::Initializer
        } else {
            FunctionKind::Method
        });
        self.emit_with(Op::Method, symbol);
    }

    fn function_declaration(&mut self) {
        let global = self.parse_variable("Expect function name.");
        self.mark_initialized();
        self.function(FunctionKind::Function);
        self.define_variable(global);
    }

    fn function(&mut self, kind: FunctionKind) {
        self.nested(|compiler| compiler.function_body(kind));
    }

    fn function_body(&mut self, kind: FunctionKind) {
        self.begin_function(kind);
        self.begin_scope();
        self.consume(Kind::LeftParen, "Expect '(' after function name.");
        if !self.check(Kind::RightParen) {
            loop {
                self.scope().arity += 1;
                if self.scope().arity > 255 {
                    self.error_at_current("Can't have more than 255 parameters.");
                }
                let global = self.parse_variable("Expect parameter name.");
                self.define_variable(global);
                // An argument is on the stack at the function's entry: no instruction pushes it.
                let scope = self.scope();
                scope.height += 1;
                scope.max_height = scope.max_height.max(scope.height);
                if !self.matches(Kind::Comma) {
                    break;
                }
            }
        }
        self.consume(Kind::RightParen, "Expect ')' after parameters.");
        self.consume(Kind::LeftBrace, "Expect '{' before function body.");
        self.block();
        let function = self.end_function();
        let captures = function.captures.len();
        self.count_constant();
        let functions = &mut self.scope().functions;
        functions.push(Arc::new(function));
        let index = (functions.len() - 1) as u32;
        self.emit_full(Op::Closure, 0, 0, index, 2 + 2 * captures);
    }

    fn variable_declaration(&mut self) {
        let global = self.parse_variable("Expect variable name.");
        if self.matches(Kind::Equal) {
            self.expression();
        } else {
            self.emit(Op::Nil);
        }
        self.consume(Kind::Semicolon, "Expect ';' after variable declaration.");
        self.define_variable(global);
    }
}

/// Statements.
impl<'s> Compiler<'s> {
    fn statement(&mut self) {
        self.nested(Self::statement_body);
    }

    fn statement_body(&mut self) {
        if self.matches(Kind::Print) {
            self.expression();
            self.consume(Kind::Semicolon, "Expect ';' after value.");
            self.emit(Op::Print);
        } else if self.matches(Kind::For) {
            self.for_statement();
        } else if self.matches(Kind::If) {
            self.if_statement();
        } else if self.matches(Kind::Return) {
            self.return_statement();
        } else if self.matches(Kind::While) {
            self.while_statement();
        } else if self.matches(Kind::LeftBrace) {
            self.begin_scope();
            self.block();
            self.end_scope();
        } else {
            self.expression_statement();
        }
    }

    fn block(&mut self) {
        while !self.check(Kind::RightBrace) && !self.check(Kind::End) {
            self.declaration();
        }
        self.consume(Kind::RightBrace, "Expect '}' after block.");
    }

    fn expression_statement(&mut self) {
        self.expression();
        self.consume(Kind::Semicolon, "Expect ';' after expression.");
        self.emit(Op::Pop);
    }

    /// Pops the condition and jumps if it is false. clox has a `Pop` on both paths instead.
    fn emit_condition(&mut self) -> Patch {
        let patch = self.emit_jump(Op::PopJumpIfFalse);
        self.skip_book(1);
        patch
    }

    fn patch_condition(&mut self, patch: Patch) {
        self.patch(patch);
        self.skip_book(1);
    }

    fn if_statement(&mut self) {
        self.consume(Kind::LeftParen, "Expect '(' after 'if'.");
        self.expression();
        self.consume(Kind::RightParen, "Expect ')' after condition.");
        let otherwise = self.emit_condition();
        self.statement();
        if self.check(Kind::Else) {
            let end = self.emit_jump(Op::Jump);
            self.patch_condition(otherwise);
            self.advance();
            self.statement();
            self.patch(end);
        } else {
            self.skip_book(3);
            self.patch_condition(otherwise);
        }
    }

    fn while_statement(&mut self) {
        let start = self.loop_start();
        self.consume(Kind::LeftParen, "Expect '(' after 'while'.");
        self.expression();
        self.consume(Kind::RightParen, "Expect ')' after condition.");
        let exit = self.emit_condition();
        self.statement();
        self.emit_loop(&start);
        self.patch_condition(exit);
    }

    fn for_statement(&mut self) {
        self.begin_scope();
        self.consume(Kind::LeftParen, "Expect '(' after 'for'.");
        if self.matches(Kind::Semicolon) {
            // no initializer
        } else if self.matches(Kind::Var) {
            self.variable_declaration();
        } else {
            self.expression_statement();
        }

        let start = self.loop_start();
        let mut exit = None;
        if !self.matches(Kind::Semicolon) {
            self.expression();
            self.consume(Kind::Semicolon, "Expect ';' after loop condition.");
            exit = Some(self.emit_condition());
        }
        let mut increment = None;
        if !self.matches(Kind::RightParen) {
            // clox has the increment here, with a jump before it and a `Loop` after it.
            self.skip_book(3);
            let begins = self.loop_start();
            self.expression();
            self.emit(Op::Pop);
            self.consume(Kind::RightParen, "Expect ')' after for clauses.");
            self.skip_book(3);
            self.check_loop(&start);
            increment = Some(self.cut(begins));
        }
        self.statement();
        // In clox, the loop's body ends with a `Loop` to the increment, if there is one.
        let book_start = match increment {
            None => start,
            Some(increment) => self.paste(increment),
        };
        self.emit_full(Op::Loop, 0, 0, start.instruction as u32, 3);
        self.check_loop(&book_start);
        if let Some(exit) = exit {
            self.patch_condition(exit);
        }
        self.end_scope();
    }

    fn return_statement(&mut self) {
        if self.scope().kind == FunctionKind::Script {
            self.error("Can't return from top-level code.");
        }
        if self.matches(Kind::Semicolon) {
            self.emit_return();
        } else {
            if self.scope().kind == FunctionKind::Initializer {
                self.error("Can't return a value from an initializer.");
            }
            self.expression();
            self.consume(Kind::Semicolon, "Expect ';' after return value.");
            self.emit(Op::Return);
        }
    }
}
