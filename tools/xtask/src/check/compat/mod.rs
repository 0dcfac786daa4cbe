//! Whether clients of the last release still work: the published JSON Schema against the one that
//! was released.
//!
//! ```text
//!   export/released/0.1.0.json ─┐
//!                               ├─ shape: what a schema allows ─► compare: what the new one refuses,
//!   export/schema.json ─────────┘                                 or no longer says
//! ```
//!
//! Additions are free: a command, an event, an optional argument, a reply's member, a value. A
//! release with another first number (or, before 1.0, another second one) begins anew: its document
//! goes into `released/` under its own version.
mod compare;
mod shape;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Complaints;
use crate::root;

/// A version in three numbers.
type Version = [u64; 3];

pub(super) fn check() -> Result<Complaints> {
    let export = root().join("qapi-schema/export");
    let now = version(env!("CARGO_PKG_VERSION")).context("the workspace has a version")?;
    let Some(baseline) = baseline(&export.join("released"), now)? else {
        eprintln!("   no release of this series yet");
        return Ok(Vec::new());
    };
    let old = document(&baseline)?;
    let new = document(&export.join("schema.json"))?;
    Ok(compare::documents(&old, &new))
}

/// The newest released document that this version must be compatible with.
fn baseline(folder: &Path, now: Version) -> Result<Option<PathBuf>> {
    let mut newest: Option<(Version, PathBuf)> = None;
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let Some(released) = version(&name).filter(|one| same_series(*one, now)) else {
            continue;
        };
        if newest.as_ref().is_none_or(|(best, _)| *best < released) {
            newest = Some((released, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Whether `now` promises to serve clients of `released`.
fn same_series(released: Version, now: Version) -> bool {
    let [major, minor, _] = released;
    released <= now && major == now[0] && (major > 0 || minor == now[1])
}

fn version(text: &str) -> Option<Version> {
    let numbers: Option<Vec<u64>> = text.split('.').map(|part| part.parse().ok()).collect();
    numbers?.try_into().ok()
}

fn document(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_ends_where_the_version_says_so() {
        assert!(same_series([0, 1, 0], [0, 1, 7]));
        assert!(!same_series([0, 1, 0], [0, 2, 0]));
        assert!(same_series([1, 1, 0], [1, 2, 0]));
        assert!(!same_series([1, 2, 0], [2, 0, 0]));
        assert!(!same_series([1, 2, 0], [1, 1, 0]));
    }

    #[test]
    fn there_is_a_release_to_compare_with() {
        let folder = root().join("qapi-schema/export/released");
        let now = version(env!("CARGO_PKG_VERSION")).unwrap();
        assert!(baseline(&folder, now).unwrap().is_some());
    }

    #[test]
    fn a_removed_argument_of_the_published_document_is_caught() {
        let old = document(&root().join("qapi-schema/export/schema.json")).unwrap();
        let mut new = old.clone();
        let arguments = new.pointer_mut("/$defs/AddFd/properties").unwrap();
        assert!(
            arguments
                .as_object_mut()
                .unwrap()
                .remove("opaque")
                .is_some()
        );
        assert_eq!(
            compare::documents(&old, &new),
            ["add-fd: argument opaque is gone"]
        );
        assert_eq!(compare::documents(&old, &old), Vec::<String>::new());
    }
}
