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

/// The kinds of lock.
const LOCKS: [&str; 5] = ["Mutex<", "RwLock<", "Condvar,", "OnceLock<", "LazyLock<"];

/// Each file of the product that has a lock stands in the table of ARCHITECTURE.md.
pub(super) fn lock_list() -> Result<Complaints> {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md"))
        .context("ARCHITECTURE.md holds the table of locks")?;
    Ok(files()?
        .iter()
        .filter(|(path, _)| path.ends_with(".rs") && is_product(path))
        .filter_map(|(path, text)| lock_complaint(path, text, &architecture))
        .collect())
}

/// Programs that run when the project is built, and never in the product: they read the schema and
/// write what is generated from it.
const BUILD_TIME: [&str; 2] = [
    "qapi-schema/examples/json_schema.rs",
    "qapi-schema/gen/src/source.rs",
];

/// Only `fdset`, tests and build-time programs may set aside the list of opening calls in
/// `clippy.toml`.
pub(super) fn openers() -> Result<Complaints> {
    Ok(files()?
        .iter()
        .filter(|(path, _)| path.ends_with(".rs") && is_product(path))
        .filter_map(|(path, text)| opener_complaint(path, text))
        .collect())
}

fn opener_complaint(path: &str, text: &str) -> Option<String> {
    let may = path.starts_with("fdset/") || BUILD_TIME.contains(&path);
    let own = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    (!may && own.contains("clippy::disallowed_methods"))
        .then(|| format!("{path}: opens by itself; only fdset may"))
}

fn is_product(path: &str) -> bool {
    let outside = ["clients/", "tests/", "tools/"];
    let outside = outside.iter().any(|folder| path.starts_with(folder));
    !outside && !path.contains("tests") && !path.contains("mock")
}

fn lock_complaint(path: &str, text: &str, architecture: &str) -> Option<String> {
    let own = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    let locks = LOCKS.iter().any(|lock| own.contains(lock));
    let listed = architecture.contains(&format!("`{path}`"));
    (locks && !listed).then(|| format!("{path}: has a lock and is not in ARCHITECTURE.md"))
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

    #[test]
    fn only_fdset_tests_and_build_time_programs_set_the_list_of_calls_aside() {
        let text = "#[expect(clippy::disallowed_methods, reason = \"x\")]\nfn f() {}";
        assert!(opener_complaint("devices/src/a.rs", text).is_some());
        assert!(opener_complaint("fdset/src/open.rs", text).is_none());
        assert!(opener_complaint(BUILD_TIME[0], text).is_none());
        let in_tests = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{ {text} }}");
        assert!(opener_complaint("devices/src/a.rs", &in_tests).is_none());
    }

    #[test]
    fn a_lock_must_be_listed_unless_only_tests_have_it() {
        let text = "struct Shared(Mutex<u8>);";
        assert!(lock_complaint("a/b.rs", text, "").is_some());
        assert!(lock_complaint("a/b.rs", text, "| `a/b.rs` |").is_none());
        let in_tests = "fn f() {}\n#[cfg(test)]\nmod tests { struct Log(Mutex<u8>); }";
        assert!(lock_complaint("a/b.rs", in_tests, "").is_none());
        assert!(is_product("devices/src/reactor/mod.rs") && !is_product("tests/src/lab.rs"));
    }
}
