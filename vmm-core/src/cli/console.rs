//! `-serial`, `-mon`, `-qmp`, `-monitor`: who talks over which chardev.

use monitor::ClientPolicy;
use qapi_schema::char::ChardevAdd;
use qapi_schema::cli::{FdScope, MonitorMode, MonitorOptions};

use super::chardev::{self, Short};
use super::config::{MonitorSpec, SerialSpec};
use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::help;
use super::read::{self, Form};

/// Keys of `-mon` that may be given several times.
const LISTS: [&str; 2] = ["allow-uid", "allow-gid"];
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
    let text = number_lists(given.text);
    let parsed = read::parse::<MonitorOptions>(&text, Form::implied("chardev"))?;
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
        clients: ClientPolicy {
            uids: options.allow_uid.unwrap_or_default(),
            gids: options.allow_gid.unwrap_or_default(),
        },
        read_only: options.read_only.unwrap_or(false),
        commands: options.commands,
    };
    draft.monitors.push((given.typed.to_owned(), monitor));
    Ok(Step::Next)
}

/// `allow-uid=1,allow-uid=2` with the places that list members have: `allow-uid.0=1,allow-uid.1=2`.
fn number_lists(text: &str) -> String {
    let mut counts = [0; LISTS.len()];
    let numbered = read::split(text).into_iter().map(|part| {
        let lists = LISTS.iter().zip(&mut counts);
        let found = lists.filter_map(|(key, count)| {
            let value = part.strip_prefix(key)?.strip_prefix('=')?;
            let numbered = format!("{key}.{count}={value}");
            *count += 1;
            Some(numbered)
        });
        found.last().unwrap_or_else(|| part.to_owned())
    });
    numbered.collect::<Vec<_>>().join(",")
}

pub(super) fn take_qmp(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let id = format!("compat_monitor{}", draft.monitors.len());
    let chardev = match chardev::short(given.text, &id)? {
        Short::Nothing => return Ok(Step::Next),
        Short::Existing(id) => id,
        Short::New(chardev) => implied(draft, given, chardev)?,
    };
    let monitor = MonitorSpec {
        pretty: given.name == "qmp-pretty",
        ..MonitorSpec::on(chardev)
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

/// `-monitor`: only one that nobody can speak to.
pub(super) fn take_monitor(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    match given.text {
        "null" => Ok(Step::Next),
        _ => take_none(draft, given),
    }
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

    use super::*;
    use crate::cli::{Outcome, parse};

    fn monitor_of(options: &str) -> MonitorSpec {
        let mon = format!("chardev=x,mode=control{options}");
        let words = ["-machine", "none", "-chardev", "null,id=x", "-mon", &mon];
        match parse(words.map(OsString::from), |name| Err(name.to_owned())) {
            Ok(Outcome::Run(config)) => config.monitors[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn users_and_groups_are_given_one_by_one_or_as_a_list() {
        for options in [
            ",allow-uid=0,allow-gid=27,allow-uid=1000",
            ",allow-uid.0=0,allow-uid.1=1000,allow-gid.0=27",
        ] {
            let clients = monitor_of(options).clients;
            assert_eq!((clients.uids, clients.gids), (vec![0, 1000], vec![27]));
        }
        assert!(monitor_of("").clients.is_open());
    }

    #[test]
    fn a_monitor_may_do_everything_unless_it_says_otherwise() {
        let plain = monitor_of("");
        assert!(!plain.read_only && plain.commands.is_none());
        assert_eq!(plain.name(), "x");
        let narrow = monitor_of(",read-only,commands=fd:rules,id=agent");
        assert!(narrow.read_only);
        assert_eq!(narrow.commands.as_deref(), Some("fd:rules"));
        assert_eq!(narrow.name(), "agent");
    }

    #[test]
    fn what_clients_hand_over_stays_unless_the_monitor_says_otherwise() {
        let scope = |options: &str| monitor_of(options).fd_scope;
        assert_eq!(scope(""), monitor::FdScope::Monitor);
        assert_eq!(scope(",fd-scope=monitor"), monitor::FdScope::Monitor);
        assert_eq!(scope(",fd-scope=session"), monitor::FdScope::Session);
    }
}
