//! Tokens to expressions: ordered objects, lists, strings and booleans, with the documentation
//! comment that stands before each.

use crate::doc::Doc;
use crate::lex::{Token, TokenKind, tokens};
use crate::source::{SchemaError, Span};

/// A value as written.
#[derive(Clone, Debug)]
pub enum Value {
    /// `{ 'key': value, ... }`
    Object(Object),
    /// `[ value, ... ]`
    List(Vec<Value>, Span),
    /// `'text'`
    Str(String, Span),
    /// `true` or `false`
    Bool(bool, Span),
}

impl Value {
    /// Where the value begins.
    pub fn span(&self) -> &Span {
        match self {
            Self::Object(object) => &object.span,
            Self::List(_, span) | Self::Str(_, span) | Self::Bool(_, span) => span,
        }
    }

    /// How an error names this value.
    pub fn describe(&self) -> String {
        match self {
            Self::Object(_) => "an object".to_owned(),
            Self::List(..) => "a list".to_owned(),
            Self::Str(text, _) => format!("string '{text}'"),
            Self::Bool(value, _) => value.to_string(),
        }
    }
}

/// An object whose members keep their order; no key occurs twice.
#[derive(Clone, Debug)]
pub struct Object {
    /// The members.
    pub entries: Vec<Entry>,
    /// Where the object begins.
    pub span: Span,
}

/// One member of an object.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name as written.
    pub key: String,
    /// Where the name stands.
    pub span: Span,
    /// Its value.
    pub value: Value,
}

/// One top-level expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// The documentation comment before it.
    pub doc: Option<Doc>,
    /// The expression.
    pub object: Object,
}

/// Parses a whole file into its expressions and its title, the first line of its first comment
/// that documents no symbol.
pub fn file(name: &str, text: &str) -> Result<(Vec<Expr>, String), SchemaError> {
    let mut parser = Parser {
        tokens: tokens(name, text)?,
        next: 0,
    };
    let mut exprs = Vec::new();
    let mut title = String::new();
    let mut doc: Option<Doc> = None;
    loop {
        let token = parser.peek().clone();
        match token.kind {
            TokenKind::End => break,
            TokenKind::Doc(lines) => {
                parser.next += 1;
                reject_orphan(doc.take())?;
                doc = Doc::parse(&lines, &token.span)?;
                if doc.is_none() && title.is_empty() {
                    title = heading(&lines);
                }
            }
            _ => {
                let object = parser.object()?;
                exprs.push(Expr {
                    doc: doc.take(),
                    object,
                });
            }
        }
    }
    reject_orphan(doc)?;
    Ok((exprs, title))
}

fn reject_orphan(doc: Option<Doc>) -> Result<(), SchemaError> {
    match doc {
        None => Ok(()),
        Some(doc) => Err(SchemaError::new(
            &doc.span,
            format!(
                "documentation of '{}' must stand right before its definition",
                doc.symbol
            ),
        )),
    }
}

fn heading(lines: &[String]) -> String {
    lines
        .iter()
        .map(|line| line.trim_start_matches(['=', ' ']))
        .find(|line| !line.is_empty())
        .unwrap_or_default()
        .to_owned()
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn eat(&mut self, punct: char) -> bool {
        let hit = self.peek().kind == TokenKind::Punct(punct);
        if hit {
            self.next += 1;
        }
        hit
    }

    fn object(&mut self) -> Result<Object, SchemaError> {
        let open = self.take();
        if open.kind != TokenKind::Punct('{') {
            return Err(unexpected(&open, "'{'"));
        }
        let mut entries: Vec<Entry> = Vec::new();
        if self.eat('}') {
            let span = open.span;
            return Ok(Object { entries, span });
        }
        loop {
            let token = self.take();
            let TokenKind::Str(key) = &token.kind else {
                return Err(unexpected(&token, "a member name in single quotes"));
            };
            if entries.iter().any(|entry| entry.key == *key) {
                return Err(SchemaError::new(
                    &token.span,
                    format!("member '{key}' occurs twice in one object"),
                ));
            }
            let colon = self.take();
            if colon.kind != TokenKind::Punct(':') {
                return Err(unexpected(&colon, &format!("':' after '{key}'")));
            }
            entries.push(Entry {
                key: key.clone(),
                span: token.span,
                value: self.value()?,
            });
            let after = self.take();
            match after.kind {
                TokenKind::Punct(',') => {}
                TokenKind::Punct('}') => break,
                _ => return Err(unexpected(&after, "',' or '}'")),
            }
        }
        Ok(Object {
            entries,
            span: open.span,
        })
    }

    fn value(&mut self) -> Result<Value, SchemaError> {
        if self.peek().kind == TokenKind::Punct('{') {
            return self.object().map(Value::Object);
        }
        let token = self.take();
        match token.kind {
            TokenKind::Str(text) => Ok(Value::Str(text, token.span)),
            TokenKind::Bool(value) => Ok(Value::Bool(value, token.span)),
            TokenKind::Punct('[') => self.list(token.span),
            _ => Err(unexpected(&token, "'{', '[', a string, true or false")),
        }
    }

    fn list(&mut self, span: Span) -> Result<Value, SchemaError> {
        let mut items = Vec::new();
        if self.eat(']') {
            return Ok(Value::List(items, span));
        }
        loop {
            items.push(self.value()?);
            let after = self.take();
            match after.kind {
                TokenKind::Punct(',') => {}
                TokenKind::Punct(']') => return Ok(Value::List(items, span)),
                _ => return Err(unexpected(&after, "',' or ']'")),
            }
        }
    }
}

fn unexpected(token: &Token, wanted: &str) -> SchemaError {
    SchemaError::new(
        &token.span,
        format!("wanted {wanted}, found {}", token.kind.describe()),
    )
}
