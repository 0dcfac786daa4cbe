//! Documentation comments: what a definition is, and what each of its members is.

use crate::source::{SchemaError, Span};

/// How an item of a list begins; each is a paragraph.
pub const BULLET: &str = "- ";

/// One documentation comment of a named definition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocText {
    /// The text, in paragraphs.
    pub paragraphs: Vec<String>,
}

impl DocText {
    /// The text as one line.
    pub fn one_line(&self) -> String {
        self.paragraphs.join(" ")
    }

    /// The value that the text gives as `(default: VALUE)`.
    pub fn default_value(&self) -> Option<String> {
        let text = self.one_line();
        let (_, after) = text.rsplit_once("(default: ")?;
        let (value, _) = after.split_once(')')?;
        Some(value.to_owned())
    }

    fn line(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            if self.paragraphs.last().is_some_and(|p| !p.is_empty()) {
                self.paragraphs.push(String::new());
            }
            return;
        }
        match self.paragraphs.last_mut() {
            Some(paragraph) if line.starts_with(BULLET) && !paragraph.is_empty() => {
                self.paragraphs.push(line.to_owned());
            }
            Some(paragraph) if !paragraph.is_empty() => {
                paragraph.push(' ');
                paragraph.push_str(line);
            }
            Some(paragraph) => paragraph.push_str(line),
            None => self.paragraphs.push(line.to_owned()),
        }
    }

    fn finish(&mut self) {
        self.paragraphs.retain(|paragraph| !paragraph.is_empty());
    }
}

/// The documentation of one definition.
#[derive(Clone, Debug)]
pub struct Doc {
    /// Which definition.
    pub symbol: String,
    /// Where the comment begins.
    pub span: Span,
    /// What it is.
    pub body: DocText,
    /// Its members, arguments, enum values or branches.
    pub members: Vec<(String, DocText)>,
    /// Its features.
    pub features: Vec<(String, DocText)>,
    /// What the command returns.
    pub returns: Option<DocText>,
    /// How the command fails.
    pub errors: Option<DocText>,
    /// The version that brought it.
    pub since: Option<String>,
}

enum Part {
    Body,
    Member(usize),
    Feature(usize),
    Returns,
    Errors,
    Since,
}

impl Doc {
    /// Parses the lines between two `##`. A comment that does not begin with `@NAME:` documents no
    /// symbol and gives `None`.
    pub fn parse(lines: &[String], span: &Span) -> Result<Option<Self>, SchemaError> {
        let Some(first) = lines.iter().position(|line| !line.trim().is_empty()) else {
            return Ok(None);
        };
        let Some(head) = lines[first].strip_prefix('@') else {
            return Ok(None);
        };
        let Some(symbol) = head.trim_end().strip_suffix(':') else {
            return Err(SchemaError::new(
                span,
                format!("the first line '@{head}' wants to be '@NAME:'"),
            ));
        };
        let mut doc = Self {
            symbol: symbol.to_owned(),
            span: span.clone(),
            body: DocText::default(),
            members: Vec::new(),
            features: Vec::new(),
            returns: None,
            errors: None,
            since: None,
        };
        let mut part = Part::Body;
        let mut in_features = false;
        for line in &lines[first + 1..] {
            if line.trim_end() == "Features:" {
                in_features = true;
                continue;
            }
            let rest = doc.begin_part(line, in_features, &mut part);
            doc.add_line(&part, rest);
        }
        doc.finish();
        Ok(Some(doc))
    }

    /// The documentation of one member.
    pub fn member(&self, name: &str) -> DocText {
        let found = self.members.iter().find(|(n, _)| n == name);
        found.map(|(_, text)| text.clone()).unwrap_or_default()
    }

    fn begin_part<'l>(&mut self, line: &'l str, in_features: bool, part: &mut Part) -> &'l str {
        if let Some((name, rest)) = line.strip_prefix('@').and_then(|l| l.split_once(':')) {
            let list = if in_features {
                &mut self.features
            } else {
                &mut self.members
            };
            list.push((name.to_owned(), DocText::default()));
            let at = list.len() - 1;
            *part = if in_features {
                Part::Feature(at)
            } else {
                Part::Member(at)
            };
            return rest;
        }
        for (tag, next) in [
            ("Returns:", Part::Returns),
            ("Errors:", Part::Errors),
            ("Since:", Part::Since),
        ] {
            if let Some(rest) = line.strip_prefix(tag) {
                *part = next;
                return rest;
            }
        }
        line
    }

    fn add_line(&mut self, part: &Part, line: &str) {
        match part {
            Part::Body => self.body.line(line),
            Part::Member(at) => self.members[*at].1.line(line),
            Part::Feature(at) => self.features[*at].1.line(line),
            Part::Returns => self.returns.get_or_insert_default().line(line),
            Part::Errors => self.errors.get_or_insert_default().line(line),
            Part::Since => {
                let since = line.trim();
                if !since.is_empty() {
                    self.since = Some(since.to_owned());
                }
            }
        }
    }

    fn finish(&mut self) {
        self.body.finish();
        for (_, text) in self.members.iter_mut().chain(&mut self.features) {
            text.finish();
        }
        for text in [&mut self.returns, &mut self.errors].into_iter().flatten() {
            text.finish();
        }
    }
}
