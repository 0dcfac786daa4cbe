//! Fd sets: pure bookkeeping, without a lock and without closing anything itself.
//!
//! ```text
//!              add                      remove (last member)
//!   (absent) ───────► members > 0 ─────────────────────────► members = 0, leases > 0
//!       ▲                 │  ▲                                    │    │
//!       │                 │  └──────────────── add ───────────────┘    │ last lease drops
//!       └─────────────────┴── remove (last member), no lease ◄─────────┘
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::RegistryError;
use crate::handover::{Handover, Origin};
use crate::kind::{Kind, Nature};
use crate::lease::Identity;
use crate::limits::{MAX_MEMBERS, MAX_OPAQUE};
use crate::registry::Scope;
use crate::request::{Access, Request};

/// The id of an fd set; never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FdsetId(i64);

impl FdsetId {
    /// The id `value`.
    ///
    /// # Errors
    /// When it is negative.
    pub fn new(value: i64) -> Result<Self, RegistryError> {
        if value < 0 {
            return Err(RegistryError::NegativeId);
        }
        Ok(Self(value))
    }

    /// The number, 0 or more.
    #[must_use]
    pub fn value(self) -> i64 {
        self.0
    }

    /// Reads a plain decimal number: no sign, no white space.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        text.parse().ok().map(Self)
    }
}

impl fmt::Display for FdsetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One set as `query-fdsets` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fdset {
    /// The set's id.
    pub id: FdsetId,
    /// Its members, in the order in which they came.
    pub members: Vec<Member>,
}

/// One member of a set as `query-fdsets` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number in this process.
    pub fd: RawFd,
    /// The text its sender attached to it.
    pub opaque: Option<String>,
}

/// Why a set could not serve a request.
#[derive(Debug)]
pub(crate) enum NoDup {
    /// There is no such set.
    NoSuchSet,
    /// All its members are of a wrong kind; this is the first one's.
    WrongKind(Kind),
    /// The role takes one file, and these members, each of which would do, are different ones.
    SeveralFiles(Vec<(RawFd, Option<Identity>)>),
    /// None of the members of the right kind has the wanted access mode.
    NoMember(Vec<(RawFd, Option<Access>)>),
    /// The fd could not be duplicated.
    Os(io::Error),
}

#[derive(Debug)]
struct Held {
    passed: Handover,
    opaque: Option<String>,
    direct: bool,
}

#[derive(Debug, Default)]
struct Set {
    members: Vec<Held>,
    leases: usize,
}

impl Set {
    /// Whether nothing keeps it.
    fn is_idle(&self) -> bool {
        self.members.is_empty() && self.leases == 0
    }

    /// The first member of a right kind whose access mode is exactly the wanted one. One whose
    /// `O_DIRECT` flag is as wanted comes before one whose flag is not: managers pass both, but a
    /// single one serves too.
    fn serving(&mut self, request: &Request<'_>) -> Result<&mut Held, NoDup> {
        let kind = |held: &Held| held.passed.nature().kind;
        if let Some(first) = self.members.first()
            && !self.members.iter().any(|held| request.takes(kind(held)))
        {
            return Err(NoDup::WrongKind(kind(first)));
        }
        let fits = |held: &Held| {
            let nature = held.passed.nature();
            let may = nature.access == Some(request.access) || request.is_place(nature.kind);
            may && request.takes(nature.kind)
        };
        if request.role.is_one_file() {
            self.check_one_file(fits)?;
        }
        let best = |held: &Held| fits(held) && held.direct == request.direct;
        let at = self
            .members
            .iter()
            .position(best)
            .or_else(|| self.members.iter().position(fits));
        match at {
            Some(at) => Ok(&mut self.members[at]),
            None => Err(NoDup::NoMember(
                self.members
                    .iter()
                    .map(|held| (held.passed.as_raw_fd(), held.passed.nature().access))
                    .collect(),
            )),
        }
    }
}

impl Set {
    /// Which of several members that fit is taken must not matter: they are one file. Members with
    /// another access mode may be other files; a set is often made before anyone knows what it is
    /// for. Who opens the name again with another mode compares what comes with what it has
    /// ([`Expected`](crate::Expected)).
    fn check_one_file(&self, fits: impl Fn(&Held) -> bool) -> Result<(), NoDup> {
        let files: Vec<_> = self
            .members
            .iter()
            .filter(|held| fits(held))
            .map(|held| (held.passed.as_raw_fd(), held.passed.nature().identity))
            .collect();
        let differ = |pair: &[(RawFd, Option<Identity>)]| pair[0].1 != pair[1].1;
        if files.windows(2).any(differ) {
            return Err(NoDup::SeveralFiles(files));
        }
        Ok(())
    }
}

/// A member that was duplicated.
#[derive(Debug)]
pub(crate) struct Dup {
    pub(crate) fd: OwnedFd,
    /// What it was when it came.
    pub(crate) nature: Nature,
    /// Who handed the member over.
    pub(crate) origin: Origin,
}

/// All sets of the process, by id.
#[derive(Debug, Default)]
pub(crate) struct Fdsets(BTreeMap<FdsetId, Set>);

impl Fdsets {
    /// Puts an fd into set `id`, or into a new one with the lowest free id.
    pub(crate) fn add(
        &mut self,
        passed: Handover,
        id: Option<FdsetId>,
        opaque: Option<String>,
    ) -> (FdsetId, RawFd) {
        let id = id.unwrap_or_else(|| self.lowest_free());
        let number = passed.as_raw_fd();
        let flags = fcntl(&passed, FcntlArg::F_GETFL).unwrap_or(0);
        let held = Held {
            direct: OFlag::from_bits_retain(flags).contains(OFlag::O_DIRECT),
            passed,
            opaque,
        };
        self.0.entry(id).or_default().members.push(held);
        (id, number)
    }

    /// Whether one more member with this text may be added for a client.
    pub(crate) fn admit(&self, opaque: Option<&str>) -> Result<(), RegistryError> {
        let length = opaque.map_or(0, str::len);
        if length > MAX_OPAQUE {
            return Err(RegistryError::TooLong {
                parameter: "opaque",
                came: length,
                limit: MAX_OPAQUE,
            });
        }
        let members: usize = self.0.values().map(|set| set.members.len()).sum();
        if members >= MAX_MEMBERS {
            return Err(RegistryError::Full {
                what: "file descriptors in fd sets",
                limit: MAX_MEMBERS,
                fix: "take some back with remove-fd",
            });
        }
        Ok(())
    }

    /// Takes out one member, or all; the caller closes what comes back.
    pub(crate) fn remove(
        &mut self,
        id: i64,
        fd: Option<i64>,
    ) -> Result<Vec<Handover>, RegistryError> {
        let key = FdsetId(id);
        let set = self.0.get_mut(&key).ok_or_else(|| no_such(id, fd))?;
        let out: Vec<Handover> = match fd {
            None => set.members.drain(..).map(|held| held.passed).collect(),
            Some(number) => {
                let at = set
                    .members
                    .iter()
                    .position(|held| i64::from(held.passed.as_raw_fd()) == number)
                    .ok_or_else(|| no_such(id, fd))?;
                vec![set.members.remove(at).passed]
            }
        };
        self.vanish_if_idle(key);
        Ok(out)
    }

    /// Takes out all members that are bound to a scope that has ended, for the caller to close;
    /// and says which sets have gone with them.
    pub(crate) fn end(&mut self, scope: Scope) -> (Vec<Handover>, Vec<FdsetId>) {
        let mut out = Vec::new();
        let mut gone = Vec::new();
        self.0.retain(|id, set| {
            let before = set.members.len();
            let ended = set
                .members
                .extract_if(.., |held| held.passed.ends_with() == Some(scope));
            out.extend(ended.map(|held| held.passed));
            let goes = before > set.members.len() && set.is_idle();
            gone.extend(goes.then_some(*id));
            !goes
        });
        (out, gone)
    }

    /// Duplicates the member that serves `request`, and counts a lease.
    pub(crate) fn dup(&mut self, id: FdsetId, request: &Request<'_>) -> Result<Dup, NoDup> {
        let set = self.0.get_mut(&id).ok_or(NoDup::NoSuchSet)?;
        let passed = &mut set.serving(request)?.passed;
        let fd = passed.as_fd().try_clone_to_owned().map_err(NoDup::Os)?;
        passed.note_open();
        let dup = Dup {
            fd,
            nature: passed.nature(),
            origin: passed.origin(),
        };
        set.leases += 1;
        Ok(dup)
    }

    /// What the member is that serves `request`.
    pub(crate) fn look(&mut self, id: FdsetId, request: &Request<'_>) -> Option<Nature> {
        let member = self.0.get_mut(&id)?.serving(request).ok()?;
        Some(member.passed.nature())
    }

    /// A duplicate of the member that serves `request`; it counts no lease.
    pub(crate) fn peek(&mut self, id: FdsetId, request: &Request<'_>) -> Option<OwnedFd> {
        let member = self.0.get_mut(&id)?.serving(request).ok()?;
        member.passed.as_fd().try_clone_to_owned().ok()
    }

    /// All members, each with its set and its text, by rising id.
    pub(crate) fn members(
        &mut self,
    ) -> impl Iterator<Item = (FdsetId, Option<&str>, &mut Handover)> {
        self.0.iter_mut().flat_map(|(id, set)| {
            let members = set.members.iter_mut();
            members.map(|held| (*id, held.opaque.as_deref(), &mut held.passed))
        })
    }

    /// Takes a lease back.
    pub(crate) fn release(&mut self, id: FdsetId) {
        if let Some(set) = self.0.get_mut(&id) {
            set.leases = set.leases.saturating_sub(1);
        }
        self.vanish_if_idle(id);
    }

    /// Whether there is such a set.
    pub(crate) fn contains(&self, id: FdsetId) -> bool {
        self.0.contains_key(&id)
    }

    /// All sets, by rising id.
    pub(crate) fn list(&self) -> Vec<Fdset> {
        self.0
            .iter()
            .map(|(id, set)| Fdset {
                id: *id,
                members: set
                    .members
                    .iter()
                    .map(|held| Member {
                        fd: held.passed.as_raw_fd(),
                        opaque: held.opaque.clone(),
                    })
                    .collect(),
            })
            .collect()
    }

    fn vanish_if_idle(&mut self, id: FdsetId) {
        if self.0.get(&id).is_some_and(Set::is_idle) {
            self.0.remove(&id);
        }
    }

    fn lowest_free(&self) -> FdsetId {
        let mut free = 0;
        for id in self.0.keys() {
            // Ids rise: the first that jumps ahead leaves this one free.
            if id.0 != free {
                break;
            }
            free += 1;
        }
        FdsetId(free)
    }
}

fn no_such(set: i64, fd: Option<i64>) -> RegistryError {
    match fd {
        None => RegistryError::NoSuchSet(set),
        Some(fd) => RegistryError::NoSuchMember { set, fd },
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use super::*;
    use crate::request::Role;
    use crate::watch::raise_fd_limit;

    fn passed(fd: impl Into<OwnedFd>) -> Handover {
        Handover::new(fd.into(), Origin::CommandLine)
    }

    fn fd() -> Handover {
        passed(pipe().expect("a pipe").0)
    }

    fn id(value: i64) -> FdsetId {
        FdsetId::new(value).expect("not negative")
    }

    #[test]
    fn automatic_ids_fill_the_lowest_gap() {
        let mut sets = Fdsets::default();
        assert_eq!(sets.add(fd(), None, None).0, id(0));
        sets.add(fd(), Some(id(1)), None);
        sets.add(fd(), Some(id(3)), None);
        sets.add(fd(), Some(id(i64::MAX)), None);
        assert_eq!(sets.add(fd(), None, None).0, id(2));
        assert_eq!(sets.add(fd(), None, None).0, id(4));
    }

    #[test]
    fn only_plain_decimal_numbers_are_ids() {
        assert_eq!(FdsetId::parse("0"), Some(id(0)));
        assert_eq!(FdsetId::parse("9223372036854775807"), Some(id(i64::MAX)));
        for text in [
            "",
            "-1",
            "+1",
            " 1",
            "1 ",
            "0x1",
            "1/2",
            "9223372036854775808",
            "١",
        ] {
            assert_eq!(FdsetId::parse(text), None, "{text:?}");
        }
        assert_eq!(FdsetId::new(-1), Err(RegistryError::NegativeId));
    }

    #[test]
    fn of_a_pair_the_member_with_the_wanted_o_direct_flag_is_taken() {
        let mut sets = Fdsets::default();
        // The write end of a pipe in packet mode has the flag, whatever the file system.
        let flags = [OFlag::O_CLOEXEC, OFlag::O_CLOEXEC | OFlag::O_DIRECT];
        for flags in flags {
            let (_, writer) = nix::unistd::pipe2(flags).expect("a pipe");
            sets.add(passed(writer), Some(id(0)), None);
        }
        let writer =
            |direct| Request::new("", Access::WriteOnly, Role::Snapshot, "test").direct(direct);
        let is_direct = |fd: OwnedFd| {
            let flags = fcntl(&fd, FcntlArg::F_GETFL).expect("flags");
            OFlag::from_bits_retain(flags).contains(OFlag::O_DIRECT)
        };
        for direct in [true, false] {
            let fd = sets.dup(id(0), &writer(direct)).expect("a member").fd;
            assert_eq!(is_direct(fd), direct);
        }
        let ordinary = sets.list()[0].members[0].fd;
        sets.remove(0, Some(ordinary.into())).expect("it is there");
        let fd = sets.dup(id(0), &writer(false)).expect("the one left").fd;
        assert!(is_direct(fd));
    }

    #[test]
    fn a_client_adds_members_and_text_up_to_the_limit() {
        let mut sets = Fdsets::default();
        let long = "x".repeat(MAX_OPAQUE + 1);
        assert!(sets.admit(Some(&long[1..])).is_ok());
        let text = sets.admit(Some(&long)).expect_err("too long").to_string();
        assert_eq!(text, "Parameter 'opaque' has 8193 bytes; the most is 8192");
        let source = fd();
        raise_fd_limit();
        for _ in 0..MAX_MEMBERS {
            let copy = source.as_fd().try_clone_to_owned().expect("an fd");
            assert!(sets.admit(None).is_ok());
            sets.add(passed(copy), Some(id(0)), None);
        }
        let text = sets.admit(None).expect_err("full").to_string();
        assert_eq!(
            text,
            "There are 4096 file descriptors in fd sets already, which is the most; \
             take some back with remove-fd first"
        );
        sets.remove(0, None).expect("it is there");
        assert!(sets.admit(None).is_ok());
    }

    #[test]
    fn a_lease_too_many_given_back_does_no_harm() {
        let mut sets = Fdsets::default();
        sets.add(fd(), Some(id(7)), None);
        sets.release(id(7));
        sets.release(id(8));
        assert_eq!(sets.list().len(), 1);
    }
}
