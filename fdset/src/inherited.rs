//! Fds that came with the process: raw numbers on the command line.
//!
//! A number proves nothing by itself. It is accepted if it is open, if it is not close-on-exec
//! (everything that Sesame opens is, so it must have been inherited), and if nobody has claimed
//! it before. From then on it is close-on-exec too.

use std::os::fd::{OwnedFd, RawFd};

use crate::error::{OpenError, Wanted};
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
    let outcome = take_inherited(number);
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
        Err(source) => Err(OpenError::os(wanted(), source)),
    }
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
    let wanted = || Wanted::new(format!("fd {name_or_number}"), role, reason);
    let first = name_or_number.bytes().next();
    if first.is_some_and(|byte| byte.is_ascii_digit() || byte == b'-') {
        let number = name_or_number.parse().map_err(|_| {
            OpenError::unfit(
                wanted(),
                "neither the number of an inherited fd nor the name of a passed one",
            )
        })?;
        return inherited(door, number, role, reason);
    }
    door.registry()
        .take(door.scope(), name_or_number)
        .ok_or_else(|| OpenError::NoSuchName { wanted: wanted() })
}
