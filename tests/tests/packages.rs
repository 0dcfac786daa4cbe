//! Our own clients as their ecosystems install them: each package is whole, and has the version of
//! the schema. (Go has no packages: `clients.rs` builds against the module.)
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::clients::{folder, said};
use tests::vm::variable;

/// The schema's version: one for the whole workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[test]
#[ignore = "needs the Python of cargo xtask test"]
fn the_python_client_installs_from_a_wheel() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let python = variable("SESAME_PYTHON")?;
    let pip = |what: &str| {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", what, "-q", "--disable-pip-version-check"]);
        pip.args(["--no-index", "--no-deps"])
            .current_dir(scratch.path());
        pip
    };
    // Setuptools writes beside the sources.
    let sources = copy(&folder("python"), scratch.path())?;
    said(
        pip("wheel")
            .arg("--no-build-isolation")
            .args(["-w", "."])
            .arg(sources),
    )?;
    let wheel = format!("sesame_qmp-{VERSION}-py3-none-any.whl");
    said(pip("install").args(["--target", "site", &wheel]))?;
    let site = scratch.path().join("site");
    ensure!(site.join("sesame_qmp/py.typed").exists());
    let version = said(
        Command::new(python)
            .args(["-c", "import sesame_qmp; print(sesame_qmp.__version__)"])
            .env("PYTHONPATH", site)
            .current_dir(scratch.path()),
    )?;
    ensure!(version.trim_end() == VERSION, "{version}");
    Ok(())
}

#[test]
#[ignore = "needs the Node of cargo xtask test"]
fn the_typescript_client_installs_from_a_package() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let npm = |what: &str| {
        let mut npm = Command::new("npm");
        npm.args([what, "--silent", "--ignore-scripts", "--offline"]);
        npm
    };
    said(
        npm("pack")
            .arg("--pack-destination")
            .arg(scratch.path())
            .current_dir(variable("SESAME_TYPESCRIPT")?),
    )?;
    let package = format!("sesame-qmp-{VERSION}.tgz");
    said(
        npm("install")
            .arg("--prefix=.")
            .arg(Path::new(".").join(package))
            .current_dir(scratch.path()),
    )?;
    let installed = scratch.path().join("node_modules/sesame-qmp");
    ensure!(installed.join("dist/index.d.ts").exists());
    let script = "import { Client } from 'sesame-qmp'; console.log(typeof Client.connect)";
    let kind = said(
        Command::new("node")
            .args(["--input-type=module", "-e", script])
            .current_dir(scratch.path()),
    )?;
    ensure!(kind == "function\n", "{kind}");
    Ok(())
}

#[test]
fn the_rust_client_packs_as_a_crate() -> Result<()> {
    let cargo = |words: &[&str]| {
        let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        said(
            Command::new(program)
                .args(words)
                .current_dir(folder("rust")),
        )
    };
    let files = cargo(&["package", "--list", "--allow-dirty", "--offline"])?;
    for file in [
        "Cargo.toml",
        "README.md",
        "src/lib.rs",
        "src/generated/mod.rs",
    ] {
        ensure!(files.lines().any(|line| line == file), "{file}: {files}");
    }
    let id = cargo(&["pkgid", "--offline"])?;
    ensure!(id.trim_end().ends_with(&format!("@{VERSION}")), "{id}");
    Ok(())
}

fn copy(from: &Path, into: &Path) -> Result<PathBuf> {
    let copied = into.join(from.file_name().context("a folder with a name")?);
    said(Command::new("cp").arg("-rT").arg(from).arg(&copied))?;
    Ok(copied)
}
