//! `-serial`, `-mon`, `-qmp`, `-monitor`: who talks over which chardev.

use qapi_schema::char::ChardevAdd;
use qapi_schema::cli::{FdScope, MonitorMode, MonitorOptions};

use super::chardev::{self, Short};
use super::config::{MonitorSpec, SerialSpec};
use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::help;
use super::read::{self, Form};

/// How many serial ports a PC has places for.
const SERIAL_PORTS: usize = 4;

pub(super) fn take_serial(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let index = draft.serials.len();
    if index == SERIAL_PORTS {
        return Err(Problem::new(format!(
            "at most {SERIAL_PORTS} serial ports are possible"
        )));
    }
    let serial = match chardev::short(given.text, &format!("serial{index}"))? {
        Short::Nothing => SerialSpec::Absent,
        Short::Existing(id) => SerialSpec::Chardev(id),
        Short::New(chardev) => SerialSpec::Chardev(implied(draft, given, chardev)?),
    };
    draft.serials.push((given.typed.to_owned(), serial));
    Ok(Step::Next)
}

pub(super) fn take_mon(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let parsed = read::parse::<MonitorOptions>(given.text, Form::implied("chardev"))?;
    if parsed.help {
        return Ok(Step::Print(help::keys_of::<MonitorOptions>("mon", None)));
    }
    let options: MonitorOptions = read::typed(parsed.value, parsed.mode)?;
    if options.mode != Some(MonitorMode::Control) {
        return Err(Problem::new("a monitor speaks QMP here: add mode=control"));
    }
    let monitor = MonitorSpec {
        id: options.id,
        chardev: options.chardev,
        pretty: options.pretty.unwrap_or(false),
        fd_scope: match options.fd_scope {
            None | Some(FdScope::Monitor) => monitor::FdScope::Monitor,
            Some(FdScope::Session) => monitor::FdScope::Session,
        },
    };
    draft.monitors.push((given.typed.to_owned(), monitor));
    Ok(Step::Next)
}

pub(super) fn take_qmp(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let id = format!("compat_monitor{}", draft.monitors.len());
    let chardev = match chardev::short(given.text, &id)? {
        Short::Nothing => return Ok(Step::Next),
        Short::Existing(id) => id,
        Short::New(chardev) => implied(draft, given, chardev)?,
    };
    let monitor = MonitorSpec {
        id: None,
        chardev,
        pretty: given.name == "qmp-pretty",
        fd_scope: monitor::FdScope::Monitor,
    };
    draft.monitors.push((given.typed.to_owned(), monitor));
    Ok(Step::Next)
}

pub(super) fn take_qtest(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    if draft.qtest.is_some() {
        return Err(Problem::new("there is only one tester: give -qtest once"));
    }
    let chardev = match chardev::short(given.text, "qtest")? {
        Short::Nothing => return Ok(Step::Next),
        Short::Existing(id) => id,
        Short::New(chardev) => implied(draft, given, chardev)?,
    };
    draft.qtest = Some((given.typed.to_owned(), chardev));
    Ok(Step::Next)
}

/// Adds a chardev that an option implies; gives back its id.
fn implied(draft: &mut Draft, given: &Given<'_>, chardev: ChardevAdd) -> Result<String, Problem> {
    let id = chardev.id.clone();
    draft.add_chardev(given, chardev)?;
    Ok(id)
}

/// Options of which only one value means something here.
pub(super) fn take_none(_draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    match given.text {
        "none" => Ok(Step::Next),
        other => Err(Problem::new(format!(
            "'{other}' is not available here; only none"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crate::cli::{Outcome, parse};

    #[test]
    fn what_clients_hand_over_stays_unless_the_monitor_says_otherwise() {
        let scope = |options: &str| {
            let mon = format!("chardev=x,mode=control{options}");
            let words = ["-machine", "none", "-chardev", "null,id=x", "-mon", &mon];
            match parse(words.map(OsString::from), |name| Err(name.to_owned())) {
                Ok(Outcome::Run(config)) => config.monitors[0].fd_scope,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(scope(""), monitor::FdScope::Monitor);
        assert_eq!(scope(",fd-scope=monitor"), monitor::FdScope::Monitor);
        assert_eq!(scope(",fd-scope=session"), monitor::FdScope::Session);
    }
}
