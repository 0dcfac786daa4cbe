//! `-readconfig`: options from a file, one section each.
//!
//! ```text
//!   # a comment
//!   [device "disk0"]                 ─► -device id=disk0,driver=virtio-blk-pci,drive=d
//!     driver = "virtio-blk-pci"
//!     drive = "d"
//! ```

use super::error::Problem;
use super::group_of;
use super::options::{OPTIONS, OptionSpec};

/// One section: an option, and its argument.
pub(super) struct Section {
    /// The option.
    pub(super) option: &'static OptionSpec,
    /// Its keys, as the command line has them.
    pub(super) argument: String,
}

/// The sections of a file, in their order.
///
/// # Errors
/// A line is neither a section, a key, a comment nor empty, or a section is no option.
pub(super) fn sections(text: &str) -> Result<Vec<Section>, Problem> {
    let mut sections: Vec<Section> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |what: String| Problem::new(format!("line {number}: {what}"));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let inner = header
                .strip_suffix(']')
                .ok_or_else(|| wrong(format!("'{line}' has no closing bracket")))?;
            sections.push(section(inner.trim()).map_err(wrong)?);
            continue;
        }
        let (key, value) = key(line).ok_or_else(|| {
            wrong(format!(
                "'{line}': wanted [SECTION], [SECTION \"ID\"] or KEY = \"VALUE\""
            ))
        })?;
        let Some(section) = sections.last_mut() else {
            return Err(wrong(format!("'{key}' stands before the first section")));
        };
        section.add(key, value);
    }
    Ok(sections)
}

fn section(header: &str) -> Result<Section, String> {
    let (group, id) = match header.split_once(char::is_whitespace) {
        None => (header, None),
        Some((group, quoted)) => {
            let id = unquoted(quoted.trim());
            let id = id.ok_or_else(|| format!("the id of '{group}' stands in quotes"))?;
            (group, Some(id))
        }
    };
    let mut keyed = OPTIONS
        .iter()
        .filter(|option| !option.keys.members.is_empty());
    let option = keyed
        .find(|option| group_of(option.name) == group)
        .ok_or_else(|| format!("there is no section '{group}'"))?;
    let mut section = Section {
        option,
        argument: String::new(),
    };
    if let Some(id) = id {
        section.add("id", id);
    }
    Ok(section)
}

fn key(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    let is_key = !key.is_empty() && !key.contains([',', ' ', '"']);
    Some((key, unquoted(value.trim())?)).filter(|_| is_key)
}

fn unquoted(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    (!inner.contains('"')).then_some(inner)
}

impl Section {
    fn add(&mut self, key: &str, value: &str) {
        if !self.argument.is_empty() {
            self.argument.push(',');
        }
        let value = value.replace(',', ",,");
        self.argument.push_str(&format!("{key}={value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(&'static str, String)>, String> {
        let sections = sections(text).map_err(|problem| problem.to_string())?;
        let read = sections.into_iter();
        Ok(read.map(|one| (one.option.name, one.argument)).collect())
    }

    #[test]
    fn each_section_becomes_an_option() {
        let text = "# a machine\n[machine]\n  type = \"q35\"\n\n[memory]\nsize = \"200\"\n\
                    [device \"disk0\"]\ndriver=\"virtio-blk-pci\"\n  serial = \"a,b\"\n";
        let wanted = [
            ("machine", "type=q35".to_owned()),
            ("m", "size=200".to_owned()),
            (
                "device",
                "id=disk0,driver=virtio-blk-pci,serial=a,,b".to_owned(),
            ),
        ];
        assert_eq!(read(text), Ok(wanted.into()));
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number() {
        for (text, problem) in [
            ("[sing]", "line 1: there is no section 'sing'"),
            ("[S]", "line 1: there is no section 'S'"),
            ("\n[machine", "line 2: '[machine' has no closing bracket"),
            (
                "[device disk]",
                "line 1: the id of 'device' stands in quotes",
            ),
            (
                "size = \"1\"",
                "line 1: 'size' stands before the first section",
            ),
            (
                "[memory]\nsize = 1",
                "line 2: 'size = 1': wanted [SECTION], [SECTION \"ID\"] or KEY = \"VALUE\"",
            ),
        ] {
            assert_eq!(read(text), Err(problem.to_owned()));
        }
    }
}
