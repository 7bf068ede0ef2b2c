//! Splits source text into tokens, one at a time.
//!
//! The source consists of bytes. As in clox, a NUL ends it, and bytes outside ASCII are allowed in
//! strings and comments only.

/// The sort of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    Comma,
    Dot,
    Minus,
    Plus,
    Semicolon,
    Slash,
    Star,
    Bang,
    BangEqual,
    Equal,
    EqualEqual,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    Identifier,
    String,
    Number,
    And,
    Class,
    Else,
    False,
    For,
    Fun,
    If,
    Nil,
    Or,
    Print,
    Return,
    Super,
    This,
    True,
    Var,
    While,
    /// An error; the token's text is the message.
    Error,
    End,
}

/// A piece of the source.
#[derive(Clone, Copy, Debug)]
pub struct Token<'s> {
    /// its sort
    pub kind: Kind,
    /// its text, or the message of an error
    pub text: &'s [u8],
    /// the line on which it ends
    pub line: u32,
}

/// The scanner's state: the source and the place in it.
pub struct Scanner<'s> {
    source: &'s [u8],
    start: usize,
    current: usize,
    line: u32,
}

impl<'s> Scanner<'s> {
    /// A scanner at the beginning of `source`.
    pub fn new(source: &'s [u8]) -> Scanner<'s> {
        let end = source
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(source.len());
        Scanner {
            source: &source[..end],
            start: 0,
            current: 0,
            line: 1,
        }
    }

    /// The next token. At the end of the source, every further call returns [`Kind::End`].
    pub fn next_token(&mut self) -> Token<'s> {
        self.skip_blanks();
        self.start = self.current;
        let Some(byte) = self.peek(0) else {
            return self.token(Kind::End);
        };
        self.current += 1;
        match byte {
            b'(' => self.token(Kind::LeftParen),
            b')' => self.token(Kind::RightParen),
            b'{' => self.token(Kind::LeftBrace),
            b'}' => self.token(Kind::RightBrace),
            b';' => self.token(Kind::Semicolon),
            b',' => self.token(Kind::Comma),
            b'.' => self.token(Kind::Dot),
            b'-' => self.token(Kind::Minus),
            b'+' => self.token(Kind::Plus),
            b'/' => self.token(Kind::Slash),
            b'*' => self.token(Kind::Star),
            b'!' => self.with_equal(Kind::Bang, Kind::BangEqual),
            b'=' => self.with_equal(Kind::Equal, Kind::EqualEqual),
            b'<' => self.with_equal(Kind::Less, Kind::LessEqual),
            b'>' => self.with_equal(Kind::Greater, Kind::GreaterEqual),
            b'"' => self.string(),
            byte if begins_name(byte) => self.name(),
            byte if byte.is_ascii_digit() => self.number(),
            _ => self.error(b"Unexpected character."),
        }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.source.get(self.current + ahead).copied()
    }

    fn token(&self, kind: Kind) -> Token<'s> {
        Token {
            kind,
            text: &self.source[self.start..self.current],
            line: self.line,
        }
    }

    fn error(&self, message: &'static [u8]) -> Token<'s> {
        Token {
            kind: Kind::Error,
            text: message,
            line: self.line,
        }
    }

    fn with_equal(&mut self, alone: Kind, with: Kind) -> Token<'s> {
        if self.peek(0) == Some(b'=') {
            self.current += 1;
            self.token(with)
        } else {
            self.token(alone)
        }
    }

    fn skip_blanks(&mut self) {
        while let Some(byte) = self.peek(0) {
            match byte {
                b' ' | b'\r' | b'\t' => self.current += 1,
                b'\n' => {
                    self.line += 1;
                    self.current += 1;
                }
                b'/' if self.peek(1) == Some(b'/') => self.skip_while(|byte| byte != b'\n'),
                _ => return,
            }
        }
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.peek(0).is_some_and(&wanted) {
            self.current += 1;
        }
    }

    fn string(&mut self) -> Token<'s> {
        while let Some(byte) = self.peek(0) {
            self.current += 1;
            match byte {
                b'"' => return self.token(Kind::String),
                b'\n' => self.line += 1,
                _ => {}
            }
        }
        self.error(b"Unterminated string.")
    }

    fn number(&mut self) -> Token<'s> {
        self.skip_while(|byte| byte.is_ascii_digit());
        if self.peek(0) == Some(b'.') && self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) {
            self.current += 1;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
        self.token(Kind::Number)
    }

    fn name(&mut self) -> Token<'s> {
        self.skip_while(|byte| begins_name(byte) || byte.is_ascii_digit());
        let kind = match &self.source[self.start..self.current] {
            b"and" => Kind::And,
            b"class" => Kind::Class,
            b"else" => Kind::Else,
            b"false" => Kind::False,
            b"for" => Kind::For,
            b"fun" => Kind::Fun,
            b"if" => Kind::If,
            b"nil" => Kind::Nil,
            b"or" => Kind::Or,
            b"print" => Kind::Print,
            b"return" => Kind::Return,
            b"super" => Kind::Super,
            b"this" => Kind::This,
            b"true" => Kind::True,
            b"var" => Kind::Var,
            b"while" => Kind::While,
            _ => Kind::Identifier,
        };
        self.token(kind)
    }
}

fn begins_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(source: &[u8]) -> Vec<Kind> {
        let mut scanner = Scanner::new(source);
        let mut kinds = Vec::new();
        loop {
            let token = scanner.next_token();
            kinds.push(token.kind);
            if token.kind == Kind::End {
                return kinds;
            }
        }
    }

    #[test]
    fn operators_take_the_longest_match() {
        use Kind::*;
        assert_eq!(
            kinds(b"! != = == < <= > >= === / //x"),
            [
                Bang,
                BangEqual,
                Equal,
                EqualEqual,
                Less,
                LessEqual,
                Greater,
                GreaterEqual,
                EqualEqual,
                Equal,
                Slash,
                End
            ]
        );
    }

    #[test]
    fn keywords_are_whole_words() {
        use Kind::*;
        assert_eq!(
            kinds(b"for fort _for this thi clas class1 class"),
            [
                For, Identifier, Identifier, This, Identifier, Identifier, Identifier, Class, End
            ]
        );
    }

    #[test]
    fn a_number_ends_before_a_dot_without_digits() {
        use Kind::*;
        assert_eq!(
            kinds(b"1.5 1. .5 1.2.3 1.x"),
            [
                Number, Number, Dot, Dot, Number, Number, Dot, Number, Number, Dot, Identifier, End
            ]
        );
    }

    #[test]
    fn lines_count_inside_strings_too_and_a_nul_ends_the_source() {
        let mut scanner = Scanner::new(b"a\n\"b\nc\" d // e\nf\0 g");
        let lines: Vec<(Kind, u32)> = (0..5)
            .map(|_| scanner.next_token())
            .map(|token| (token.kind, token.line))
            .collect();
        assert_eq!(
            lines,
            [
                (Kind::Identifier, 1),
                (Kind::String, 3),
                (Kind::Identifier, 3),
                (Kind::Identifier, 4),
                (Kind::End, 4)
            ]
        );
    }

    #[test]
    fn what_cannot_begin_a_token_is_an_error_with_its_line() {
        let mut scanner = Scanner::new(b"\n@ \"x\n");
        let (first, second) = (scanner.next_token(), scanner.next_token());
        assert_eq!(
            (first.kind, first.text, first.line),
            (Kind::Error, &b"Unexpected character."[..], 2)
        );
        assert_eq!(
            (second.kind, second.text, second.line),
            (Kind::Error, &b"Unterminated string."[..], 3)
        );
    }
}
