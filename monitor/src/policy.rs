//! Whom a monitor serves, and what they may ask.
//!
//! ```text
//!   a caller ─► ClientPolicy: user or group listed? ─ no ─► told why, and let go
//!                                │ yes
//!   a request ─► CommandPolicy: a bit for each command ─ no ─► CommandNotFound, with the way out
//! ```
//!
//! A file of rules has one rule in a line; empty lines and those that begin with `#` say nothing:
//!
//! ```text
//! read-only                  # allows every command that asks and changes nothing
//! allow getfd blockdev-*     # allows these; * is any text, ? any letter
//! deny  query-fd*            # whatever else allows them
//! ```
//!
//! The order of the lines means nothing. A file without `read-only` and `allow` allows everything
//! that it does not deny. Which commands only ask is the schema's word (the feature `read-only`).

use std::fmt;
use std::os::fd::AsFd;

use fdset::Peer;
use qapi_schema::describe::nearest;
use qapi_schema::{COMMANDS, CommandSpec, ErrorClass, QmpError, find_command};

/// The longest file of rules, in bytes.
pub const LONGEST_POLICY: u64 = 1 << 20;

/// No command has a longer name, in bytes; the nearest of longer ones is not looked for.
const LONGEST_NAME: usize = 100;

/// Why a file of rules is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A line begins with another word.
    #[error(
        "line {line}: '{word}' is no rule; a line is 'read-only', 'allow NAME..' or 'deny NAME..'"
    )]
    NoRule {
        /// Which, from 1.
        line: usize,
        /// How it begins.
        word: String,
    },
    /// `allow` or `deny` of nothing, or `read-only` of something.
    #[error("line {line}: '{rule}' {wanted}")]
    Names {
        /// Which, from 1.
        line: usize,
        /// The rule.
        rule: &'static str,
        /// What it takes.
        wanted: &'static str,
    },
    /// A name without a wild card that is no command's.
    #[error(
        "line {line}: there is no command '{name}'{}; for one that another version has, write a \
         pattern such as '{name}*'",
        .near.map(|near| format!(" (did you mean '{near}'?)")).unwrap_or_default()
    )]
    Unknown {
        /// Which, from 1.
        line: usize,
        /// As written.
        name: String,
        /// A command that has nearly this name.
        near: Option<&'static str>,
    },
}

/// What a policy says of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// The monitor is read-only, and the command changes something.
    Changes,
    /// No rule allows it.
    Unnamed,
    /// The rule in this line denies it.
    Denied(usize),
}

/// Which commands a monitor's clients may send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandPolicy {
    /// One for each command, in the order of [`COMMANDS`]; `None`: all are allowed.
    verdicts: Option<Box<[Verdict]>>,
    /// The name of the file of rules, for errors.
    file: String,
}

impl CommandPolicy {
    /// Everything is allowed.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// The rules in `text`, which came from `file`.
    ///
    /// # Errors
    /// The first line that is no rule, or names a command that does not exist.
    pub fn from_rules(file: &str, text: &str) -> Result<Self, PolicyError> {
        let rules = Rules::read(text)?;
        let verdicts = COMMANDS.iter().map(|command| rules.verdict(command));
        Ok(Self {
            verdicts: Some(verdicts.collect()),
            file: file.to_owned(),
        })
    }

    /// The same, and nothing that changes anything.
    #[must_use]
    pub fn read_only(self) -> Self {
        let before = |at: usize| {
            self.verdicts
                .as_deref()
                .and_then(|all| all.get(at).copied())
        };
        let verdicts = COMMANDS.iter().enumerate().map(|(at, command)| {
            if command.is_read_only() {
                before(at).unwrap_or(Verdict::Allowed)
            } else {
                Verdict::Changes
            }
        });
        Self {
            verdicts: Some(verdicts.collect()),
            file: self.file.clone(),
        }
    }

    /// Whether they may send this one.
    #[must_use]
    pub fn allows(&self, command: &CommandSpec) -> bool {
        self.verdict(command) == Verdict::Allowed
    }

    fn verdict(&self, command: &CommandSpec) -> Verdict {
        match &self.verdicts {
            None => Verdict::Allowed,
            Some(verdicts) => verdicts
                .get(command.number)
                .copied()
                .unwrap_or(Verdict::Unnamed),
        }
    }
}

/// A file of rules, taken apart.
#[derive(Debug, Default)]
struct Rules<'t> {
    read_only: bool,
    allowed: Vec<&'t str>,
    /// Each with its line.
    denied: Vec<(usize, &'t str)>,
}

impl<'t> Rules<'t> {
    fn read(text: &'t str) -> Result<Self, PolicyError> {
        let mut rules = Self::default();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.split('#').next().unwrap_or_default();
            let mut words = text.split_ascii_whitespace();
            let Some(rule) = words.next() else {
                continue;
            };
            rules.add(line, rule, words.collect())?;
        }
        Ok(rules)
    }

    fn add(&mut self, line: usize, rule: &str, names: Vec<&'t str>) -> Result<(), PolicyError> {
        let wants = |rule, wanted| Err(PolicyError::Names { line, rule, wanted });
        match (rule, names.is_empty()) {
            ("read-only", true) => self.read_only = true,
            ("read-only", false) => return wants("read-only", "takes no names: it stands alone"),
            ("allow", true) => return wants("allow", "wants the names of commands, or patterns"),
            ("deny", true) => return wants("deny", "wants the names of commands, or patterns"),
            ("allow" | "deny", false) => {}
            _ => {
                let word = rule.to_owned();
                return Err(PolicyError::NoRule { line, word });
            }
        }
        for name in &names {
            let is_pattern = name.contains(['*', '?']);
            if !is_pattern && find_command(name).is_none() {
                return Err(PolicyError::Unknown {
                    line,
                    name: (*name).to_owned(),
                    near: Some(name)
                        .filter(|name| name.len() < LONGEST_NAME)
                        .and_then(|name| nearest(name, COMMANDS.iter().map(|one| one.name))),
                });
            }
        }
        match rule {
            "allow" => self.allowed.extend(names),
            "deny" => self
                .denied
                .extend(names.into_iter().map(|name| (line, name))),
            _ => {}
        }
        Ok(())
    }

    fn verdict(&self, command: &CommandSpec) -> Verdict {
        let is_named = |pattern: &str| matches(pattern.as_bytes(), command.name.as_bytes());
        if let Some((line, _)) = self.denied.iter().find(|(_, pattern)| is_named(pattern)) {
            return Verdict::Denied(*line);
        }
        let names_none = !self.read_only && self.allowed.is_empty();
        let by_kind = self.read_only && command.is_read_only();
        if names_none || by_kind || self.allowed.iter().any(|pattern| is_named(pattern)) {
            Verdict::Allowed
        } else {
            Verdict::Unnamed
        }
    }
}

/// Whether `name` fits `pattern`, in which `*` is any text and `?` any letter. Goes back to the last
/// `*` only, so it takes no more steps than the product of both lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while let Some(letter) = name.get(read) {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at, read));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == letter => {
                at += 1;
                read += 1;
            }
            _ => match &mut retry {
                None => return false,
                Some((star, taken)) => {
                    *taken += 1;
                    (at, read) = (*star + 1, *taken);
                }
            },
        }
    }
    pattern
        .get(at..)
        .unwrap_or_default()
        .iter()
        .all(|left| *left == b'*')
}

/// Whom a monitor serves: whoever is one of the users, or in one of the groups. Without both lists,
/// whoever can connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientPolicy {
    /// Users, by number.
    pub uids: Vec<u32>,
    /// Groups, by number.
    pub gids: Vec<u32>,
}

impl ClientPolicy {
    /// Whether everybody is served who can connect.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// Whether a client is served; `groups` tells in which groups it is, apart from its first.
    fn serves(&self, peer: Peer, groups: impl FnOnce() -> Vec<u32>) -> bool {
        self.uids.contains(&peer.uid)
            || self.gids.contains(&peer.gid)
            || (!self.gids.is_empty() && groups().iter().any(|group| self.gids.contains(group)))
    }
}

/// A monitor's name and what its clients may do.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    /// What the monitor is called in errors and in the log.
    pub(crate) name: String,
    pub(crate) clients: ClientPolicy,
    pub(crate) commands: CommandPolicy,
}

/// A client that is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) struct Stranger<'r> {
    pub(crate) monitor: &'r str,
    pub(crate) peer: Option<Peer>,
}

impl fmt::Display for Stranger<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Monitor '{}' does not serve ", self.monitor)?;
        match self.peer {
            Some(Peer { uid, gid, .. }) => write!(f, "user {uid} of group {gid}")?,
            None => f.write_str("a client whose user the kernel does not tell")?,
        }
        f.write_str(": allow-uid= and allow-gid= of its -mon list whom it serves")
    }
}

impl Stranger<'_> {
    /// Puts a line into the log.
    pub(crate) fn tell(&self) {
        let pid = self.peer.map_or(0, |peer| peer.pid);
        tracing::warn!(pid, "a client is turned away: {self}");
    }
}

impl Rights {
    /// Whether the client behind `socket` is served.
    pub(crate) fn admit(&self, socket: impl AsFd) -> Result<(), Stranger<'_>> {
        if self.clients.is_open() {
            return Ok(());
        }
        let peer = Peer::of(&socket);
        let groups = || Peer::groups(&socket);
        match peer {
            Some(peer) if self.clients.serves(peer, groups) => Ok(()),
            peer => Err(Stranger {
                monitor: &self.name,
                peer,
            }),
        }
    }

    /// Whether the monitor's clients may send this command.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(crate) fn permit(&self, command: &CommandSpec) -> Result<(), QmpError> {
        let verdict = self.commands.verdict(command);
        if verdict == Verdict::Allowed {
            return Ok(());
        }
        Err(self.refusal(command.name, verdict))
    }

    /// The same, for what is done by a name of another language.
    pub(crate) fn permit_named(&self, name: &str) -> Result<(), QmpError> {
        match find_command(name) {
            Some(command) => self.permit(command),
            None if self.commands.verdicts.is_none() => Ok(()),
            None => Err(self.refusal(name, Verdict::Unnamed)),
        }
    }

    fn refusal(&self, command: &str, verdict: Verdict) -> QmpError {
        let Self { name, commands, .. } = self;
        let file = &commands.file;
        let why = match verdict {
            Verdict::Denied(line) => format!("line {line} of '{file}' denies it; change that line"),
            Verdict::Unnamed if !file.is_empty() => {
                format!("no line of '{file}' allows it; add one")
            }
            _ => {
                "it may change something, and this monitor is read-only; change read-only= of its \
                  -mon"
                    .to_owned()
            }
        };
        QmpError::new(
            ErrorClass::CommandNotFound,
            format!(
                "The command {command} is not allowed on monitor '{name}': {why}, or send it over \
                 another monitor"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(commands: CommandPolicy) -> Rights {
        Rights {
            name: "agent".into(),
            clients: ClientPolicy::default(),
            commands,
        }
    }

    fn of(rules: &str) -> Rights {
        rights(CommandPolicy::from_rules("rules", rules).expect("rules"))
    }

    fn told(rights: &Rights, command: &str) -> String {
        let command = find_command(command).expect("a command");
        rights
            .permit(command)
            .map_or_else(|error| error.desc, |()| "yes".to_owned())
    }

    fn allows(rules: &str, command: &str) -> bool {
        told(&of(rules), command) == "yes"
    }

    #[test]
    fn a_pattern_fits_what_a_shells_would() {
        for (pattern, name, fits) in [
            ("stop", "stop", true),
            ("stop", "stops", false),
            ("query-*", "query-status", true),
            ("query-*", "query-", true),
            ("*-fd", "add-fd", true),
            ("*fd*", "query-fdsets", true),
            ("*a*b*c", "xaxxbxbxc", true),
            ("*a*b*c", "xaxxbxbxcx", false),
            ("???", "add", true),
            ("???", "stop", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("**x**", "x", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                fits,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_more_than_its_time() {
        let pattern = "*a".repeat(20_000);
        assert!(!matches(pattern.as_bytes(), "a".repeat(200).as_bytes()));
    }

    #[test]
    fn a_file_that_allows_nothing_allows_what_it_does_not_deny() {
        assert!(allows("", "quit") && allows("# quiet\n\n  # so quiet", "quit"));
        let rules = "deny quit query-fd*";
        assert!(!allows(rules, "quit") && !allows(rules, "query-fdsets"));
        assert!(allows(rules, "stop") && allows(rules, "query-status"));
    }

    #[test]
    fn a_file_that_allows_something_allows_nothing_else() {
        let rules = "allow stop cont # and no more";
        assert!(allows(rules, "stop") && allows(rules, "cont"));
        assert!(!allows(rules, "query-status") && !allows(rules, "quit"));
        let rules = "read-only\nallow getfd";
        assert!(allows(rules, "query-status") && allows(rules, "qom-get"));
        assert!(allows(rules, "getfd") && !allows(rules, "qom-set"));
    }

    #[test]
    fn what_is_denied_stays_denied_in_any_order() {
        for rules in [
            "deny stop\nallow *",
            "allow *\ndeny stop",
            "allow s*\ndeny *top\nread-only",
        ] {
            assert!(!allows(rules, "stop"), "{rules}");
            assert!(allows(rules, "seal"), "{rules}");
        }
    }

    #[test]
    fn read_only_allows_what_the_schema_calls_so_and_narrows_a_file() {
        let plain = rights(CommandPolicy::everything().read_only());
        for command in COMMANDS {
            assert_eq!(
                plain.permit(command).is_ok(),
                command.is_read_only(),
                "{}",
                command.name
            );
        }
        let rules = CommandPolicy::from_rules("rules", "allow stop query-status").expect("rules");
        let narrowed = rights(rules.read_only());
        assert_eq!(told(&narrowed, "query-status"), "yes");
        assert!(told(&narrowed, "stop").contains("read-only"));
        assert!(told(&narrowed, "query-name").contains("no line of 'rules'"));
    }

    #[test]
    fn a_refusal_names_command_monitor_reason_and_the_way_out() {
        assert_eq!(
            told(&of("# no\ndeny quit"), "quit"),
            "The command quit is not allowed on monitor 'agent': line 2 of 'rules' denies it; \
             change that line, or send it over another monitor"
        );
        assert_eq!(
            told(&of("allow stop"), "quit"),
            "The command quit is not allowed on monitor 'agent': no line of 'rules' allows it; add \
             one, or send it over another monitor"
        );
        let refusal = rights(CommandPolicy::everything().read_only())
            .permit_named("quit")
            .expect_err("it ends the process");
        assert_eq!(refusal.class, ErrorClass::CommandNotFound);
        assert_eq!(
            refusal.desc,
            "The command quit is not allowed on monitor 'agent': it may change something, and this \
             monitor is read-only; change read-only= of its -mon, or send it over another monitor"
        );
    }

    #[test]
    fn a_wrong_line_is_named_with_what_was_meant() {
        for (rules, text) in [
            (
                "\nforbid stop",
                "line 2: 'forbid' is no rule; a line is 'read-only', 'allow NAME..' or 'deny NAME..'",
            ),
            (
                "allow",
                "line 1: 'allow' wants the names of commands, or patterns",
            ),
            (
                "deny # all",
                "line 1: 'deny' wants the names of commands, or patterns",
            ),
            (
                "read-only stop",
                "line 1: 'read-only' takes no names: it stands alone",
            ),
            (
                "deny stopp",
                "line 1: there is no command 'stopp' (did you mean 'stop'?); for one that another \
                 version has, write a pattern such as 'stopp*'",
            ),
        ] {
            let error = CommandPolicy::from_rules("rules", rules).expect_err(rules);
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_client_is_served_for_its_user_or_one_of_its_groups() {
        let peer = Peer {
            pid: 1,
            uid: 1000,
            gid: 100,
        };
        let policy = |uids: &[u32], gids: &[u32]| ClientPolicy {
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        };
        let more = || vec![4, 27];
        assert!(policy(&[5, 1000], &[]).serves(peer, more));
        assert!(policy(&[], &[100]).serves(peer, more));
        assert!(policy(&[5], &[27]).serves(peer, more));
        assert!(!policy(&[5], &[6]).serves(peer, more));
        assert!(!policy(&[27], &[]).serves(peer, || panic!("groups mean nothing here")));
        assert!(
            !policy(&[0], &[0]).serves(peer, more),
            "not even root unasked"
        );
    }
}
