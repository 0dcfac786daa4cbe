//! Whether a request may run: decided here and nowhere else.

use std::sync::atomic::{AtomicU8, Ordering};

use qapi_schema::{CommandSpec, ErrorClass, QmpError, compat, find_command};

use crate::policy::Rights;
use crate::request::Request;
use crate::session::State;

/// How far the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `--preconfig`: only commands marked `allow-preconfig` run.
    Preconfig,
    /// The machine is built.
    Ready,
}

/// The phase, for all threads.
#[derive(Debug)]
pub(crate) struct SharedPhase(AtomicU8);

impl SharedPhase {
    pub(crate) fn new(phase: Phase) -> Self {
        let shared = Self(AtomicU8::new(0));
        shared.set(phase);
        shared
    }

    pub(crate) fn set(&self, phase: Phase) {
        self.0
            .store(u8::from(phase == Phase::Ready), Ordering::Release);
    }

    pub(crate) fn now(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Preconfig,
            _ => Phase::Ready,
        }
    }
}

/// What becomes of an admitted request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Route {
    /// It is `qmp_capabilities`: the session answers it itself.
    Negotiate,
    /// It runs: in band when its turn comes, out of band here and now.
    Run(&'static CommandSpec),
}

/// Decides about a request that came with `fds` fds over a session in `state`, on a monitor whose
/// clients have `rights`.
///
/// # Errors
/// Why it may not run, with the class and text that clients know.
pub(crate) fn admit(
    request: &Request,
    fds: usize,
    state: State,
    phase: Phase,
    rights: &Rights,
) -> Result<Route, QmpError> {
    let negotiates = request.command == "qmp_capabilities";
    match (state, negotiates) {
        (State::Negotiating, true) if !request.out_of_band => {
            expect_fds("qmp_capabilities", 0, fds)?;
            return Ok(Route::Negotiate);
        }
        (State::Negotiating, _) => {
            return Err(not_now(
                "Expecting capabilities negotiation with 'qmp_capabilities'",
            ));
        }
        (_, true) => {
            return Err(not_now(
                "Capabilities negotiation is already complete, command ignored",
            ));
        }
        (_, false) => {}
    }
    let command = find_command(&request.command)
        .ok_or_else(|| QmpError::command_not_found(&request.command))?;
    rights.permit(command)?;
    compat::admit_command(command)?;
    if request.out_of_band && !command.allow_oob {
        return Err(QmpError::generic(format!(
            "The command {} does not support OOB",
            command.name
        )));
    }
    expect_fds(command.name, command.fds, fds)?;
    if request.out_of_band {
        permit(command, phase)?;
    }
    Ok(Route::Run(command))
}

/// Decides whether a command may run in this phase. For in-band commands this is asked when their
/// turn comes, because the command before may have changed the phase.
pub(crate) fn permit(command: &CommandSpec, phase: Phase) -> Result<(), QmpError> {
    if phase == Phase::Preconfig && !command.allow_preconfig {
        return Err(QmpError::generic(format!(
            "The command '{}' is permitted only after machine initialization has completed",
            command.name
        )));
    }
    Ok(())
}

fn expect_fds(command: &str, takes: usize, came: usize) -> Result<(), QmpError> {
    if came <= takes {
        return Ok(());
    }
    let plural = if takes == 1 { "" } else { "s" };
    let takes = if takes == 0 {
        "no".to_owned()
    } else {
        takes.to_string()
    };
    Err(QmpError::generic(format!(
        "Command '{command}' takes {takes} file descriptor{plural}, but {came} came with it; \
         all of them were closed"
    )))
}

fn not_now(desc: impl Into<String>) -> QmpError {
    QmpError::new(ErrorClass::CommandNotFound, desc)
}

#[cfg(test)]
mod tests {
    use qapi_schema::COMMANDS;
    use serde_json::json;

    use super::*;

    fn told(command: &str, oob: bool, fds: usize, state: State) -> Result<Route, String> {
        let member = if oob { "exec-oob" } else { "execute" };
        let request = Request::new(json!({member: command}), true).expect("a request");
        admit(&request, fds, state, Phase::Ready, &Rights::default()).map_err(|error| error.desc)
    }

    #[test]
    fn only_the_negotiation_is_admitted_before_the_negotiation() {
        assert_eq!(
            told("qmp_capabilities", false, 0, State::Negotiating),
            Ok(Route::Negotiate)
        );
        for command in ["query-version", "nonsense"] {
            assert_eq!(
                told(command, false, 0, State::Negotiating).expect_err("too early"),
                "Expecting capabilities negotiation with 'qmp_capabilities'"
            );
        }
        assert_eq!(
            told("qmp_capabilities", false, 0, State::Ready).expect_err("too late"),
            "Capabilities negotiation is already complete, command ignored"
        );
    }

    #[test]
    fn a_command_that_does_not_exist_or_not_out_of_band_is_refused() {
        assert_eq!(
            told("nonsense", false, 0, State::Ready).expect_err("unknown"),
            "The command nonsense has not been found"
        );
        assert_eq!(
            told("query-version", true, 0, State::Ready).expect_err("in band only"),
            "The command query-version does not support OOB"
        );
    }

    #[test]
    fn surplus_fds_are_an_error_that_names_command_and_count() {
        assert_eq!(
            told("query-version", false, 2, State::Ready).expect_err("surplus"),
            "Command 'query-version' takes no file descriptors, but 2 came with it; all of them \
             were closed"
        );
        assert_eq!(
            told("getfd", false, 2, State::Ready).expect_err("surplus"),
            "Command 'getfd' takes 1 file descriptor, but 2 came with it; all of them were closed"
        );
        assert!(told("add-fd", false, 1, State::Ready).is_ok());
    }

    #[test]
    fn the_schema_says_which_commands_take_fds() {
        let takers: Vec<_> = COMMANDS.iter().filter(|one| one.fds > 0).collect();
        let names: Vec<_> = takers.iter().map(|one| (one.name, one.fds)).collect();
        assert_eq!(names, [("add-fd", 1), ("getfd", 1)]);
    }

    #[test]
    fn preconfig_lets_marked_commands_only_run() {
        for command in COMMANDS {
            let allowed = permit(command, Phase::Preconfig).is_ok();
            assert_eq!(allowed, command.allow_preconfig, "{}", command.name);
            assert_eq!(permit(command, Phase::Ready), Ok(()));
        }
    }
}
