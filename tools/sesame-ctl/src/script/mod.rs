//! Sessions as text: written down while they happen, read by people, run again.
//!
//! ```text
//!   # 2026-11-21T01:02:03.456Z sesame-0.1.0 (QMP 10.0.0)
//!   > blockdev-add driver=file node-name=d filename!<>disk.raw      a command as it is typed
//!   < {}                                                            its reply
//!   > device_del nosuch
//!   ! DeviceNotFound Device 'nosuch' not found                      its refusal
//!   * SHUTDOWN {"guest":false,"reason":"host-qmp-quit"}             an event since the command
//! ```
//!
//! Whoever writes a script by hand may leave out `> `, replies, refusals and events. This room must
//! never know a socket: [`record`] is told what happens, [`replay`] is given a way to run a line.

pub(crate) mod compare;
pub(crate) mod record;
pub(crate) mod replay;

use serde_json::Value;

/// A command of a script, and what came of it when it was recorded.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Step {
    /// Its line in the script, from 1.
    pub(crate) number: usize,
    /// The command as it is typed.
    pub(crate) line: String,
    /// Its reply or refusal, where the script has one.
    pub(crate) outcome: Option<Outcome>,
    /// What happened then.
    pub(crate) events: Vec<(String, Value)>,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// A reply.
    Reply(Value),
    /// A refusal.
    Refusal {
        /// Its class.
        class: String,
        /// Its words.
        words: String,
    },
}

/// Reads a script.
pub(crate) fn parse(text: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong =
            |why: serde_json::Error| format!("line {number} of the script is no JSON: {why}");
        let (mark, rest) = line.split_at_checked(2).unwrap_or((line, ""));
        match mark {
            "< " => {
                let reply = serde_json::from_str(rest).map_err(wrong)?;
                last(&mut steps, number)?.outcome = Some(Outcome::Reply(reply));
            }
            "! " => {
                let (class, words) = rest.split_once(' ').unwrap_or((rest, ""));
                last(&mut steps, number)?.outcome = Some(Outcome::Refusal {
                    class: class.to_owned(),
                    words: words.to_owned(),
                });
            }
            "* " => {
                let (name, data) = rest.split_once(' ').unwrap_or((rest, "null"));
                let data = serde_json::from_str(data).map_err(wrong)?;
                // What happened before the first command is not its doing.
                if let Some(step) = steps.last_mut() {
                    step.events.push((name.to_owned(), data));
                }
            }
            _ => {
                let command = line.strip_prefix("> ").unwrap_or(line).trim();
                if !command.is_empty() && !command.starts_with('#') {
                    steps.push(Step {
                        number,
                        line: command.to_owned(),
                        ..Step::default()
                    });
                }
            }
        }
    }
    Ok(steps)
}

fn last(steps: &mut [Step], number: usize) -> Result<&mut Step, String> {
    let step = steps.last_mut();
    step.ok_or_else(|| format!("line {number} of the script answers no command"))
}

/// The line of an outcome.
pub(crate) fn outcome_line(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Reply(reply) => format!("< {reply}"),
        Outcome::Refusal { class, words } => format!("! {class} {words}").trim_end().to_owned(),
    }
}

/// The line of an event.
pub(crate) fn event_line(name: &str, data: &Value) -> String {
    if data.is_null() {
        return format!("* {name}");
    }
    format!("* {name} {data}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_script_by_hand_needs_no_marks() {
        let steps = parse("# a comment\n\nquery-status\n> stop\n* STOP\n< {}\n").expect("a script");
        let [status, stop] = &steps[..] else {
            panic!("{steps:?}");
        };
        assert_eq!((status.number, status.line.as_str()), (3, "query-status"));
        assert_eq!(status.outcome, None);
        assert_eq!(stop.outcome, Some(Outcome::Reply(json!({}))));
        assert_eq!(stop.events, [("STOP".to_owned(), Value::Null)]);
    }

    #[test]
    fn what_answers_nothing_or_is_no_json_is_told_with_its_line() {
        let why = parse("\n< {}\n").expect_err("wrong");
        assert!(why.contains("line 2"), "{why}");
        let why = parse("stop\n< {\n").expect_err("wrong");
        assert!(why.contains("line 2 of the script is no JSON"), "{why}");
    }

    proptest! {
        #[test]
        fn outcomes_and_events_are_read_back(words in "[^\n\r]{0,20}", number: i64) {
            let reply = Outcome::Reply(json!({"a": [number, words]}));
            let refusal = Outcome::Refusal {
                class: "GenericError".to_owned(),
                words: words.trim_end().to_owned(),
            };
            for outcome in [reply, refusal] {
                let data = json!({"words": words});
                let text = format!("stop\n{}\n{}\n", outcome_line(&outcome), event_line("X", &data));
                let steps = parse(&text).expect("a script");
                prop_assert_eq!(steps[0].outcome.as_ref(), Some(&outcome));
                prop_assert_eq!(&steps[0].events, &[("X".to_owned(), data)]);
            }
        }
    }
}
