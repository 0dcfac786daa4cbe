//! The table of commands.

use crate::generated::commands::{COMMANDS, Module};

/// What the monitor must know of a command before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandSpec {
    /// Its place in [`COMMANDS`].
    pub number: usize,
    /// On the wire.
    pub name: &'static str,
    /// Whose trait has it.
    pub module: Module,
    /// Whether it may overtake the commands before it.
    pub allow_oob: bool,
    /// Whether it may run before the machine exists.
    pub allow_preconfig: bool,
    /// Whether it answers when it succeeds.
    pub success_response: bool,
    /// How many file descriptors come with it.
    pub fds: usize,
    /// Its feature flags.
    pub features: &'static [&'static str],
}

impl CommandSpec {
    /// Whether it asks and changes nothing.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.features.contains(&"read-only")
    }
}

/// The command of that name.
pub fn find_command(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS
        .binary_search_by(|command| command.name.cmp(name))
        .ok()
        .and_then(|at| COMMANDS.get(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name() {
        for (number, command) in COMMANDS.iter().enumerate() {
            assert_eq!(find_command(command.name), Some(command));
            assert_eq!(command.number, number);
        }
        assert_eq!(find_command("no-such-command"), None);
    }

    #[test]
    fn what_is_called_a_query_is_read_only_and_what_takes_fds_is_not() {
        for command in COMMANDS {
            let asks = command.name.starts_with("query-");
            assert!(command.is_read_only() || !asks, "{}", command.name);
            assert!(
                !command.is_read_only() || command.fds == 0,
                "{}",
                command.name
            );
        }
        for name in ["stop", "quit", "getfd", "qom-set", "human-monitor-command"] {
            let command = find_command(name);
            assert!(command.is_some_and(|one| !one.is_read_only()), "{name}");
        }
    }
}
