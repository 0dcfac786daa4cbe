//! Fds that came with the process: raw numbers on the command line.
//!
//! A number proves nothing by itself. It is accepted if it was open when the process began and is
//! not close-on-exec (everything that Sesame opens is), if nobody has claimed it before, and on the
//! command line only: a client hands fds in, and cannot see what numbers they get.
//!
//! ```text
//!   main begins ─► Inherited: 3, 4, 7 ─► options claim 3 and 7 ─► 4 is adopted: query-fds tells
//! ```
//!
//! From the claim on an fd is close-on-exec too.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use crate::error::{OpenError, Wanted};
use crate::handover::Origin;
use crate::kernel::{Claim, is_inherited, take_inherited};
use crate::kind::{Kind, Nature, either};
use crate::lease::OpenFile;
use crate::ledger::Via;
use crate::registry::{Door, Scope};
use crate::request::{Access, Request, Role};

/// Where the kernel lists a process's own fds.
const OWN_FDS: &str = "/proc/self/fd";
/// The first number that is no standard stream.
const FIRST: RawFd = 3;

/// The fds that the process began with, beside the standard streams. Where `/proc` is not there
/// to tell, nothing is known, and close-on-exec alone has to tell ours from theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited(Option<BTreeSet<RawFd>>);

impl Inherited {
    /// Looks around. To be called before this process opens anything, and so first in `main`.
    #[must_use]
    pub fn at_start() -> Self {
        let Ok(entries) = std::fs::read_dir(OWN_FDS) else {
            return Self(None);
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let numbers: Vec<RawFd> = names.filter_map(|name| name.parse().ok()).collect();
        // The directory's own number is among them; it is close-on-exec, and closed by now.
        let inherited = |number: &RawFd| *number >= FIRST && is_inherited(*number);
        Self(Some(numbers.into_iter().filter(inherited).collect()))
    }
}

/// Why a number cannot be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoClaim {
    /// Somebody has it.
    Taken,
    /// It was not open when the process began.
    NotThere,
}

/// Who has asked for which number: pure bookkeeping.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    inherited: Inherited,
    taken: BTreeSet<RawFd>,
}

impl Claims {
    pub(crate) fn new(inherited: Inherited) -> Self {
        Self {
            inherited,
            taken: BTreeSet::new(),
        }
    }

    /// Claims a number.
    pub(crate) fn claim(&mut self, number: RawFd) -> Result<(), NoClaim> {
        let known = self.inherited.0.as_ref();
        if known.is_some_and(|known| !known.contains(&number)) {
            return Err(NoClaim::NotThere);
        }
        if self.taken.insert(number) {
            Ok(())
        } else {
            Err(NoClaim::Taken)
        }
    }

    /// Gives back a claim on a number behind which there was nothing to take.
    pub(crate) fn unclaim(&mut self, number: RawFd) {
        self.taken.remove(&number);
    }

    /// Claims all that nobody has.
    pub(crate) fn claim_rest(&mut self) -> Vec<RawFd> {
        let known = self.inherited.0.iter().flatten().copied();
        known.filter(|number| self.taken.insert(*number)).collect()
    }
}

/// Takes over the inherited fd `number`.
///
/// # Errors
/// When it is a standard stream, is not open, was not inherited, was claimed before, or a client
/// and not the command line names it.
pub fn inherited(
    door: &Door,
    number: RawFd,
    role: Role,
    reason: &str,
) -> Result<OwnedFd, OpenError> {
    inherited_if(door, number, role, reason, |_| Ok(()))
}

/// What an `fd=` option means: a number is an inherited fd, anything else the name of one that
/// `getfd` brought, which is used up.
///
/// # Errors
/// As [`inherited`]; or when no fd has the name.
pub fn passed(
    door: &Door,
    name_or_number: &str,
    role: Role,
    reason: &str,
) -> Result<OwnedFd, OpenError> {
    passed_if(door, name_or_number, role, reason, |_| Ok(()))
}

/// What a property takes that names an fd and nothing else: the number of an inherited fd, the name
/// of one that `getfd` brought, or anything that [`open`](crate::open()) takes. It must be of one
/// of `kinds`, and can be read and written.
///
/// # Errors
/// As [`passed`] and [`open`](crate::open()).
pub fn handed_in(
    door: &Door,
    name_or_number: &str,
    role: Role,
    kinds: &[Kind],
    reason: &str,
) -> Result<OpenFile, OpenError> {
    if name_or_number.starts_with(|first: char| first.is_ascii_digit()) {
        let mut nature = None;
        let check = |fd: BorrowedFd<'_>| {
            let came = nature.insert(Nature::of(fd)).kind;
            if kinds.contains(&came) {
                return Ok(());
            }
            Err(format!("it is {came}; needed is {}", either(kinds)))
        };
        let (fd, origin) = take_passed(door, name_or_number, role, reason, check)?;
        let wanted = Wanted::new(format!("fd {name_or_number}"), role, reason);
        let nature = nature.unwrap_or_else(|| Nature::of(&fd));
        let lease = door.lease(wanted, Via::Name, nature, Some(origin));
        return Ok(OpenFile::new(fd, Some(lease)));
    }
    let is_plain = !name_or_number.contains('/') && !name_or_number.starts_with("fd:");
    let named = is_plain.then(|| format!("fd:{name_or_number}"));
    let name = named.as_deref().unwrap_or(name_or_number);
    crate::open(
        door,
        &Request::new(name, Access::ReadWrite, role, reason).kinds(kinds),
    )
}

/// As [`passed`], for a role that not every fd can fill: `check` says what is wrong with it,
/// what was needed, and the fix. It may only look; an fd that it refuses stays where it was.
///
/// # Errors
/// As [`passed`]; or what `check` says.
pub fn passed_if(
    door: &Door,
    name_or_number: &str,
    role: Role,
    reason: &str,
    check: impl FnOnce(BorrowedFd<'_>) -> Result<(), String>,
) -> Result<OwnedFd, OpenError> {
    take_passed(door, name_or_number, role, reason, check).map(|(fd, _)| fd)
}

/// As [`passed_if`], and says who handed it over.
pub(crate) fn take_passed(
    door: &Door,
    name_or_number: &str,
    role: Role,
    reason: &str,
    check: impl FnOnce(BorrowedFd<'_>) -> Result<(), String>,
) -> Result<(OwnedFd, Origin), OpenError> {
    let wanted = || Wanted::new(format!("fd {name_or_number}"), role, reason);
    let first = name_or_number.bytes().next();
    if first.is_some_and(|byte| byte.is_ascii_digit() || byte == b'-') {
        let number = name_or_number.parse().map_err(|_| {
            OpenError::unfit(
                wanted(),
                "neither the number of an inherited fd nor the name of a passed one",
            )
        })?;
        let fd = inherited_if(door, number, role, reason, check)?;
        return Ok((fd, Origin::CommandLine));
    }
    match door.registry().take_if(door.scope(), name_or_number, check) {
        Some(Ok((_, passed))) => {
            let origin = passed.origin();
            Ok((passed.into_fd(), origin))
        }
        Some(Err(problem)) => Err(OpenError::unfit(wanted(), problem)),
        None => Err(OpenError::NoSuchName { wanted: wanted() }),
    }
}

/// Standard input and output, to be used beside whoever else has them: fds of our own for the
/// same open files.
///
/// # Errors
/// No fd is left, or a stream is closed.
pub fn standard_streams(door: &Door, role: Role, reason: &str) -> io::Result<(OpenFile, OpenFile)> {
    let copy = |stream: BorrowedFd<'_>, name: &str| -> io::Result<OpenFile> {
        let fd = stream.try_clone_to_owned()?;
        let wanted = Wanted::new(name, role, reason);
        let origin = Some(Origin::CommandLine);
        let lease = door.lease(wanted, Via::Standard, Nature::of(&fd), origin);
        Ok(OpenFile::new(fd, Some(lease)))
    };
    let input = copy(io::stdin().as_fd(), "standard input")?;
    Ok((input, copy(io::stdout().as_fd(), "standard output")?))
}

fn inherited_if(
    door: &Door,
    number: RawFd,
    role: Role,
    reason: &str,
    check: impl FnOnce(BorrowedFd<'_>) -> Result<(), String>,
) -> Result<OwnedFd, OpenError> {
    let wanted = || Wanted::new(format!("fd {number}"), role, reason);
    if number < FIRST {
        return Err(OpenError::unfit(
            wanted(),
            "a passed fd has a number from 3 on; \
             0, 1 and 2 are the standard streams and stay with the process",
        ));
    }
    if door.scope() != Scope::Process {
        return Err(OpenError::unfit(
            wanted(),
            "a number names an inherited fd on the command line only; \
             hand the fd in with getfd and give its name",
        ));
    }
    match door.registry().claim(number) {
        Ok(()) => {}
        Err(NoClaim::Taken) => {
            return Err(OpenError::unfit(
                wanted(),
                "this number was used before, and an fd has one user; \
                 pass a second fd, or put it into an fd set and name it /dev/fdset/N",
            ));
        }
        Err(NoClaim::NotThere) => return Err(not_inherited(wanted(), number)),
    }
    let outcome = take_inherited(number, check);
    if !matches!(outcome, Ok(Claim::Taken(_))) {
        door.registry().unclaim(number);
    }
    match outcome {
        Ok(Claim::Taken(fd)) => Ok(fd),
        Ok(Claim::Ours) => Err(not_inherited(wanted(), number)),
        Ok(Claim::Unfit(problem)) => Err(OpenError::unfit(wanted(), problem)),
        Err(source) => Err(OpenError::os(wanted(), source)),
    }
}

/// What is behind a number that was inherited and claimed for nobody.
pub(crate) fn take_unclaimed(number: RawFd) -> Option<OwnedFd> {
    match take_inherited(number, |_| Ok::<(), ()>(())) {
        Ok(Claim::Taken(fd)) => Some(fd),
        Ok(Claim::Ours | Claim::Unfit(())) | Err(_) => None,
    }
}

fn not_inherited(wanted: Wanted, number: RawFd) -> OpenError {
    OpenError::unfit(
        wanted,
        format!(
            "the process did not begin with an fd {number}; the program that starts it must leave \
             the fd open, with FD_CLOEXEC cleared"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::sync::Arc;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;
    use crate::ledger::Place;
    use crate::registry::FdRegistry;
    use crate::watch::passed as given;

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Process)
    }

    /// What a parent would have left us: an fd without close-on-exec that nobody owns.
    fn left_by_a_parent() -> RawFd {
        let (reader, _) = pipe().expect("a pipe");
        nix::unistd::dup(&reader).expect("an fd").into_raw_fd()
    }

    fn refusal(door: &Door, text: &str) -> String {
        passed(door, text, Role::CommandLine, "-add-fd")
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn an_inherited_fd_is_taken_once_and_becomes_close_on_exec() {
        let door = door();
        let number = left_by_a_parent();
        let fd = inherited(&door, number, Role::CommandLine, "-add-fd").expect("inherited");
        assert_eq!(fd.as_raw_fd(), number);
        assert_eq!(fcntl(&fd, FcntlArg::F_GETFD), Ok(nix::libc::FD_CLOEXEC));
        let again = refusal(&door, &number.to_string());
        assert!(again.contains("used before"), "{again}");
    }

    #[test]
    fn an_fd_of_our_own_is_not_taken_for_an_inherited_one() {
        let door = door();
        let (reader, _writer) = pipe().expect("a pipe");
        let text = refusal(&door, &reader.as_raw_fd().to_string());
        assert!(text.contains("did not begin with an fd"), "{text}");
        assert!(
            fcntl(&reader, FcntlArg::F_GETFD).is_ok(),
            "it is still open"
        );
    }

    #[test]
    fn a_number_that_came_to_be_later_is_never_taken() {
        let number = left_by_a_parent();
        let inherited = Inherited::at_start();
        let late = left_by_a_parent();
        let door = Door::new(
            Arc::new(FdRegistry::with_inherited(inherited)),
            Scope::Process,
        );
        let text = refusal(&door, &late.to_string());
        assert!(text.contains("did not begin with an fd"), "{text}");
        inherited_by(&door, number).expect("it was there");
    }

    fn inherited_by(door: &Door, number: RawFd) -> Result<OwnedFd, OpenError> {
        inherited(door, number, Role::CommandLine, "-add-fd")
    }

    #[test]
    fn a_client_cannot_name_a_number() {
        let number = left_by_a_parent();
        let door = door();
        let text = refusal(&door.within(Scope::Monitor(0)), &number.to_string());
        assert!(text.contains("on the command line only"), "{text}");
        inherited_by(&door, number).expect("the command line can");
    }

    #[test]
    fn what_no_option_claims_is_adopted_and_told_of() {
        let (claimed, left) = (left_by_a_parent(), left_by_a_parent());
        // Of all that other tests have open, only these two are inherited here.
        let known = Inherited(Some([claimed, left].into()));
        let registry = Arc::new(FdRegistry::with_inherited(known));
        let door = Door::new(Arc::clone(&registry), Scope::Process);
        let _mine = inherited_by(&door, claimed).expect("it was there");
        registry.adopt_unclaimed();
        let waiting = registry.waiting();
        assert_eq!(waiting.len(), 1);
        assert_eq!((waiting[0].fd, &waiting[0].place), (left, &Place::Number));
        assert_eq!(waiting[0].origin, Origin::Inheritance);
        assert!(!waiting[0].opened);
        let text = refusal(&door, &left.to_string());
        assert!(text.contains("used before"), "{text}");
        registry.adopt_unclaimed();
        assert_eq!(registry.waiting().len(), 1);
    }

    #[test]
    fn a_number_without_a_file_may_be_tried_again() {
        let door = door();
        for _ in 0..2 {
            let error = inherited(&door, RawFd::MAX, Role::CommandLine, "-add-fd");
            assert_eq!(error.expect_err("nothing there").errno(), nix::libc::EBADF);
        }
    }

    #[test]
    fn numbers_that_cannot_be_passed_fds_are_refused() {
        for text in ["0", "1", "2", "-1", "-2147483648"] {
            let text = refusal(&door(), text);
            assert!(text.contains("from 3 on"), "{text}");
        }
        for text in ["3x", "99999999999", "-"] {
            let text = refusal(&door(), text);
            assert!(text.contains("neither the number"), "{text}");
        }
        assert!(refusal(&door(), "nobody").contains("no fd has this name"));
        assert!(refusal(&door(), "").contains("no fd has this name"));
    }

    #[test]
    fn what_a_check_refuses_stays_where_it_was() {
        let door = door();
        let number = left_by_a_parent();
        let (reader, _writer) = pipe().expect("a pipe");
        door.registry()
            .add_named(Scope::Process, "pipe", given(reader))
            .expect("good name");
        for name in [number.to_string().as_str(), "pipe"] {
            let refuse = |_: BorrowedFd<'_>| Err("a pipe is no tap".to_owned());
            let error = passed_if(&door, name, Role::Net, "netdev 'n'", refuse);
            let text = error.expect_err("refused").to_string();
            assert_eq!(
                text,
                format!(
                    "Could not open 'fd {name}' as network backend of netdev 'n': \
                     a pipe is no tap"
                )
            );
            passed(&door, name, Role::Chardev, "chardev 'c'").expect("it is still there");
        }
    }
}
