//! The parts of the users' guide that are written elsewhere: the tables of what can be handed in,
//! and of the properties that take it, which are also tests.

use std::fs;
use std::path::PathBuf;

use ::tests::{handed, table};
use anyhow::{Context, Result};

use crate::root;

/// The lines before the tables, and the one behind each.
const RESOURCES: &str =
    "<!-- table: written by `cargo xtask codegen` from tests/src/table.rs -->\n";
const PROPERTIES: &str =
    "<!-- table: written by `cargo xtask codegen` from tests/src/handed/rows.rs -->\n";
const END: &str = "<!-- end of table -->\n";

/// The guide's file, and its text with the tables as they are now.
pub(crate) fn guide() -> Result<(PathBuf, String)> {
    let path = root().join("docs/fds.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let tables = [
        (RESOURCES, table::markdown()),
        (PROPERTIES, handed::markdown()),
    ];
    let with_tables = tables
        .iter()
        .try_fold(text, |text, (begin, table)| replaced(&text, begin, table))
        .with_context(|| format!("{} has no place for a table", path.display()))?;
    Ok((path, with_tables))
}

fn replaced(text: &str, begin: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let text = format!("a\n{RESOURCES}old\n{END}b\n");
        let new = replaced(&text, RESOURCES, "new\n").unwrap();
        assert_eq!(new, format!("a\n{RESOURCES}\nnew\n\n{END}b\n"));
        assert_eq!(
            replaced(&new, RESOURCES, "new\n").as_deref(),
            Some(new.as_str())
        );
        assert_eq!(replaced("a\n", RESOURCES, "new\n"), None);
        assert_eq!(replaced(&new, PROPERTIES, "new\n"), None);
    }
}
