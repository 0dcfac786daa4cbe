//! Socket activation: fds that the parent process left us, by the convention of `sd_listen_fds(3)`.
//!
//! `LISTEN_FDS` fds begin at number 3, and `LISTEN_FDNAMES` names them, separated by colons. Each
//! name becomes an fd name that the command line and every monitor can use: `fd:NAME`.

use anyhow::{Context as _, Result, bail, ensure};
use fdset::{Door, Handover, Origin, Role, Scope, inherited};

/// The first fd that is passed: after the standard streams.
const FIRST: i32 = 3;
/// What an fd without a name is called.
const NAMELESS: &str = "unknown";

/// The names of the fds that were left to us, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activation(Vec<String>);

impl Activation {
    /// Reads what the environment says to this process. Before `-daemonize` forks: the variables
    /// name the process that was started.
    ///
    /// # Errors
    /// The variables contradict each other.
    pub fn from_environment() -> Result<Self> {
        Self::read(std::process::id(), |name| std::env::var(name).ok())
    }

    fn read(pid: u32, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        // Variables for another process came down to us by inheritance: they are not ours.
        let is_ours = variable("LISTEN_PID").is_some_and(|of| of.parse() == Ok(pid));
        let (true, Some(count)) = (is_ours, variable("LISTEN_FDS")) else {
            return Ok(Self::default());
        };
        let count: usize = count
            .parse()
            .with_context(|| format!("LISTEN_FDS expects a number, not '{count}'"))?;
        let names: Vec<String> = match variable("LISTEN_FDNAMES") {
            Some(names) => names.split(':').map(str::to_owned).collect(),
            None => vec![NAMELESS.to_owned(); count],
        };
        ensure!(
            names.len() == count,
            "LISTEN_FDNAMES names {} fds, LISTEN_FDS says {count}",
            names.len()
        );
        for (index, name) in names.iter().enumerate() {
            if names.get(..index).unwrap_or_default().contains(name) {
                bail!("LISTEN_FDNAMES: two fds are called '{name}': give each a name of its own");
            }
        }
        Ok(Self(names))
    }

    /// Gives each fd its name.
    ///
    /// # Errors
    /// An fd is not there, or a name is empty or starts with a digit.
    pub(super) fn take(self, door: &Door) -> Result<()> {
        for (number, name) in (FIRST..).zip(self.0) {
            let fd = inherited(door, number, Role::CommandLine, "LISTEN_FDS")?;
            let passed = Handover::new(fd, Origin::Environment);
            door.registry()
                .add_named(Scope::Process, &name, passed)
                .with_context(|| format!("LISTEN_FDNAMES: '{name}'"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Activation> {
        let find = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Activation::read(42, find)
    }

    #[test]
    fn names_are_given_in_the_order_of_the_fds() {
        let read = read(&[
            ("LISTEN_PID", "42"),
            ("LISTEN_FDS", "2"),
            ("LISTEN_FDNAMES", "kvm:disk"),
        ]);
        assert_eq!(read.unwrap().0, ["kvm", "disk"]);
    }

    #[test]
    fn variables_for_another_process_are_not_ours() {
        for pid in ["41", "", "x"] {
            let read = read(&[("LISTEN_PID", pid), ("LISTEN_FDS", "1")]);
            assert_eq!(read.unwrap(), Activation::default());
        }
        assert_eq!(read(&[]).unwrap(), Activation::default());
    }

    #[test]
    fn one_fd_may_go_without_a_name_and_two_may_not_share_one() {
        let one = read(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "1")]);
        assert_eq!(one.unwrap().0, ["unknown"]);
        for (fds, names) in [("2", "a:a"), ("2", "a"), ("x", "a")] {
            let variables = [
                ("LISTEN_PID", "42"),
                ("LISTEN_FDS", fds),
                ("LISTEN_FDNAMES", names),
            ];
            assert!(read(&variables).is_err(), "{fds} {names}");
        }
    }
}
