//! The table of commands.

use crate::generated::commands::{COMMANDS, Module};

/// What the monitor must know of a command before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandSpec {
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
        for command in COMMANDS {
            assert_eq!(find_command(command.name), Some(command));
        }
        assert_eq!(find_command("no-such-command"), None);
    }
}
