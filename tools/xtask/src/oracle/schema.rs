//! `cargo xtask oracle schema`: three questions about the schema, each with a verdict.

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

use super::script;
use crate::project::target;
use crate::root;
use crate::shell::{step, unchecked_output};

/// The reply of the reference: what `compare-schema` compares with.
const REFERENCE: &str = "tools/oracle/qemu-10.0.2-schema.json";
/// Differences that are there on purpose: `command NAME | kind | where | why`.
const ACCEPTED: &str = "tools/oracle/accepted-differences.txt";
const OURS: &str = "qapi-schema/export/introspection.json";

/// Asks all three.
pub(super) fn run() -> Result<ExitCode> {
    let theirs = accepted_by_generator()?;
    let same = same_introspection(&theirs)?;
    let agrees = agrees_with_reference()?;
    Ok(if same && agrees {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Has QEMU's generator read our files; gives its introspection.
fn accepted_by_generator() -> Result<Value> {
    step("QEMU's generator reads qapi-schema/schema");
    let out = target()?.join("oracle-introspection.json");
    crate::shell::run(
        script("check-schema")
            .arg("-o")
            .arg(&out)
            .arg("qapi-schema/schema/main.json"),
    )?;
    read(&out)
}

fn same_introspection(theirs: &Value) -> Result<bool> {
    step("its introspection against ours");
    let ours = read(&root().join(OURS))?;
    if ours == *theirs {
        let entities = ours.as_array().map_or(0, Vec::len);
        println!("introspection: the same, {entities} entities");
        return Ok(true);
    }
    let pairs = ours.as_array().into_iter().flatten();
    let differs = pairs
        .zip(theirs.as_array().into_iter().flatten())
        .find(|(ours, theirs)| ours != theirs);
    println!("introspection: DIFFERS");
    if let Some((ours, theirs)) = differs {
        println!("  ours:   {ours}\n  theirs: {theirs}");
    }
    Ok(false)
}

/// Whether each difference from the reference is one that was accepted, and each accepted one
/// still there.
fn agrees_with_reference() -> Result<bool> {
    step("our introspection against QEMU's reply");
    let text = unchecked_output(
        script("compare-schema")
            .arg("--json")
            .arg(root().join(OURS))
            .arg(root().join(REFERENCE)),
    )?;
    let report: Value = serde_json::from_str(&text).context("the report of compare-schema")?;
    let found: Vec<Difference> = report["differences"]
        .as_array()
        .into_iter()
        .flatten()
        .map(Difference::of)
        .collect();
    let accepted = accepted()?;
    let new: Vec<_> = found
        .iter()
        .filter(|one| !accepted.iter().any(|entry| entry.covers(one)))
        .collect();
    let stale: Vec<_> = accepted
        .iter()
        .filter(|entry| !found.iter().any(|one| entry.covers(one)))
        .collect();
    for one in &new {
        println!(
            "  NEW    {} | {} | {} | {}",
            one.entity, one.kind, one.place, one.detail
        );
    }
    for entry in &stale {
        println!(
            "  STALE  {} | {} | {}",
            entry.entity, entry.kind, entry.place
        );
    }
    let compared = &report["compared"];
    let entities: BTreeSet<_> = found.iter().map(|one| &one.entity).collect();
    println!(
        "compared {compared} commands and events: {} differences in {}, {} accepted, {} new, {} \
         entries of {ACCEPTED} no longer needed",
        found.len(),
        entities.len(),
        found.len() - new.len(),
        new.len(),
        stale.len()
    );
    Ok(new.is_empty() && stale.is_empty())
}

/// One difference that `compare-schema` reports.
struct Difference {
    entity: String,
    kind: String,
    place: String,
    detail: String,
}

impl Difference {
    fn of(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        Self {
            entity: text("entity"),
            kind: text("kind"),
            place: text("where"),
            detail: text("detail"),
        }
    }
}

/// One accepted difference, or several alike: `*` at the end of a column stands for any rest.
struct Accepted {
    entity: String,
    kind: String,
    place: String,
}

impl Accepted {
    fn covers(&self, difference: &Difference) -> bool {
        matches(&self.entity, &difference.entity)
            && matches(&self.kind, &difference.kind)
            && matches(&self.place, &difference.place)
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => text == pattern,
    }
}

fn accepted() -> Result<Vec<Accepted>> {
    let text = fs::read_to_string(root().join(ACCEPTED)).with_context(|| ACCEPTED.to_owned())?;
    let lines = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let columns: Vec<_> = line
                .split('|')
                .map(|column| column.trim().to_owned())
                .collect();
            let [entity, kind, place, reason] = columns
                .try_into()
                .map_err(|_| anyhow::anyhow!("{ACCEPTED}: wanted four columns: {line}"))?;
            anyhow::ensure!(!reason.is_empty(), "{ACCEPTED}: no reason: {line}");
            Ok(Accepted {
                entity,
                kind,
                place,
            })
        })
        .collect()
}

fn read(path: &std::path::Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_rest() {
        assert!(matches("return[].image*", "return[].image.snapshots"));
        assert!(matches("driver", "driver"));
        assert!(!matches("driver", "drivers"));
        assert!(!matches("return[].image*", "return[].file"));
    }

    #[test]
    fn every_accepted_difference_has_a_reason() {
        let accepted = accepted().expect("the list can be read");
        assert!(!accepted.is_empty());
    }
}
