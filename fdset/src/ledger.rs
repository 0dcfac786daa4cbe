//! The ledger: who uses which fd, for what, since when; and which fds nobody has asked for.
//!
//! ```text
//!   open, listen, connect, memfd, pty ──► Use ──► Lease ──► dropped with the file: the line is struck
//!   getfd, add-fd, -add-fd ──► Handover ──► opened? if not in time: reported, once
//! ```
//!
//! A line lives as long as the [`Lease`](crate::Lease) that came with the file. Pure bookkeeping;
//! the clock is the caller's.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::error::Wanted;
use crate::handover::{Handover, Origin};
use crate::kind::Nature;
use crate::registry::Scope;
use crate::request::Role;
use crate::sets::FdsetId;

/// Where a file in use came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// It had a name, or was inherited; it is used up.
    Name,
    /// It is a member of a set, found by the set's number or an alias.
    Set(FdsetId),
    /// The open hook gave it.
    Hook,
    /// The file system.
    Path,
    /// A socket that was bound or connected here.
    Address,
    /// It was made here and has no name anywhere: memory, a pty.
    Anonymous,
    /// Somebody connected to a socket that listens here.
    Accepted,
    /// It is a standard stream of this process.
    Standard,
}

impl Via {
    /// The set it came from.
    #[must_use]
    pub fn set(self) -> Option<FdsetId> {
        match self {
            Self::Set(set) => Some(set),
            _ => None,
        }
    }
}

/// One file in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The name it was opened by.
    pub name: String,
    /// Where it came from.
    pub via: Via,
    /// What it is for.
    pub role: Role,
    /// For whom.
    pub reason: String,
    /// What it is, as it was when it was opened.
    pub nature: Nature,
    /// Who handed it over; `None` for what this process made or opened itself.
    pub origin: Option<Origin>,
    /// When it was opened.
    pub since: Instant,
}

impl Use {
    pub(crate) fn new(wanted: Wanted, via: Via, nature: Nature, origin: Option<Origin>) -> Self {
        Self {
            name: wanted.name,
            via,
            role: wanted.role,
            reason: wanted.reason,
            nature,
            origin,
            since: Instant::now(),
        }
    }
}

/// The number of a line. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UseId(u64);

/// All files in use.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    last: u64,
    uses: BTreeMap<UseId, Use>,
}

impl Ledger {
    /// Writes a line.
    pub(crate) fn begin(&mut self, entry: Use) -> UseId {
        self.last += 1;
        self.uses.insert(UseId(self.last), entry);
        UseId(self.last)
    }

    /// Strikes a line.
    pub(crate) fn end(&mut self, id: UseId) -> Option<Use> {
        self.uses.remove(&id)
    }

    /// Changes what the file of a line is.
    pub(crate) fn change(&mut self, id: UseId, nature: Nature) {
        if let Some(entry) = self.uses.get_mut(&id) {
            entry.nature = nature;
        }
    }

    /// A line.
    pub(crate) fn entry(&self, id: UseId) -> Option<Use> {
        self.uses.get(&id).cloned()
    }

    /// All lines, the oldest first.
    pub(crate) fn list(&self) -> Vec<Use> {
        self.uses.values().cloned().collect()
    }
}

/// Where an fd waits to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Under a name.
    Name {
        /// Whose.
        scope: Scope,
        /// The name.
        name: String,
    },
    /// In a set.
    Set {
        /// The set.
        set: FdsetId,
        /// The text its sender attached to it.
        opaque: Option<String>,
    },
    /// Nowhere: it was left open by the parent process, and no option names its number.
    Number,
}

/// One fd that was handed over and is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number in this process.
    pub fd: RawFd,
    /// Where it waits.
    pub place: Place,
    /// What it is, as it was when it came.
    pub nature: Nature,
    /// Who handed it over.
    pub origin: Origin,
    /// When it came.
    pub since: Instant,
    /// Whether it was ever opened: a member of a set stays there.
    pub opened: bool,
    /// The scope with which it ends, if it does not stay.
    pub ends_with: Option<Scope>,
}

/// How long an fd may wait before it counts as forgotten.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience(Option<Duration>);

impl Patience {
    pub(crate) fn set(&mut self, patience: Option<Duration>) {
        self.0 = patience;
    }

    /// When the first of `held` will be forgotten.
    pub(crate) fn deadline<'a>(&self, held: impl Iterator<Item = &'a Handover>) -> Option<Instant> {
        let patience = self.0?;
        held.filter(|passed| passed.awaits_report())
            .filter_map(|passed| passed.since().checked_add(patience))
            .min()
    }

    /// Whether `passed` is forgotten and nobody was told; from now on it counts as told.
    pub(crate) fn is_over(self, passed: &mut Handover, now: Instant) -> bool {
        let over = self.0.is_some_and(|patience| {
            passed.awaits_report() && now.saturating_duration_since(passed.since()) >= patience
        });
        if over {
            passed.note_report();
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::sync::Arc;

    use super::*;
    use crate::registry::{Door, FdRegistry};
    use crate::request::{Access, Request};
    use crate::watch::passed;
    use crate::{Kind, MemfdSpec, open};

    const SECOND: Duration = Duration::from_secs(1);

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Monitor(4))
    }

    fn stream(name: &str) -> Request<'_> {
        Request::new(name, Access::ReadOnly, Role::Chardev, "chardev 'c'")
    }

    fn vias(door: &Door) -> Vec<Via> {
        let uses = door.registry().uses();
        uses.iter().map(|entry| entry.via).collect()
    }

    #[test]
    fn every_open_file_has_a_line_until_it_is_closed() {
        let door = door();
        let registry = door.registry();
        let (set, _) = registry.add(passed(pipe().expect("a pipe").0), None, None);
        registry
            .add_named(door.scope(), "a", passed(pipe().expect("a pipe").0))
            .expect("good name");
        registry.add_alias("/nowhere/b", set).expect("a path");
        let names = ["fd:a", "/dev/fdset/0", "/nowhere/b", "/dev/null"];
        let files = names.map(|name| open(&door, &stream(name)).expect(name));
        let uses = registry.uses();
        assert_eq!(
            vias(&door),
            [Via::Name, Via::Set(set), Via::Set(set), Via::Path]
        );
        for (entry, name) in uses.iter().zip(names) {
            assert_eq!(entry.name, name);
            assert_eq!(entry.role, Role::Chardev);
            assert_eq!(entry.reason, "chardev 'c'");
            let handed = name != "/dev/null";
            assert_eq!(entry.origin, handed.then_some(Origin::CommandLine));
        }
        assert_eq!(uses[0].nature.kind, Kind::Fifo);
        let [first, second, third, fourth] = files;
        let again = second.try_clone().expect("an fd");
        drop((second, third, fourth));
        assert_eq!(
            vias(&door),
            [Via::Name, Via::Set(set)],
            "a clone is the same use"
        );
        drop((first, again));
        assert!(vias(&door).is_empty());
    }

    #[test]
    fn what_is_made_here_has_a_line_too() {
        let door = door();
        let spec = MemfdSpec {
            size: 4096,
            sealed: false,
            huge: None,
        };
        let memory = crate::memfd(&door, "ram", spec, Role::Memory, "object 'ram'");
        let pty = crate::pty(&door, Role::Chardev, "chardev 'c'").expect("a pty");
        assert_eq!(vias(&door), [Via::Anonymous; 2]);
        drop((memory, pty));
        assert!(vias(&door).is_empty());
    }

    #[test]
    fn whoever_connects_has_a_line_that_says_who_and_for_what() {
        let door = door();
        let name = format!("sesame-ledger-{}", std::process::id());
        let address = crate::SocketAddress::Abstract { name };
        let listener = crate::listen(&door, &address, Role::Chardev, "chardev 'c'");
        let listener = listener.expect("a listener");
        let ours = crate::connect(&door, &address, crate::Wait::ForPeer, Role::Net, "test");
        let caller = crate::accept(&listener).expect("somebody called");
        let uses = door.registry().uses();
        let entry = uses.last().expect("a line");
        assert_eq!(entry.via, Via::Accepted);
        assert_eq!(
            (entry.role, entry.reason.as_str()),
            (Role::Chardev, "chardev 'c'")
        );
        assert_eq!(entry.nature.kind, Kind::UnixStream);
        let peer = entry.origin.and_then(|origin| origin.peer());
        assert_eq!(peer.map(|peer| peer.pid), Some(std::process::id()));
        drop((ours, caller, listener));
        assert!(vias(&door).is_empty());
    }

    #[test]
    fn standard_streams_and_answers_of_the_hook_say_where_they_came_from() {
        let door = door();
        let streams = crate::standard_streams(&door, Role::Chardev, "chardev 'c'");
        let _streams = streams.expect("a test has them");
        let answers = Arc::new(crate::Answers::new());
        let peer = crate::Peer {
            pid: 7,
            uid: 8,
            gid: 9,
        };
        let reader = pipe().expect("a pipe").0;
        answers.put("/a", Access::ReadOnly, Ok(reader.into()), Some(peer));
        let asked = door.clone().with_answers(answers);
        let _given = open(&asked, &stream("/a")).expect("the answer");
        let origins: Vec<_> = door
            .registry()
            .uses()
            .into_iter()
            .map(|it| it.origin)
            .collect();
        let given = Origin::Hook { peer: Some(peer) };
        let inherited = Some(Origin::CommandLine);
        assert_eq!(origins, [inherited, inherited, Some(given)]);
        assert_eq!(vias(&door), [Via::Standard, Via::Standard, Via::Hook]);
    }

    #[test]
    fn a_failed_open_leaves_no_line() {
        let door = door();
        let fd = passed(pipe().expect("a pipe").0);
        door.registry().add(fd, None, None);
        let disk = Request::new("/dev/fdset/0", Access::ReadOnly, Role::Image, "node 'n'");
        assert!(open(&door, &disk).is_err());
        assert!(open(&door, &stream("/nowhere")).is_err());
        assert!(vias(&door).is_empty());
        assert!(!door.registry().waiting()[0].opened);
    }

    #[test]
    fn what_waits_is_listed_with_its_place_and_whether_it_was_opened() {
        let door = door();
        let registry = door.registry();
        let (set, fd) = registry.add(
            passed(pipe().expect("a pipe").0),
            None,
            Some("text".to_owned()),
        );
        registry
            .add_named(door.scope(), "a", passed(pipe().expect("a pipe").1))
            .expect("good name");
        drop(open(&door, &stream("/dev/fdset/0")).expect("a member"));
        let waiting = registry.waiting();
        assert_eq!(waiting[0].place, {
            let (scope, name) = (door.scope(), "a".to_owned());
            Place::Name { scope, name }
        });
        assert_eq!(waiting[0].nature.access, Some(Access::WriteOnly));
        assert!(!waiting[0].opened);
        let opaque = Some("text".to_owned());
        assert_eq!(waiting[1].place, Place::Set { set, opaque });
        assert_eq!((waiting[1].fd, waiting[1].opened), (fd, true));
    }

    #[test]
    fn an_fd_that_nobody_opens_in_time_is_told_of_once() {
        let door = door();
        let registry = door.registry();
        for id in [0, 1] {
            let fd = passed(pipe().expect("a pipe").0);
            registry.add(fd, FdsetId::new(id).ok(), None);
        }
        drop(open(&door, &stream("/dev/fdset/1")).expect("a member"));
        assert_eq!(registry.unclaimed_deadline(), None, "nobody asked for it");
        registry.set_patience(Some(SECOND));
        let since = registry.waiting()[0].since;
        assert_eq!(registry.unclaimed_deadline(), Some(since + SECOND));
        assert!(registry.take_unclaimed(since).is_empty());
        let told = registry.take_unclaimed(since + SECOND);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].place, registry.waiting()[0].place);
        assert!(registry.take_unclaimed(since + 9 * SECOND).is_empty());
        assert_eq!(registry.unclaimed_deadline(), None);
    }
}
