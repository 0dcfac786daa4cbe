//! Where schema text comes from: files, the lines in them, and what one includes of another.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::parse::{self, Expr, Value};

/// A line of a schema file.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Span {
    /// The file, as it was named to the generator or in an include.
    pub file: Arc<str>,
    /// Counted from 1.
    pub line: usize,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong with a schema, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {message}")]
pub struct SchemaError {
    /// The line that the writer must look at.
    pub at: Span,
    /// What was wanted and what came.
    pub message: String,
}

impl SchemaError {
    pub(crate) fn new(at: &Span, message: impl Into<String>) -> Self {
        Self {
            at: at.clone(),
            message: message.into(),
        }
    }
}

/// One parsed file.
pub(crate) struct SchemaFile {
    /// The file's stem, which becomes the Rust module.
    pub(crate) module: String,
    /// Its expressions, without the includes.
    pub(crate) exprs: Vec<Expr>,
    /// The first line of its first free comment: what the file is about.
    pub(crate) title: String,
}

/// Reads `main` and what it includes, in the order in which files are first named.
pub(crate) fn read_all(dir: &Path, main: &str) -> Result<Vec<SchemaFile>, SchemaError> {
    let mut files = Vec::new();
    let mut seen = Vec::new();
    let from = Span {
        file: main.into(),
        line: 1,
    };
    read_one(dir, main, &from, &mut seen, &mut files)?;
    Ok(files)
}

fn read_one(
    dir: &Path,
    name: &str,
    from: &Span,
    seen: &mut Vec<PathBuf>,
    files: &mut Vec<SchemaFile>,
) -> Result<(), SchemaError> {
    let path = dir.join(name);
    if seen.contains(&path) {
        return Ok(());
    }
    seen.push(path.clone());
    #[expect(
        clippy::disallowed_methods,
        reason = "the generator runs for a developer; the product never reads schema files"
    )]
    let text = std::fs::read_to_string(&path).map_err(|error| {
        SchemaError::new(from, format!("cannot read schema file '{name}': {error}"))
    })?;
    let (exprs, title) = parse::file(name, &text)?;
    let module = Path::new(name)
        .file_stem()
        .map(|stem| stem.to_string_lossy().replace('-', "_"))
        .unwrap_or_default();
    let at = files.len();
    files.push(SchemaFile {
        module,
        exprs: Vec::new(),
        title,
    });
    for expr in exprs {
        if expr.object.entries.first().map(|e| e.key.as_str()) != Some("include") {
            files[at].exprs.push(expr);
            continue;
        }
        let entry = &expr.object.entries[0];
        match &entry.value {
            Value::Str(included, span) if expr.object.entries.len() == 1 => {
                read_one(dir, included, span, seen, files)?;
            }
            other => {
                return Err(SchemaError::new(
                    &entry.span,
                    format!("'include' wants one file name, not {}", other.describe()),
                ));
            }
        }
    }
    Ok(())
}
