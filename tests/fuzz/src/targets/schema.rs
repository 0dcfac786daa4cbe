//! The generator, on any schema file.
//!
//! What must hold: an error names a line that is there; what is accepted gives Rust that parses
//! (the emitter runs it through a parser) and introspection that is JSON, the same twice.

use std::fs;
use std::path::Path;

use qapi_gen::{GeneratedFile, SchemaError, generate_from};

pub(super) fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    // An include may name any file of this machine.
    if text.contains("include") {
        return check_error(text, qapi_gen::parse::file("main.json", text).err());
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("main.json"), text).expect("room on the disk");
    match generate_from(folder.path(), "main.json") {
        Err(error) => check_error(text, Some(error)),
        Ok(files) => {
            let again = generate_from(folder.path(), "main.json");
            assert_eq!(again.as_deref(), Ok(files.as_slice()));
            check_files(&files);
        }
    }
}

fn check_error(text: &str, error: Option<SchemaError>) {
    if let Some(error) = error {
        let lines = text.lines().count().max(1);
        assert!((1..=lines + 1).contains(&error.at.line), "{error}");
        assert!(!error.message.is_empty());
    }
}

fn check_files(files: &[GeneratedFile]) {
    for file in files {
        if file.path.extension().is_some_and(|kind| kind == "json") {
            let parsed = serde_json::from_str::<serde_json::Value>(&file.text);
            assert!(parsed.is_ok(), "{}: {parsed:?}", file.path.display());
        } else if file.path.extension() == Path::new("x.rs").extension() {
            assert!(!file.text.contains("compile_error!"), "{}", file.text);
        }
    }
}
