//! Reads QAPI schema files and writes the Rust of `qapi-schema`.
//!
//! This room knows the schema language and how its names become Rust. It must never know what a
//! command does, nor anything of the product: it runs when a developer asks, and its output is
//! checked in.
//!
//! ```text
//!   schema/*.json
//!        │ source   files, includes
//!        ▼ lex      text   → tokens, each with its line; doc comment blocks
//!        ▼ parse    tokens → Expr: ordered objects
//!        ▼ check    Expr   → Definition: right keys, right names, `if` decided
//!        ▼ ir       all definitions resolved against each other: Schema
//!        ├─► emit::types       structs, enums, unions, alternates and their input
//!        ├─► emit::commands    one trait and one dispatch per file, the command table
//!        ├─► emit::events      the Event enum
//!        ├─► emit::introspect  the reply of query-qmp-schema
//!        ├─► emit::json_schema which types the published JSON Schema names
//!        ├─► emit::manual      the reference manual
//!        └─► emit::{python, rust_client, go, typescript}   the generated halves of clients
//! ```
//!
//! Every error says `file:line: what was wanted, what came`. Read next: [`ir`], the only thing the
//! emitters see.

#![forbid(unsafe_code)]

pub mod check;
pub mod doc;
mod emit;
pub mod ir;
pub mod lex;
pub mod naming;
pub mod parse;
mod resolve;
mod source;

use std::path::{Path, PathBuf};

pub use source::{SchemaError, Span};

/// One file that the generator writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Where it goes, below the root of the repository.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

/// Reads `schema_dir/main.json` with all it includes, and returns every generated file.
pub fn generate(schema_dir: &Path) -> Result<Vec<GeneratedFile>, SchemaError> {
    generate_from(schema_dir, "main.json")
}

/// The same with a main file of another name.
pub fn generate_from(schema_dir: &Path, main: &str) -> Result<Vec<GeneratedFile>, SchemaError> {
    let schema = load(schema_dir, main, &[])?;
    Ok(emit::all(&schema))
}

/// What the tests of marked parts need of `tests/marked/marked.json`, a schema of their own: its
/// types, commands and events.
pub fn generate_marked(tests: &Path) -> Result<Vec<GeneratedFile>, SchemaError> {
    let files = generate_from(&tests.join("marked"), "marked.json")?;
    let wanted = files.into_iter().filter_map(|file| {
        let name = file.path.strip_prefix("qapi-schema/src/generated").ok()?;
        let is_wanted = ["marked.rs", "events.rs"]
            .iter()
            .any(|one| Path::new(one) == name);
        is_wanted.then(|| GeneratedFile {
            path: Path::new("qapi-schema/src/compat").join(name),
            text: file
                .text
                .replace("schema/*.json", "gen/tests/marked/*.json")
                .replace("schema/marked.json", "gen/tests/marked/marked.json"),
        })
    });
    Ok(wanted.collect())
}

/// Reads one schema with the given configuration symbols true and all others false.
pub fn load(dir: &Path, main: &str, symbols: &[&str]) -> Result<ir::Schema, SchemaError> {
    let files = source::read_all(dir, main)?;
    let definitions = check::definitions(files, symbols)?;
    resolve::schema(definitions)
}
