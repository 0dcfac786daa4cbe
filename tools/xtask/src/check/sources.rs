//! What the text of the sources must keep to.
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::Complaints;
use crate::root;
use crate::shell::output;

/// A file longer than this asks for a second room, or says in its header why not.
const LONG: usize = 600;

/// Every committed or new file that git does not ignore, with its text, if it is text.
fn files() -> Result<Vec<(String, String)>> {
    let list = output(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root()),
    )?;
    Ok(list
        .lines()
        .filter_map(|path| Some((path.to_owned(), fs::read_to_string(root().join(path)).ok()?)))
        .collect())
}

/// Each file that may use `unsafe` says why, and ARCHITECTURE.md names it.
pub(super) fn unsafe_list() -> Result<Complaints> {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md"))
        .context("ARCHITECTURE.md holds the list of files with unsafe code")?;
    Ok(files()?
        .iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .flat_map(|(path, text)| unsafe_complaints(path, text, &architecture))
        .collect())
}

fn unsafe_complaints(path: &str, text: &str, architecture: &str) -> Complaints {
    let expects = text
        .lines()
        .map(str::trim_start)
        .any(|line| line.starts_with('#') && line.contains("expect(unsafe_code"))
        || text.contains("expect(\n    unsafe_code");
    let mut complaints = Vec::new();
    if expects && !text.contains("// UNSAFETY:") {
        complaints.push(format!("{path}: no `// UNSAFETY:` line says why"));
    }
    if expects && !architecture.contains(&format!("`{path}`")) {
        complaints.push(format!("{path}: not in the list of ARCHITECTURE.md"));
    }
    complaints
}

/// Long files are shown, not refused: a reviewer decides.
pub(super) fn sizes() -> Result<Complaints> {
    for (path, text) in files()? {
        let lines = text.lines().count();
        if path.ends_with(".rs") && !path.contains("/generated/") && lines > LONG {
            eprintln!("   {path}: {lines} lines");
        }
    }
    Ok(Vec::new())
}

/// No file tells on which machine it was written.
pub(super) fn machine_paths() -> Result<Complaints> {
    let marks = [["/wo", "rk/"].concat(), ["/ho", "me/"].concat()];
    let mut complaints = Vec::new();
    for (path, text) in files()? {
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(mark) = marks.iter().find(|mark| line.contains(*mark)) {
                complaints.push(format!("{path}:{number}: names {mark}"));
            }
        }
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_must_say_why_and_be_listed() {
        let silent = "#![expect(unsafe_code, reason = \"x\")]";
        assert_eq!(unsafe_complaints("a/b.rs", silent, "").len(), 2);
        let told = "#![expect(unsafe_code, reason = \"x\")]\n// UNSAFETY: because.";
        assert!(unsafe_complaints("a/b.rs", told, "| `a/b.rs` |").is_empty());
        assert!(unsafe_complaints("a/c.rs", "fn safe() {}", "").is_empty());
    }
}
