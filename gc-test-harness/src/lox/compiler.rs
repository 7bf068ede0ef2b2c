//! Compiles source text to bytecode in one pass. This file has the compiler's state, its messages,
//! the emission of code, and variables; `statement.rs` has declarations and statements, and
//! `expression.rs` has expressions.
//!
//! The grammar, the messages, their order and the limits are exactly those of clox. Some limits of
//! clox are about the size of *its* bytecode (constants of a function, bytes of a jump), which
//! differs from the bytecode here. So each function also counts the bytes and constants that clox
//! would emit (`book_bytes`, `book_constants`): callers of `emit_full` pass these bytes.
//!
//! The compiler allocates no cells: names and literals are bytes until an isolate is made.

use super::bytecode::{Capture, Constant, Function, Instruction, Op, Program};
use super::scanner::{Kind, Scanner, Token};
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

/// The most nested blocks, functions and operands. clox has no such limit: it overflows the C
/// stack. A level takes at most about 2 KiB of native stack in a debug build, and the compiler's
/// caller provides the stack (see [`super::run`]).
pub(super) const NESTING_MAX: u32 = 10_000;

/// The number of slots that instructions can name: clox's `UINT8_COUNT`.
const SLOTS: usize = 256;

/// The sort of the function that is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FunctionKind {
    Script,
    Function,
    Method,
    Initializer,
}

pub(super) struct Local<'s> {
    name: &'s [u8],
    /// the depth of its block; `None` until its initializer was compiled
    depth: Option<u32>,
    captured: bool,
}

/// One function under construction.
pub(super) struct Scope<'s> {
    pub(super) kind: FunctionKind,
    name: Option<Box<[u8]>>,
    pub(super) arity: u32,
    pub(super) locals: Vec<Local<'s>>,
    captures: Vec<Capture>,
    pub(super) depth: u32,
    pub(super) code: Vec<Instruction>,
    lines: Vec<u32>,
    constants: Vec<Constant>,
    pub(super) functions: Vec<Arc<Function>>,
    captured: [u64; 4],
    caches: u32,
    pub(super) height: i32,
    pub(super) max_height: i32,
    book_bytes: usize,
    book_constants: usize,
}

/// The state of one class declaration.
pub(super) struct ClassScope {
    pub(super) has_superclass: bool,
    /// symbols of the fields that its methods set on `this`
    pub(super) fields: Vec<u32>,
}

/// A forward jump that has no target yet.
pub(super) struct Patch {
    pub(super) instruction: usize,
    book_bytes: usize,
}

/// The place of a loop's first instruction.
#[derive(Clone, Copy)]
pub(super) struct LoopStart {
    pub(super) instruction: usize,
    book_bytes: usize,
}

/// The instructions of a `for` loop's increment, which is before the body in the source and behind
/// it in the code.
pub(super) struct Cut {
    code: Vec<Instruction>,
    lines: Vec<u32>,
    from: LoopStart,
}

/// The compiler's state for one source.
pub(super) struct Compiler<'s> {
    scanner: Scanner<'s>,
    pub(super) current: Token<'s>,
    pub(super) previous: Token<'s>,
    had_error: bool,
    pub(super) panicking: bool,
    /// whether no further messages are written
    gave_up: bool,
    messages: Vec<u8>,
    /// the functions around the present place, innermost last
    pub(super) scopes: Vec<Scope<'s>>,
    pub(super) classes: Vec<ClassScope>,
    pub(super) globals: Names,
    symbols: Names,
    pub(super) nesting: u32,
}

/// Names and their numbers.
pub(super) struct Names {
    numbers: HashMap<Box<[u8]>, u32>,
    names: Vec<Box<[u8]>>,
}

impl Names {
    fn new(first: &[&str]) -> Names {
        let mut names = Names {
            numbers: HashMap::new(),
            names: Vec::new(),
        };
        for name in first {
            names.number(name.as_bytes());
        }
        names
    }

    pub(super) fn number(&mut self, name: &[u8]) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        // A name takes at least two bytes of source, so 32 bits suffice for sources up to 8 GiB.
        let number = self.names.len() as u32;
        self.names.push(name.into());
        self.numbers.insert(name.into(), number);
        number
    }
}

/// Compiles a source. `natives` are the names of the first global variables.
///
/// # Errors
///
/// The messages, as they are written to stderr.
pub fn compile(source: &[u8], natives: &[&str]) -> Result<Program, Vec<u8>> {
    let nothing = Token {
        kind: Kind::End,
        text: b"",
        line: 1,
    };
    let mut compiler = Compiler {
        scanner: Scanner::new(source),
        current: nothing,
        previous: nothing,
        had_error: false,
        panicking: false,
        gave_up: false,
        messages: Vec::new(),
        scopes: Vec::new(),
        classes: Vec::new(),
        globals: Names::new(natives),
        symbols: Names::new(&["init"]),
        nesting: 0,
    };
    compiler.begin_function(FunctionKind::Script);
    compiler.advance();
    while !compiler.matches(Kind::End) {
        compiler.declaration();
    }
    let script = compiler.end_function();
    if compiler.had_error {
        return Err(compiler.messages);
    }
    Ok(Program {
        script: Arc::new(script),
        globals: compiler.globals.names,
        symbols: compiler.symbols.names,
    })
}

/// Tokens and messages.
impl<'s> Compiler<'s> {
    fn error_at(&mut self, token: Token<'s>, message: &[u8]) {
        if self.panicking || self.gave_up {
            return;
        }
        self.panicking = true;
        self.had_error = true;
        let out = &mut self.messages;
        // Writing to a vector cannot fail.
        let _ = write!(out, "[line {}] Error", token.line);
        match token.kind {
            Kind::End => out.extend_from_slice(b" at end"),
            Kind::Error => {}
            _ => {
                out.extend_from_slice(b" at '");
                out.extend_from_slice(token.text);
                out.push(b'\'');
            }
        }
        out.extend_from_slice(b": ");
        out.extend_from_slice(message);
        out.push(b'\n');
    }

    pub(super) fn error(&mut self, message: &str) {
        self.error_at(self.previous, message.as_bytes());
    }

    pub(super) fn error_at_current(&mut self, message: &str) {
        self.error_at(self.current, message.as_bytes());
    }

    pub(super) fn advance(&mut self) {
        self.previous = self.current;
        loop {
            self.current = self.scanner.next_token();
            if self.current.kind != Kind::Error {
                return;
            }
            self.error_at(self.current, self.current.text);
        }
    }

    pub(super) fn consume(&mut self, kind: Kind, message: &str) {
        if self.current.kind == kind {
            self.advance();
        } else {
            self.error_at_current(message);
        }
    }

    pub(super) fn check(&self, kind: Kind) -> bool {
        self.current.kind == kind
    }

    pub(super) fn matches(&mut self, kind: Kind) -> bool {
        let found = self.check(kind);
        if found {
            self.advance();
        }
        found
    }

    /// Runs `inner` one level deeper. At [`NESTING_MAX`] levels, `inner` does not run and the rest
    /// of the source is dropped: otherwise a caller that loops until `inner` has taken a token
    /// would not end.
    pub(super) fn nested(&mut self, inner: impl FnOnce(&mut Self)) {
        if self.nesting == NESTING_MAX {
            self.error("Too much nesting.");
            self.gave_up = true;
            self.scanner = Scanner::new(b"");
            self.current.kind = Kind::End;
            return;
        }
        self.nesting += 1;
        inner(self);
        self.nesting -= 1;
    }
}

/// Code.
impl<'s> Compiler<'s> {
    pub(super) fn scope(&mut self) -> &mut Scope<'s> {
        self.scopes
            .last_mut()
            .expect("the script's scope is there until the end")
    }

    /// Appends an instruction for which clox emits `book_bytes` bytes.
    pub(super) fn emit_full(&mut self, op: Op, a: u8, b: u16, c: u32, book_bytes: usize) {
        let line = self.previous.line;
        let instruction = Instruction { op, a, b, c };
        let scope = self.scope();
        scope.code.push(instruction);
        scope.lines.push(line);
        scope.book_bytes += book_bytes;
        scope.height += instruction.effect();
        scope.max_height = scope.max_height.max(scope.height);
    }

    /// Appends an instruction that is one byte in clox.
    pub(super) fn emit(&mut self, op: Op) {
        self.emit_full(op, 0, 0, 0, 1);
    }

    /// Appends an instruction that is an opcode and an operand in clox.
    pub(super) fn emit_with(&mut self, op: Op, c: u32) {
        self.emit_full(op, 0, 0, c, 2);
    }

    /// Counts bytes that clox emits and this compiler does not.
    pub(super) fn skip_book(&mut self, bytes: usize) {
        self.scope().book_bytes += bytes;
    }

    /// Counts one of clox's constants. clox never uses a constant twice.
    pub(super) fn count_constant(&mut self) {
        let scope = self.scope();
        scope.book_constants += 1;
        if scope.book_constants > SLOTS {
            self.error("Too many constants in one chunk.");
        }
    }

    pub(super) fn constant(&mut self, constant: Constant) -> u32 {
        self.count_constant();
        let constants = &mut self.scope().constants;
        constants.push(constant);
        (constants.len() - 1) as u32
    }

    /// The symbol of a property's name.
    pub(super) fn symbol(&mut self, name: &[u8]) -> u32 {
        self.count_constant();
        self.symbols.number(name)
    }

    /// The index of a global variable.
    pub(super) fn global(&mut self, name: &[u8]) -> u32 {
        self.count_constant();
        self.globals.number(name)
    }

    pub(super) fn cache(&mut self) -> u16 {
        let caches = &mut self.scope().caches;
        *caches += 1;
        // A function has at most one cache for each of its 256 constants; beyond that, an error was
        // reported.
        (*caches - 1) as u16
    }

    pub(super) fn emit_jump(&mut self, op: Op) -> Patch {
        self.emit_full(op, 0, 0, u32::MAX, 3);
        let scope = self.scope();
        Patch {
            instruction: scope.code.len() - 1,
            book_bytes: scope.book_bytes,
        }
    }

    pub(super) fn patch(&mut self, patch: Patch) {
        let scope = self.scope();
        let target = scope.code.len() as u32;
        scope.code[patch.instruction].c = target;
        if scope.book_bytes - patch.book_bytes > usize::from(u16::MAX) {
            self.error("Too much code to jump over.");
        }
    }

    /// The same jump, when clox emits `bytes` more bytes before the place that it jumps from.
    pub(super) fn after_book(&mut self, patch: Patch, bytes: usize) -> Patch {
        self.skip_book(bytes);
        Patch {
            book_bytes: patch.book_bytes + bytes,
            ..patch
        }
    }

    pub(super) fn loop_start(&mut self) -> LoopStart {
        let scope = self.scope();
        LoopStart {
            instruction: scope.code.len(),
            book_bytes: scope.book_bytes,
        }
    }

    pub(super) fn emit_loop(&mut self, start: &LoopStart) {
        self.emit_full(Op::Loop, 0, 0, start.instruction as u32, 3);
        self.check_loop(start);
    }

    pub(super) fn check_loop(&mut self, start: &LoopStart) {
        if self.scope().book_bytes - start.book_bytes > usize::from(u16::MAX) {
            self.error("Loop body too large.");
        }
    }

    /// Removes the instructions from `begins` on and returns them.
    pub(super) fn cut(&mut self, begins: LoopStart) -> Cut {
        let scope = self.scope();
        Cut {
            code: scope.code.split_off(begins.instruction),
            lines: scope.lines.split_off(begins.instruction),
            from: begins,
        }
    }

    /// Appends the instructions of `cut` without counting clox's bytes again. Returns their place
    /// in clox's code.
    pub(super) fn paste(&mut self, cut: Cut) -> LoopStart {
        let scope = self.scope();
        let moved = scope.code.len() - cut.from.instruction;
        for mut instruction in cut.code {
            if instruction.target().is_some() {
                instruction.c += moved as u32;
            }
            scope.code.push(instruction);
        }
        scope.lines.extend(cut.lines);
        cut.from
    }

    pub(super) fn emit_return(&mut self) {
        if self.scope().kind == FunctionKind::Initializer {
            self.emit_with(Op::GetLocal, 0);
        } else {
            self.emit(Op::Nil);
        }
        self.emit(Op::Return);
    }
}

/// Variables.
impl<'s> Compiler<'s> {
    pub(super) fn begin_function(&mut self, kind: FunctionKind) {
        let name = (kind != FunctionKind::Script).then(|| self.previous.text.into());
        let first = if kind == FunctionKind::Function {
            &b""[..]
        } else {
            &b"this"[..]
        };
        self.scopes.push(Scope {
            kind,
            name,
            arity: 0,
            locals: vec![Local {
                name: first,
                depth: Some(0),
                captured: false,
            }],
            captures: Vec::new(),
            depth: 0,
            code: Vec::new(),
            lines: Vec::new(),
            constants: Vec::new(),
            functions: Vec::new(),
            captured: [0; 4],
            caches: 0,
            height: 1,
            max_height: 1,
            book_bytes: 0,
            book_constants: 0,
        });
    }

    pub(super) fn end_function(&mut self) -> Function {
        self.emit_return();
        let scope = self.scopes.pop().expect("begin_function pushed it");
        Function {
            name: scope.name,
            arity: scope.arity,
            captures: scope.captures,
            code: scope.code,
            lines: scope.lines,
            constants: scope.constants,
            functions: scope.functions,
            max_stack: scope.max_height as u32,
            captured: scope.captured,
            caches: scope.caches,
            is_initializer: scope.kind == FunctionKind::Initializer,
            is_method: matches!(scope.kind, FunctionKind::Initializer | FunctionKind::Method),
        }
    }

    pub(super) fn begin_scope(&mut self) {
        self.scope().depth += 1;
    }

    pub(super) fn end_scope(&mut self) {
        self.scope().depth -= 1;
        loop {
            let scope = self.scope();
            let Some(local) = scope
                .locals
                .last()
                .filter(|local| local.depth.is_some_and(|depth| depth > scope.depth))
            else {
                return;
            };
            let op = if local.captured {
                Op::CloseUpvalue
            } else {
                Op::Pop
            };
            self.emit(op);
            self.scope().locals.pop();
        }
    }

    fn resolve_local(&mut self, function: usize, name: &[u8]) -> Option<u8> {
        let slot = self.scopes[function]
            .locals
            .iter()
            .rposition(|local| local.name == name)?;
        if self.scopes[function].locals[slot].depth.is_none() {
            self.error("Can't read local variable in its own initializer.");
        }
        Some(slot as u8)
    }

    fn resolve_upvalue(&mut self, function: usize, name: &[u8]) -> Option<u8> {
        let outer = function.checked_sub(1)?;
        if let Some(slot) = self.resolve_local(outer, name) {
            let scope = &mut self.scopes[outer];
            scope.locals[usize::from(slot)].captured = true;
            scope.captured[usize::from(slot) / 64] |= 1 << (slot % 64);
            return Some(self.add_upvalue(function, Capture::Local(slot)));
        }
        let upvalue = self.resolve_upvalue(outer, name)?;
        Some(self.add_upvalue(function, Capture::Upvalue(upvalue)))
    }

    fn add_upvalue(&mut self, function: usize, capture: Capture) -> u8 {
        let captures = &mut self.scopes[function].captures;
        if let Some(index) = captures.iter().position(|&known| known == capture) {
            return index as u8;
        }
        if captures.len() == SLOTS {
            self.error("Too many closure variables in function.");
            return 0;
        }
        captures.push(capture);
        (captures.len() - 1) as u8
    }

    pub(super) fn add_local(&mut self, name: &'s [u8]) {
        if self.scope().locals.len() == SLOTS {
            self.error("Too many local variables in function.");
            return;
        }
        self.scope().locals.push(Local {
            name,
            depth: None,
            captured: false,
        });
    }

    pub(super) fn declare_variable(&mut self) {
        let name = self.previous.text;
        let scope = self.scope();
        if scope.depth == 0 {
            return;
        }
        let here = scope.depth;
        let mut same_block = scope
            .locals
            .iter()
            .rev()
            .take_while(|local| local.depth.is_none_or(|depth| depth >= here));
        if same_block.any(|local| local.name == name) {
            self.error("Already a variable with this name in this scope.");
        }
        self.add_local(name);
    }

    /// Parses and declares a variable's name. Returns the index of a global variable.
    pub(super) fn parse_variable(&mut self, message: &str) -> Option<u32> {
        self.consume(Kind::Identifier, message);
        self.declare_variable();
        if self.scope().depth > 0 {
            return None;
        }
        Some(self.global(self.previous.text))
    }

    pub(super) fn mark_initialized(&mut self) {
        let scope = self.scope();
        if scope.depth == 0 {
            return;
        }
        let depth = scope.depth;
        if let Some(local) = scope.locals.last_mut() {
            local.depth = Some(depth);
        }
    }

    pub(super) fn define_variable(&mut self, global: Option<u32>) {
        match global {
            Some(index) => self.emit_with(Op::DefineGlobal, index),
            None => self.mark_initialized(),
        }
    }

    /// Compiles a read of the variable `name`, or an assignment if `can_assign` and an `=` follows.
    pub(super) fn named_variable(&mut self, name: &[u8], can_assign: bool) {
        let innermost = self.scopes.len() - 1;
        let (get, set, index) = if let Some(slot) = self.resolve_local(innermost, name) {
            (Op::GetLocal, Op::SetLocal, u32::from(slot))
        } else if let Some(upvalue) = self.resolve_upvalue(innermost, name) {
            (Op::GetUpvalue, Op::SetUpvalue, u32::from(upvalue))
        } else {
            (Op::GetGlobal, Op::SetGlobal, self.global(name))
        };
        if can_assign && self.matches(Kind::Equal) {
            self.expression();
            self.emit_with(set, index);
        } else {
            self.emit_with(get, index);
        }
    }
}

#[cfg(test)]
mod tests;
