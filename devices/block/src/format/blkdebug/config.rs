//! The file of rules: sections `[inject-error]` and `[set-state]`, with lines `key = "value"`.

use super::rules::{ErrorRule, RuleEvent, Rules, StateRule};

/// The most that is read of a file, in bytes.
pub const LONGEST: u64 = 1 << 20;

/// A line of the file that says nothing known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ConfigError {
    line: usize,
    problem: String,
}

/// A rule half read.
enum Section {
    Error(ErrorRule),
    State(StateRule),
}

/// The rules of a file.
///
/// # Errors
/// A line is none of a section, a key, a comment, or empty.
pub fn parse(text: &str) -> Result<Rules, ConfigError> {
    let mut sections: Vec<Section> = Vec::new();
    for (at, line) in (1..).zip(text.lines()) {
        let wrong = |problem: String| ConfigError { line: at, problem };
        let line = line.trim();
        match line {
            "" => {}
            comment if comment.starts_with('#') => {}
            "[inject-error]" => sections.push(Section::Error(ErrorRule {
                event: RuleEvent::None,
                state: None,
                kind: None,
                errno: libc::EIO,
                sector: None,
                once: false,
            })),
            "[set-state]" => sections.push(Section::State(StateRule {
                event: RuleEvent::None,
                state: None,
                new_state: 1,
            })),
            _ => {
                let (key, value) = key(line).ok_or_else(|| {
                    wrong(format!(
                        "'{line}': wanted [inject-error], [set-state] or KEY = \"VALUE\""
                    ))
                })?;
                let section = sections
                    .last_mut()
                    .ok_or_else(|| wrong(format!("'{key}' stands before the first section")))?;
                section
                    .take(key, value)
                    .ok_or_else(|| wrong(format!("{key} = \"{value}\" is not known")))?;
            }
        }
    }
    let mut rules = Rules::new(Vec::new(), Vec::new());
    for section in sections {
        rules.extend(match section {
            Section::Error(rule) => Rules::new(vec![rule], Vec::new()),
            Section::State(rule) => Rules::new(Vec::new(), vec![rule]),
        });
    }
    Ok(rules)
}

fn key(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
    Some((key.trim(), value))
}

impl Section {
    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        match (self, key) {
            (Self::Error(rule), "event") => rule.event = event(value)?,
            (Self::Error(rule), "state") => rule.state = state(value)?,
            (Self::Error(rule), "errno") => rule.errno = value.parse().ok()?,
            (Self::Error(rule), "sector") => rule.sector = Some(value.parse().ok()?),
            (Self::Error(rule), "once") => rule.once = switch(value)?,
            (Self::Error(_), "immediately") => drop(switch(value)?),
            (Self::State(rule), "event") => rule.event = event(value)?,
            (Self::State(rule), "state") => rule.state = state(value)?,
            (Self::State(rule), "new_state") => rule.new_state = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

fn event(name: &str) -> Option<RuleEvent> {
    RuleEvent::ALL
        .into_iter()
        .find(|event| event.as_str() == name)
}

/// A state; 0 stands for any.
fn state(text: &str) -> Option<Option<u32>> {
    let number: u32 = text.parse().ok()?;
    Some((number != 0).then_some(number))
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" => Some(true),
        "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blkdebug::rules::RequestKind;

    #[test]
    fn a_file_gives_rules_in_its_order() {
        let text = "# two rules\n[inject-error]\nevent = \"read_aio\"\nerrno = \"28\"\nonce = \"on\"\n\
                    [set-state]\nevent=\"write_aio\"\nstate = \"0\"\nnew_state = \"3\"\n";
        let mut rules = parse(text).expect("a good file");
        assert_eq!(rules.judge(RequestKind::Read, 0, 512), Some(28));
        assert_eq!(rules.judge(RequestKind::Read, 0, 512), None);
        assert_eq!(parse(""), Ok(Rules::new(Vec::new(), Vec::new())));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, told) in [
            (
                "event = \"none\"",
                "line 1: 'event' stands before the first section",
            ),
            (
                "\n[sing]",
                "line 2: '[sing]': wanted [inject-error], [set-state] or KEY = \"VALUE\"",
            ),
            (
                "[set-state]\nevent = \"sing\"",
                "line 2: event = \"sing\" is not known",
            ),
            (
                "[inject-error]\nnew_state = \"1\"",
                "line 2: new_state = \"1\" is not known",
            ),
        ] {
            assert_eq!(parse(text).expect_err("wrong").to_string(), told);
        }
    }
}
