//! The parts of the users' guide that are written elsewhere: the table of what can be handed in,
//! which is also a test.

use std::fs;
use std::path::PathBuf;

use ::tests::table;
use anyhow::{Context, Result};

use crate::root;

/// The lines between which the table stands.
const BEGIN: &str = "<!-- table: written by `cargo xtask codegen` from tests/src/table.rs -->\n";
const END: &str = "<!-- end of table -->\n";

/// The guide's file, and its text with the table as it is now.
pub(crate) fn guide() -> Result<(PathBuf, String)> {
    let path = root().join("docs/fds.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let with_table = replaced(&text, &table::markdown())
        .with_context(|| format!("{} has no place for the table", path.display()))?;
    Ok((path, with_table))
}

fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        let new = replaced(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n\n{END}b\n"));
        assert_eq!(replaced(&new, "new\n").as_deref(), Some(new.as_str()));
        assert_eq!(replaced("a\n", "new\n"), None);
    }
}
