//! Running a script again.

use serde_json::Value;

use super::compare::difference;
use super::record::outcome;
use super::{Outcome, Step, event_line, outcome_line};
use crate::failure::Failure;

/// How a script is run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// Compares what comes with what the script has.
    pub(crate) check: bool,
    /// Goes on after a failure.
    pub(crate) keep_going: bool,
}

/// What runs the lines.
pub(crate) trait Stage {
    /// Runs a line.
    fn run(&mut self, line: &str) -> Result<Value, Failure>;

    /// Waits for an event of that name whose data are like these, and says what came instead.
    fn event(&mut self, name: &str, data: &Value) -> Result<(), Failure>;

    /// Shows a line of the script that the replay writes, or a difference.
    fn show(&mut self, line: &str) -> Result<(), Failure>;
}

/// Runs all steps. The result is that of the first that failed; with `check`, of all differences.
pub(crate) fn replay(steps: &[Step], rules: Rules, stage: &mut impl Stage) -> Result<(), Failure> {
    let mut failed = None;
    let mut differing = 0_usize;
    for step in steps {
        stage.show(&format!("> {}", step.line))?;
        let result = stage.run(&step.line);
        let came = outcome(&result);
        if let Some(came) = &came {
            stage.show(&outcome_line(came))?;
        }
        let failure = result.err().filter(|_| !was_refused(step, came.as_ref()));
        if let Some(failure) = failure {
            if !rules.keep_going || failure.ends_session() {
                return Err(failure);
            }
            stage.show(&format!("# {}", failure.line()))?;
            failed.get_or_insert(failure);
        }
        if rules.check {
            let unlike = came.and_then(|came| unlike(step, &came));
            let unlike = match unlike {
                Some(unlike) => Some(unlike),
                None => missing_event(step, stage)?,
            };
            if let Some(unlike) = unlike {
                stage.show(&format!("# line {}: {unlike}", step.number))?;
                differing += 1;
            }
        }
    }
    match (failed, differing) {
        (Some(failure), _) => Err(failure),
        (None, 0) => Ok(()),
        (None, _) => {
            let all = steps.len();
            Err(Failure::Differs(format!(
                "{differing} of {all} commands went otherwise than recorded"
            )))
        }
    }
}

/// Whether a refusal came where the script has one.
fn was_refused(step: &Step, came: Option<&Outcome>) -> bool {
    let refused = |outcome| matches!(outcome, Some(&Outcome::Refusal { .. }));
    refused(step.outcome.as_ref()) && refused(came)
}

fn unlike(step: &Step, came: &Outcome) -> Option<String> {
    match (step.outcome.as_ref()?, came) {
        (Outcome::Reply(recorded), Outcome::Reply(came)) => difference(recorded, came),
        (Outcome::Refusal { class, .. }, Outcome::Refusal { class: came, .. }) => {
            (class != came).then(|| format!("refused with {came} and not {class}"))
        }
        (Outcome::Reply(_), Outcome::Refusal { class, .. }) => {
            Some(format!("refused with {class}"))
        }
        (Outcome::Refusal { class, .. }, Outcome::Reply(_)) => {
            Some(format!("not refused with {class}"))
        }
    }
}

fn missing_event(step: &Step, stage: &mut impl Stage) -> Result<Option<String>, Failure> {
    for (name, data) in &step.events {
        match stage.event(name, data) {
            Ok(()) => {}
            Err(Failure::TimedOut(_)) => {
                let line = event_line(name, data);
                return Ok(Some(format!("the event did not come: {line}")));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::parse;
    use serde_json::json;
    use sesame_qmp::{ErrorClass, Refusal};

    /// A VM that replies to `ok`, refuses `no`, and has had the event E.
    #[derive(Default)]
    struct Fake(Vec<String>);

    impl Stage for Fake {
        fn run(&mut self, line: &str) -> Result<Value, Failure> {
            match line {
                "ok" => Ok(json!({"status": "running"})),
                _ => Err(Failure::Refused(Refusal {
                    command: line.to_owned(),
                    class: ErrorClass::DeviceNotFound,
                    desc: "no".to_owned(),
                })),
            }
        }

        fn event(&mut self, name: &str, _: &Value) -> Result<(), Failure> {
            match name {
                "E" => Ok(()),
                _ => Err(Failure::TimedOut(name.to_owned())),
            }
        }

        fn show(&mut self, line: &str) -> Result<(), Failure> {
            self.0.push(line.to_owned());
            Ok(())
        }
    }

    fn played(script: &str, check: bool, keep_going: bool) -> (u8, Vec<String>) {
        let mut fake = Fake::default();
        let rules = Rules { check, keep_going };
        let steps = parse(script).expect("a script");
        let status =
            replay(&steps, rules, &mut fake).map_or_else(|failure| failure.status(), |()| 0);
        (status, fake.0)
    }

    #[test]
    fn what_a_replay_writes_is_a_script_again() {
        let script = "> ok\n< {\"status\":\"running\"}\n> no\n! DeviceNotFound no";
        let (status, lines) = played(script, true, false);
        assert_eq!((status, lines.join("\n").as_str()), (0, script));
    }

    #[test]
    fn an_unexpected_refusal_ends_the_replay_unless_it_is_to_go_on() {
        let (status, lines) = played("no\nok", false, false);
        assert_eq!((status, lines.len()), (4, 2));
        let (status, lines) = played("no\nok", false, true);
        assert_eq!((status, lines.len()), (4, 5), "{lines:?}");
    }

    #[test]
    fn differences_are_told_with_their_line_and_counted() {
        let (status, lines) = played(
            "# c\nok\n< {\"status\":\"paused\"}\nok\n< {}\n",
            true,
            false,
        );
        assert_eq!(status, 11);
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("# line 2: status is")),
            "{lines:?}"
        );
        assert_eq!(played("ok\n< {\"status\":\"paused\"}", false, false).0, 0);
        assert_eq!(played("ok\n! DeviceNotFound x", true, false).0, 11);
        assert_eq!(played("no\n! GenericError x", true, false).0, 11);
    }

    #[test]
    fn recorded_events_must_come_again() {
        assert_eq!(played("ok\n* E {}", true, false).0, 0);
        assert_eq!(played("ok\n* F {}", true, false).0, 11);
        assert_eq!(played("ok\n* F {}", false, false).0, 0);
    }
}
