//! Fds that came with the process: raw numbers on the command line.
//!
//! A number proves nothing by itself. It is accepted if it is open, if it is not close-on-exec
//! (everything that Sesame opens is, so it must have been inherited), and if nobody has claimed
//! it before. From then on it is close-on-exec too.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use crate::error::{OpenError, Wanted};
use crate::handover::Origin;
use crate::kernel::{Claim, take_inherited};
use crate::registry::Door;
use crate::request::Role;

/// Takes over the inherited fd `number`.
///
/// # Errors
/// When it is a standard stream, is not open, was not inherited, or was claimed before.
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
        Some(Ok(passed)) => {
            let origin = passed.origin();
            Ok((passed.into_fd(), origin))
        }
        Some(Err(problem)) => Err(OpenError::unfit(wanted(), problem)),
        None => Err(OpenError::NoSuchName { wanted: wanted() }),
    }
}

fn inherited_if(
    door: &Door,
    number: RawFd,
    role: Role,
    reason: &str,
    check: impl FnOnce(BorrowedFd<'_>) -> Result<(), String>,
) -> Result<OwnedFd, OpenError> {
    let wanted = || Wanted::new(format!("fd {number}"), role, reason);
    if number <= 2 {
        return Err(OpenError::unfit(
            wanted(),
            "a passed fd has a number from 3 on; \
             0, 1 and 2 are the standard streams and stay with the process",
        ));
    }
    if !door.registry().claim(number) {
        return Err(OpenError::unfit(
            wanted(),
            "this number was used before, and an fd has one user; \
             pass a second fd, or put it into an fd set and name it /dev/fdset/N",
        ));
    }
    let outcome = take_inherited(number, check);
    if !matches!(outcome, Ok(Claim::Taken(_))) {
        door.registry().unclaim(number);
    }
    match outcome {
        Ok(Claim::Taken(fd)) => Ok(fd),
        Ok(Claim::Ours) => Err(OpenError::unfit(
            wanted(),
            "this number was not inherited (it is close-on-exec); \
             the program that starts this one must clear FD_CLOEXEC on what it passes",
        )),
        Ok(Claim::Unfit(problem)) => Err(OpenError::unfit(wanted(), problem)),
        Err(source) => Err(OpenError::os(wanted(), source)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::sync::Arc;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;
    use crate::registry::{FdRegistry, Scope};
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
        assert!(text.contains("not inherited"), "{text}");
        assert!(
            fcntl(&reader, FcntlArg::F_GETFD).is_ok(),
            "it is still open"
        );
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
