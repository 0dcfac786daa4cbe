//! Text to tokens. QAPI is a subset of JSON with comments and single-quoted strings: no numbers,
//! no null, no escapes, printable ASCII only.

use std::sync::Arc;

use crate::source::{SchemaError, Span};

/// What a schema file is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// One of `{ } [ ] : ,`.
    Punct(char),
    /// A string, without its quotes.
    Str(String),
    /// `true` or `false`.
    Bool(bool),
    /// A comment block between `##` lines, each line without its leading `# `.
    Doc(Vec<String>),
    /// The end of the file.
    End,
}

impl TokenKind {
    /// How an error names this token.
    pub fn describe(&self) -> String {
        match self {
            Self::Punct(c) => format!("'{c}'"),
            Self::Str(s) => format!("string '{s}'"),
            Self::Bool(b) => format!("{b}"),
            Self::Doc(_) => "a documentation comment".to_owned(),
            Self::End => "the end of the file".to_owned(),
        }
    }
}

/// A token and its line.
#[derive(Clone, Debug)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Where it begins.
    pub span: Span,
}

/// Splits a whole file; the last token is always [`TokenKind::End`].
pub fn tokens(file: &str, text: &str) -> Result<Vec<Token>, SchemaError> {
    let mut lexer = Lexer {
        file: file.into(),
        line: 1,
        rest: text,
        tokens: Vec::new(),
    };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    file: Arc<str>,
    line: usize,
    rest: &'a str,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn run(&mut self) -> Result<(), SchemaError> {
        while let Some(c) = self.rest.chars().next() {
            match c {
                '\n' => {
                    self.line += 1;
                    self.advance(1);
                }
                ' ' => self.advance(1),
                '#' => self.comment()?,
                '{' | '}' | '[' | ']' | ':' | ',' => {
                    self.push(TokenKind::Punct(c));
                    self.advance(1);
                }
                '\'' => self.string()?,
                _ if c.is_ascii_alphabetic() => self.word()?,
                '"' => return Err(self.error("strings stand in single quotes: 'like this'")),
                '\t' | '\r' => {
                    return Err(self.error("only spaces and line feeds may separate tokens"));
                }
                _ => return Err(self.error(format!("stray {c:?}"))),
            }
        }
        self.push(TokenKind::End);
        Ok(())
    }

    fn comment(&mut self) -> Result<(), SchemaError> {
        let opening = self.take_line();
        if opening.trim_end() != "##" {
            return Ok(());
        }
        let span = self.span();
        let mut lines = Vec::new();
        loop {
            self.next_line();
            let line = self.take_line().trim_end();
            match line.strip_prefix('#') {
                Some("#") => break,
                Some(text) => lines.push(text.strip_prefix(' ').unwrap_or(text).to_owned()),
                None => return Err(self.error("a documentation comment ends with a line '##'")),
            }
        }
        let kind = TokenKind::Doc(lines);
        self.tokens.push(Token { kind, span });
        Ok(())
    }

    fn string(&mut self) -> Result<(), SchemaError> {
        let body = &self.rest[1..];
        let Some(end) = body.find(['\'', '\n', '\\']) else {
            return Err(self.error("string without closing quote"));
        };
        let text = &body[..end];
        if body[end..].starts_with('\n') {
            return Err(self.error("string without closing quote on its line"));
        }
        if body[end..].starts_with('\\') {
            return Err(self.error("strings have no escapes: remove the '\\'"));
        }
        if let Some(c) = text.chars().find(|c| !matches!(c, ' '..='~')) {
            return Err(self.error(format!("strings hold printable ASCII only, not {c:?}")));
        }
        self.push(TokenKind::Str(text.to_owned()));
        self.advance(end + 2);
        Ok(())
    }

    fn word(&mut self) -> Result<(), SchemaError> {
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-')
            .unwrap_or(self.rest.len());
        match &self.rest[..end] {
            "true" => self.push(TokenKind::Bool(true)),
            "false" => self.push(TokenKind::Bool(false)),
            word => {
                return Err(self.error(format!(
                    "stray word '{word}': wanted a string in single quotes, true or false"
                )));
            }
        }
        self.advance(end);
        Ok(())
    }

    fn take_line(&mut self) -> &'a str {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let line = &self.rest[..end];
        self.rest = &self.rest[end..];
        line
    }

    fn next_line(&mut self) {
        if self.rest.starts_with('\n') {
            self.line += 1;
            self.advance(1);
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }

    fn span(&self) -> Span {
        Span {
            file: Arc::clone(&self.file),
            line: self.line,
        }
    }

    fn push(&mut self, kind: TokenKind) {
        let span = self.span();
        self.tokens.push(Token { kind, span });
    }

    fn error(&self, message: impl Into<String>) -> SchemaError {
        SchemaError::new(&self.span(), message)
    }
}
