//! `cargo xtask codegen`: the schema's Rust, its published documents and the guide's table, written
//! or compared.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use qapi_gen::GeneratedFile;

use crate::guide::guide;
use crate::project::cargo;
use crate::root;
use crate::shell::run as run_command;

/// Options of `cargo xtask codegen`.
#[derive(Args)]
pub(crate) struct Options {
    /// Change nothing; fail if a file is not what the schema says.
    #[arg(long)]
    check: bool,
}

/// Writes every generated file, or names those that are stale.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.check {
        let stale = stale()?;
        for path in &stale {
            eprintln!("{} is not what its source says", path.display());
        }
        if stale.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("run `cargo xtask codegen` and look at the diff");
        return Ok(ExitCode::FAILURE);
    }
    for (file, path) in generated()? {
        let folder = path.parent().context("a generated file has no folder")?;
        fs::create_dir_all(folder)?;
        fs::write(&path, file.text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let (path, text) = guide()?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    // The JSON Schema is made by the generated types themselves, so it comes second.
    run_command(cargo().args(["run", "-q", "-p", "qapi-schema", "--example", "json_schema"]))?;
    Ok(ExitCode::SUCCESS)
}

/// The generated files whose text differs from what their source says now.
pub(crate) fn stale() -> Result<Vec<PathBuf>> {
    let mut stale = Vec::new();
    for (file, path) in generated()? {
        if fs::read_to_string(&path).ok().as_deref() != Some(&file.text) {
            stale.push(path);
        }
    }
    let (path, text) = guide()?;
    if fs::read_to_string(&path)? != text {
        stale.push(path);
    }
    Ok(stale)
}

fn generated() -> Result<Vec<(GeneratedFile, PathBuf)>> {
    let files = qapi_gen::generate(&root().join("qapi-schema/schema"))?;
    let marked = qapi_gen::generate_marked(&root().join("qapi-schema/gen/tests"))?;
    let placed = files.into_iter().chain(marked).map(|file| {
        let path = root().join(&file.path);
        (file, path)
    });
    Ok(placed.collect())
}
